"""Try settings against each other: every combination with every seed, chosen on validation.

    python baselines/sweep.py --vary learning-rate=3e-4,6e-4 pooling=mean,last --seeds 1 2 3
    python baselines/sweep.py --vary train=last:2,all --folds 5 -- --data mine.csv --epochs 3
    python baselines/sweep.py --task instruction --vary train-on-prompt=no,yes -- --data mine.jsonl

What follows `--` goes to every run as it is. A combination is a run of the task's own script in a
folder of its own under --out; stopped and started again, the sweep does only what is missing. The
test split is read once, at the end, by the runs of the line that is chosen.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # the code that lies here runs, whatever else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads sleep

import itertools
import shlex
import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

import classification.train_gpt
import instruction.instruction_finetuning
from baselines.running import mean_and_deviation, run_once, words_before_and_after_dashes
from gpt2.support.errors import UserError
from gpt2.support.files import write_json
from gpt2.support.flags import flag, parse_flags
from gpt2.support.script import run_script
from gpt2.support.tables import format_table, save_picture

SCRIPTS = {
    "classification": ("classification/train_gpt.py", classification.train_gpt.SETTINGS),
    "instruction": (
        "instruction/instruction_finetuning.py", instruction.instruction_finetuning.SETTINGS,
    ),
}  # fmt: skip
_OWN_FLAGS = set("--seed --out --resume --overwrite --report-on --fold --export".split())


@dataclass
class SweepSettings:
    """Sweep"""

    task: str = flag(
        "classification", "what is learnt, and so which script runs",
        choices=("classification", "instruction"),
    )  # fmt: skip
    vary: tuple[str, ...] = flag(
        (), "flags of the script and their values: learning-rate=3e-4,6e-4 pooling=mean,last; a "
        "flag without a value takes yes and no",
    )  # fmt: skip
    seeds: tuple[int, ...] = flag(
        (1,), "seeds of each combination; several show what is luck", at_least=0
    )
    folds: int = flag(
        0, "validate on each of so many parts of the training rows in turn; 0 on the split's own "
        "validation rows", at_least=0,
    )  # fmt: skip
    by: str = flag(
        "loss", "what the best line is chosen by, on validation; the loss is finer than the others",
        choices=("loss", "accuracy", "f1"),
    )  # fmt: skip
    out: str = flag("runs/sweep", "folder for the runs, sweep.json, sweep.md and sweep.png")


@dataclass
class Line:
    """One combination: the varied flags, and its runs with their results."""

    flags: dict[str, str]
    command: list[str]
    folders: list[Path]
    results: list[dict[str, Any]]

    def values(self, metric: str) -> list[float]:
        return [run["after"]["validation"][metric] for run in self.results]

    @property
    def name(self) -> str:
        return " ".join(f"{name}={value}" for name, value in self.flags.items())


def combinations(vary: tuple[str, ...]) -> list[dict[str, str]]:
    """Every choice of one value for each of `NAME=VALUE,VALUE`, the last one varying fastest.

    >>> combinations(("train=head,all", "pooling=mean"))
    [{'train': 'head', 'pooling': 'mean'}, {'train': 'all', 'pooling': 'mean'}]
    """
    names: dict[str, list[str]] = {}
    for item in vary:
        name, equals, values = item.removeprefix("--").partition("=")
        if not equals or not name or not all(values.split(",")):
            raise UserError(f"--vary {item}: must be NAME=VALUE,VALUE ..., as pooling=mean,last")
        if name in names or f"--{name}" in _OWN_FLAGS:
            why = "is given twice" if name in names else "is set by the sweep itself"
            raise UserError(f"--vary {item}: {name} {why}")
        names[name] = values.split(",")
        if len(set(names[name])) < len(names[name]):
            raise UserError(f"--vary {item}: names a value twice")
    return [dict(zip(names, chosen, strict=True)) for chosen in itertools.product(*names.values())]


def as_flags(chosen: dict[str, str]) -> list[str]:
    """A combination as the script's flags.

    >>> as_flags({"train": "head", "train-on-prompt": "yes", "shard": "no"})
    ['--train', 'head', '--train-on-prompt']
    """
    words = []
    for name, value in chosen.items():
        if value == "yes":
            words.append(f"--{name}")
        elif value != "no":
            words += [f"--{name}", value]
    return words


def make_lines(settings: SweepSettings, extra: list[str]) -> list[Line]:
    """All combinations with the folders of their runs; the flags of each are checked before any
    run starts. Raises UserError."""
    script, settings_classes = SCRIPTS[settings.task]
    lines = []
    for chosen in combinations(settings.vary):
        words = [*extra, *as_flags(chosen)]
        try:
            parse_flags(settings_classes, "", words)
        except UserError as error:
            raise UserError(f"--vary {' '.join(settings.vary)}: {error}") from None
        name = "_".join(f"{key}={value}" for key, value in chosen.items()).replace("/", "-")
        lines.append(Line(chosen, [script, *words], [Path(settings.out) / name], []))
    return lines


def run_all(lines: list[Line], settings: SweepSettings) -> None:
    """Run what is missing and fill in the results."""
    folds = [f"{k}/{settings.folds}" for k in range(1, settings.folds + 1)] or [""]
    runs = [(line, seed, fold) for line in lines for seed in settings.seeds for fold in folds]
    places = {id(line): line.folders.pop() for line in lines}
    for line, seed, fold in tqdm(runs, unit="run", disable=None):
        part = f"-fold-{fold.split('/')[0]}" if fold else ""
        folder = places[id(line)] / f"seed-{seed}{part}"
        words = [*line.command, "--seed", str(seed), "--report-on", "validation"]
        words += ["--fold", fold] if fold else []
        results = run_once([*words, "--resume", "auto"], folder)
        line.folders.append(folder)
        line.results.append(results)
        loss = results["after"]["validation"]["loss"]
        tqdm.write(f"{line.name or 'as it is'}, {folder.name}: validation loss {loss:.4f}")


def choose(lines: list[Line], by: str) -> Line:
    """The line with the best mean on validation."""
    means = [np.mean(line.values(by)) for line in lines]
    return lines[int(np.argmin(means) if by == "loss" else np.argmax(means))]


def test_chosen(chosen: Line, task: str) -> list[dict[str, float]]:
    """The metrics of the chosen line's runs on the test split, which is read here for the first
    time."""
    found = []
    for folder in chosen.folders:
        place = folder / "test"
        if not (place / "results.json").is_file():
            shutil.rmtree(place, ignore_errors=True)  # a kill may have left a part of it
        results = run_once([f"{task}/evaluate.py", str(folder)], place)
        found.append(results["metrics"])
    return found


def sweep_table(lines: list[Line], best: Line, metrics: list[str]) -> str:
    """One line a combination: mean and standard deviation on validation, and the seconds."""
    rows = []
    for line in lines:
        seconds = np.mean([run["training"]["seconds"] for run in line.results])
        cells = [_say(line.values(metric), metric) for metric in metrics]
        chosen = "chosen" if line is best else ""
        rows.append([*line.flags.values(), len(line.results), *cells, f"{seconds:,.0f}", chosen])
    header = [*lines[0].flags, "runs", *metrics, "training s", ""]
    return format_table(header, rows)


def _say(values: list[float], metric: str) -> str:
    if metric == "loss":
        return mean_and_deviation(values, digits=4)
    return mean_and_deviation([100 * value for value in values], digits=1)


def plot_lines(lines: list[Line], metric: str, file: Path) -> None:
    """Each run as a dot and each line's mean as a bar, one combination below the other."""

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        for place, line in enumerate(lines):
            values = line.values(metric)
            axis.plot(values, [place] * len(values), "o", color="tab:blue", alpha=0.5)
            axis.plot([np.mean(values)], [place], "|", markersize=18, color="tab:blue")
        axis.set_yticks(range(len(lines)), [line.name or "as it is" for line in lines])
        axis.invert_yaxis()
        axis.set_xlabel(f"validation {metric}, each run and the mean")
        axis.grid(alpha=0.3)

    save_picture(file, (7, 1 + 0.5 * len(lines)), draw)


def main() -> None:
    words, extra = words_before_and_after_dashes(_OWN_FLAGS)
    about = "Try settings against each other; flags after -- go to every run."
    (settings,) = parse_flags([SweepSettings], about, words)
    if len(set(settings.seeds)) < len(settings.seeds):
        raise UserError(f"--seeds {' '.join(map(str, settings.seeds))}: names a seed twice")
    if settings.folds == 1:
        raise UserError("--folds 1: must be 0, or at least 2")
    metrics = ["loss", "accuracy", "f1"] if settings.task == "classification" else ["loss"]
    if settings.by not in metrics:
        raise UserError(f"--by {settings.by}: instructions are chosen by their loss")
    lines = make_lines(settings, extra)
    run_all(lines, settings)
    best = choose(lines, settings.by)
    table = sweep_table(lines, best, metrics)
    tested = test_chosen(best, settings.task)
    shown = ", ".join(f"{name} {_say([found[name] for found in tested], name)}" for name in metrics)
    test_line = f"test split, the chosen line alone: {shown}"
    commands = [f"- {line.name or 'as it is'}: `python {shlex.join(line.command)}`"
                for line in lines]  # fmt: skip

    out = Path(settings.out)
    parts = ["# Sweep, on validation", table, test_line, "![validation of each run](sweep.png)",
             "\n".join(commands)]  # fmt: skip
    (out / "sweep.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    plot_lines(lines, settings.by, out / "sweep.png")
    content = [
        {"flags": line.flags, "command": line.command, "chosen": line is best,
         "folders": [str(folder) for folder in line.folders],
         "validation": {metric: line.values(metric) for metric in metrics},
         "seconds": [run["training"]["seconds"] for run in line.results]}
        for line in lines
    ]  # fmt: skip
    write_json(out / "sweep.json", {"by": settings.by, "lines": content, "test": tested})
    print(f"\n{table}\n\n{test_line}\n\neverything of this sweep: {out / 'sweep.md'}")


if __name__ == "__main__":
    run_script(main)
