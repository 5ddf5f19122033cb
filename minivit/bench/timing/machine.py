"""What the system tells of itself and of this process. Without torch: threads and cores are set before it is there."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def allowed_cores() -> list[int]:
    """The cores this process may run on, lowest first."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def settle(threads: int) -> None:
    """Keep this process, and what it starts, to so many threads on the last of its cores. Before torch is imported.

    Raises:
        RuntimeError: torch is there already, and its threads with it.
    """
    if "torch" in sys.modules:
        raise RuntimeError("torch was imported before the threads were set; guard your script with __main__")
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, allowed_cores()[-threads:])  # the first core serves most interrupts


@dataclass(frozen=True, kw_only=True)
class Counters:
    """What happened to this process, all threads together, or between two moments of it."""

    cpu_seconds: float
    minor_faults: int
    major_faults: int
    voluntary_switches: int
    involuntary_switches: int
    waited_seconds: float  # for a core that another process had, all threads together
    stolen_seconds: float  # that the host of a virtual machine took from all cores; both 0 where the system tells not

    @staticmethod
    def now() -> Counters:
        import resource  # not on Windows, where nothing of this is told

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
        """The difference."""
        return Counters(**{f.name: getattr(self, f.name) - getattr(before, f.name) for f in fields(self)})

    def record(self) -> dict[str, Any]:
        """As it stands in JSON."""
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
    """Bytes of the largest cache of one core, and of the last level; 1 and 32 MiB where the system does not tell."""
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
    """The model of the processor, where the system tells."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def peak_memory(call: Callable[[], Any]) -> int | None:
    """Bytes by which a call raises the resident memory at its peak, output and all; None where it cannot be told.

    Memory that the process keeps from earlier calls is given back first, so that the call has to take it anew; what
    a kernel itself holds on to is not seen.
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
