"""What a finished run says of each row of its test split, read for comparisons."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from classification.data import Splits
from classification.evaluation import classification_metrics
from classification.predictions import read_predictions
from gpt2.support.errors import UserError
from gpt2.support.intervals import bootstrap_groups
from instruction.predictions import read_row_losses

# Settings in which runs of the same experiment may differ: where they wrote, and their seed.
_INCIDENTAL = ("out", "overwrite", "resume", "export", "seed", "device", "track", "save_every",
               "log_every", "micro_batch_size", "micro_batch_tokens", "beside")  # fmt: skip


@dataclass
class Contender:
    """One model of a finished run and its rows.

    scores  (rows,): 1 or 0 for right or wrong, or the summed loss of the row, in nats
    counts  (rows,): 1, or the targets that the loss is summed over
    right   (rows,) bool; None for instructions
    """

    folder: Path
    which: str  # "after", "baseline" ...
    task: str
    texts: list[str]
    labels: list[str]
    scores: np.ndarray
    counts: np.ndarray
    right: np.ndarray | None
    loss: float
    seconds: float | None
    metrics: dict[str, float] | None  # as classification_metrics gives them; None for instructions
    settings: dict[str, Any]
    seed: int | None


def read_contender(argument: str, split: str) -> Contender:
    """The contender that RUN or RUN:NAME means. Raises UserError if the run is not finished, is no
    run, or has no such contender."""
    folder, which = Path(argument), ""
    if not folder.is_dir() and ":" in argument:
        path, _, which = argument.rpartition(":")
        folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such run folder")
    results, config = _read_json(folder / "results.json"), _read_json(folder / "config.json")
    task = results.get("task")
    if task not in ("classification", "instruction"):
        raise UserError(f"{folder}: a run of {task} has no test rows to compare")
    which = which or ("after" if "after" in results else "baseline")
    measured = results.get("training" if which == "after" else which)
    common = {
        "folder": folder,
        "which": which,
        "task": task,
        "seconds": measured.get("seconds") if isinstance(measured, dict) else None,
    }
    try:
        common |= _settings(config, results, which)
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        raise UserError(f"{folder / 'config.json'}: is not a run's ({error!r})") from None
    if task == "instruction":
        found = read_row_losses(folder, which, split)
        return Contender(
            **common, texts=found.texts, labels=found.answers, scores=found.losses,
            counts=found.targets, right=None, loss=found.losses.sum() / found.targets.sum(),
            metrics=None,
        )  # fmt: skip
    predictions = read_predictions(folder, split)
    if which not in predictions.log_probabilities:
        there = ", ".join(predictions.log_probabilities)
        raise UserError(f"{argument}: has no '{which}' on its {split} rows; it has: {there}")
    right = predictions.right(which)
    metrics = classification_metrics(predictions.log_probabilities[which], predictions.targets)
    return Contender(
        **common,
        texts=predictions.texts,
        labels=[predictions.labels[target] for target in predictions.targets],
        scores=right.astype(np.float64),
        counts=np.ones(len(right)),
        right=right,
        loss=metrics["loss"],
        metrics=metrics,
    )


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"{file.parent}: is not a finished run (no {file.name} in it)")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: is damaged ({error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{file}: is not a run's")
    return content


def _settings(config: dict[str, Any], results: dict[str, Any], which: str) -> dict[str, Any]:
    """The settings that make an experiment what it is, and the seed."""
    given = {name: value for group in config["settings"].values() for name, value in group.items()}
    settings = {
        "which": which,
        "script": Path(config["command"][0]).name,
        "head": results.get("model", {}).get("head"),  # one's own is in no flag
        "settings": {name: value for name, value in given.items() if name not in _INCIDENTAL},
    }
    return {"settings": settings, "seed": given.get("seed")}


def read_beside(runs: Sequence[str], splits: Splits, split: str) -> dict[str, Contender]:
    """What --beside names, finished runs (RUN or RUN:NAME) of classification, by their names in the
    table of a new run. Raises UserError if one has other rows than `split`, one of the `splits`."""
    frame = dict(splits.items())[split]
    texts, labels = frame["text"].to_list(), [splits.labels[number] for number in frame["label"]]
    found = {}
    for run in runs:
        contender = read_contender(run, split)
        if contender.task != "classification":
            raise UserError(f"--beside {run}: a run of {contender.task}, not of classification")
        same_rows(f"--beside {run}: cannot stand beside this run", contender, texts, labels)
        found[f"run {run}"] = contender
    return found


def check_same_rows(contenders: list[Contender]) -> None:
    """Raises UserError, with the first difference, unless all have the same task and test rows."""
    first = contenders[0]
    for other in contenders[1:]:
        name = f"{other.folder}: cannot be compared with {first.folder}"
        if other.task != first.task:
            raise UserError(f"{name}: a run of {other.task}, not of {first.task}")
        same_rows(name, other, first.texts, first.labels)


def same_rows(name: str, other: Contender, texts: list[str], labels: list[str]) -> None:
    """Raises UserError, which begins with `name`, unless `other` has the rows with these `texts`
    and `labels`."""
    if len(other.texts) != len(texts):
        raise UserError(
            f"{name}: it has {len(other.texts):,} rows, not {len(texts):,}; give both "
            "the same --data, --split-seed and --max-test"
        )
    for row, (one, two) in enumerate(
        zip(zip(texts, labels, strict=True), zip(other.texts, other.labels, strict=True),
            strict=True)
    ):  # fmt: skip
        if one != two:
            raise UserError(
                f"{name}: row {row} is another one ('{two[0][:40]}', not '{one[0][:40]}'); "
                "give both the same --data and --split-seed"
            )


@dataclass
class Group:
    """Runs of the same settings and several seeds."""

    name: str
    runs: list[Contender]
    low: float
    high: float

    @property
    def measure(self) -> str:
        return "accuracy" if self.runs[0].right is not None else "perplexity"

    @property
    def texts(self) -> list[str]:
        return self.runs[0].texts

    @property
    def right(self) -> list[np.ndarray] | None:
        return None if self.runs[0].right is None else [run.right for run in self.runs]

    @property
    def scores(self) -> np.ndarray:
        """(seeds, rows)"""
        return np.stack([run.scores for run in self.runs])

    @property
    def weights(self) -> np.ndarray:
        """(rows,): what the scores of a row are divided by."""
        return self.runs[0].counts

    @property
    def statistic(self) -> Callable[[np.ndarray], np.ndarray]:
        """From the mean score to the measure."""
        return (lambda mean: mean) if self.runs[0].right is not None else np.exp

    @property
    def values(self) -> list[float]:
        return [float(self.statistic(row.sum() / self.weights.sum())) for row in self.scores]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def loss(self) -> float:
        return float(np.mean([run.loss for run in self.runs]))

    @property
    def seconds(self) -> float | None:
        known = [run.seconds for run in self.runs if run.seconds is not None]
        return float(np.mean(known)) if known else None

    def say(self, value: float) -> str:
        return f"{100 * value:.1f} %" if self.measure == "accuracy" else f"{value:.2f}"

    def say_spread(self) -> str | None:
        return self.say(float(np.std(self.values, ddof=1))) if len(self.runs) > 1 else None

    def say_difference(self, value: float) -> str:
        return f"{100 * value:+.1f}" if self.measure == "accuracy" else f"{value:+.2f}"

    def label_of(self, row: int) -> str:
        return self.runs[0].labels[row]


def group_runs(contenders: list[Contender], resamples: int, seed: int) -> list[Group]:
    """The contenders in groups of the same settings and other seeds, in the order in which they
    came. With the same seed again something else must differ, as the code or the machine: such a
    run is of another group. Raises UserError if one stands in two places."""
    found: dict[tuple[str, int], list[Contender]] = {}
    seen, times = set(), Counter()
    for contender in contenders:
        place = (contender.folder.resolve(), contender.which)
        if place in seen:
            raise UserError(f"{contender.folder}: was named twice")
        seen.add(place)
        settings = json.dumps(contender.settings, sort_keys=True)
        found.setdefault((settings, times[settings, contender.seed]), []).append(contender)
        times[settings, contender.seed] += 1
    groups, names = [], _names(list(found.values()))
    for name, runs in zip(names, found.values(), strict=True):
        group = Group(name, runs, 0.0, 0.0)
        group.low, group.high = bootstrap_groups(
            group.scores, group.weights, group.statistic, resamples, seed
        )
        groups.append(group)
    return groups


def _names(groups: list[list[Contender]]) -> list[str]:
    """What to call each group: by its first run's folder if that tells the groups apart, by the
    folder around it (all lines of a sweep have a seed-1), or by both and more."""
    paths = [runs[0].folder.resolve().parts for runs in groups]
    more = [f" and {len(runs) - 1} more" if len(runs) > 1 else "" for runs in groups]
    which = ["" if runs[0].which == "after" else f":{runs[0].which}" for runs in groups]
    for first, last in ((-1, None), (-2, -1), (-2, None), (-3, None), (0, None)):
        names = ["/".join(path[first:last]) + one for path, one in zip(paths, which, strict=True)]
        if len(set(names)) == len(names):
            break
    if last:  # the folder around stands for all of them
        return names
    return [name + many for name, many in zip(names, more, strict=True)]
