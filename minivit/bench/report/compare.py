"""`bench.compare`: two runs of `bench run`, row by row. What is slower, faster, the same, or cannot be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minivit.bench.report.results import Record, of_kind, read, record
from minivit.bench.report.runs import RunResult
from minivit.bench.report.tables import columns, title
from minivit.bench.timing.stats import benjamini_hochberg, mann_whitney, ratio_between
from minivit.bench.timing.summary import KEY, Series, key_of
from minivit.errors import UsageError

MAX_FALSE = 0.05  # fraction of false ones among the differences that are called real
FINGERPRINT = ("torch", "cpu", "cpu_capability", "cores", "device", "gpu", "gpu_capability", "cuda")


@dataclass(frozen=True, kw_only=True)
class Change:
    """One row of the old run and the same row of the new run."""

    row: Record  # of the new run, or of the old run if the new one has none
    word: str  # slower, faster, same, inconclusive, broken or incomparable
    detail: str = ""
    ratio: float | None = None  # new time over old: above 1 is slower
    low: float | None = None
    high: float | None = None
    q: float | None = None  # p of Mann and Whitney's test, corrected for the number of rows
    normalised: bool = False  # times in units of the baseline, because the speed of the machine changed

    @property
    def regression(self) -> bool:
        """True if the row is slower by more than `fail_on`, or refused now."""
        return self.word in ("slower", "broken")

    def record(self) -> Record:
        """Return the record of kind "change"."""
        facts = {name: value for name, value in vars(self).items() if name != "row"}
        return record("change", **{name: self.row[name] for name in ("kernel", *KEY)}, **facts)

    def cells(self) -> tuple[str, ...]:
        """Return the cells of its line in the table."""
        ratio = "-" if self.ratio is None else f"{self.ratio:.3f}"
        between = "-" if self.low is None else f"{self.low:.3f} .. {self.high:.3f}"
        q = "-" if self.q is None else f"{self.q:.2g}"
        words = self.word.upper() if self.regression else self.word
        words += " (in units of the baseline)" * self.normalised + (f": {self.detail}" if self.detail else "")
        return f"{self.row['kernel']}: {title(self.row)}", ratio, between, q, words


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All changes between two runs. Its text is the table that `minivit bench compare` prints."""

    changes: tuple[Change, ...]

    @property
    def regressions(self) -> list[Change]:
        """The rows that became slower or wrong."""
        return [change for change in self.changes if change.regression]

    @property
    def comparable(self) -> bool:
        """False if no row can be compared."""
        return any(change.word != "incomparable" for change in self.changes)

    def lines(self) -> list[str]:
        """Return the lines of the table."""
        return columns([("kernel", "new / old", "95%", "q", ""), *(change.cells() for change in self.changes)])

    def __repr__(self) -> str:
        return "\n".join(self.lines())


Run = RunResult | str | Path | Sequence[Record]


def compare(old: Run, new: Run, *, fail_on: float = 0.03) -> Comparison:
    """Return the changes from the old run to the new run: results of `bench.run`, run.jsonl, its folder, or records.

    A row is a regression if it is slower by more than the fraction `fail_on` (see changes_between), or refused now.

    Raises:
        UsageError: one of them cannot be read, or is not a run of `bench run`.
    """
    return Comparison(changes=tuple(changes_between(_records(old), _records(new), fail_on=fail_on)))


def _records(run: Run) -> Sequence[Record]:
    if isinstance(run, RunResult):
        return run.records
    return read(run) if isinstance(run, (str, Path)) else run


def differences(old: Sequence[Record], new: Sequence[Record]) -> list[str]:
    """Return what differs in machine and software. Times of different machines cannot be compared."""
    before, after = (of_kind(records, "bench")[0]["environment"] for records in (old, new))
    return [
        f"{name} {before.get(name)} -> {after.get(name)}" for name in FINGERPRINT if before.get(name) != after.get(name)
    ]


def changes_between(old: Sequence[Record], new: Sequence[Record], *, fail_on: float) -> list[Change]:
    """Return a change for every row of either run except the second baseline.

    A row is slower if the test calls it different among all rows (q of at most 0.05), if the whole interval, over
    blocks and over processes, lies above 1 + fail_on, and if the difference is larger than what either run measured
    between equal arms; faster likewise.

    Raises:
        UsageError: one of them is not a run of `bench run`.
    """
    if not all(of_kind(records, "bench") for records in (old, new)):
        raise UsageError("only runs of `bench run` can be compared, not of `bench model`")
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
    """Return pairs of rows: of the same cell and the same kernel (by name, or the only kernel of both runs)."""

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
    """Return whether the baseline's ratio surely differs from 1; a baseline with two speeds is no unit."""
    return low > 1 + resolution or high < 1 - resolution


def _series(records: Sequence[Record], row: Record, arm: str) -> Series:
    blocks = [record for record in of_kind(records, "block") if record["kept"] and record["arm"] == arm]
    return Series([block for block in blocks if key_of(block) == key_of(row)])


def _in_units_of(base: Series, series: Series) -> dict[tuple[int, int], float]:
    units = base.medians
    return {number: value / units[number] for number, value in series.medians.items() if number in units}


def _resolution(a: Record, b: Record) -> float:
    """Return the smallest difference that both runs can tell from noise; 0.5 for a run without a second baseline."""
    return max(0.5 if row["resolution"] is None else row["resolution"] for row in (a, b))


def _change(pair: tuple[Record | None, Record | None], one: _Tested, q: float, fail_on: float) -> Change:
    a, b = pair
    assert a and b
    resolution = _resolution(a, b)
    numbers: dict[str, Any] = {"ratio": one.ratio, "low": one.low, "high": one.high, "q": q}
    numbers["normalised"] = one.normalised
    real = q <= MAX_FALSE and abs(one.ratio - 1) > resolution
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
