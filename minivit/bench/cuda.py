"""All that is particular to CUDA. Written where no GPU was: read line by line, not run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def finish(x: Tensor) -> None:
    """Wait for the work on x's device, so that an illegal access belongs to the call that made it."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def limit_memory(memory: int, device: str) -> None:
    """Allocations of torch on `device` ("cuda" or "cuda:N") beyond `memory` bytes fail."""
    if device.startswith("cuda"):
        index = torch.device(device).index or 0
        total = torch.cuda.get_device_properties(index).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory / total), index)


def describe(device: str) -> dict[str, Any]:
    """The GPU in the fingerprint of a run; nothing for other devices."""
    if not device.startswith("cuda"):
        return {}
    properties = torch.cuda.get_device_properties(torch.device(device).index or 0)
    capability = f"{properties.major}.{properties.minor}"
    return {"gpu": properties.name, "gpu_capability": capability, "cuda": torch.version.cuda}


def _if_initialised(read: Callable[[], Any]) -> Callable[[], Any]:
    """None where this process has not used CUDA: reading must not be what starts it."""
    return lambda: read() if torch.cuda.is_initialized() else None


# What conduct.STATE holds of CUDA: how to read it, and how to put it back.
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
