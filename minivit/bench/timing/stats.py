"""The statistics of timings: medians, intervals by resampling, and the tests behind `bench compare`. Standard library.

Times are compared as ratios, so intervals are made on their logarithms. Nothing here assumes a normal distribution:
times have a hard floor and a long tail.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from statistics import NormalDist, median

CONFIDENCE = 0.95
RESAMPLES = 1000
MAX_EXACT = 10_000  # pairs of samples; with more, or with ties, the normal approximation is used


def quantile(values: Sequence[float], fraction: float) -> float:
    """Return a quantile, linear between the two nearest values (type 7 of Hyndman and Fan 1996)."""
    ordered = sorted(values)
    place = fraction * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def interval(
    groups: Sequence[Sequence[float]], statistic: Callable[[Sequence[float]], float] = median
) -> tuple[float, float]:
    """Return the 95% interval of a statistic, by a bootstrap of two levels (Davison and Hinkley 1997, 3.8).

    Groups are drawn first, then values within them. Blocks of one process are similar, so three processes of twelve
    blocks are not thirty-six independent values.
    """
    rng = random.Random(0)  # the same report from the same samples
    drawn = [
        statistic([rng.choice(group) for group in rng.choices(groups, k=len(groups)) for _ in group])
        for _ in range(RESAMPLES)
    ]
    tail = (1 - CONFIDENCE) / 2
    return quantile(drawn, tail), quantile(drawn, 1 - tail)


def mann_whitney(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the two-sided p that a and b have one distribution (Mann and Whitney 1947).

    Exact if there are no ties, else the normal approximation with its corrections for ties and continuity.
    """
    n, m = len(a), len(b)
    both = sorted([*a, *b])
    counts: dict[float, int] = {}
    for value in both:
        counts[value] = counts.get(value, 0) + 1
    u = sum((x > y) + (x == y) / 2 for x in a for y in b)
    u = min(u, n * m - u)
    if len(counts) == n + m and n * m <= MAX_EXACT:
        ways = _ways(n, m)
        return min(1.0, 2 * sum(ways[: int(u) + 1]) / sum(ways))
    ties = sum(count**3 - count for count in counts.values())
    total = n + m
    variance = n * m / 12 * (total + 1 - ties / (total * (total - 1)))
    if variance <= 0:
        return 1.0
    z = max(0.0, abs(u - n * m / 2) - 0.5) / math.sqrt(variance)
    return min(1.0, 2 * (1 - NormalDist().cdf(z)))


def _ways(n: int, m: int) -> list[int]:
    """Return in how many orders of n and m values U is 0, 1, 2, ...: Gaussian binomial coefficients (n + m over n)."""
    size = n * m + 1
    ways = [1] + [0] * (size - 1)
    for i in range(1, n + 1):
        for u in range(size - 1, m + i - 1, -1):  # times 1 - q^(m + i)
            ways[u] -= ways[u - m - i]
        for u in range(i, size):  # divided by 1 - q^i
            ways[u] += ways[u - i]
    return ways


def hodges_lehmann(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Return the ratio b / a of positive values: the estimate and its 95% interval.

    The median of all ratios (Hodges and Lehmann 1963), with the interval of Mann and Whitney's test
    (Hollander, Wolfe and Chicken 2014, 4.3).
    """
    ratios = sorted(y / x for x in a for y in b)
    n, m = len(a), len(b)
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    skip = max(0, math.floor(n * m / 2 - z * math.sqrt(n * m * (n + m + 1) / 12)) - 1)
    return math.exp(median([math.log(ratio) for ratio in ratios])), ratios[skip], ratios[-1 - skip]


def ratio_between(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Return Hodges and Lehmann's ratio of two runs, each of them groups of values, and its 95% interval.

    At each end, the interval is the wider one of theirs and of a bootstrap over groups: the speed of a kernel may
    differ between processes, and three processes are a small sample.
    """
    ratio, low, high = hodges_lehmann(*([value for group in run for value in group] for run in (a, b)))
    pairs = [[median(y / x for x in one for y in other) for other in b] for one in a]
    rng = random.Random(0)
    drawn = []
    for _ in range(RESAMPLES):
        columns = rng.choices(range(len(b)), k=len(b))
        drawn.append(median(row[i] for row in rng.choices(pairs, k=len(a)) for i in columns))
    tail = (1 - CONFIDENCE) / 2
    return ratio, min(low, quantile(drawn, tail)), max(high, quantile(drawn, 1 - tail))


def benjamini_hochberg(ps: Sequence[float]) -> list[float]:
    """Return the p values of many tests as q values: of all tests called real up to q, a fraction of q is false
    (Benjamini and Hochberg 1995)."""
    order = sorted(range(len(ps)), key=lambda i: ps[i], reverse=True)
    qs = [1.0] * len(ps)
    smallest = 1.0
    for rank, i in zip(range(len(ps), 0, -1), order, strict=True):
        smallest = min(smallest, ps[i] * len(ps) / rank)
        qs[i] = smallest
    return qs
