"""`bench.check`: is a kernel right? One call runs all cases and returns the rows, the counts and the verdict."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from minivit.bench.checks.cases import DTYPES, EFFORTS, Case, plan
from minivit.bench.checks.numerics import CHECKS
from minivit.bench.checks.server import Row, run_cases
from minivit.bench.kernels import sha256
from minivit.bench.report.results import Record
from minivit.bench.report.verdicts import case_record, counts_text, table, verdict_record, worst_first
from minivit.bench.sandbox import Limits, default_memory
from minivit.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The result of a check of one kernel. Its text is the table that `minivit bench check` prints."""

    kernel: str
    rows: tuple[Row, ...]  # one for each case, in the order in which they ran
    seed: int
    device: str

    @property
    def verdict(self) -> Record:
        """The verdict as a record: right, counts."""
        return verdict_record(self.kernel, self.rows)

    @property
    def counts(self) -> dict[str, int]:
        """Number of cases for each of findings.STATUSES."""
        return self.verdict["counts"]

    @property
    def right(self) -> bool:
        """True if no case failed and at least one passed."""
        return self.verdict["right"]

    @property
    def failures(self) -> list[Row]:
        """The worst failed row of each check."""
        failed = [row for row in sorted(self.rows, key=worst_first) if row.finding.status == "fail"]
        return list({row.case.check if row.case else None: row for row in failed}.values())

    def lines(self) -> list[str]:
        """Return the table, the verdict, and for each failed check its worst case and the command that repeats it."""
        digest = sha256(self.kernel)
        word = "right" if self.right else "wrong" if self.counts["fail"] else "nothing was checked"
        lines = [self.kernel + (f"  sha256 {digest[:16]}" if digest else ""), *table(self.rows)]
        lines.append(f"{word}: {counts_text(self.counts)} (seed {self.seed})")
        for row in self.failures:
            lines += [f"  {row.finding.detail}", f"    {command(row, self.seed, self.device)}"]
        return lines

    def __repr__(self) -> str:
        return "\n".join(self.lines())


def check(
    kernel: str | Path,
    *,
    effort: str = "default",
    cases: Sequence[Case] | None = None,
    dtypes: Sequence[torch.dtype] = tuple(DTYPES.values()),
    device: str = "cpu",
    seed: int | None = None,
    limits: Limits | None = None,
    on_record: Callable[[Record], object] | None = None,
) -> CheckResult:
    """Return the result of a kernel in all cases of a plan, each compared with float64 in a child process.

    Args:
        kernel: "my_kernel.py", "my_kernel.py:name", a baseline or "mutant:NAME" (see kernels.load_kernel).
        effort: a name in cases.EFFORTS: small, quick, default or full.
        cases: the cases to run, instead of those of `effort` and `dtypes`.
        device: "cpu", "cuda" or "cuda:N".
        seed: of the random numbers; drawn if None, and kept in the result.
        limits: of the child process; by default 60 seconds a case and half of the machine's memory, 8 GiB at most.
        on_record: called with the JSON record of every case and of the verdict as soon as it is known.

    Raises:
        UsageError: there is no such kernel, effort or check.
    """
    if effort not in EFFORTS:
        raise UsageError(f"effort {effort!r}: choose from {', '.join(EFFORTS)}")
    if cases is None:
        cases = plan(list(CHECKS), EFFORTS[effort], device=device, dtypes=dtypes)
    if unknown := [case.check for case in cases if case.check not in CHECKS]:
        raise UsageError(f"no check {unknown[0]}; there are {', '.join(CHECKS)}")
    seed = secrets.randbelow(1 << 32) if seed is None else seed
    limits = limits or Limits(memory=default_memory())
    tell = on_record or (lambda record: None)
    rows = []
    for row in run_cases(str(kernel), cases, seed=seed, device=device, limits=limits):
        rows.append(row)
        tell(case_record(row, seed=seed, command=command(row, seed, device)))
    result = CheckResult(kernel=str(kernel), rows=tuple(rows), seed=seed, device=device)
    tell(result.verdict)
    return result


def quick_cases(dtypes: Sequence[torch.dtype], device: str, grads: bool) -> list[Case]:
    """Return the cases of `bench check --quick` in these dtypes; gradients only where they will be timed."""
    checks = [check for check in CHECKS if grads or not check.startswith("backward/")]
    return plan(checks, EFFORTS["quick"], device=device, dtypes=dtypes)


def command(row: Row, seed: int, device: str) -> str:
    """Return the command that runs this row again."""
    words = ["minivit", "bench", "check", row.kernel, "--seed", str(seed)]
    words += [] if device == "cpu" else ["--device", device]
    return shlex.join([*words, "--case", str(row.case)] if row.case else words)
