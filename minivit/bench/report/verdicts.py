"""The result of a check: as records for programs, as a table for people."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from minivit import __version__
from minivit.bench import device as devices
from minivit.bench.checks.findings import STATUSES
from minivit.bench.checks.numerics import CHECKS
from minivit.bench.checks.server import Row
from minivit.bench.kernels import sha256
from minivit.bench.report.results import Record, record
from minivit.bench.sandbox import Limits
from minivit.bench.timing import machine


def fingerprint(device: str) -> dict[str, Any]:
    """Return the environment, as far as it can change a result."""
    where = {
        "minivit": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": machine.cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": device,
    }
    return where | devices.describe(device)


def run_record(kernels: Sequence[str], *, seed: int, effort: str, device: str, limits: Limits) -> Record:
    """Return the first record of `bench check`: kernels with their sha256, seed, limits, environment."""
    return record(
        "run",
        kernels=[{"kernel": name, "sha256": sha256(name)} for name in kernels],
        seed=seed,
        effort=effort,
        limits={"seconds": limits.seconds, "memory_bytes": limits.memory},
        environment=fingerprint(device),
    )


def case_record(row: Row, *, seed: int, command: str | None) -> Record:
    """Return the record of one row. A number that is not finite becomes null; the detail says what it was."""
    where = {"case": str(row.case), "check": row.case.check, **row.case.spec.key()} if row.case else {"case": None}
    numbers = {name: value if math.isfinite(value) else None for name, value in row.finding.numbers.items()}
    outcome = {"status": row.finding.status, "detail": row.finding.detail, "numbers": numbers}
    return record("case", kernel=row.kernel, **where, **outcome, seed=seed, command=command)


def verdict_record(kernel: str, rows: Iterable[Row]) -> Record:
    """Return the last record of a kernel. It is right if nothing failed and something passed."""
    counts = dict.fromkeys(STATUSES, 0)
    for row in rows:
        counts[row.finding.status] += 1
    right = not counts["fail"] and counts["pass"] > 0
    return record("verdict", kernel=kernel, right=right, counts=counts)


def counts_text(counts: dict[str, int]) -> str:
    """Return how many cases ended how, such as "296 pass, 1 fail"."""
    return ", ".join(f"{count} {status}" for status, count in counts.items() if count)


def worst_first(row: Row) -> tuple[int, float]:
    """Sort key that puts the worst row last: by status, then by error relative to the limit; nan is the largest."""
    error = row.finding.numbers.get("of_limit", 0.0)
    return STATUSES.index(row.finding.status), math.inf if math.isnan(error) else error


def table(rows: Sequence[Row]) -> list[str]:
    """Return one line for each check: the number of cases, and the worst of them."""
    groups: dict[str, list[Row]] = {check: [] for check in (*CHECKS, "kernel")}
    for row in rows:
        groups[row.case.check if row.case else "kernel"].append(row)
    lines = [f"{'check':<24}{'cases':>5}  {'worst':<13}{'of limit':>9}{'x eager':>9}{'x sdpa':>9}  worst case"]
    for check, group in groups.items():
        if not group:
            continue
        worst = max(group, key=worst_first)
        numbers = "".join(_number(worst.finding.numbers.get(name)) for name in ("of_limit", "x_eager", "x_sdpa"))
        where = str(worst.case.spec) if worst.case else ""
        tail = ": ".join(part for part in (where, worst.finding.detail) if part)
        lines.append(f"{check:<24}{len(group):>5}  {worst.finding.status:<13}{numbers}  {tail}".rstrip())
    return lines


def _number(value: float | None) -> str:
    if value is None:
        return f"{'-':>9}"
    return f"{value:>9.2f}" if 0.005 <= value < 1000 else f"{value:>9.1e}" if value else f"{'0':>9}"
