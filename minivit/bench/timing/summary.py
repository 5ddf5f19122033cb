"""From blocks to rows: medians, intervals, speed-ups, roofs, and the status of each row.

Everything is computed from the records, so a file of raw samples can be summed up again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from minivit.bench.checks.cases import DTYPES, Spec
from minivit.bench.report.results import Record, of_kind, record
from minivit.bench.timing.roofline import Roof, bound, higher, impossible, work
from minivit.bench.timing.stats import interval, quantile

# The status of a row, from best to worst; a row has the worst that applies.
TRUST = {
    "verified": "the check passed (PyTorch's own attentions are not checked), and so did the outputs of timed calls",
    "noisy": "too many of its blocks were disturbed, even when they were repeated",
    "unsteady": "it became slower, against the baseline, while it was timed",
    "unverified": "the check was skipped, on request",
    "unsupported": "the kernel, or its machine, does not do this",
    "invalid": "a timed output was wrong, or a time is impossible",
    "failed": "the kernel was refused, or crashed",
}
MAX_NOISY = 0.25  # fraction of the blocks of a row
MAX_DRIFT = 0.05  # slower at the end than at the start, in every process
KEY = ("batch", "heads", "tokens", "head_dim", "dtype", "layout", "device", "direction", "mode", "threads")


def key_of(record: Record) -> tuple:
    """Return the cell of a record."""
    return tuple(record[name] for name in KEY)


def spec_of(record: Record) -> Spec:
    """Return the shape of a record."""
    sizes = {name: record[name] for name in ("batch", "heads", "tokens", "head_dim", "layout", "device")}
    return Spec(**sizes, dtype=DTYPES[record["dtype"]])


@dataclass(frozen=True)
class Series:
    """The kept blocks of one arm in one cell."""

    blocks: Sequence[Record]

    @property
    def medians(self) -> dict[tuple[int, int], float]:
        """The median of every block in microseconds, by (process, round)."""
        return {(block["process"], block["round"]): median(block["samples_us"]) for block in self.blocks}

    def by_process(self, values: dict[tuple[int, int], float]) -> list[list[float]]:
        """Return the values of rounds, in order, one list for each process."""
        processes = sorted({process for process, _ in values})
        return [[value for (p, _), value in sorted(values.items()) if p == process] for process in processes]


def ratios(base: Series, *others: Series) -> dict[tuple[int, int], float]:
    """Return time of the base / mean time of the others, for each round that all took part in."""
    first, rest = base.medians, [other.medians for other in others]
    rounds = [number for number in first if all(number in other for other in rest)]
    return {number: first[number] * len(rest) / sum(other[number] for other in rest) for number in rounds}


def resolution_of(one: Series, same: Series) -> float | None:
    """Return the largest difference of two equal arms within the 95% interval: smaller differences are noise."""
    seen = ratios(one, same)
    if not seen:
        return None
    low, high = interval(one.by_process(seen))
    return max(high - 1, 1 - low)


def rows(records: Iterable[Record]) -> list[Record]:
    """Return a record of kind "row" for every arm in every cell."""
    every = list(records)
    head = of_kind(every, "bench")[0]
    verdicts = {one["kernel"]: one["right"] for one in of_kind(every, "verdict")}
    measured = of_kind(every, "roof")
    roofs = {n: higher(_roof(r) for r in measured if r["threads"] == n) for n in {r["threads"] for r in measured}}
    cells: dict[tuple, list[Record]] = {}
    for one in every:
        if one["kind"] in ("start", "block"):
            cells.setdefault(key_of(one), []).append(one)
    found = []
    for cell in sorted(cells.values(), key=lambda cell: _place(cell[0])):
        found += _cell(cell, head, verdicts, roofs.get(cell[0]["threads"]))
    return found


def _place(record: Record) -> tuple:
    """Sort key of the cell of a record: similar cells together, small ones first."""
    alike = ("threads", "dtype", "direction", "mode", "layout")
    return *(record[name] for name in alike), spec_of(record).work


def _roof(record: Record) -> Roof:
    return Roof(**{name: record[name] for name in ("gemm", "memory", "cache", "exp", "cache_bytes")})


def doubtful(found: Iterable[Record]) -> set[int]:
    """The numbers of threads of rows that are faster than their roof: it may be the roof that is wrong."""
    right = [row for row in found if row["of_roof"] and row["of_limit"] <= 1]
    return {row["threads"] for row in right if row["of_roof"] > 1}


def _cell(records: list[Record], head: Record, verdicts: dict[str, bool], roof: Roof | None) -> list[Record]:
    baseline = head["against"][0]["kernel"]
    arms = [
        *((one["kernel"], one["kernel"], "kernel") for one in head["kernels"]),
        (baseline, baseline, "baseline"),
        (f"{baseline} (again)", baseline, "again"),
        *((one["kernel"], one["kernel"], "against") for one in head["against"][1:]),
    ]
    series = {
        name: Series([r for r in records if r["kind"] == "block" and r["arm"] == name and r["kept"]])
        for name, _, _ in arms
    }
    both = series[baseline], series[f"{baseline} (again)"]
    resolution = resolution_of(*both)
    found = []
    for name, kernel, role in arms:
        starts = [r for r in records if r["kind"] == "start" and r["kernel"] == kernel]
        attempts = [r for r in records if r["kind"] == "block" and r["arm"] == name]
        row = record("row", **{k: records[0][k] for k in KEY})
        row |= {"arm": name, "kernel": kernel, "role": role, "baseline": baseline}
        row |= {"status": "", "detail": ""}  # keeps the order of the fields
        row |= _times(series[name], row, roof)
        compared = ratios(both[0], series[name]) if role == "again" else ratios_to_both(both, series[name])
        row |= _speedup({} if role == "baseline" else compared, both[0])
        row["resolution"] = resolution
        row |= _starts(starts)
        row |= _counts(attempts)
        row["status"], row["detail"] = _trust(row, starts, attempts, series[name], both, head, verdicts, roof)
        found.append(row)
    return found


def ratios_to_both(both: tuple[Series, Series], other: Series) -> dict[tuple[int, int], float]:
    """Return the speed-up over the baseline (the mean of its two arms) in each round."""
    return {number: 1 / value for number, value in ratios(other, *both).items()}


def _times(series: Series, row: Record, roof: Roof | None) -> Record:
    names = ("median_us", "low_us", "high_us", "p95_us", "best_us", "gflops", "gbytes", "bound_us", "binds", "of_roof")
    empty: Record = dict.fromkeys(names)
    if not series.blocks:
        return empty
    groups = series.by_process(series.medians)
    middle = median(series.medians.values())
    low, high = interval(groups)
    samples = [sample for block in series.blocks for sample in block["samples_us"]]
    spec = spec_of(row)
    needs = work(spec, row["direction"])
    times = dict(
        zip(names, (middle, low, high, quantile(samples, 0.95), min(samples), needs.flops / middle / 1e3), strict=False)
    )
    times["gbytes"] = needs.bytes / middle / 1e3
    if roof:
        minimum = bound(spec, row["direction"], row["mode"], roof)
        bound_us = minimum.seconds * 1e6
        times |= {"bound_us": bound_us, "binds": minimum.binds, "of_roof": bound_us / middle}
    return empty | times


def _speedup(compared: dict[tuple[int, int], float], base: Series) -> Record:
    if not compared:
        return dict.fromkeys(("speedup", "speedup_low", "speedup_high"))
    groups = base.by_process(compared)
    low, high = interval(groups)
    return {"speedup": median(compared.values()), "speedup_low": low, "speedup_high": high}


def _starts(starts: list[Record]) -> Record:
    """Load and first call come from the first process, which may compile; the others find the result."""
    first = min(starts, key=lambda record: record["process"], default={})
    peaks = [record["peak_bytes"] for record in starts if record["peak_bytes"] is not None]
    return {
        "load_seconds": first.get("load_seconds"),
        "first_call_seconds": first.get("first_call_seconds"),
        "peak_bytes": max(peaks, default=None),
    }


def _counts(attempts: list[Record]) -> Record:
    kept = [block for block in attempts if block["kept"]]
    return {
        "blocks": len(kept),
        "repeated": len(attempts) - len(kept),
        "noisy": sum(block["noise"] is not None for block in kept),
        "calls": sum(block["calls"] * len(block["samples_us"]) for block in attempts),
        "minor_faults": sum(block["minor_faults"] for block in attempts),
        "involuntary_switches": sum(block["involuntary_switches"] for block in attempts),
        "of_limit": max((_of_limit(block) for block in attempts), default=None),
    }


def _of_limit(block: Record) -> float:
    """Return the error of its timed output relative to the limit; a file has null for a number that is not finite."""
    error = block["numbers"].get("of_limit")
    return math.inf if error is None or math.isnan(error) else error


def _trust(
    row: Record,
    starts: list[Record],
    attempts: list[Record],
    series: Series,
    both: tuple[Series, Series],
    head: Record,
    verdicts: dict[str, bool],
    roof: Roof | None,
) -> tuple[str, str]:
    """Return the status of a row, a word of TRUST, and the reason."""
    if verdicts.get(row["kernel"]) is False:
        return "failed", "refused by the check"
    for status, word in (("fail", "failed"), ("unsupported", "unsupported")):
        if bad := [record for record in starts if record["status"] == status]:
            return word, bad[0]["detail"]
    if not series.blocks:
        return "failed", "no block of it was timed"
    if wrong := [block for block in attempts if block["status"] == "fail"]:
        return "invalid", f"{len(wrong)} of {len(attempts)} timed answers looked at are wrong: {wrong[0]['detail']}"
    if roof:
        fastest = min(series.medians.values()) / 1e6
        if reason := impossible(fastest, spec_of(row), row["direction"], row["mode"], roof):
            return "invalid", reason
    weaker = _weaker(row, series, both)
    if head["unverified"]:
        also = "".join(f"; also {word}: {reason}" for word, reason in weaker)
        return "unverified", f"{TRUST['unverified']}{also}"
    return weaker[0] if weaker else ("verified", "")


def _weaker(row: Record, series: Series, both: tuple[Series, Series]) -> list[tuple[str, str]]:
    """Return the weaker statuses of a row whose outputs are right, the worse first, with their reasons."""
    found = []
    if row["role"] not in ("baseline", "again"):
        slower = drift(series, ratios_to_both(both, series))
        if slower is not None and slower > max(MAX_DRIFT, row["resolution"] or 0):
            found.append(("unsteady", f"{slower:.0%} slower, against the baseline, at the end than at the start"))
    if row["noisy"] > MAX_NOISY * row["blocks"]:
        reason = next(block["noise"] for block in series.blocks if block["noise"])
        found.append(("noisy", f"{row['noisy']} of {row['blocks']} blocks, for one: {reason}"))
    return found


def drift(series: Series, compared: dict[tuple[int, int], float]) -> float | None:
    """Return how much slower the last third of the rounds is than the first, in the process where it is least.

    Measured in units of the baseline, so that a machine that slows down for all arms does not count.
    """
    found = []
    for values in series.by_process(compared):
        third = max(1, len(values) // 3)
        if len(values) >= 2:
            found.append(median(values[:third]) / median(values[-third:]) - 1)
    return min(found, default=None)
