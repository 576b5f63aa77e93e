"""What pre-training buys: how good fine-tuned models are, against the rows they learnt from.

Each point is one run of the task's own script, in a folder of its own under --out, from random and
from pretrained weights; for classification the three bags of words stand beside them. A curve that
is stopped goes on where it was when the same command is given again. Another command with the same
--out adds its points to those in curve.json: few rows and many may need flags of their own.

    python baselines/label_curve.py --data ../shared/imdb --out runs/label-curve
    python baselines/label_curve.py --out runs/small --rows 100 400 -- --max-length 128
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # the code that lies here runs, whatever else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads sleep

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from baselines.running import mean_and_deviation, run_once, words_before_and_after_dashes
from baselines.train_logreg import FEATURES
from gpt2.support.errors import UserError
from gpt2.support.files import write_json
from gpt2.support.flags import flag, parse_flags
from gpt2.support.script import run_script
from gpt2.support.tables import format_table, save_picture

_OWN_FLAGS = set("--data --model --init --seed --max-train --max-test --out --resume".split())


@dataclass
class CurveSettings:
    """Curve"""

    task: str = flag(
        "classification", "what is learnt; the measure is accuracy, or the loss on responses",
        choices=("classification", "instruction"),
    )  # fmt: skip
    data: str = flag("sample", "what the task's script takes as --data")
    model: str = flag("mini", "what it takes as --model; it must have pretrained weights")
    rows: tuple[int, ...] = flag(
        (100, 400, 1600, 6400, 0), "training rows of each point, 0 for all", at_least=0
    )
    max_test: int = flag(0, "test rows of each run; 0 takes all", at_least=0)
    seeds: tuple[int, ...] = flag((1,), "seeds; several give mean and standard deviation")
    out: str = flag("runs/label-curve", "folder for the runs, curve.json, curve.md and curve.png")


def contenders(settings: CurveSettings, rows: int, seed: int) -> dict[str, list[str]]:
    """The scripts and flags whose runs are compared on `rows` training rows, by name."""
    where = ["--data", settings.data, "--max-train", str(rows), "--max-test",
             str(settings.max_test)]  # fmt: skip
    if settings.task == "instruction":
        gpt = ["instruction/instruction_finetuning.py", *where]
        bags = {}
    else:
        gpt = ["classification/train_gpt.py", *where]
        bags = {
            f"bag of words ({features})": ["baselines/train_logreg.py", *where, "--features",
                                           features, "--overwrite"]
            for features in FEATURES
        }  # fmt: skip
    name = Path(settings.model).name
    gpt += ["--model", settings.model, "--seed", str(seed), "--resume", "auto"]
    return bags | {f"{name}, {init}": [*gpt, "--init", init] for init in ("random", "pretrained")}


def measure(results: dict[str, Any]) -> float:
    """The one number of a run, on its test split."""
    if results["task"] == "instruction":
        return results["after"]["test"]["loss"]
    measured = results["after"] if "after" in results else results["baseline"]
    return 100 * measured["test"]["accuracy"]


def key(point: dict[str, Any]) -> tuple[int, int, str]:
    """What a point is the measurement of; a bag of words has no seed."""
    return point["rows"], point["seed"] or 0, point["contender"]


def earlier_points(settings: CurveSettings, file: Path) -> list[dict[str, Any]]:
    """The points that an earlier command has left in `file` (curve.json), if there was one, and
    whose runs are still there.

    Raises UserError if that is a curve of another task or of other data.
    """
    if not file.is_file():
        return []
    earlier = json.loads(file.read_text(encoding="utf-8"))
    if (earlier["task"], earlier["data"]) != (settings.task, settings.data):
        raise UserError(
            f"{file}: is a curve of {earlier['task']} on {earlier['data']}: give another --out"
        )
    return [p for p in earlier["points"] if (file.parent / p["folder"] / "results.json").is_file()]


def curve_table(points: list[dict[str, Any]], task: str) -> str:
    """One row for each number of training rows, one column for each contender.

    Raises UserError if contenders of one row were measured on unlike numbers of test rows.
    """
    names = list(dict.fromkeys(point["contender"] for point in points))
    digits = 4 if task == "instruction" else 1
    table = []
    for rows in sorted({point["rows"] for point in points}):
        test_rows = sorted({point["test_rows"] for point in points if point["rows"] == rows})
        if len(test_rows) > 1:
            raise UserError(
                f"the runs on {rows} training rows have {' and '.join(map(str, test_rows))} test "
                "rows: remove those of another --max-test, or give another --out"
            )
        line = [f"{rows:,}", f"{test_rows[0]:,}"]
        for name in names:
            values = [p["value"] for p in points if (p["contender"], p["rows"]) == (name, rows)]
            line.append(mean_and_deviation(values, digits) if values else None)
        table.append(line)
    return format_table(["training rows", "test rows", *names], table)


def plot_curve(points: list[dict[str, Any]], task: str, file: Path) -> None:
    """One line a contender; with several seeds the mean, and a bar of one standard deviation."""

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        for name in dict.fromkeys(point["contender"] for point in points):
            by_rows: dict[int, list[float]] = {}
            for point in points:
                if point["contender"] == name:
                    by_rows.setdefault(point["rows"], []).append(point["value"])
            rows = sorted(by_rows)
            axis.errorbar(
                rows,
                [np.mean(by_rows[n]) for n in rows],
                yerr=[np.std(by_rows[n], ddof=1) if len(by_rows[n]) > 1 else 0 for n in rows],
                marker="o",
                linestyle="--" if "bag" in name else "-",
                label=name,
            )
        axis.set_xscale("log")
        ticks = sorted({point["rows"] for point in points})
        axis.set_xticks(ticks, [f"{n:,}" for n in ticks])
        axis.minorticks_off()
        axis.set(
            xlabel="training rows",
            ylabel="loss of a response token, test (nats)" if task == "instruction"
            else "test accuracy (%)",
        )  # fmt: skip
        axis.grid(alpha=0.3)
        axis.legend()

    save_picture(file, (6.4, 4), draw)


def main() -> None:
    words, extra = words_before_and_after_dashes(_OWN_FLAGS)
    about = f"{__doc__.splitlines()[0]} Flags after -- go to the GPT-2 runs."
    (settings,) = parse_flags([CurveSettings], about, words)
    out = Path(settings.out)
    points = {key(point): point for point in earlier_points(settings, out / "curve.json")}
    work = [(rows, seed) for rows in settings.rows for seed in settings.seeds]
    for rows, seed in tqdm(work, unit="point", disable=None):
        for name, command in contenders(settings, rows, seed).items():
            bag = name.startswith("bag")
            if bag and seed != settings.seeds[0]:
                continue  # a bag of words has no seed
            folder = f"{name.translate(str.maketrans(' ', '-', '(),'))}-{rows or 'all'}"
            if not bag:
                folder, command = f"{folder}-{seed}", [*command, *extra]
            results = run_once(command, out / folder)
            point = {"contender": name, "rows": results["data"]["train"],
                     "test_rows": results["data"]["test"], "seed": None if bag else seed,
                     "value": measure(results), "folder": folder}  # fmt: skip
            points[key(point)] = point
            tqdm.write(f"{point['rows']:>7,} rows, {name}, seed {seed}: {point['value']:.4f}")
    curve = sorted(points.values(), key=lambda point: key(point)[:2])
    table = curve_table(curve, settings.task)
    write_json(out / "curve.json", {"task": settings.task, "data": settings.data, "points": curve})
    (out / "curve.md").write_text(table + "\n", encoding="utf-8")
    plot_curve(curve, settings.task, out / "curve.png")
    print(f"\n{table}\n\n{out / 'curve.png'}")


if __name__ == "__main__":
    run_script(main)
