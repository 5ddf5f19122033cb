"""The cases of a check, asked in a child process: the server, and the loop over the cases."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

from minivit.bench.checks.cases import Case
from minivit.bench.checks.findings import Finding
from minivit.bench.checks.numerics import ask
from minivit.bench.kernels import Kernel, kernel_file, load_kernel
from minivit.bench.sandbox import Child, ChildError, Limits, answer_requests, describe_error, enter_sandbox, patience
from minivit.errors import UsageError

MAX_DEATHS = 3  # of the child process for one kernel; the remaining cases are skipped


@dataclass(frozen=True, kw_only=True)
class Row:
    """One case of a kernel and its finding. No case: the finding concerns the kernel as a whole."""

    kernel: str
    case: Case | None
    finding: Finding


class KernelServer:
    """The kernels that a child process has loaded, by reference. Base of the servers that check and time."""

    def __init__(self) -> None:
        self.kernels: dict[str, Kernel] = {}

    @patience(10)  # it may compile
    def load(self, reference: str) -> Finding | str | None:
        """Load a kernel. Return None, a finding if importing it fails, or a message if the caller made a mistake."""
        try:
            if file := kernel_file(reference):
                sys.path.insert(0, str(file[0].resolve().parent))  # like a script, it can import the files beside it
            self.kernels[reference] = load_kernel(reference)
        except UsageError as error:
            return str(error)
        except Exception as error:
            return Finding(status="fail", detail=describe_error(error, " while it was imported"))
        return None


class CheckServer(KernelServer):
    """Runs single cases inside the child process."""

    def ask(self, reference: str, case: Case, seed: int) -> Finding:
        """Return the finding of one case; a kernel of minivit itself needs no load()."""
        return ask(self.kernels.get(reference) or load_kernel(reference), case, seed=seed)


def serve(connection: Connection, limits: Limits, device: str) -> None:
    """Run a CheckServer; the target of check_child."""
    enter_sandbox(limits.memory, device)
    answer_requests(connection, CheckServer())


def check_child(limits: Limits, device: str) -> Child:
    """Return a child process with a CheckServer."""
    return Child(serve, limits, device, seconds=limits.seconds)


def run_cases(kernel: str, cases: Sequence[Case], *, seed: int, device: str, limits: Limits) -> Iterator[Row]:
    """Yield one row for each case of a kernel (see kernels.load_kernel), asked in a child process.

    A case that ends the process is a failed row; a new process continues with the next case.

    Raises:
        UsageError: there is no such kernel.
    """
    kernel_file(kernel)  # refuses unknown names before a process starts
    remaining = list(cases)
    deaths = 0
    while remaining:
        with check_child(limits, device) as child:
            try:
                problem = child.call(CheckServer.load, kernel)
            except ChildError as died:
                problem = Finding(status="fail", detail=f"while it was loaded: {died}")
            if isinstance(problem, str):
                raise UsageError(problem)
            if problem:
                yield Row(kernel=kernel, case=None, finding=problem)
                return
            while remaining:
                case = remaining.pop(0)
                try:
                    finding = child.call(CheckServer.ask, kernel, case, seed)
                except ChildError as died:
                    yield Row(kernel=kernel, case=case, finding=Finding(status="fail", detail=str(died)))
                    deaths += 1
                    break
                yield Row(kernel=kernel, case=case, finding=finding)
        if deaths == MAX_DEATHS and remaining:
            detail = f"its process died {deaths} times; {len(remaining)} cases were not asked"
            yield Row(kernel=kernel, case=None, finding=Finding(status="fail", detail=detail))
            return
