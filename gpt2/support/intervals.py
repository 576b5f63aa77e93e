"""Is a difference real, or luck? Intervals and tests on the rows of one test split.

Two models are always compared on the same rows: what both get right, or both get wrong, says
nothing about which is better, and leaving it out sees differences that two separate intervals miss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
RESAMPLES = 10_000


def wilson_interval(successes: int, rows: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927, "Probable Inference, the Law of Succession, and
    Statistical Inference"). It stays between 0 and 1 and is not empty at 0 or at all successes.

    >>> [round(bound, 3) for bound in wilson_interval(106, 120)]
    [0.814, 0.929]
    """
    from scipy import stats  # here, because it takes a second that not every script needs

    interval = stats.binomtest(successes, rows).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact p of McNemar's test (McNemar 1947, "Note on the Sampling Error of the Difference
    between Correlated Proportions or Percentages"): how likely rows that only one of two models
    gets right are split at least as unevenly as here, if both are equally good.

    >>> mcnemar(10, 2)
    0.03857421875
    """
    from scipy import stats

    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values of several comparisons, corrected so that all together show a difference where
    there is none in 5 % of cases, not each of them (Holm 1979, "A Simple Sequentially Rejective
    Multiple Test Procedure").

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for place, number in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[number]))
        corrected[number] = largest
    return corrected


@dataclass(frozen=True)
class Difference:
    """How much better the second of two models is on the same rows, with its 95 % interval.

    visible  the smallest difference that so many rows with so many disagreements can tell from none
    """

    value: float
    low: float
    high: float
    visible: float


def paired_difference(
    first: np.ndarray, second: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """The difference of the means of two scores of the same rows, each (rows,): right or wrong as 1
    and 0, or a loss. The interval is that of the bootstrap over rows (Efron 1979, "Bootstrap
    Methods: Another Look at the Jackknife"), percentile method."""
    differences = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    low, high = bootstrap_interval((differences,), np.mean, resamples, seed)
    error = differences.std(ddof=1) / math.sqrt(len(differences)) if len(differences) > 1 else 0.0
    return Difference(float(differences.mean()), low, high, 1.96 * float(error))


def bootstrap_interval(
    columns: Sequence[np.ndarray],
    statistic: Callable[..., np.ndarray],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95 % interval of `statistic(*columns, axis)` when the rows are drawn anew with
    replacement; the same rows in every column."""
    from scipy import stats

    rows = len(columns[0])
    if rows < 2 or all((column == column[0]).all() for column in columns):
        value = float(statistic(*columns, axis=-1))  # nothing varies
        return value, value
    found = stats.bootstrap(
        columns,
        statistic,
        n_resamples=resamples,
        batch=max(1, 4_000_000 // rows),  # at most 4 million numbers in memory at once
        vectorized=True,
        paired=len(columns) > 1,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def bootstrap_groups(
    scores: np.ndarray,
    weights: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95 % interval of the mean over seeds of `statistic(sum of scores / sum of weights)`, with
    scores (seeds, rows) and weights (rows,). Rows and, where there are several, seeds are drawn
    anew: both are samples of what might have been."""
    (values,) = _resample([scores], weights, statistic, resamples, seed)
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def grouped_difference(
    first: np.ndarray,
    second: np.ndarray,
    weights: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[Difference, float]:
    """The difference of two groups as in `bootstrap_groups`, on the same rows, and its two-sided p:
    twice the share of resamples in which the difference has the other sign, or is 0.

    It is careful: luck that belongs neither to a row nor to a seed alone counts up to three times
    (Owen 2007, "The Pigeonhole Bootstrap"), so that equal models mostly seem different in fewer
    than 5 of 100 cases, and a small difference needs more seeds or rows to show."""
    one, other = _resample([first, second], weights, statistic, resamples, seed)
    differences = other - one
    low, high = np.percentile(differences, [2.5, 97.5])
    whole = [statistic(scores.sum(axis=1) / weights.sum()).mean() for scores in (first, second)]
    other_sign = 1 + min((differences <= 0).sum(), (differences >= 0).sum())
    p = min(1.0, 2 * float(other_sign) / (resamples + 1))
    visible = 1.96 * float(differences.std())
    return Difference(float(whole[1] - whole[0]), float(low), float(high), visible), p


def _resample(
    groups: list[np.ndarray],
    weights: np.ndarray,
    statistic: Callable[[np.ndarray], np.ndarray],
    resamples: int,
    seed: int,
) -> list[np.ndarray]:
    """The statistic of each group (seeds, rows) in each resample (resamples,); all groups get the
    same rows."""
    random = np.random.default_rng(seed)
    rows = len(weights)
    found: list[list[float]] = [[] for _ in groups]
    for _ in range(resamples):
        drawn = random.integers(rows, size=rows)
        total = weights[drawn].sum()
        for values, scores in zip(found, groups, strict=True):
            seeds = random.integers(len(scores), size=len(scores))
            sums = [scores[number, drawn].sum() for number in seeds]
            values.append(float(np.mean(statistic(np.array(sums) / total))))
    return [np.array(values) for values in found]


def perplexity_difference(
    first_losses: np.ndarray,
    second_losses: np.ndarray,
    targets: np.ndarray,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """The difference of two perplexities over the same rows, from the summed loss (rows,) of each
    row under each model and its number of targets (rows,)."""

    def difference(first: np.ndarray, second: np.ndarray, counts: np.ndarray, axis: int = -1):
        total = counts.sum(axis=axis)
        return np.exp(second.sum(axis=axis) / total) - np.exp(first.sum(axis=axis) / total)

    columns = [np.asarray(c, dtype=np.float64) for c in (first_losses, second_losses, targets)]
    low, high = bootstrap_interval(columns, difference, resamples, seed)
    return Difference(float(difference(*columns)), low, high, (high - low) / 2)
