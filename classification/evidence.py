"""Chapter 6, is it really better? Intervals of each contender, tests of the pairs that matter."""

from __future__ import annotations

from typing import Any

import numpy as np

from classification.predictions import Predictions
from gpt2.support.intervals import RESAMPLES, mcnemar, paired_difference, wilson_interval

# Is fine-tuning worth anything? Is it better than counting words, and than both together?
PAIRS = (("before", "after"), ("baseline", "after"), ("after", "together"))


def weigh_evidence(
    predictions: Predictions,
    beside: dict[str, np.ndarray] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """The part of results.json on what the test rows can tell: the 95 % interval of each
    contender's accuracy, and of each pair's difference, with the exact McNemar p. `beside` holds
    what other runs get right, (rows,) bool each by name, to compare with the fine-tuned model."""
    beside = beside or {}
    right = {name: predictions.right(name) for name in predictions.log_probabilities} | beside
    intervals = {name: wilson_interval(int(rows.sum()), len(rows)) for name, rows in right.items()}
    differences = [
        compare_rows(right, first, second, resamples, seed)
        for first, second in (*PAIRS, *((name, "after") for name in beside))
        if first in right and second in right
    ]
    return {"accuracy_intervals": intervals, "differences": differences}


def compare_rows(
    right: dict[str, Any], first: str, second: str, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """How much more often `second` is right than `first` on the same rows, each (rows,) bool."""
    found = paired_difference(right[first], right[second], resamples, seed)
    only_first = int((right[first] & ~right[second]).sum())
    only_second = int((right[second] & ~right[first]).sum())
    return {
        "first": first,
        "second": second,
        "difference": found.value,
        "low": found.low,
        "high": found.high,
        "visible": found.visible,
        "only_first": only_first,
        "only_second": only_second,
        "p": mcnemar(only_first, only_second),
    }


def say_difference(found: dict[str, Any], first: str, second: str, rows: int) -> str:
    """One sentence on one of the differences, with the contenders' names as the reader knows them.

    >>> say_difference({"difference": 0.108, "low": 0.033, "high": 0.183, "visible": 0.08,
    ...                 "p": 0.0043}, "before", "after", 120)
    'after against before: +10.8 points (3.3 to 18.3), p = 0.004; 120 rows can show 8.0 and more'
    """
    numbers = f"{100 * found['difference']:+.1f} points ({100 * found['low']:.1f} to "
    numbers += f"{100 * found['high']:.1f}), {say_p(found['p'])}"
    verdict = f"{rows:,} rows can show {100 * found['visible']:.1f} and more"
    if found["low"] <= 0 <= found["high"] or found["p"] >= 0.05:
        verdict = f"may be luck, {verdict}"
    return f"{second} against {first}: {numbers}; {verdict}"


def say_p(p: float) -> str:
    """ "p = 0.03", or "p < 0.001" where more digits would say nothing."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"
