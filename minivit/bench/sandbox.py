"""A child process with limits: a crash, a hang or too much memory ends the child and becomes an error message.

The sandbox contains accidents, not attacks: a kernel runs with the rights of the user.
"""

from __future__ import annotations

import faulthandler
import io
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

from minivit.bench import device as devices
from minivit.errors import MinivitError, UsageError

ChildT = TypeVar("ChildT", bound="Child")
MethodT = TypeVar("MethodT", bound=Callable[..., Any])
ResultT = TypeVar("ResultT")
Params = ParamSpec("Params")


def default_memory() -> int:
    """Return half of the machine's memory in bytes, at most 8 GiB."""
    return min(8 << 30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a child process may use."""

    seconds: float = 60.0  # for one case or block; loading a kernel, which may compile, gets ten times as much
    memory: int = 8 << 30  # bytes beyond what torch itself takes; enforced on Linux and on a GPU

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.memory <= 0:
            raise UsageError(f"limits must be above zero: {self.seconds} seconds, {self.memory} bytes")


class ChildError(MinivitError):
    """The child process crashed, hung or raised; the message says which."""


class Child:
    """A spawned process with a server object, as a context manager.

    `serve(connection, *args)` runs in the process and ends in `answer_requests`. A call may take `seconds`, or the
    multiple of it that @patience declares for the method.
    """

    def __init__(self, serve: Callable[..., None], *args: Any, seconds: float):
        self.seconds = seconds
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, *args), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe ends when the child ends

    def call(
        self, method: Callable[Concatenate[Any, Params], ResultT], *args: Params.args, **kwargs: Params.kwargs
    ) -> ResultT:
        """Return the result of a method of the server, such as child.call(CheckServer.ask, kernel, case, seed).

        Raises:
            ChildError: the method raised, took too long, or the process ended.
        """
        seconds = self.seconds * getattr(method, "patience", 1)
        try:
            self.connection.send((method.__name__, args, kwargs, seconds))
            if self.connection.poll(seconds):
                result = self.connection.recv()
                if isinstance(result, ChildError):
                    raise result
                return result
        except (EOFError, OSError):
            self.process.join(10)
            code = self.process.exitcode
            how = (
                f"crashed: {signal.Signals(-code).name}" if code and code < 0 else f"ended itself with exit code {code}"
            )
            raise ChildError(how) from None
        raise ChildError(f"no answer within {seconds:g} seconds")

    def __enter__(self: ChildT) -> ChildT:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.is_alive() and self.process.pid:
            with suppress(OSError, AttributeError):
                os.killpg(self.process.pid, signal.SIGKILL)  # together with compilers that it may have started
            self.process.kill()
        self.process.join()
        self.connection.close()


def patience(factor: float) -> Callable[[MethodT], MethodT]:
    """Return a decorator: a call of this server method may take so many times the seconds of its child process."""

    def mark(method: MethodT) -> MethodT:
        setattr(method, "patience", factor)  # noqa: B010, a function has no such attribute for a type checker
        return method

    return mark


def answer_requests(connection: Connection, server: object) -> None:
    """Call methods of the server for the parent until the parent closes the pipe. What a method raises is sent back."""
    with suppress(EOFError, OSError):
        while True:
            method, args, kwargs, seconds = connection.recv()
            with _watchdog(2 * seconds):
                try:
                    result = getattr(server, method)(*args, **kwargs)
                except Exception as error:
                    result = ChildError(describe_error(error))
            connection.send(result)


def describe_error(error: Exception, where: str = "") -> str:
    """Return an exception of a kernel as one line of text, with memory errors named as such."""
    text = " ".join(str(error).split())[:300]
    # The CPU allocator raises a RuntimeError that names the allocator.
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in text:
        return f"out of memory{where}: {text}"
    return f"raised {type(error).__name__}{where}: {text}"


def enter_sandbox(memory: int, device: str) -> None:
    """Prepare this process for a kernel: redirect what it prints, own process group, memory limit."""
    os.dup2(2, 1)  # what a kernel prints must not mix with the results on stdout
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # shown even when the kernel ends its process
    if hasattr(os, "setsid"):
        os.setsid()
    devices.limit_memory(memory, device)
    status = Path("/proc/self/status")
    if status.exists():  # not on macOS, where no limit is set
        import resource

        # Limits written data, not the address space: torch and CUDA reserve far more than they use.
        kilobytes = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmData"))
        limit = (kilobytes << 10) + memory
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@contextmanager
def _watchdog(seconds: float) -> Iterator[None]:
    """End this process when the block takes longer. It matters only if the parent is gone and cannot do it."""
    with Path(os.devnull).open("w") as nowhere:
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
