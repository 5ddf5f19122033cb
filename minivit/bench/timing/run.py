"""`bench.run`: kernels and baselines timed in blocks of random order, in several processes, after their check.

    arms    the kernels, the baseline, the baseline again, and the others they are compared with
    cell    a shape, dtype, direction and mode (see cells.Cell), with a number of threads
    round   one block of every arm, in random order, so that compared blocks lie seconds apart
    process several, because memory placement differs between processes; every cell is timed in each of them

The baseline is timed twice. Two equal arms do not differ, so the difference that is measured between them is the
smallest that this run can tell from noise.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from minivit.bench.checks.check import CheckResult, check, quick_cases
from minivit.bench.checks.findings import Finding
from minivit.bench.kernels import kernel_file, sha256
from minivit.bench.report.results import Record, Recorder, record
from minivit.bench.report.runs import RunResult, write_reports
from minivit.bench.report.verdicts import fingerprint
from minivit.bench.sandbox import Child, ChildError, Limits
from minivit.bench.timing.blocks import TimingServer, affordable, timing_child
from minivit.bench.timing.cells import Cell
from minivit.bench.timing.problem import Block, Start
from minivit.bench.timing.roofs import roofline
from minivit.bench.timing.rounds import Attempt, rounds
from minivit.bench.timing.summary import doubtful, rows
from minivit.errors import UsageError

MAX_ROUNDS = 12  # of a cell in one process
AGAIN = " (again)"
ResultT = TypeVar("ResultT")
OpenChild = Callable[[int], AbstractContextManager[Child]]  # a process with so many threads


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the kernels that are timed in turn."""

    name: str  # in the records
    kernel: str  # what is loaded, see kernels.load_kernel
    role: str  # kernel, baseline, again or against


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is timed, and for how long."""

    kernels: tuple[str, ...]
    against: tuple[str, ...] = ("sdpa", "eager")  # the first is the baseline
    cells: tuple[Cell, ...]  # see cells.cells_of
    threads: tuple[int, ...]
    processes: int = 3
    budget: float = 120.0  # seconds of the rounds of all cells, without checks, first calls and starts of processes
    seed: int
    device: str = "cpu"
    graph: bool = False  # replay CUDA graphs
    unverified: bool = False  # skip the check; every row says so
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        if twice := [name for name in self.kernels if name in self.against]:
            raise UsageError(f"{twice[0]} is to be timed against itself; the baseline is timed twice anyway")
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


def run(
    plan: Plan,
    *,
    out: str | Path | None = None,
    roof_cache: str | Path | None = None,
    on_record: Callable[[Record], object] | None = None,
    on_message: Callable[[str], object] | None = None,
) -> RunResult:
    """Return the records and rows of a plan: kernel files are checked first, and nothing is timed if one is wrong.

    Args:
        plan: what is timed.
        out: a folder for run.jsonl, report.md and report.html.
        roof_cache: a file that keeps the measured limits of the machine, see roofs.roofline.
        on_record: called with every record (see report.results) as soon as it is known.
        on_message: called with a line of text about the progress.

    Raises:
        UsageError: an unknown kernel, or a folder that holds a run already.
        MinivitError: the timing process cannot be used at all.
    """
    files = [name for name in (*plan.kernels, *plan.against) if kernel_file(name) or name.startswith("mutant:")]
    dtypes = list(dict.fromkeys(cell.spec.dtype for cell in plan.cells))
    checks: list[CheckResult] = []
    with Recorder(out, on_record) as to:
        to.add(bench_record(plan, environment_of(plan.device), started=now()))
        if not plan.unverified:
            cases = quick_cases(dtypes, plan.device, any(cell.direction == "bwd" for cell in plan.cells))
            checks = verify(files, cases, plan.seed, plan.device, plan.limits, to.add)
        if all(result.right for result in checks):
            measure = partial(roofline, device=plan.device, limits=plan.limits, cache=roof_cache, on_message=on_message)
            for threads in plan.threads:
                to.add(measure(threads, dtypes).record())
            for one in time_cells(plan, open_child=lambda threads: timing_child(threads, plan.limits, plan.device)):
                to.add(one)
            found = rows(to.records)
            for threads in sorted(doubtful(found)):  # the machine may have been busy when this roof was measured
                to.add(measure(threads, dtypes, again=True).record())
                found = rows(to.records)
            for row in found:
                to.add(row)
    result = RunResult(records=tuple(to.records), checks=tuple(checks))
    if to.folder and result.rows:
        write_reports(to.folder, result.records)
    return result


def verify(
    kernels: Sequence[str],
    cases: Sequence[Any],
    seed: int,
    device: str,
    limits: Limits,
    on_record: Callable[[Record], object],
) -> list[CheckResult]:
    """Return the check of each kernel. Attentions of PyTorch are not checked; their timed outputs are judged alike."""
    return [
        check(kernel, cases=cases, seed=seed, device=device, limits=limits, on_record=on_record) for kernel in kernels
    ]


def now() -> str:
    """Return the time of day in UTC as a record has it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def environment_of(device: str) -> Record:
    """Return the fingerprint of a run; its threads are part of the plan."""
    return {name: value for name, value in fingerprint(device).items() if name != "threads"}


def bench_record(plan: Plan, environment: Record, *, started: str) -> Record:
    """Return the first record: what is timed, on what, and the sha256 of every kernel."""
    return record(
        "bench",
        started=started,
        kernels=[{"kernel": name, "sha256": sha256(name)} for name in plan.kernels],
        against=[{"kernel": name, "sha256": sha256(name)} for name in plan.against],
        threads=list(plan.threads),
        processes=plan.processes,
        budget_seconds=plan.budget,
        graph=plan.graph,
        unverified=plan.unverified,
        seed=plan.seed,
        environment=environment,
    )


def time_cells(plan: Plan, *, open_child: OpenChild, clock: Callable[[], float] = time.monotonic) -> Iterator[Record]:
    """Yield the records of every process, of every first call and of every block.

    An arm that crashes or hangs in a cell is removed from that cell, with a record that says so; the others continue.

    Raises:
        MinivitError: the process cannot be used at all.
    """
    slot = plan.budget / (len(plan.threads) * plan.processes * len(plan.cells))
    rng = random.Random(plan.seed)
    for threads in plan.threads:
        out: set[tuple[Cell, str]] = set()  # (cell, kernel) that ended a process
        unloadable: set[str] = set()  # kernels that ended it while they were loaded
        for process in range(plan.processes):
            remaining = rng.sample(plan.cells, len(plan.cells))
            while remaining:
                with open_child(threads) as child:
                    turn = _Turn(plan, child, threads, process, rng, clock)
                    try:
                        yield turn.load(unloadable)
                        while remaining:
                            turn.cell = remaining[0]
                            yield from turn.run(slot, {kernel for cell, kernel in out if cell == turn.cell})
                            remaining.pop(0)
                    except ChildError as died:
                        if turn.running is None:
                            raise
                        if not turn.cell:
                            unloadable.add(turn.running)
                        for cell in [turn.cell] if turn.cell else list(plan.cells):
                            out.add((cell, turn.running))
                            start = Start(finding=Finding(status="fail", detail=str(died)))
                            yield turn.start_record(cell, turn.running, start)


class _Turn:
    """The work of one timing process."""

    def __init__(
        self,
        plan: Plan,
        child: Child,
        threads: int,
        process: int,
        rng: random.Random,
        clock: Callable[[], float],
    ):
        self.plan, self.child, self.threads, self.process = plan, child, threads, process
        self.rng, self.clock = rng, clock
        self.loads: dict[str, tuple[Finding | None, float]] = {}
        self.running: str | None = None  # the kernel that runs in the process now
        self.cell: Cell | None = None

    def with_kernel(self, method: Callable[..., ResultT], kernel: str, *args: Any) -> ResultT:
        """Call a method of the server that runs a kernel; if the process ends, `running` names the kernel."""
        self.running = kernel
        result = self.child.call(method, kernel, *args)
        self.running = None
        return result

    def load(self, unloadable: set[str]) -> Record:
        """Load every kernel that can be loaded. Return the record of the process."""
        for kernel in dict.fromkeys(arm.kernel for arm in self.plan.arms if arm.kernel not in unloadable):
            problem, seconds = self.with_kernel(TimingServer.load_timed, kernel)
            if isinstance(problem, str):
                raise UsageError(problem)
            self.loads[kernel] = problem, seconds
        torch_threads, cores = self.child.call(TimingServer.settled)
        return record("process", threads=self.threads, process=self.process, torch_threads=torch_threads, cores=cores)

    def run(self, slot: float, out: set[str]) -> Iterator[Record]:
        """Yield the records of a cell: the first calls, then all rounds."""
        cell = self.cell
        assert cell
        self.child.call(TimingServer.open_cell, cell, self.rng.randrange(1 << 32))
        starts: dict[str, Start] = {}
        for kernel in [kernel for kernel in self.loads if kernel not in out]:
            problem = self.loads[kernel][0]
            start = Start(finding=problem) if problem else self.with_kernel(TimingServer.start, kernel)
            yield self.start_record(cell, kernel, start)
            if start.call_ns:
                starts[kernel] = start
        arms = [arm for arm in self.plan.arms if arm.kernel in starts]
        # Changing inputs and verifying takes about as long as the timed calls.
        block_seconds = slot / MAX_ROUNDS / max(1, len(arms)) / 2
        sizes = {kernel: affordable(start.call_ns or 1, block_seconds) for kernel, start in starts.items()}

        def measure(arm: Arm) -> Block:
            return self.with_kernel(TimingServer.block, arm.kernel, *sizes[arm.kernel], self.plan.graph)

        for attempt in rounds(
            arms,
            measure,
            threads=self.threads,
            seconds=slot,
            max_rounds=MAX_ROUNDS,
            rng=self.rng,
            clock=self.clock,
        ):
            yield self.block_record(cell, attempt)

    def block_record(self, cell: Cell, attempt: Attempt[Arm, Block]) -> Record:
        """Return the record of one attempt at a block."""
        block = attempt.block
        return record(
            "block",
            **cell.key(),
            threads=self.threads,
            arm=attempt.arm.name,
            role=attempt.arm.role,
            process=self.process,
            **attempt.record(),
            numbers=block.verdict.numbers,
            samples_us=block.samples_us,
            calls=block.calls,
            wall_seconds=block.wall_seconds,
            **block.counters.record(),
            clocks=block.clocks,
        )

    def start_record(self, cell: Cell, kernel: str, start: Start) -> Record:
        """Return the record of the first calls of a kernel in this process."""
        return record(
            "start",
            **cell.key(),
            threads=self.threads,
            kernel=kernel,
            process=self.process,
            status=start.finding.status,
            detail=start.finding.detail,
            numbers=start.finding.numbers,
            load_seconds=self.loads[kernel][1] if kernel in self.loads else None,
            first_call_seconds=start.first_call_seconds,
            peak_bytes=start.peak_bytes,
        )
