"""Statistics against references worked out by hand, and against luck itself."""

import math

import numpy as np
import pytest

from gpt2.support.intervals import (
    bootstrap_interval,
    grouped_difference,
    holm,
    mcnemar,
    paired_difference,
    perplexity_difference,
    wilson_interval,
)


def test_wilson_by_its_formula():
    """(p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)"""
    z = 1.959963984540054
    for successes, rows in [(0, 10), (10, 10), (106, 120), (22_850, 25_000)]:
        p = successes / rows
        middle, scale = p + z**2 / (2 * rows), 1 + z**2 / rows
        half = z * math.sqrt(p * (1 - p) / rows + z**2 / (4 * rows**2))
        expected = (middle - half) / scale, (middle + half) / scale
        assert wilson_interval(successes, rows) == pytest.approx(expected, abs=1e-6)
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I: 81/263
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)


def test_mcnemar_by_counting_coins():
    """Twice the chance of so few heads among the rows that the models disagree about."""
    for fewer, more in [(0, 5), (2, 10), (7, 8), (40, 60)]:
        tail = sum(math.comb(fewer + more, k) for k in range(fewer + 1)) / 2 ** (fewer + more)
        assert mcnemar(fewer, more) == pytest.approx(min(1.0, 2 * tail), abs=1e-6)
        assert mcnemar(more, fewer) == pytest.approx(mcnemar(fewer, more))
    assert mcnemar(0, 0) == 1.0


def test_holm_by_hand():
    assert holm([]) == []
    assert holm([0.02]) == [0.02]
    # sorted 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1, and never smaller than the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert max(holm([0.5, 0.9, 0.8])) == 1.0


def test_the_interval_of_a_difference_is_that_of_all_samples():
    """Of three rows all 27 samples can be listed; the bootstrap draws them at random."""
    values = np.array([0.0, 1.0, 5.0])
    means = sorted((a + b + c) / 3 for a in values for b in values for c in values)
    low, high = bootstrap_interval((values,), np.mean)
    assert (low, high) == (means[0], means[-1])  # 1 of 27 each is more than 2.5 %

    rng = np.random.default_rng(1)
    differences = rng.choice([-1.0, 0.0, 1.0], 2_000, p=[0.1, 0.7, 0.2])
    found = paired_difference(np.zeros(2_000), differences)
    error = differences.std(ddof=1) / math.sqrt(2_000)
    assert found.value == differences.mean()
    assert found.low == pytest.approx(found.value - 1.96 * error, abs=0.05 * error)
    assert found.high == pytest.approx(found.value + 1.96 * error, abs=0.05 * error)
    assert found == paired_difference(np.zeros(2_000), differences)  # seeded
    assert found != paired_difference(np.zeros(2_000), differences, seed=1)


def test_rows_that_say_nothing():
    same = paired_difference(np.ones(5), np.ones(5))
    assert (same.value, same.low, same.high, same.visible) == (0, 0, 0, 0)
    one = paired_difference(np.array([0]), np.array([1]))
    assert (one.value, one.low, one.high) == (1, 1, 1)


def test_perplexities_are_of_all_tokens_and_not_of_rows():
    """One row of 99 tokens and one of a single token: the mean of means would be far off."""
    before, after, targets = np.array([99.0, 5.0]), np.array([49.5, 5.0]), np.array([99, 1])
    found = perplexity_difference(before, after, targets)
    assert found.value == pytest.approx(math.exp(0.545) - math.exp(1.04))
    assert found.low <= found.value <= found.high


def test_equal_models_seem_different_in_five_of_a_hundred_cases():
    """1,000 pairs of models that are right on 80 % of 400 rows, each by its own luck. (The exact
    test is careful with few disagreements: a little less than 5 %.)"""
    rng = np.random.default_rng(7)
    right = rng.random((1_000, 2, 400)) < 0.8
    only_first = (right[:, 0] & ~right[:, 1]).sum(axis=1)
    only_second = (right[:, 1] & ~right[:, 0]).sum(axis=1)
    p_values = [mcnemar(int(a), int(b)) for a, b in zip(only_first, only_second, strict=True)]
    assert 0.03 <= np.mean(np.array(p_values) < 0.05) <= 0.07
    outside = 0
    for first, second in right[:200].astype(float):
        found = paired_difference(first, second, resamples=1_000)
        outside += not found.low <= 0 <= found.high
    assert 0.02 <= outside / 200 <= 0.09


def test_equal_groups_of_seeds_seldom_seem_different():
    """Three runs a group; what is right depends on the row, on the seed and on luck."""
    rng = np.random.default_rng(5)
    seem_different = 0
    for seed in range(100):
        easy = rng.normal(1.8, 1.5, 200)
        seeds = rng.normal(0, 0.1, (2, 3, 1))
        right = (easy + seeds + rng.normal(0, 1, (2, 3, 200)) > 0).astype(float)
        _, p = grouped_difference(*right, np.ones(200), lambda mean: mean, 100, seed)
        seem_different += p < 0.05
    assert seem_different <= 7, seem_different
