"""Inside the process that times: one block of calls of one kernel, every call on inputs it has not seen.

Before every call the values of q, k and v change, so that an answer kept from an earlier call is a wrong one, and of
every block one call, drawn in secret, is held against float64 by the same rule as the check.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from multiprocessing.connection import Connection
from time import perf_counter_ns  # bound before any kernel is loaded, which might put another in its place
from typing import Any

import torch

from minivit.bench import device as devices
from minivit.bench import sandbox as isolate
from minivit.bench.checks.cases import Cell
from minivit.bench.checks.findings import Finding, raised
from minivit.bench.checks.inputs import Triple
from minivit.bench.kernels import Kernel
from minivit.bench.timing import cuda, machine, roofline
from minivit.bench.timing.machine import Counters
from minivit.bench.timing.problem import Block, Problem, Start
from minivit.errors import UsageError

SAMPLE_NS = 2_000_000  # a sample lasts at least this long: thousands of times the resolution of the clock


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
        devices.finish(laid.q)
        first = clock() - begun
        finding = problem.verify(out, laid.qkv)
        del out
        again, laid = problem.next(kernel)
        peak = devices.peak_memory(again, laid.q) if laid.q.is_cuda else machine.peak_memory(again)
        spent = []
        for _ in range(5):
            problem.change(laid)
            call, laid = problem.next(kernel)
            begun = clock()
            call()
            devices.finish(laid.q)
            spent.append(clock() - begun)
    except UsageError as error:
        return Start(finding=Finding(status="unsupported", detail=str(error)))
    except Exception as error:
        return Start(finding=Finding(status="fail", detail=str(raised(error))))
    return Start(finding=finding, first_call_seconds=first / 1e9, call_ns=sorted(spent)[2], peak_bytes=peak)


def serve(connection: Connection, threads: int, seconds: float, memory: int, device: str) -> None:
    """The process that times: answers requests until nobody asks any more."""
    isolate.enclose(memory, device)
    caches = (machine.cache_sizes()[0], devices.cache_bytes(device) or machine.cache_sizes()[1])
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
