"""Timing on the CPU: one block of calls of one kernel; and the server that runs blocks in a child process.

The values of q, k and v change before every call, so a cached output is a wrong output. One call of every block, drawn
in secret, is compared with float64 under the same tolerance as in the check.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from multiprocessing.connection import Connection
from time import perf_counter_ns  # imported before any kernel, which might replace it
from typing import Any

import torch

from minivit.bench import device as devices
from minivit.bench.checks.findings import Finding, raised
from minivit.bench.checks.inputs import Triple
from minivit.bench.checks.server import KernelServer
from minivit.bench.kernels import Kernel
from minivit.bench.sandbox import Child, Limits, answer_requests, enter_sandbox, patience
from minivit.bench.timing import cuda, machine, peaks
from minivit.bench.timing.cells import Cell
from minivit.bench.timing.machine import Counters
from minivit.bench.timing.problem import Block, Problem, Start
from minivit.bench.timing.roofline import Roof
from minivit.errors import UsageError

SAMPLE_NS = 2_000_000  # a sample lasts at least this long: thousands of times the resolution of the clock


def measure(
    kernel: Kernel, problem: Problem, *, samples: int, calls: int, clock: Callable[[], int] = perf_counter_ns
) -> Block:
    """Return a block on the CPU: `samples` samples of `calls` calls each, and the verdict on one call.

    Only the calls are timed. Inputs are changed after the call that read them: a change before a call would make cold
    inputs hot.
    """
    drawn = problem.random.randrange(samples * calls)
    kept: tuple[Any, Triple] | None = None
    times: list[float] = []
    for _ in range(problem.random.randint(1, 3)):  # a kernel cannot count calls to find the start of the block
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
    """Return the first call (timed alone: it may compile), its verdict, its memory, and the time of later calls."""
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


def affordable(call_ns: int, block_seconds: float) -> tuple[int, int]:
    """Return samples and calls of a block of about so many seconds: 3 to 20 samples of at least SAMPLE_NS each."""
    calls = max(1, -(-SAMPLE_NS // max(call_ns, 1)))
    return min(20, max(3, int(block_seconds * 1e9 / (calls * max(call_ns, 1))))), calls


class TimingServer(KernelServer):
    """Times kernels inside the child process, one cell at a time."""

    def __init__(self, threads: int, device: str):
        super().__init__()
        self.threads, self.device = threads, device
        self.caches = (machine.cache_sizes()[0], devices.cache_bytes(device) or machine.cache_sizes()[1])
        self.problem: Problem | None = None

    @patience(10)
    def load_timed(self, kernel: str) -> tuple[Finding | str | None, float]:
        """Load a kernel (see KernelServer.load); also return the seconds that it took."""
        begun = perf_counter_ns()
        return self.load(kernel), (perf_counter_ns() - begun) / 1e9

    @patience(10)
    def roof(self, dtypes: list[torch.dtype]) -> Roof:
        """Return the measured limits of the device."""
        return peaks.measure(dtypes, threads=self.threads, device=self.device, caches=self.caches)

    def settled(self) -> tuple[int, list[int]]:
        """Return torch's number of threads, and the cores of this process."""
        return torch.get_num_threads(), machine.allowed_cores()

    def open_cell(self, cell: Cell, seed: int) -> None:
        """Make the inputs of a cell."""
        self.problem = None  # frees the memory of the last cell first
        self.problem = Problem(cell, seed, cache_bytes=self.caches[1])

    @patience(10)
    def start(self, kernel: str) -> Start:
        """Return the first calls of a kernel in this cell."""
        assert self.problem
        return start(self.kernels[kernel], self.problem)

    @patience(5)
    def block(self, kernel: str, samples: int, calls: int, graph: bool) -> Block:
        """Return one block of a kernel in this cell."""
        assert self.problem
        if self.device != "cpu":
            return cuda.measure(self.kernels[kernel], self.problem, samples=samples, calls=calls, graph=graph)
        return measure(self.kernels[kernel], self.problem, samples=samples, calls=calls)


def serve(connection: Connection, threads: int, memory: int, device: str) -> None:
    """Run a TimingServer; machine.serve calls it in the child process."""
    enter_sandbox(memory, device)
    answer_requests(connection, TimingServer(threads, device))


def timing_child(threads: int, limits: Limits, device: str) -> Child:
    """Return a child process with a TimingServer and so many threads."""
    return Child(machine.serve, __name__, threads, limits.memory, device, seconds=limits.seconds)
