"""The power of the check: wrong attentions go through it and must be refused, honest ones and must be accepted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from minivit.bench.checks.cases import Case
from minivit.bench.checks.findings import Finding
from minivit.bench.checks.mutants import MUTANTS, Mutant

HONEST = ("eager", "sdpa", "sdpa:flash", "sdpa:math")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What became of one kernel of known rightness."""

    kernel: str
    asked: int  # cases
    refused: int  # of them
    caught_by: dict[str, tuple[int, int]]  # of the checks that must refuse it: cases refused, cases asked
    reason: str  # the first it was refused for, by those
    good: bool  # a mutant refused by each of those checks for the right reason, an honest kernel by none


def try_out(kernel: str, cases: Sequence[Case], ask: Callable[[str, Case], Finding]) -> Trial:
    """Ask a mutant ("mutant:NAME") or an honest kernel the cases."""
    mutant = MUTANTS.get(kernel.removeprefix("mutant:"), Mutant(attention=lambda: None, refused_by=()))
    asked = dict.fromkeys(mutant.refused_by, 0)
    caught = dict.fromkeys(mutant.refused_by, 0)
    refused, reasons = 0, []
    for case in cases:
        finding = ask(kernel, case)
        failed = finding.status == "fail"
        refused += failed
        if case.check in asked:
            right_reason = failed and mutant.because in finding.detail
            asked[case.check] += 1
            caught[case.check] += right_reason
            reasons += [finding.detail] * right_reason
    return Trial(
        kernel=kernel,
        asked=len(cases),
        refused=refused,
        caught_by={check: (caught[check], asked[check]) for check in asked},
        reason=reasons[0] if reasons else "",
        good=all(caught.values()) if mutant.refused_by else not refused,
    )


def selftest(cases: Sequence[Case], ask: Callable[[str, Case], Finding]) -> Iterator[Trial]:
    """Every mutant, then every honest kernel."""
    for kernel in (*(f"mutant:{name}" for name in MUTANTS), *HONEST):
        yield try_out(kernel, cases, ask)
