"""`bench.selftest`: the power of the check. It must refuse every mutant and accept every right kernel."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from minivit.bench.checks.cases import EFFORTS, Case, plan
from minivit.bench.checks.findings import Finding
from minivit.bench.checks.mutants import MUTANTS, Mutant
from minivit.bench.checks.numerics import CHECKS
from minivit.bench.checks.server import CheckServer, check_child
from minivit.bench.sandbox import Limits, default_memory

HONEST = ("eager", "sdpa", "sdpa:flash", "sdpa:math")


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The result of one kernel that is known to be right or wrong."""

    kernel: str
    asked: int  # cases
    refused: int  # cases that failed
    caught_by: dict[str, tuple[int, int]]  # for each check that must refuse it: cases refused, cases asked
    reason: str  # the first reason by one of those checks
    good: bool  # a mutant: refused by each of those checks for the right reason; a right kernel: never refused

    def __str__(self) -> str:
        by = ", ".join(f"{check} {caught}/{asked}" for check, (caught, asked) in self.caught_by.items())
        wrong = "" if self.good else "  <- NOT AS IT MUST BE"
        return f"{self.kernel:<34}{f'{self.refused}/{self.asked}':>11}  {by}{wrong}"


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """All trials of a self-test, the mutants first."""

    trials: tuple[Trial, ...]
    seed: int

    @property
    def good(self) -> bool:
        """True if every mutant was refused for the right reason and every right kernel accepted."""
        return all(trial.good for trial in self.trials)

    @property
    def summary(self) -> str:
        """How many mutants were refused, and how many right kernels accepted, in one line."""
        mutants, honest = self.trials[: -len(HONEST)], self.trials[-len(HONEST) :]
        caught, accepted = sum(trial.good for trial in mutants), sum(trial.good for trial in honest)
        return (
            f"power: {caught} of {len(mutants)} wrong kernels refused for the right reason, "
            f"{accepted} of {len(honest)} honest ones accepted (seed {self.seed})"
        )

    def __repr__(self) -> str:
        return "\n".join([HEADER, *map(str, self.trials), self.summary])


HEADER = f"{'kernel':<34}{'refused in':>11}  by the checks that must (of their cases)"


def selftest(*, seed: int | None = None, on_trial: Callable[[Trial], object] | None = None) -> SelfTest:
    """Return the trials of all mutants and of PyTorch's own attentions in the cases of effort "small".

    `seed` is drawn if None. `on_trial` is called with each trial as soon as it is known.
    """
    seed = secrets.randbelow(1 << 32) if seed is None else seed
    cases = plan(list(CHECKS), EFFORTS["small"], device="cpu", dtypes=[torch.float32, torch.bfloat16])
    found = []
    with check_child(Limits(memory=default_memory()), "cpu") as child:
        for trial in trials(cases, lambda kernel, case: child.call(CheckServer.ask, kernel, case, seed)):
            found.append(trial)
            if on_trial:
                on_trial(trial)
    return SelfTest(trials=tuple(found), seed=seed)


def trials(cases: Sequence[Case], ask: Callable[[str, Case], Finding]) -> Iterator[Trial]:
    """Yield the trial of every mutant, then of every right kernel."""
    for kernel in (*(f"mutant:{name}" for name in MUTANTS), *HONEST):
        yield try_out(kernel, cases, ask)


def try_out(kernel: str, cases: Sequence[Case], ask: Callable[[str, Case], Finding]) -> Trial:
    """Return the trial of a mutant ("mutant:NAME") or of a right kernel."""
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
