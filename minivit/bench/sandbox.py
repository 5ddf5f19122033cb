"""A kernel's own process: a crash, a hang or a hunger for memory ends that process and becomes a finding.

It keeps accidents apart, not attackers: the kernel runs with the rights of the user.
"""

from __future__ import annotations

import faulthandler
import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from minivit.bench import device as cuda
from minivit.bench.checks.cases import Case
from minivit.bench.checks.findings import Finding, raised
from minivit.bench.checks.numerics import ask
from minivit.bench.kernels import Kernel, kernel_file, load_kernel
from minivit.errors import MinivitError, UsageError

MOST_DEATHS = 3  # of one kernel; the rest of its cases are not asked


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a kernel's process may use."""

    seconds: float = 60.0  # for one case; loading, which may compile, gets ten times as much
    memory: int = 8 << 30  # bytes beyond what torch itself takes; on Linux, and of a GPU

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.memory <= 0:
            raise UsageError(f"limits must be above zero: {self.seconds} seconds, {self.memory} bytes")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the result: a case of a kernel and what was found. No case: the kernel as a whole."""

    kernel: str
    case: Case | None
    finding: Finding


class ChildError(MinivitError):
    """The process is gone, and this is how."""


class Child:
    """A spawned process that answers requests, a context manager. `serve(connection, *args)` is what it runs."""

    def __init__(self, serve: Callable[..., None], *args: Any):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, *args), daemon=True)
        self.process.start()
        theirs.close()  # so that its death ends the pipe

    def request(self, *message: Any, seconds: float) -> Any:
        """The reply to a message.

        Raises:
            ChildError: instead of replying, the process crashed, ended or had to be ended.
        """
        try:
            self.connection.send(message)
            if self.connection.poll(seconds):
                return self.connection.recv()
        except (EOFError, OSError):
            self.process.join(10)
            code = self.process.exitcode
            how = (
                f"crashed: {signal.Signals(-code).name}" if code and code < 0 else f"ended itself with exit code {code}"
            )
            raise ChildError(how) from None
        raise ChildError(f"no answer within {seconds:g} seconds")

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.is_alive() and self.process.pid:
            with suppress(OSError, AttributeError):
                os.killpg(self.process.pid, signal.SIGKILL)  # with the compilers it may have started
            self.process.kill()
        self.process.join()
        self.connection.close()


def check(kernel: str, cases: Sequence[Case], *, seed: int, device: str, limits: Limits) -> Iterator[Row]:
    """Ask a kernel (see kernels.load_kernel) the cases in a process of its own, one row for each.

    A case that kills the process is a failed row, and a new process goes on with the next.

    Raises:
        UsageError: there is no such kernel.
    """
    kernel_file(kernel)  # what can be refused without running anything is
    left = list(cases)
    deaths = 0
    while left:
        with Child(serve, limits, device) as child:
            try:
                problem = child.request("load", kernel, seconds=10 * limits.seconds)
            except ChildError as died:
                problem = Finding(status="fail", detail=f"while it was loaded: {died}")
            if isinstance(problem, str):
                raise UsageError(problem)
            if problem:
                yield Row(kernel=kernel, case=None, finding=problem)
                return
            while left:
                case = left.pop(0)
                try:
                    finding = child.request("ask", kernel, case, seed, seconds=limits.seconds)
                except ChildError as died:
                    yield Row(kernel=kernel, case=case, finding=Finding(status="fail", detail=str(died)))
                    deaths += 1
                    break
                yield Row(kernel=kernel, case=case, finding=finding)
        if deaths == MOST_DEATHS and left:
            detail = f"its process died {deaths} times; {len(left)} cases were not asked"
            yield Row(kernel=kernel, case=None, finding=Finding(status="fail", detail=detail))
            return


def enclose(memory: int, device: str) -> None:
    """Make this process one that a kernel may run in."""
    os.dup2(2, 1)  # what a kernel prints must not stand among the results
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # and is seen even when the kernel ends its process
    if hasattr(os, "setsid"):
        os.setsid()
    _limit_memory(memory, device)


def serve(connection: Connection, limits: Limits, device: str) -> None:
    """The process that checks: answers requests until nobody asks any more."""
    enclose(limits.memory, device)
    kernels: dict[str, Kernel] = {}
    with suppress(EOFError, OSError):
        while True:
            what, name, *rest = connection.recv()
            if what == "load":
                connection.send(load(name, kernels))
            else:
                case, seed = rest
                with watched(2 * limits.seconds):
                    kernel = kernels.get(name) or load_kernel(name)
                    finding = ask(kernel, case, seed=seed)
                connection.send(finding)


def reply(connection: Connection, requests: dict[str, Callable[..., Any]], seconds: float) -> None:
    """Answer requests by their names until nobody asks any more; what a kernel raises is an answer too."""
    with suppress(EOFError, OSError):
        while True:
            what, *rest = connection.recv()
            with watched(seconds):
                try:
                    answer = requests[what](*rest)
                except Exception as error:
                    answer = raised(error)
            connection.send(answer)


@contextmanager
def watched(seconds: float) -> Iterator[None]:
    """End this process when what is done takes longer: should the one who asks be gone, nobody else would."""
    with Path(os.devnull).open("w") as nowhere:
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def load(reference: str, kernels: dict[str, Kernel]) -> Finding | str | None:
    """Load a kernel into `kernels`; the finding where it fails, the message where it is the caller's mistake."""
    try:
        if file := kernel_file(reference):
            sys.path.insert(0, str(file[0].resolve().parent))  # as if it were run: what lies beside it can be imported
        kernels[reference] = load_kernel(reference)
    except UsageError as error:
        return str(error)
    except Exception as error:
        return Finding(status="fail", detail=str(raised(error, " while it was imported")))
    return None


def _limit_memory(memory: int, device: str) -> None:
    """Allocations beyond this fail, which Python and torch report; nothing is done where the system cannot (macOS)."""
    cuda.limit_memory(memory, device)
    status = Path("/proc/self/status")
    if status.exists():
        import resource

        # Written data, not address space, of which torch and CUDA reserve far more than they use.
        kilobytes = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmData"))
        limit = (kilobytes << 10) + memory
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
