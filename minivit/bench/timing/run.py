"""What is timed when: kernels and baselines in blocks of random order, in several processes, each after its check.

    arms    the kernels, the baseline, the baseline again, and what else they are compared with
    cell    a shape, dtype, direction and mode (specs.Cell), of so many threads
    round   one block of every arm, in random order: what is compared was measured within seconds
    process several, because memory lies otherwise in each; a cell is timed in all of them

The baseline stands twice. Between two arms that are the same there is no difference, so the one that is seen is the
smallest that this run could have told from none.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Protocol

import torch

from minivit.bench.checks.cases import Cell
from minivit.bench.checks.findings import Finding, KernelError
from minivit.bench.kernels import sha256
from minivit.bench.report.verdicts import SCHEMA
from minivit.bench.sandbox import Child, ChildError, Limits
from minivit.bench.timing import blocks, worker
from minivit.bench.timing.blocks import affordable
from minivit.bench.timing.problem import Block, Start
from minivit.bench.timing.roofline import Roof
from minivit.bench.timing.stats import quantile
from minivit.errors import MinivitError, UsageError

LEAST_ROUNDS, MOST_ROUNDS = 3, 12  # of a cell in one process
MOST_ATTEMPTS = 3  # at a block that is noisy
MOST_LOST = 0.05  # of the time of the threads of a block that is not noisy
MOST_SPREAD, LEAST_SPREAD = 0.2, 5  # between the quartiles of its samples, if there are so many
AGAIN = " (again)"


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of those that take turns."""

    name: str  # in the records
    kernel: str  # what is loaded, see kernels.load_kernel
    role: str  # kernel, baseline, again or against


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is to be timed, and how long."""

    kernels: tuple[str, ...]
    against: tuple[str, ...]  # the first is the baseline
    cells: tuple[Cell, ...]
    threads: tuple[int, ...]
    processes: int
    budget: float  # seconds of the rounds of all cells; checks, first calls and processes that start come on top
    seed: int
    device: str = "cpu"
    graph: bool = False
    unverified: bool = False  # the check was not asked, and every row says so
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if twice := [name for name in self.kernels if name in self.against]:
            raise UsageError(f"{twice[0]} is to be timed against itself; the baseline stands twice anyway")
        if not self.against:
            raise UsageError("nothing to compare with: --against needs a name")
        if self.graph and (self.device == "cpu" or any(cell.direction == "bwd" for cell in self.cells)):
            raise UsageError("--graph replays CUDA graphs of the forward; use it with --device cuda --direction fwd")

    @property
    def arms(self) -> list[Arm]:
        baseline, *others = self.against
        return [
            *(Arm(name=name, kernel=name, role="kernel") for name in self.kernels),
            Arm(name=baseline, kernel=baseline, role="baseline"),
            Arm(name=baseline + AGAIN, kernel=baseline, role="again"),
            *(Arm(name=name, kernel=name, role="against") for name in others),
        ]


class Requests(Protocol):
    """What is asked of the process that times: isolate.Child, or a test's own."""

    def request(self, *message: Any, seconds: float) -> Any: ...


OpenChild = Callable[[int], AbstractContextManager[Requests]]
Record = dict[str, Any]


def open_child(plan: Plan) -> OpenChild:
    """Opens a process that times, with so many threads."""
    return lambda threads: Child(
        worker.serve, blocks.__name__, threads, plan.limits.seconds, plan.limits.memory, plan.device
    )


def measure_roof(threads: int, dtypes: Sequence[torch.dtype], *, device: str, limits: Limits) -> Roof:
    """The roofs of so many threads, measured in a process of their own."""
    with Child(worker.serve, blocks.__name__, threads, limits.seconds, limits.memory, device) as child:
        return ask(child, "roof", list(dtypes), seconds=600)


def bench_record(plan: Plan, environment: Record, *, started: str) -> Record:
    """The first record: what is timed, on what, on which bytes."""
    return {
        "schema": SCHEMA,
        "kind": "bench",
        "started": started,
        "kernels": [{"kernel": name, "sha256": sha256(name)} for name in plan.kernels],
        "against": [{"kernel": name, "sha256": sha256(name)} for name in plan.against],
        "threads": list(plan.threads),
        "processes": plan.processes,
        "budget_seconds": plan.budget,
        "graph": plan.graph,
        "unverified": plan.unverified,
        "seed": plan.seed,
        "environment": environment,
    }


def roof_record(roof: Roof, threads: int, *, device: str, age_seconds: float) -> Record:
    """The roofs that the rows are held against, and how long ago they were measured."""
    where = {"threads": threads, "device": device, "age_seconds": age_seconds}
    return {"schema": SCHEMA, "kind": "roof", **where, **vars(roof)}


def time_cells(plan: Plan, *, open_child: OpenChild, clock: Callable[[], float] = time.monotonic) -> Iterator[Record]:
    """The records of every first call and of every block, as they are made.

    An arm that crashes or hangs in a cell is out of it, with a record that says so, and the others go on.

    Raises:
        MinivitError: the process cannot be used at all.
    """
    slot = plan.budget / (len(plan.threads) * plan.processes * len(plan.cells))
    rng = random.Random(plan.seed)
    for threads in plan.threads:
        out: set[tuple[Cell, str]] = set()  # (cell, kernel) that killed a process
        unloadable: set[str] = set()  # that killed it while they were loaded, as they would again
        for process in range(plan.processes):
            left = rng.sample(plan.cells, len(plan.cells))
            while left:
                with open_child(threads) as child:
                    turn = _Turn(plan, child, threads, process, rng, clock)
                    try:
                        yield turn.load(unloadable)
                        while left:
                            turn.cell = left[0]
                            yield from turn.run(slot, {kernel for cell, kernel in out if cell == left[0]})
                            left.pop(0)
                    except ChildError as died:
                        if turn.asking is None:
                            raise
                        if not turn.cell:
                            unloadable.add(turn.asking)
                        for cell in [turn.cell] if turn.cell else list(plan.cells):
                            out.add((cell, turn.asking))
                            start = Start(finding=Finding(status="fail", detail=str(died)))
                            yield turn.start_record(cell, turn.asking, start)


class _Turn:
    """What one process is asked."""

    def __init__(
        self,
        plan: Plan,
        child: Requests,
        threads: int,
        process: int,
        rng: random.Random,
        clock: Callable[[], float],
    ):
        self.plan, self.child, self.threads, self.process = plan, child, threads, process
        self.rng, self.clock = rng, clock
        self.loads: dict[str, tuple[Finding | None, float]] = {}
        self.asking: str | None = None  # the kernel that runs in the process just now
        self.cell: Cell | None = None

    def ask(self, *message: Any, kernel: str | None = None, patience: float = 1) -> Any:
        self.asking = kernel
        answer = ask(self.child, *message, seconds=patience * self.plan.limits.seconds)
        self.asking = None
        return answer

    def load(self, unloadable: set[str]) -> Record:
        """Load every kernel that can be; the record of the process, as it says itself that it is."""
        for kernel in dict.fromkeys(arm.kernel for arm in self.plan.arms if arm.kernel not in unloadable):
            problem, seconds = self.ask("load", kernel, kernel=kernel, patience=10)
            if isinstance(problem, str):
                raise UsageError(problem)
            self.loads[kernel] = problem, seconds
        torch_threads, cores = self.ask("settled")
        where = {"threads": self.threads, "process": self.process, "torch_threads": torch_threads, "cores": cores}
        return {"schema": SCHEMA, "kind": "process", **where}

    def run(self, slot: float, out: set[str]) -> Iterator[Record]:
        """All rounds of the cell."""
        cell = self.cell
        assert cell
        self.ask("open", cell, self.rng.randrange(1 << 32))
        starts: dict[str, Start] = {}
        for kernel in [kernel for kernel in self.loads if kernel not in out]:
            problem = self.loads[kernel][0]
            start = Start(finding=problem) if problem else self.ask("start", kernel, kernel=kernel, patience=10)
            yield self.start_record(cell, kernel, start)
            if start.call_ns:
                starts[kernel] = start
        arms = [arm for arm in self.plan.arms if arm.kernel in starts]
        # Changing inputs and verifying takes about as long as what is timed.
        block_seconds = slot / MOST_ROUNDS / max(1, len(arms)) / 2
        sizes = {kernel: affordable(start.call_ns or 1, block_seconds) for kernel, start in starts.items()}
        begun = self.clock()
        number = 0
        while number < LEAST_ROUNDS or (number < MOST_ROUNDS and self.clock() - begun < slot):
            for arm in self.rng.sample(arms, len(arms)):
                yield from self.block(cell, arm, number, *sizes[arm.kernel])
            number += 1

    def block(self, cell: Cell, arm: Arm, number: int, samples: int, calls: int) -> Iterator[Record]:
        """One block, and again while it is noisy."""
        for attempt in range(MOST_ATTEMPTS):
            message = ("block", arm.kernel, samples, calls, self.plan.graph)
            answer = self.ask(*message, kernel=arm.kernel, patience=5)
            noise = noisy(answer, self.threads)
            last = noise is None or attempt == MOST_ATTEMPTS - 1
            yield {
                "schema": SCHEMA,
                "kind": "block",
                **cell.key(),
                "threads": self.threads,
                "arm": arm.name,
                "role": arm.role,
                "process": self.process,
                "round": number,
                "attempt": attempt,
                "kept": last,
                "noise": noise,
                "status": answer.verdict.status,
                "detail": answer.verdict.detail,
                "numbers": answer.verdict.numbers,
                "samples_us": answer.samples_us,
                "calls": answer.calls,
                "wall_seconds": answer.wall_seconds,
                **answer.counters.record(),
                "clocks": answer.clocks,
            }
            if last:
                return

    def start_record(self, cell: Cell, kernel: str, start: Start) -> Record:
        """The first calls of a kernel in this process."""
        return {
            "schema": SCHEMA,
            "kind": "start",
            **cell.key(),
            "threads": self.threads,
            "kernel": kernel,
            "process": self.process,
            "status": start.finding.status,
            "detail": start.finding.detail,
            "numbers": start.finding.numbers,
            "load_seconds": self.loads[kernel][1] if kernel in self.loads else None,
            "first_call_seconds": start.first_call_seconds,
            "peak_bytes": start.peak_bytes,
        }


def ask(child: Requests, *message: Any, seconds: float) -> Any:
    """The answer of a process; an exception that it sends back is raised.

    Raises:
        ChildError: the process died or hung, or the kernel raised.
    """
    answer = child.request(*message, seconds=seconds)
    if isinstance(answer, KernelError):
        raise ChildError(str(answer))
    if isinstance(answer, MinivitError):
        raise answer
    return answer


def noisy(block: Block, threads: int) -> str | None:
    """Why a block should be repeated, or None. What happened to the process counts, not whether the times please."""
    counters, room = block.counters, block.wall_seconds * threads
    if counters.waited_seconds > MOST_LOST * room:
        return f"its threads waited {counters.waited_seconds / room:.0%} of the time for a core that others had"
    if counters.stolen_seconds > MOST_LOST * room + 0.02:  # counted in hundredths of a second
        return f"the host took {counters.stolen_seconds / room:.0%} of the time"
    if counters.major_faults:
        return f"{counters.major_faults} pages were read from disk"
    spread = (quantile(block.samples_us, 0.75) - quantile(block.samples_us, 0.25)) / median(block.samples_us)
    if len(block.samples_us) >= LEAST_SPREAD and spread > MOST_SPREAD:
        return f"half of its samples lie {spread:.0%} apart"
    return None
