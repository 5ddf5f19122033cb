"""Two runs of `bench run`: what became slower, what faster, what cannot be told, what cannot be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minivit.bench.report.results import Record, of_kind
from minivit.bench.timing.stats import benjamini_hochberg, mann_whitney, ratio_between
from minivit.bench.timing.summary import Series, key_of
from minivit.errors import UsageError

FALSE_CALLS = 0.05  # of the differences that are called real
FINGERPRINT = ("torch", "cpu", "cpu_capability", "cores", "device", "gpu", "gpu_capability", "cuda")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One row of the old run and the same of the new."""

    row: Record  # of the new run, or of the old where the new has none
    word: str  # slower, faster, same, inconclusive, broken or incomparable
    detail: str = ""
    ratio: float | None = None  # new time over old: above 1 is slower
    low: float | None = None
    high: float | None = None
    q: float | None = None  # p of Mann and Whitney's test, corrected for how many rows there are
    normalised: bool = False  # times in units of the baseline's, as the machine moved

    @property
    def regression(self) -> bool:
        """Whether this is what `--fail-on` asks for."""
        return self.word in ("slower", "broken")


def differences(old: Sequence[Record], new: Sequence[Record]) -> list[str]:
    """What of the machine and its software is not the same; times of different machines say nothing of a kernel."""
    before, after = (of_kind(records, "bench")[0]["environment"] for records in (old, new))
    return [
        f"{name} {before.get(name)} -> {after.get(name)}" for name in FINGERPRINT if before.get(name) != after.get(name)
    ]


def compare(old: Sequence[Record], new: Sequence[Record], *, fail_on: float) -> list[Change]:
    """A change for every row of either run but the second baseline; `fail_on` is the share that counts as slower.

    A row is slower when the test calls it different among all rows (q of at most 0.05), when the whole interval, over
    blocks and over processes, lies above 1 + fail_on, and when the difference is larger than what either run saw
    between equal arms; faster likewise.

    Raises:
        UsageError: one of them is no run of `bench run`.
    """
    if not all(of_kind(records, "bench") for records in (old, new)):
        raise UsageError(
            "a run of `bench model` stands by itself: compare holds runs of `bench run` against each other"
        )
    pairs = _pairs(old, new)
    if where := differences(old, new):
        detail = ", ".join(where)
        return [Change(row=b or a or {}, word="incomparable", detail=detail) for a, b in pairs]
    tested: dict[int, _Tested] = {}
    changes: list[Change | None] = []
    for i, (a, b) in enumerate(pairs):
        change = _incomparable(a, b)
        if change is None:
            assert a and b
            tested[i] = _test(a, b, old, new)
        changes.append(change)
    qs = dict(zip(tested, benjamini_hochberg([one.p for one in tested.values()]), strict=True))
    for i, one in tested.items():
        changes[i] = _change(pairs[i], one, qs[i], fail_on)
    return [change for change in changes if change]


@dataclass(frozen=True, kw_only=True)
class _Tested:
    p: float
    ratio: float
    low: float
    high: float
    normalised: bool


def _pairs(old: Sequence[Record], new: Sequence[Record]) -> list[tuple[Record | None, Record | None]]:
    """The rows that belong together: of one cell, and of one kernel by its name or as the only one of both runs."""

    def known(records: Sequence[Record]) -> dict[tuple, Record]:
        alone = len(of_kind(records, "bench")[0]["kernels"]) == 1
        found = {}
        for row in of_kind(records, "row"):
            if row["role"] != "again":
                found[(*key_of(row), "the kernel" if alone and row["role"] == "kernel" else row["kernel"])] = row
        return found

    before, after = known(old), known(new)
    return [(before.get(key), after.get(key)) for key in {**before, **after}]


def _incomparable(a: Record | None, b: Record | None) -> Change | None:
    if not (a and b):
        return Change(row=a or b or {}, word="incomparable", detail=f"only in the {'old' if a else 'new'} run")
    sound = ("verified", "noisy", "unverified")
    if a["status"] in sound and b["status"] in ("failed", "invalid", "unsteady"):
        return Change(row=b, word="broken", detail=f"was {a['status']}, is {b['status']}: {b['detail']}")
    for row, when in ((a, "old"), (b, "new")):
        if row["status"] not in sound:
            return Change(row=b, word="incomparable", detail=f"{when}: {row['status']}: {row['detail']}")
    return None


def _test(a: Record, b: Record, old: Sequence[Record], new: Sequence[Record]) -> _Tested:
    ours = _series(old, a, a["arm"]), _series(new, b, b["arm"])
    base = _series(old, a, a["baseline"]), _series(new, b, b["baseline"])
    values = [one.by_process(one.medians) for one in ours]
    normalised = False
    if a["role"] != "baseline" and a["baseline"] == b["baseline"] and all(one.blocks for one in base):
        _, low, high = ratio_between(*(one.by_process(one.medians) for one in base))
        normalised = _moved(low, high, _resolution(a, b))
        if normalised:
            values = [one.by_process(_in_units_of(other, one)) for one, other in zip(ours, base, strict=True)]
    ratio, low, high = ratio_between(*values)
    p = mann_whitney(*([value for process in run for value in process] for run in values))
    return _Tested(p=p, ratio=ratio, low=low, high=high, normalised=normalised)


def _moved(low: float, high: float, resolution: float) -> bool:
    """Whether the baseline's ratio is another than 1 for sure: one with two speeds is no unit."""
    return low > 1 + resolution or high < 1 - resolution


def _series(records: Sequence[Record], row: Record, arm: str) -> Series:
    blocks = [record for record in of_kind(records, "block") if record["kept"] and record["arm"] == arm]
    return Series([block for block in blocks if key_of(block) == key_of(row)])


def _in_units_of(base: Series, series: Series) -> dict[tuple[int, int], float]:
    units = base.medians
    return {number: value / units[number] for number, value in series.medians.items() if number in units}


def _resolution(a: Record, b: Record) -> float:
    """What both runs could tell from nothing; half of it all where a run had no second baseline."""
    return max(0.5 if row["resolution"] is None else row["resolution"] for row in (a, b))


def _change(pair: tuple[Record | None, Record | None], one: _Tested, q: float, fail_on: float) -> Change:
    a, b = pair
    assert a and b
    resolution = _resolution(a, b)
    numbers: dict[str, Any] = {"ratio": one.ratio, "low": one.low, "high": one.high, "q": q}
    numbers["normalised"] = one.normalised
    real = q <= FALSE_CALLS and abs(one.ratio - 1) > resolution
    if b["role"] == "baseline":
        moved = f"the machine moved by {one.ratio - 1:+.1%}; rows are compared in units of the baseline"
        return Change(row=b, word="same", detail=moved if _moved(one.low, one.high, resolution) else "", **numbers)
    if real and one.low > 1 + fail_on:
        return Change(row=b, word="slower", **numbers)
    if real and one.high < 1 / (1 + fail_on):
        return Change(row=b, word="faster", **numbers)
    if one.high <= 1 + max(fail_on, resolution):
        return Change(row=b, word="same", **numbers)
    detail = f"may be up to {one.high - 1:.1%} slower; differences below {resolution:.1%} are noise here"
    return Change(row=b, word="inconclusive", detail=detail, **numbers)
