"""The outcome of a case: a Finding, or the KernelError that refuses the kernel. And what every check tests first."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from minivit.bench.checks.inputs import Triple
from minivit.bench.checks.tolerance import Verdict
from minivit.bench.kernels import Kernel
from minivit.bench.sandbox import describe_error
from minivit.errors import MinivitError

# The worst comes last. note: the kernel is right, with a remark. inconclusive: within a tolerance too wide to prove
# anything.
STATUSES = ("unsupported", "pass", "note", "inconclusive", "fail")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The outcome of one case."""

    status: str  # one of STATUSES
    detail: str = ""
    numbers: dict[str, float] = field(default_factory=dict)


class KernelError(MinivitError):
    """The kernel is refused; the message is the reason."""

    def __init__(self, detail: str, numbers: dict[str, float] | None = None):
        super().__init__(detail)
        self.numbers = numbers or {}


def output_of(kernel: Kernel, qkv: Triple, *, scale: float | None = None) -> Tensor:
    """Return the kernel's output for q, k and v.

    Raises:
        KernelError: the kernel raises, or its output is not a tensor of the shape, dtype and device of q.
    """
    q = qkv[0]
    try:
        out: Any = kernel(*qkv, scale=scale)
    except Exception as error:
        raise raised(error) from error
    if not isinstance(out, Tensor):
        raise KernelError(f"returned {type(out).__name__}, not a tensor")
    for what in ("shape", "dtype", "device"):
        got, want = getattr(out, what), getattr(q, what)
        if got != want:
            form = tuple if what == "shape" else str
            raise KernelError(f"the output's {what} is {form(got)}; q has {form(want)}")
    return out


def raised(error: Exception, where: str = "") -> KernelError:
    """Return an exception of the kernel as the reason to refuse it, in one line."""
    return KernelError(describe_error(error, where))


def judged(verdict: Verdict, what: str = "") -> Finding:
    """Return a verdict as a finding: pass or inconclusive.

    Raises:
        KernelError: the errors exceed the tolerance.
    """
    numbers = {
        "of_limit": verdict.of_limit,
        "x_eager": verdict.x_eager,
        "x_sdpa": verdict.x_sdpa,
        "largest_error": verdict.errors.largest,
        "rel_l2": verdict.errors.rel_l2,
        "worst_row": verdict.errors.row,
    }
    if not verdict.right:
        which = f"{what}: " if what else ""
        raise KernelError(f"{which}{verdict.broken} is {verdict.of_limit:.3g} times what is allowed", numbers)
    if not verdict.meaningful:
        return Finding(status="inconclusive", detail="eager itself is this far off in this dtype", numbers=numbers)
    return Finding(status="pass", numbers=numbers)


def refuse_non_finite(out: Tensor, what: str = "the output") -> None:
    """Raise KernelError, with the first index, if any element is nan or inf."""
    if not out.isfinite().all():
        bad = (~out.isfinite()).nonzero()
        first = bad[0].tolist()
        value = out[tuple(first)].item()
        raise KernelError(f"{what} is not finite in {len(bad)} of {out.numel()} places, first {value} at {first}")


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors are equal bit by bit; nan equals nan."""
    whole = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(whole), b.contiguous().view(whole))
