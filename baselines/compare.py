"""Which of several runs is better, or is that luck? Finished runs on the same test rows.

    python baselines/compare.py runs/mean runs/last
    python baselines/compare.py runs/imdb-mini runs/imdb-mini:baseline       # within one run
    python baselines/compare.py runs/mean-1 runs/mean-2 runs/last-1 runs/last-2

Runs that differ in nothing but their seed count as one, with mean and standard deviation; the same
seed twice does not: what has changed then is the code, and that is a comparison. RUN:NAME
takes another contender of the run than the fine-tuned model: majority, baseline, before, together.
Runs of instruction tuning are compared by the loss of their test rows and by the tasks they solve.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # the code that lies here runs, whatever else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads sleep

import argparse
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from baselines.finished_runs import Contender, Group, check_same_rows, group_runs, read_contender
from classification.evidence import say_p
from gpt2.support.errors import UserError
from gpt2.support.files import write_json
from gpt2.support.flags import flag, parse_flags
from gpt2.support.intervals import RESAMPLES, Difference, grouped_difference, holm, mcnemar
from gpt2.support.script import run_script
from gpt2.support.tables import format_table, save_picture, shorten

QUOTED = 5  # rows of each kind that changed sides


@dataclass
class CompareSettings:
    """Comparison"""

    split: str = flag(
        "test", "the rows that are compared; choices are made on validation, and test read once",
        choices=("test", "validation"),
    )  # fmt: skip
    resamples: int = flag(RESAMPLES, "resamples of the bootstrap", at_least=100)
    seed: int = flag(1, "of the bootstrap", at_least=0)
    out: str = flag("runs/compare", "folder that gets compare.md, compare.json and compare.png")


@dataclass
class Pair:
    """Two groups of runs and what the rows say of their difference: of shares in points, of
    perplexities as they are. `p` is corrected for the number of comparisons."""

    first: Group
    second: Group
    difference: Difference
    p: float
    only_first: int  # rows that only the first gets right (of the first run of each group)
    only_second: int


def compare_groups(groups: list[Group], resamples: int, seed: int) -> list[Pair]:
    """Every pair of groups, in the order in which they were named."""
    found = []
    for first, second in itertools.combinations(groups, 2):
        difference, p = grouped_difference(
            first.scores, second.scores, first.weights, first.statistic, resamples, seed
        )
        only_first, only_second = changed_sides(first, second)
        if first.right is not None and len(first.runs) == len(second.runs) == 1:
            p = mcnemar(len(only_first), len(only_second))  # exact, where there is one run of each
        found.append(Pair(first, second, difference, p, len(only_first), len(only_second)))
    for pair, p in zip(found, holm([pair.p for pair in found]), strict=True):
        pair.p = p
    return found


def changed_sides(first: Group, second: Group) -> tuple[np.ndarray, np.ndarray]:
    """The rows that only the first run of one group gets right, and that only the other's does."""
    if first.right is None:
        return np.array([], dtype=int), np.array([], dtype=int)
    one, other = first.right[0], second.right[0]
    return np.flatnonzero(one & ~other), np.flatnonzero(other & ~one)


def summary_table(groups: list[Group]) -> str:
    """One line a group: mean and standard deviation over its seeds, and the interval of the mean
    over rows and seeds."""
    rows = [
        [group.name, len(group.runs), group.say(group.mean), group.say_spread(),
         f"{group.say(group.low)} to {group.say(group.high)}", f"{group.loss:.4f}",
         f"{group.seconds:,.0f}" if group.seconds is not None else None]
        for group in groups
    ]  # fmt: skip
    header = ["run", "seeds", groups[0].measure, "deviation", "95 % interval", "loss", "training s"]
    return format_table(header, rows)


def pairs_table(pairs: list[Pair]) -> str:
    """One line a pair: the second minus the first."""
    rows = []
    for pair in pairs:
        say = pair.first.say_difference
        luck = pair.p >= 0.05 or pair.difference.low <= 0 <= pair.difference.high
        rows.append(
            [f"{pair.second.name} - {pair.first.name}", say(pair.difference.value),
             f"{say(pair.difference.low)} to {say(pair.difference.high)}", say_p(pair.p),
             "may be luck" if luck else "real"]
        )  # fmt: skip
    return format_table(["difference", "value", "95 % interval", "p (Holm)", "verdict"], rows)


def quote_changes(pair: Pair) -> list[str]:
    """For the report: how many rows changed sides, and five of each kind."""
    if pair.first.right is None:
        return []
    lines = [
        f"### {pair.second.name} and {pair.first.name}\n\n{pair.only_second:,} rows are right only "
        f"in {pair.second.name}, {pair.only_first:,} only in {pair.first.name}."
    ]
    only_first, only_second = changed_sides(pair.first, pair.second)
    for group, rows in ((pair.second, only_second), (pair.first, only_first)):
        if len(rows):
            lines.append(f"Right only in {group.name}:")
            lines += [f"- {group.label_of(row)}: {shorten(group.texts[row], 200)}"
                      for row in rows[:QUOTED]]  # fmt: skip
    return lines


def plot_groups(groups: list[Group], file: Path) -> None:
    """Each group's mean with its interval, one below the other."""

    def draw(figure: Any) -> None:
        axis = figure.subplots()
        for place, group in enumerate(groups):
            axis.plot([group.low, group.high], [place, place], color="tab:blue")
            axis.plot([group.mean], [place], marker="o", color="tab:blue")
        axis.set_yticks(range(len(groups)), [shorten(group.name, 40) for group in groups])
        axis.invert_yaxis()
        axis.set_xlabel(f"{groups[0].measure}, mean over seeds and 95 % interval")
        axis.grid(alpha=0.3)

    save_picture(file, (7, 1 + 0.5 * len(groups)), draw)


def describe(groups: list[Group], pairs: list[Pair], settings: CompareSettings) -> dict[str, Any]:
    """The content of compare.json."""
    return {
        "split": settings.split,
        "rows": len(groups[0].texts),
        "measure": groups[0].measure,
        "resamples": settings.resamples,
        "seed": settings.seed,
        "groups": [
            {"name": g.name, "runs": [str(run.folder) for run in g.runs], "values": g.values,
             "mean": g.mean, "low": g.low, "high": g.high, "loss": g.loss, "seconds": g.seconds}
            for g in groups
        ],
        "differences": [
            {"first": pair.first.name, "second": pair.second.name,
             "difference": pair.difference.value, "low": pair.difference.low,
             "high": pair.difference.high, "p": pair.p, "only_first": pair.only_first,
             "only_second": pair.only_second}
            for pair in pairs
        ],
    }  # fmt: skip


def main() -> None:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("runs", metavar="RUN", nargs="+", help="a finished run, or RUN:NAME")

    settings, arguments = parse_flags(
        [CompareSettings],
        "Which of several runs is better, or is that luck?",
        add_arguments=add_arguments,
    )
    out = Path(settings.out)
    if (out / "metrics.jsonl").exists():
        raise UserError(f"--out {out}: is a run; name another folder")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out}: is a file, not a folder")
    contenders: list[Contender] = [read_contender(run, settings.split) for run in arguments.runs]
    if len(contenders) < 2:
        raise UserError("a comparison needs two runs at least, or RUN and RUN:baseline")
    check_same_rows(contenders)
    groups = group_runs(contenders, settings.resamples, settings.seed)
    pairs = compare_groups(groups, settings.resamples, settings.seed)

    rows = len(groups[0].texts)
    tables = [summary_table(groups)]
    if pairs:
        tables.append(pairs_table(pairs))
    print(f"{rows:,} {settings.split} rows\n\n" + "\n\n".join(tables))
    out.mkdir(parents=True, exist_ok=True)
    parts = [f"# {rows:,} {settings.split} rows", *tables, "![means and intervals](compare.png)"]
    parts.append(
        "Intervals are those of the bootstrap over rows and seeds "
        f"({settings.resamples:,} resamples). p is that of McNemar's exact test where single runs "
        "are compared, else of the bootstrap, corrected for the number of comparisons (Holm)."
    )
    if any(pair.first.right is not None for pair in pairs):
        parts.append("## Rows that changed sides")
    parts += [line for pair in pairs for line in quote_changes(pair)]
    (out / "compare.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    plot_groups(groups, out / "compare.png")
    write_json(out / "compare.json", describe(groups, pairs, settings))
    print(f"\neverything of this comparison: {out / 'compare.md'}")


if __name__ == "__main__":
    run_script(main)
