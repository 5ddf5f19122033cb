"""Everything that is particular to CUDA devices. A leaf: it imports nothing else of minivit."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor


def finish(x: Tensor) -> None:
    """Wait for the work on x's device, so that an error is raised by the call that caused it."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def limit_memory(memory: int, device: str) -> None:
    """Allocations of torch on `device` ("cuda" or "cuda:N") beyond `memory` bytes fail."""
    if device.startswith("cuda"):
        index = torch.device(device).index or 0
        total = torch.cuda.get_device_properties(index).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory / total), index)


def describe(device: str) -> dict[str, Any]:
    """Return the GPU's fields of the fingerprint of a run; empty for other devices."""
    if not device.startswith("cuda"):
        return {}
    properties = torch.cuda.get_device_properties(torch.device(device).index or 0)
    capability = f"{properties.major}.{properties.minor}"
    return {"gpu": properties.name, "gpu_capability": capability, "cuda": torch.version.cuda}


def cache_bytes(device: str) -> int | None:
    """Return the bytes of the GPU's last-level cache; None for other devices."""
    return torch.cuda.get_device_properties(torch.device(device)).L2_cache_size if device != "cpu" else None


def peak_memory(call: Callable[[], Any], on: Tensor) -> int:
    """Return the bytes that torch's allocator held at the peak of a call beyond those before it, output included."""
    torch.cuda.synchronize(on.device)
    torch.cuda.reset_peak_memory_stats(on.device)
    before = torch.cuda.memory_allocated(on.device)
    call()
    torch.cuda.synchronize(on.device)
    return torch.cuda.max_memory_allocated(on.device) - before


def clocks(device: torch.device) -> dict[str, float]:
    """Return the current clocks (MHz), temperature (C) and power (W); read, never set. Empty without nvidia-smi."""
    names = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")
    tool = shutil.which("nvidia-smi")
    if not tool:
        return {}
    index = torch.cuda.current_device() if device.index is None else device.index
    uuid = str(torch.cuda.get_device_properties(index).uuid)  # CUDA_VISIBLE_DEVICES renumbers, nvidia-smi does not
    command = [tool, f"--id=GPU-{uuid}", f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits"]
    with suppress(OSError, ValueError, subprocess.SubprocessError):
        out = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
        return dict(zip(names, (float(value) for value in out.split(",")), strict=True))
    return {}


def _if_initialised(read: Callable[[], Any]) -> Callable[[], Any]:
    """Return a reader that returns None until this process uses CUDA, because reading would initialise it."""
    return lambda: read() if torch.cuda.is_initialized() else None


# The CUDA entries of side_effects.STATE: how to read a value, and how to restore it.
STATE: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "the current CUDA device": (_if_initialised(torch.cuda.current_device), torch.cuda.set_device),
    "the current CUDA stream": (_if_initialised(torch.cuda.current_stream), torch.cuda.set_stream),
    "the random state of CUDA": (
        _if_initialised(lambda: torch.cuda.get_rng_state().tolist()),
        lambda state: torch.cuda.set_rng_state(torch.tensor(state, dtype=torch.uint8)),
    ),
    "autocast on CUDA": (
        lambda: torch.is_autocast_enabled("cuda"),
        lambda on: torch.set_autocast_enabled("cuda", on),
    ),
}
