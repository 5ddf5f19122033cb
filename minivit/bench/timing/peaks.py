"""What a device can do, measured: FLOP/s of GEMM, bytes/s of memory and cache, exp/s."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minivit.bench import device as devices
from minivit.bench.checks.cases import DTYPES
from minivit.bench.timing.roofline import Roof


def gemm_peak(dtype: torch.dtype, threads: int | None = None, *, device: str = "cpu") -> float:
    """Return FLOP/s of square GEMM, the best of several sizes. `threads` None: as many as torch uses."""
    sizes = (512, 1024, 1536, 2048) if device == "cpu" else (2048, 4096, 8192)
    best = 0.0
    with _threads(threads):
        for size in sizes:
            a, b = (torch.randn(size, size).to(device, dtype) for _ in range(2))
            out = torch.empty_like(a)
            seconds = fastest(partial(torch.mm, a, b, out=out))
            best = max(best, 2 * size**3 / seconds)
            if seconds > 0.2:  # a dtype without instructions on this device: larger sizes are not faster
                break
    return best


def memory_bandwidth(size: int, threads: int | None = None, *, device: str = "cpu") -> float:
    """Return bytes/s for `size` bytes: the better of reading them (a sum) and copying one half into the other."""
    with _threads(threads):
        x = torch.ones(size // 4, device=device)
        source, target = x.chunk(2)
        read = x.nbytes / fastest(x.sum)
        copied = 2 * source.nbytes / fastest(lambda: target.copy_(source))
    return max(read, copied)


def exp_peak(threads: int | None = None, *, device: str = "cpu") -> float:
    """Return exp/s of float32 numbers of 0 and below, as a softmax needs them, in a cache."""
    with _threads(threads):
        x = -torch.rand(1 << 16 if device == "cpu" else 1 << 22).mul_(8).repeat(threads or torch.get_num_threads())
        x = x.to(device)
        out = torch.empty_like(x)
        return x.numel() / min(fastest(lambda: torch.exp(x, out=out)), fastest(lambda: torch.exp2(x, out=out)))


def measure(
    dtypes: Sequence[torch.dtype], *, threads: int | None = None, device: str = "cpu", caches: tuple[int, int]
) -> Roof:
    """Return all roofs. `caches`: bytes of one core's cache and of the last level (see machine.cache_sizes)."""
    near, last = caches
    cores = threads or torch.get_num_threads()
    # A wider dtype is a roof of the narrower ones, see Roof.peak.
    wanted = {*dtypes, *([torch.float32] if any(dtype.itemsize < 4 for dtype in dtypes) else [])}
    memory = memory_bandwidth(max(4 * last, 64 << 20), threads, device=device)
    cache = memory_bandwidth(near * cores // 2 if device == "cpu" else last // 2, threads, device=device)
    return Roof(
        gemm={name: gemm_peak(one, threads, device=device) for name, one in DTYPES.items() if one in wanted},
        memory=memory,
        cache=max(cache, memory),
        exp=exp_peak(threads, device=device),
        cache_bytes=last,
    )


def fastest(call: Callable[[], Any], *, seconds: float = 0.3, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds of the fastest of many calls made in about `seconds`: a roof is a limit, not an average."""
    call()
    best = float("inf")
    end = clock() + seconds
    while True:
        start = clock()
        out = call()
        if isinstance(out, Tensor):
            devices.finish(out)
        now = clock()
        best = min(best, now - start)
        if now >= end:
            return best


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    """Run a block with so many threads of torch."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
