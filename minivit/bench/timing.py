"""Inside the process that times: one block of calls of one kernel, every call on inputs it has not seen.

Before every call the values of q, k and v change, so that an answer kept from an earlier call is a wrong one, and of
every block one call, drawn in secret, is held against float64 by the same rule as the check.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from time import perf_counter_ns  # bound before any kernel is loaded, which might put another in its place
from typing import Any

import torch
from torch import Generator, Tensor

from minivit.bench import cuda, isolate, machine, roofline
from minivit.bench.answers import Finding, KernelError, judged, raised, refuse_non_finite
from minivit.bench.inputs import Laid, Triple, lay_out, normal, rounded
from minivit.bench.kernels import Kernel
from minivit.bench.machine import Counters
from minivit.bench.rule import judge_gradients, judge_rows, pick_rows
from minivit.bench.specs import Cell
from minivit.errors import UsageError

SAMPLE_NS = 2_000_000  # a sample lasts at least this long: thousands of times the resolution of the clock
COLD = 3  # times the last-level cache that cold inputs rotate over
Call = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block: samples of a kernel, one after the other, and what happened to the process meanwhile."""

    samples_us: list[float]  # microseconds of one call, the mean over the calls of the sample
    calls: int  # in a sample
    verdict: Finding  # on the call that was drawn
    counters: Counters
    wall_seconds: float
    clocks: dict[str, float] = field(default_factory=dict)  # of a GPU, read and never set


@dataclass(frozen=True, kw_only=True)
class Start:
    """A kernel's first calls in this process."""

    finding: Finding  # of the first output
    first_call_seconds: float | None = None
    call_ns: int | None = None  # of later calls, about
    peak_bytes: int | None = None  # beyond the inputs, at the peak of a call; None where it cannot be told


class Problem:
    """The inputs of a cell, with values that change between calls."""

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
        # (B, N, A, K) in memory, as the model's reshape hands the gradient back
        self.cotangent = rounded(normal(spec, self.generator), spec)[0].transpose(1, 2).contiguous().transpose(1, 2)

    def next(self, kernel: Kernel) -> tuple[Call, Laid]:
        """What is to be timed, and the inputs it reads. For bwd the forward is done here."""
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
        """New values in the same memory: random signs for every column. Exact, and as normal as before."""
        for x in laid.qkv:
            signs_K = 1 - 2 * torch.randint(2, x.shape[-1:], generator=self.signs, device=x.device)
            x.data.mul_(signs_K)  # .data, so that no version counter tells

    def verify(self, out: Any, qkv: Triple) -> Finding:
        """The answer to a timed call, held against float64."""
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
        """All rows of one head of one picture, whose gradients are its own."""
        spec = self.cell.spec
        batch, head = self.random.randrange(spec.batch), self.random.randrange(spec.heads)

        def one(x: Tensor) -> Tensor:
            return x[batch : batch + 1, head : head + 1]

        answers = {}
        for name, gradient in zip(("dq", "dk", "dv"), out, strict=True):
            refuse_non_finite(gradient, name)
            answers[name] = one(gradient)
        mine = tuple(one(x) for x in qkv)
        verdicts = judge_gradients(answers, mine, one(self.cotangent), scale=spec.scale)
        findings = [judged(verdict, name) for name, verdict in verdicts.items()]
        return max(findings, key=lambda finding: finding.numbers["of_limit"])


def measure(
    kernel: Kernel, problem: Problem, *, samples: int, calls: int, clock: Callable[[], int] = perf_counter_ns
) -> Block:
    """A block on the CPU: `samples` samples of `calls` calls each, and the verdict on one of them.

    Only the calls are inside the clock: changing the inputs, which would make cold ones hot if it came before, comes
    after the call that read them.
    """
    drawn = problem.random.randrange(samples * calls)
    kept: tuple[Any, Triple] | None = None
    times: list[float] = []
    for _ in range(problem.random.randint(1, 3)):  # how many calls came before tells nothing
        call, laid = problem.next(kernel)
        call()
        problem.change(laid)
    cores = machine.allowed_cores()
    before, wall = Counters.now(), clock()
    gc.disable()
    try:
        for sample in range(samples):
            spent = 0
            for number in range(sample * calls, (sample + 1) * calls):
                call, laid = problem.next(kernel)
                start = clock()
                out = call()
                spent += clock() - start
                if number == drawn:
                    q, k, v = (x.detach().clone() for x in laid.qkv)
                    kept = out, (q, k, v)
                del out
                problem.change(laid)
            times.append(spent / calls / 1000)
    finally:
        gc.enable()
    counters, wall = Counters.now().since(before), clock() - wall
    assert kept
    verdict = problem.verify(*kept)
    if machine.allowed_cores() != cores:
        verdict = Finding(status="fail", detail=f"changed the cores of its process from {cores}")
    return Block(samples_us=times, calls=calls, verdict=verdict, counters=counters, wall_seconds=wall / 1e9)


def start(kernel: Kernel, problem: Problem, *, clock: Callable[[], int] = perf_counter_ns) -> Start:
    """The first call, apart from all others: it may compile. Then its answer, its memory, and how long a call takes."""
    cell = problem.cell
    try:
        there = kernel.supports(cell.spec)
        if there is not True:
            return Start(finding=Finding(status="unsupported", detail=str(there)))
        begun = clock()
        call, laid = problem.next(kernel)
        out = call()
        cuda.finish(laid.q)
        first = clock() - begun
        finding = problem.verify(out, laid.qkv)
        del out
        again, laid = problem.next(kernel)
        peak = cuda.peak_memory(again, laid.q) if laid.q.is_cuda else machine.peak_memory(again)
        spent = []
        for _ in range(5):
            problem.change(laid)
            call, laid = problem.next(kernel)
            begun = clock()
            call()
            cuda.finish(laid.q)
            spent.append(clock() - begun)
    except UsageError as error:
        return Start(finding=Finding(status="unsupported", detail=str(error)))
    except Exception as error:
        return Start(finding=Finding(status="fail", detail=str(raised(error))))
    return Start(finding=finding, first_call_seconds=first / 1e9, call_ns=sorted(spent)[2], peak_bytes=peak)


def serve(connection: Connection, threads: int, seconds: float, memory: int, device: str) -> None:
    """The process that times: answers requests until nobody asks any more."""
    isolate.enclose(memory, device)
    caches = (machine.cache_sizes()[0], cuda.cache_bytes(device) or machine.cache_sizes()[1])
    kernels: dict[str, Kernel] = {}
    problem: Problem | None = None

    def load(name: str) -> tuple[Finding | str | None, float]:
        begun = perf_counter_ns()
        return isolate.load(name, kernels), (perf_counter_ns() - begun) / 1e9

    def roof(dtypes: list[torch.dtype]) -> roofline.Roof:
        return roofline.measure(dtypes, threads=threads, device=device, caches=caches)

    def open_cell(cell: Cell, seed: int) -> None:
        nonlocal problem
        problem = None  # the memory of the last one first
        problem = Problem(cell, seed, cache_bytes=caches[1])

    def block(name: str, samples: int, calls: int, graph: bool) -> Block:
        assert problem
        if device != "cpu":
            return cuda.measure(kernels[name], problem, samples=samples, calls=calls, graph=graph)
        return measure(kernels[name], problem, samples=samples, calls=calls)

    requests: dict[str, Callable[..., Any]] = {
        "load": load,
        "roof": roof,
        "open": open_cell,
        "start": lambda name: start(kernels[name], problem),  # type: ignore[arg-type]
        "block": block,
        "settled": lambda: (torch.get_num_threads(), machine.allowed_cores()),
    }
    isolate.reply(connection, requests, 20 * seconds)


def affordable(call_ns: int, block_seconds: float) -> tuple[int, int]:
    """Samples and calls of a block of about so many seconds: 3 to 20 samples of at least SAMPLE_NS each."""
    calls = max(1, -(-SAMPLE_NS // max(call_ns, 1)))
    return min(20, max(3, int(block_seconds * 1e9 / (calls * max(call_ns, 1))))), calls
