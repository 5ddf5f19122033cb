"""What the system reports about itself and this process, and the start of a timing process. Imports no torch.

Threads and cores have to be set before torch is imported.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def allowed_cores() -> list[int]:
    """Return the cores that this process may run on, lowest first."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def settle(threads: int) -> None:
    """Restrict this process and its children to so many threads, on the last of its cores.

    Raises:
        RuntimeError: torch is imported already, so its threads are set.
    """
    if "torch" in sys.modules:
        raise RuntimeError("torch was imported before the threads were set; guard your script with __main__")
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, allowed_cores()[-threads:])  # the first core serves most interrupts


def serve(connection: Connection, server: str, threads: int, memory: int, device: str) -> None:
    """Set the threads, then run `serve` of the module `server`; the target of a timing process (see sandbox.Child).

    The module is given by name because importing it imports torch.
    """
    settle(threads)
    import_module(server).serve(connection, threads, memory, device)


@dataclass(frozen=True, kw_only=True)
class Counters:
    """What happened to this process so far, or between two moments; all threads together."""

    cpu_seconds: float
    minor_faults: int
    major_faults: int
    voluntary_switches: int
    involuntary_switches: int
    waited_seconds: float  # for a core that another process used
    stolen_seconds: float  # taken by the host of a virtual machine from all cores; both 0 if unknown

    @staticmethod
    def now() -> Counters:
        import resource  # not available on Windows

        usage = resource.getrusage(resource.RUSAGE_SELF)
        return Counters(
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            minor_faults=usage.ru_minflt,
            major_faults=usage.ru_majflt,
            voluntary_switches=usage.ru_nvcsw,
            involuntary_switches=usage.ru_nivcsw,
            waited_seconds=_waited(),
            stolen_seconds=_stolen(),
        )

    def since(self, before: Counters) -> Counters:
        """Return the difference to an earlier moment."""
        return Counters(**{f.name: getattr(self, f.name) - getattr(before, f.name) for f in fields(self)})

    def record(self) -> dict[str, Any]:
        """Return the fields of the JSON record."""
        return asdict(self)


def _waited() -> float:
    waited = 0
    for thread in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError, IndexError, ValueError):  # a thread may end meanwhile
            waited += int(thread.read_text().split()[1])  # nanoseconds on a core, waiting for one, turns
    return waited / 1e9


def _stolen() -> float:
    with suppress(OSError, IndexError, ValueError):
        # cpu user nice system idle iowait irq softirq steal
        return int(Path("/proc/stat").read_text().split("\n", 1)[0].split()[8]) / os.sysconf("SC_CLK_TCK")
    return 0.0


def cache_sizes() -> tuple[int, int]:
    """Return the bytes of the largest cache of one core, and of the last level; 1 and 32 MiB if unknown."""
    near, last = 0, 0
    with suppress(OSError, ValueError):
        for index in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
            if (index / "type").read_text().strip() == "Instruction":
                continue
            size = int((index / "size").read_text().strip().removesuffix("K")) << 10
            level = int((index / "level").read_text())
            near = size if level == 2 else near
            last = max(last, size)
    return near or 1 << 20, last or 32 << 20


def cpu_name() -> str:
    """Return the model name of the processor, or its architecture if unknown."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def peak_memory(call: Callable[[], Any]) -> int | None:
    """Return the bytes by which a call raises the resident memory at its peak, output included; None if unknown.

    Memory that the process keeps from earlier calls is returned to the system first, so that the call allocates it
    again. Memory that a kernel itself keeps is not counted.
    """
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        ctypes.CDLL(None).malloc_trim(0)  # glibc's
        clear.write_text("5")  # the high-water mark becomes what is resident now
    except (OSError, AttributeError):
        return None
    before = _kilobytes(status, "VmHWM")
    call()
    return (_kilobytes(status, "VmHWM") - before) << 10


def _kilobytes(status: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name))
