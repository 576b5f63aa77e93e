"""Do the texts that come in still look like those that the model was trained and tested on?

    python baselines/drift.py RUN requests.jsonl
    python baselines/drift.py RUN requests.csv --text-column body --json

A deployed classifier goes wrong silently: nobody tells it the right labels, but what comes in can
be compared with what it learnt from. Four things are: the lengths of the texts (with the training
split), and the share of words that no training text had, the predicted labels and how sure the
model is (with the test split, which it has not learnt from either). `requests` is whatever
predict.py reads as a table, such as what app/page.py keeps with --log; there the rows of this run
count, and those of others that the page had are left out.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # the code that lies here runs, whatever else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads sleep

import argparse
import collections
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from classification.calibration import apply_temperature
from classification.data import load_splits
from classification.predict import choose_label, predict
from classification.predictions import read_predictions
from classification.sources import DataSettings
from gpt2.support.device import DeviceSettings, choose_device
from gpt2.support.errors import UserError
from gpt2.support.flags import flag, parse_flags
from gpt2.support.intervals import holm
from gpt2.support.results_folder import read_settings
from gpt2.support.script import run_script
from gpt2.support.streaming import open_table, require_columns, texts_of
from gpt2.support.tables import percent, shorten
from gpt2.weights.loading import load_model

_ALPHA = 0.05
_FEWEST = 20  # requests; of fewer the tests can hardly tell anything
_SMALL = 0.1  # a smaller statistic is no matter, however sure: with many rows everything is


@dataclass
class DriftSettings:
    """Drift"""

    text_column: str = flag(
        "", "column of the requests with the text; left out, `text` or the run's"
    )
    run_name: str = flag(
        "", "where the requests have a column `run`: which of its values counts; left out, the "
        "name of RUN's folder",
    )  # fmt: skip
    json: bool = flag(False, "print the figures as JSON")
    batch_size: int = flag(32, "texts at once; less if memory runs out", at_least=1)


@dataclass
class Finding:
    """One comparison. `statistic` is between 0 (the same) and 1: of Kolmogorov and Smirnov the
    largest difference of the two distribution functions, of labels Cramer's V."""

    what: str
    then: str
    now: str
    statistic: float
    p: float


def main() -> None:
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("run", metavar="RUN", type=Path, help="a run folder of train_gpt.py")
        parser.add_argument("requests", metavar="REQUESTS", type=Path, help="a table of texts")

    settings, on, arguments = parse_flags(
        [DriftSettings, DeviceSettings],
        "Do the texts that come in still look like those of training?",
        add_arguments=add_arguments,
    )
    device = choose_device(on.device)
    model, recipe = load_model(arguments.run, "classification")
    data = read_settings(arguments.run, DataSettings)
    run_names = [settings.run_name] if settings.run_name else names_of(arguments.run)
    texts = read_requests(
        arguments.requests, settings.text_column, recipe.settings["text_column"], run_names
    )
    splits = load_splits(data, data.split_seed)
    tested = read_predictions(arguments.run)
    log_probabilities = tested.log_probabilities["after"]
    tested_probabilities = np.exp(
        apply_temperature(log_probabilities, recipe.settings["temperature"])
    )
    labels = recipe.settings["labels"]
    then = [dict(zip(labels, row, strict=True)) for row in tested_probabilities.tolist()]
    answered = predict(model.to(device), recipe, texts, settings.batch_size, on.precision)
    now = [answer for _, answer in answered]
    threshold = recipe.settings["threshold"]
    findings = [
        compare_lengths(splits.train["text"].to_list(), texts),
        compare_words(splits.train["text"].to_list(), tested.texts, texts),
        compare_labels(
            labels,
            [choose_label(answer, threshold) for answer in then],
            [choose_label(answer, threshold) for answer in now],
        ),
        compare_confidence(
            [max(answer.values()) for answer in then], [max(answer.values()) for answer in now]
        ),
    ]
    corrected = holm([finding.p for finding in findings])
    if settings.json:
        print(json.dumps(as_json(findings, corrected, len(texts)), ensure_ascii=False, indent=2))
    else:
        print(describe(findings, corrected, len(texts)))


def names_of(run: Path) -> list[str]:
    """What app/page.py writes into its log for the run: the name of its folder or, beside another
    run of that name, its path."""
    return [run.resolve().name, str(run)]


def read_requests(
    file: Path, text_column: str, usual: str, run_names: Sequence[str] = ()
) -> list[str]:
    """The texts of the table, but for those without content and, where there is a column `run`,
    those of which it names none of `run_names`; how many are left out is said on standard error.
    Raises UserError if none remain, or if there is no such column."""
    table = open_table(file)
    column = text_column or next((name for name in ("text", usual) if name in table.schema), usual)
    whose = "--text-column" if text_column else "the run's; give another with --text-column"
    require_columns(table, [column], whose)
    of_several_runs = bool(run_names) and "run" in table.schema
    texts: list[str] = []
    others: collections.Counter[str] = collections.Counter()
    row, empty = 1, 0
    for part in table.parts():
        found = texts_of(table, part, column, row)
        runs = texts_of(table, part, "run", row) if of_several_runs else [""] * len(found)
        for text, run in zip(found, runs, strict=True):
            if of_several_runs and run not in run_names:
                others[run or "none"] += 1
            elif text.strip():
                texts.append(text)
            else:
                empty += 1
        row += len(part)
    runs_left_out = shorten(", ".join(others), 200)
    if others and not texts:
        raise UserError(
            f"{file}: no text is of the run '{run_names[0]}'; the column 'run' has: "
            f"{runs_left_out}; name one with --run-name"
        )
    if not texts:
        raise UserError(f"{file}: no row has a text in the column '{column}'")
    if others:
        count = sum(others.values())
        print(f"{file}: {count:,} rows of other runs left out ({runs_left_out})", file=sys.stderr)
    if empty:
        print(f"{file}: {empty:,} rows without a text left out", file=sys.stderr)
    return texts


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def compare_lengths(trained: Sequence[str], texts: Sequence[str]) -> Finding:
    then, now = [[len(words_of(text)) for text in part] for part in (trained, texts)]
    shown = [f"median {np.median(lengths):.0f} words" for lengths in (then, now)]
    return _compare_numbers("lengths", then, now, *shown)


def compare_words(trained: Sequence[str], tested: Sequence[str], texts: Sequence[str]) -> Finding:
    """The share of each text's words that no training text has; of test texts and of `texts`."""
    known = {word for text in trained for word in words_of(text)}

    def unknown(text: str) -> float:
        words = words_of(text)
        return sum(word not in known for word in words) / max(1, len(words))

    then, now = [[unknown(text) for text in part] for part in (tested, texts)]
    shown = [f"{percent(float(np.mean(shares)))} on average" for shares in (then, now)]
    return _compare_numbers("unknown words", then, now, *shown)


def compare_confidence(then: Sequence[float], now: Sequence[float]) -> Finding:
    shown = [f"mean probability {percent(float(np.mean(values)))}" for values in (then, now)]
    return _compare_numbers("confidence", then, now, *shown)


def _compare_numbers(
    what: str, then: Sequence[float], now: Sequence[float], shown_then: str, shown_now: str
) -> Finding:
    found = stats.ks_2samp(then, now)
    return Finding(what, shown_then, shown_now, float(found.statistic), float(found.pvalue))


def compare_labels(labels: Sequence[str], then: Sequence[str], now: Sequence[str]) -> Finding:
    """How often each label is predicted: the chi-square test of homogeneity."""
    counts = np.array([[part.count(label) for label in labels] for part in (then, now)])
    shares = counts / counts.sum(axis=1, keepdims=True)
    moved = np.argsort(-np.abs(shares[1] - shares[0]), kind="stable")[:3]
    shown = [", ".join(f"{labels[i]} {percent(row[i])}" for i in moved) for row in shares]
    seen = counts[:, counts.sum(axis=0) > 0]
    if seen.shape[1] == 1:  # one label alone, everywhere
        return Finding("labels", *shown, 0.0, 1.0)
    found = stats.chi2_contingency(seen, correction=False)
    return Finding(
        "labels", *shown, float(np.sqrt(found.statistic / counts.sum())), float(found.pvalue)
    )


def differs(finding: Finding, corrected: float) -> bool:
    """Whether it is neither luck nor too small to matter."""
    return corrected < _ALPHA and finding.statistic >= _SMALL


def describe(findings: list[Finding], corrected: list[float], requests: int) -> str:
    lines = [
        f"{finding.what}: {finding.then} then, {finding.now} now; "
        f"{'DIFFERENT' if differs(finding, p) else 'no clear difference'} "
        f"({'V' if finding.what == 'labels' else 'KS'} {finding.statistic:.2f}, "
        f"{'p < 0.001' if p < 0.001 else f'p = {p:.3f}'})"
        for finding, p in zip(findings, corrected, strict=True)
    ]
    if requests < _FEWEST:
        lines.append(f"{requests} requests are few: only large differences can show")
    return "\n".join([f"{requests:,} requests", *(f"- {line}" for line in lines)])


def as_json(findings: list[Finding], corrected: list[float], requests: int) -> dict[str, Any]:
    return {"requests": requests} | {
        finding.what: {
            "then": finding.then,
            "now": finding.now,
            "statistic": finding.statistic,
            "p": p,
            "different": differs(finding, p),
        }
        for finding, p in zip(findings, corrected, strict=True)
    }


if __name__ == "__main__":
    run_script(main)
