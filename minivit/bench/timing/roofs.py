"""`bench.roofline`: the measured limits of this machine, kept in a file so that they are measured once a week."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minivit.bench.checks.cases import DTYPES, name_of
from minivit.bench.report.results import Record, record
from minivit.bench.report.verdicts import fingerprint
from minivit.bench.sandbox import Limits
from minivit.bench.timing.blocks import TimingServer, timing_child
from minivit.bench.timing.machine import allowed_cores
from minivit.bench.timing.roofline import Roof

FRESH = 7 * 24 * 3600  # seconds for which a measurement is used again


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """The limits of a device with so many threads."""

    roof: Roof
    threads: int
    device: str
    age_seconds: float  # since they were measured

    def record(self) -> Record:
        """Return the record of kind "roof"."""
        where = {"threads": self.threads, "device": self.device, "age_seconds": self.age_seconds}
        return record("roof", **where, **vars(self.roof))

    def lines(self, dtypes: Sequence[str] = tuple(DTYPES)) -> list[str]:
        """Return the table that `minivit bench roofline` prints."""
        roof, threads = self.roof, self.threads
        gemm = [(f"{name} products", f"{roof.gemm[name] / 1e9:>9.1f} GFLOP/s") for name in roof.gemm if name in dtypes]
        rows = [
            *gemm,
            ("memory", f"{roof.memory / 1e9:>9.1f} GB/s"),
            ("cache of a core", f"{roof.cache / 1e9:>9.1f} GB/s"),
            ("exp", f"{roof.exp / 1e9:>9.2f} G/s"),
            ("last-level cache", f"{roof.cache_bytes / 2**20:>9.0f} MiB"),
        ]
        head = f"{self.device}, {threads} thread{'s' * (threads > 1)}, measured {_age(self.age_seconds)}"
        return [head, *(f"  {name:<22}{value}" for name, value in rows)]

    def __repr__(self) -> str:
        return "\n".join(self.lines())


def roofline(
    threads: int | None = None,
    dtypes: Sequence[torch.dtype] = tuple(DTYPES.values()),
    *,
    device: str = "cpu",
    limits: Limits | None = None,
    cache: str | Path | None = None,
    again: bool = False,
    on_message: Callable[[str], object] | None = None,
) -> Roofline:
    """Return the limits of this machine: kept ones that are at most a week old, or measured now (about ten seconds).

    Args:
        threads: by default as many as there are cores.
        dtypes: of the GEMM that is measured.
        cache: a JSON file that keeps measurements; None measures every time.
        again: measure even if the file has a fresh measurement.
        on_message: called with a line of text before a measurement.
    """
    threads = threads or len(allowed_cores())
    tell = on_message or (lambda message: None)
    file = Path(cache) if cache else None
    environment = fingerprint(device) | {"threads": threads}
    found = kept(file, environment, dtypes, now=time.time()) if file and not again else None
    if found and found[1] < FRESH:
        return Roofline(roof=found[0], threads=threads, device=device, age_seconds=found[1])
    tell(f"measuring the roofs of {device} with {threads} thread{'s' * (threads > 1)} (about ten seconds)")
    with timing_child(threads, limits or Limits(), device) as child:
        roof = child.call(TimingServer.roof, list(dtypes))
    try:
        if file:
            keep(file, roof, environment, now=time.time())
    except OSError as error:
        tell(f"{file}: cannot keep the measurement, it will be repeated next time: {error}")
    return Roofline(roof=roof, threads=threads, device=device, age_seconds=0.0)


def _age(seconds: float) -> str:
    """How long ago, in words."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return "just now" if seconds < 1 else f"{seconds:.0f} s ago"


def keep(file: Path, roof: Roof, environment: Mapping[str, Any], *, now: float) -> None:
    """Write roofs with their environment and time (`now`, seconds since 1970); they replace older ones."""
    others = [one for one in _entries(file) if one["environment"] != environment]
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}")
    partial.write_text(json.dumps([*others, {"environment": environment, "measured": now, "roof": vars(roof)}]))
    partial.replace(file)


def kept(
    file: Path, environment: Mapping[str, Any], dtypes: Iterable[torch.dtype], *, now: float
) -> tuple[Roof, float] | None:
    """Return the roofs kept for this environment, if they cover these dtypes, and their age in seconds."""
    for one in _entries(file):
        roof = Roof(**one["roof"])
        if one["environment"] == environment and {name_of(dtype) for dtype in dtypes} <= roof.gemm.keys():
            return roof, now - one["measured"]
    return None


def _entries(file: Path) -> list[dict[str, Any]]:
    """Return the entries of the file; none if it is missing or not of this form."""
    try:
        found = json.loads(file.read_text())
        return [one for one in found if Roof(**one["roof"]) and one["environment"] and one["measured"]]
    except (OSError, ValueError, TypeError, KeyError):
        return []
