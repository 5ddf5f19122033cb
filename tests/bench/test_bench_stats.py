"""Medians, intervals and tests against cases worked out by hand, and what the intervals promise."""

from __future__ import annotations

import random
from itertools import combinations

import pytest

from minivit.bench.timing.stats import (
    benjamini_hochberg,
    hodges_lehmann,
    interval,
    mann_whitney,
    quantile,
    ratio_between,
)


def test_quantiles_by_hand():
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([1.0, 2.0, 3.0, 5.0], 0.25) == 1.75  # place 0.75, between 1 and 2
    assert quantile([1.0, 2.0, 3.0, 5.0], 1.0) == 5.0


def test_mann_whitney_by_hand():
    # Of the 20 ways to lay three among six, one has all of them below the others, one above: 2 / 20.
    assert mann_whitney([1, 2, 3], [4, 5, 6]) == pytest.approx(0.1)
    # U = 1 can come about in one way more: 4 / 20.
    assert mann_whitney([1, 2, 4], [3, 5, 6]) == pytest.approx(0.2)
    assert mann_whitney([1, 4, 5], [2, 3, 6]) == pytest.approx(1.0)  # U = 4 of 9: nothing at all
    assert mann_whitney([7.0] * 5, [7.0] * 5) == 1.0


def test_mann_whitney_counts_every_order():
    """Against counting, by force, all choices of 4 among 9."""
    a, b = [1, 2, 3, 6], [4, 5, 7, 8, 9]
    observed = min(sum(x > y for x in a for y in b), sum(x < y for x in a for y in b))
    every = [
        min(sum(x > y for x in first for y in rest), sum(x < y for x in first for y in rest))
        for first in combinations(range(9), 4)
        for rest in [[i for i in range(9) if i not in first]]
    ]
    assert mann_whitney(a, b) == pytest.approx(sum(u <= observed for u in every) / len(every))


def test_mann_whitney_with_ties_by_hand():
    # U of [1, 2, 2] against [2, 3, 3]: 0 + 0.5 + 0.5 = 1. Variance 9/12 * (7 - (24 + 6) / 30) = 4.5;
    # z = (4.5 - 1 - 0.5) / sqrt(4.5) = 1.41421, two-sided p = 0.15730.
    assert mann_whitney([1, 2, 2], [2, 3, 3]) == pytest.approx(0.15730, abs=1e-4)


def test_hodges_lehmann_by_hand():
    # Ratios 2, 4, 8, 1, 2, 4: the median of 1 2 2 4 4 8 in logarithms is sqrt(2 * 4).
    ratio, low, high = hodges_lehmann([1.0, 2.0], [2.0, 4.0, 8.0])
    assert ratio == pytest.approx(8**0.5)
    assert (low, high) == (1.0, 8.0)


def test_hodges_lehmann_interval_by_hand():
    # n = m = 10: 50 - 1.96 * sqrt(100 * 21 / 12) = 24.07: the 24th smallest and the 24th largest of 100 ratios.
    a, b = [1.0 + i / 10 for i in range(10)], [1.1 + i / 9 for i in range(10)]
    ordered = sorted(y / x for x in a for y in b)
    assert hodges_lehmann(a, b)[1:] == (ordered[23], ordered[-24])


def test_ratios_between_runs_are_as_sure_as_their_processes_are_alike():
    # One process each, or processes that are alike: Hodges and Lehmann's.
    steady = [1.0, 1.01, 1.02, 1.03] * 3
    slower = [1.2 * value for value in steady]
    assert ratio_between([steady], [slower]) == hodges_lehmann(steady, slower)
    assert ratio_between([steady] * 3, [slower] * 3) == hodges_lehmann(steady * 3, slower * 3)
    # Processes of two speeds, two fast and one slow, then one fast and two slow: nothing or a fifth are both possible.
    ratio, low, high = ratio_between([steady, steady, slower], [slower, slower, steady])
    assert low == pytest.approx(1.0, rel=0.02)
    assert low < ratio < high == pytest.approx(1.2, rel=0.02)


def test_benjamini_hochberg_by_hand():
    # 0.01 * 4 / 1, 0.02 * 4 / 2, 0.03 * 4 / 3 are all 0.04; 0.5 * 4 / 4 = 0.5.
    assert benjamini_hochberg([0.5, 0.02, 0.01, 0.03]) == pytest.approx([0.5, 0.04, 0.04, 0.04])
    assert benjamini_hochberg([]) == []


def test_intervals_hold_what_they_promise_when_processes_differ():
    """Blocks of one process share their luck; an interval that took them for independent would hold far less."""
    rng = random.Random(3)
    held = 0
    for _ in range(60):
        luck = [rng.gauss(0, 1) for _ in range(5)]
        groups = [[100 + one + rng.gauss(0, 0.2) for _ in range(6)] for one in luck]
        low, high = interval(groups)
        held += low <= 100 <= high
    assert held >= 45  # 95% of 60 is 57; of so few processes a bootstrap holds somewhat less
