"""The inputs of one cell, whose values change before every call, and the comparison of an output with float64."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from minivit.bench.checks.findings import Finding, KernelError, judged, raised, refuse_non_finite
from minivit.bench.checks.inputs import Laid, Triple, lay_out, normal, rounded
from minivit.bench.checks.tolerance import judge_gradients, judge_rows, pick_rows
from minivit.bench.kernels import Kernel
from minivit.bench.timing.cells import Cell
from minivit.bench.timing.machine import Counters
from minivit.errors import UsageError

COLD = 3  # cold inputs rotate over this many times the last-level cache
Call = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block: consecutive samples of a kernel, and what happened to the process meanwhile."""

    samples_us: list[float]  # microseconds of one call: the mean over the calls of the sample
    calls: int  # in a sample
    verdict: Finding  # on the call that was drawn in secret
    counters: Counters
    wall_seconds: float
    clocks: dict[str, float] = field(default_factory=dict)  # of a GPU, read and never set


@dataclass(frozen=True, kw_only=True)
class Start:
    """The first calls of a kernel in this process."""

    finding: Finding  # of the first output
    first_call_seconds: float | None = None
    call_ns: int | None = None  # approximate time of a later call
    peak_bytes: int | None = None  # beyond the inputs, at the peak of a call; None if unknown


class Problem:
    """The inputs of a cell. Their values change between calls."""

    def __init__(self, cell: Cell, seed: int, *, cache_bytes: int):
        self.cell = cell
        self.generator = Generator().manual_seed(seed)
        self.signs = Generator(cell.spec.device).manual_seed(seed)
        self.random = random.Random(seed)
        spec = cell.spec
        size = 3 * spec.elements * spec.dtype.itemsize
        sets = 1 if cell.mode == "hot" else max(2, -(-COLD * cache_bytes // size))
        self.sets = [lay_out(rounded(normal(spec, self.generator), spec), spec, margin=0) for _ in range(sets)]
        self.turn = 0
        # (B, N, A, K) in memory, as the gradient of the model's reshape is
        self.cotangent = rounded(normal(spec, self.generator), spec)[0].transpose(1, 2).contiguous().transpose(1, 2)

    def next(self, kernel: Kernel) -> tuple[Call, Laid]:
        """Return the call to time and the inputs it reads. For bwd, the forward pass is done here."""
        laid = self.sets[self.turn % len(self.sets)]
        self.turn += 1
        attend = partial(kernel.attention, scale=self.cell.spec.scale) if kernel.takes_scale else kernel.attention
        if self.cell.direction == "fwd":
            return partial(attend, *laid.qkv), laid
        leaves = [x.detach().requires_grad_() for x in laid.qkv]
        out = attend(*leaves)
        if not (isinstance(out, Tensor) and out.requires_grad):
            raise UsageError("not differentiable: the output requires no gradient")
        return partial(torch.autograd.grad, out, leaves, self.cotangent), laid

    def change(self, laid: Laid) -> None:
        """Write new values in the same memory: a random sign for every column, exact and still normally distributed."""
        for x in laid.qkv:
            signs_K = 1 - 2 * torch.randint(2, x.shape[-1:], generator=self.signs, device=x.device)
            x.data.mul_(signs_K)  # .data, so that no version counter tells

    def verify(self, out: Any, qkv: Triple) -> Finding:
        """Return the finding of the output of a timed call, compared with float64."""
        try:
            return self._forward(out, qkv) if self.cell.direction == "fwd" else self._backward(out, qkv)
        except KernelError as wrong:
            return Finding(status="fail", detail=str(wrong), numbers=wrong.numbers)
        except Exception as error:
            return Finding(status="fail", detail=f"its answer {raised(error)}")

    def _forward(self, out: Any, qkv: Triple) -> Finding:
        if type(out) is not Tensor or out.shape != qkv[0].shape or out.dtype != qkv[0].dtype:
            found = f", {tuple(out.shape)} of {out.dtype}" if isinstance(out, Tensor) else ""
            raise KernelError(f"not a plain tensor of the shape and dtype of q: {type(out).__name__}{found}")
        refuse_non_finite(out)
        rows = pick_rows(self.cell.spec.tokens, self.generator)
        return judged(judge_rows(out, *qkv, rows=rows, scale=self.cell.spec.scale))

    def _backward(self, out: Any, qkv: Triple) -> Finding:
        """Judge all rows of one head of one image; its gradients depend on nothing else."""
        spec = self.cell.spec
        batch, head = self.random.randrange(spec.batch), self.random.randrange(spec.heads)

        def one(x: Tensor) -> Tensor:
            return x[batch : batch + 1, head : head + 1]

        outputs = {}
        for name, gradient in zip(("dq", "dk", "dv"), out, strict=True):
            refuse_non_finite(gradient, name)
            outputs[name] = one(gradient)
        mine = tuple(one(x) for x in qkv)
        verdicts = judge_gradients(outputs, mine, one(self.cotangent), scale=spec.scale)
        findings = [judged(verdict, name) for name, verdict in verdicts.items()]
        return max(findings, key=lambda finding: finding.numbers["of_limit"])
