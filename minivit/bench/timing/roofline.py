"""How fast could it be? What this machine can do, measured, and what attention asks of it, counted.

Three roofs (Williams et al. 2009, doi:10.1145/1498765.1498785, and one more): matrix products, memory, and exp, of
which attention needs one for every probability. A kernel cannot be faster than the slowest of them; where a time is
below what products or memory allow, not all of the work was done. No data sheet is asked.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minivit.bench import device as cuda
from minivit.bench.checks.cases import DTYPES, Spec, name_of

SLACK = 0.9  # a time below this share of the bound is impossible; clocks and their boosts move by less


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one call cannot do without."""

    flops: int  # of the matrix products, an addition and a multiplication counted as two
    bytes: int  # in and out once
    exps: int


def work(spec: Spec, direction: str) -> Work:
    """Forward: two products of 2 B A N N K each, q, k, v read, the output written, an exp for every probability.

    Backward: four products (dv, dp, dq, dk), q, k, v and the gradient of the output read, three gradients written. A
    flash kernel computes q k^T and its exps once more, which is its choice; elsewhere such a fifth product is often
    counted (2.5 x forward instead of 2 x).
    """
    products, tensors, exps = {"fwd": (2, 4, spec.work // spec.head_dim), "bwd": (4, 7, 0)}[direction]
    size = torch.finfo(spec.dtype).bits // 8
    return Work(flops=products * 2 * spec.work, bytes=tensors * spec.elements * size, exps=exps)


@dataclass(frozen=True, kw_only=True)
class Roof:
    """What a device can do with so many threads; every number is the fastest that was seen."""

    gemm: dict[str, float]  # FLOP/s of products, by the name of their dtype
    memory: float  # bytes/s beyond every cache, read or copied
    cache: float  # bytes/s in the cache of a core
    exp: float  # exp/s in float32
    cache_bytes: int  # the last-level cache

    def peak(self, dtype: torch.dtype) -> float:
        """FLOP/s for tensors of this dtype: of the fastest dtype that is at least as wide, as a kernel may convert."""
        wider = [name for name, one in DTYPES.items() if torch.promote_types(one, dtype) == one and name in self.gemm]
        return max(self.gemm[name] for name in wider)


def higher(roofs: Iterable[Roof]) -> Roof:
    """Of several measurements the fastest: what was seen once is possible."""
    every = list(roofs)
    gemm: dict[str, float] = {}
    for roof in every:
        gemm |= {name: max(peak, gemm.get(name, 0.0)) for name, peak in roof.gemm.items()}
    most = {name: max(getattr(roof, name) for roof in every) for name in ("memory", "cache", "exp", "cache_bytes")}
    return Roof(gemm=gemm, **most)


@dataclass(frozen=True, kw_only=True)
class Bound:
    """The least seconds a call can take, by each roof."""

    gemm: float
    memory: float
    exp: float

    @property
    def seconds(self) -> float:
        return max(self.gemm, self.memory, self.exp)

    @property
    def binds(self) -> str:
        """The roof that binds: gemm, memory or exp."""
        return max(("gemm", "memory", "exp"), key=lambda name: getattr(self, name))

    @property
    def hard(self) -> float:
        """Without exp, of which a kernel may have a faster one than the one that was measured."""
        return max(self.gemm, self.memory)


def bound(spec: Spec, direction: str, mode: str, roof: Roof) -> Bound:
    """The least time of a call. Hot inputs that fit the last-level cache come at the speed of a cache."""
    needs = work(spec, direction)
    fits = mode == "hot" and needs.bytes <= roof.cache_bytes
    return Bound(
        gemm=needs.flops / roof.peak(spec.dtype),
        memory=needs.bytes / (roof.cache if fits else roof.memory),
        exp=needs.exps / roof.exp,
    )


def impossible(seconds: float, spec: Spec, direction: str, mode: str, roof: Roof) -> str | None:
    """Why a call cannot have taken so little, or None."""
    least = bound(spec, direction, mode, roof)
    if seconds >= SLACK * least.hard:
        return None
    which = "gemm" if least.gemm >= least.memory else "memory"
    return f"{seconds * 1e6:.4g} us is below the {least.hard * 1e6:.4g} us that the {which} roof allows"


# --- measuring


def gemm_peak(dtype: torch.dtype, threads: int | None = None, *, device: str = "cpu") -> float:
    """FLOP/s of square products, the best of several sizes; `threads` None: as many as torch uses."""
    sizes = (512, 1024, 1536, 2048) if device == "cpu" else (2048, 4096, 8192)
    best = 0.0
    with _threads(threads):
        for size in sizes:
            a, b = (torch.randn(size, size).to(device, dtype) for _ in range(2))
            out = torch.empty_like(a)
            seconds = fastest(partial(torch.mm, a, b, out=out))
            best = max(best, 2 * size**3 / seconds)
            if seconds > 0.2:  # a dtype this device has no instructions for; larger takes longer, not better
                break
    return best


def memory_bandwidth(size: int, threads: int | None = None, *, device: str = "cpu") -> float:
    """Bytes/s of `size` bytes: the better of reading them (a sum) and copying one half into the other."""
    with _threads(threads):
        x = torch.ones(size // 4, device=device)
        source, target = x.chunk(2)
        read = x.nbytes / fastest(x.sum)
        copied = 2 * source.nbytes / fastest(lambda: target.copy_(source))
    return max(read, copied)


def exp_peak(threads: int | None = None, *, device: str = "cpu") -> float:
    """exp/s of float32 numbers as probabilities need them, 0 and below, in a cache."""
    with _threads(threads):
        x = -torch.rand(1 << 16 if device == "cpu" else 1 << 22).mul_(8).repeat(threads or torch.get_num_threads())
        x = x.to(device)
        out = torch.empty_like(x)
        return x.numel() / min(fastest(lambda: torch.exp(x, out=out)), fastest(lambda: torch.exp2(x, out=out)))


def measure(
    dtypes: Sequence[torch.dtype], *, threads: int | None = None, device: str = "cpu", caches: tuple[int, int]
) -> Roof:
    """All roofs; `caches` are the bytes of one core's cache and of the last level (see machine.cache_sizes)."""
    near, last = caches
    cores = threads or torch.get_num_threads()
    # Wider dtypes count as roofs of the narrower ones, see Roof.peak.
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
    """Seconds of the fastest of many calls, within about `seconds`. The fastest, because a roof is a limit."""
    call()
    best = float("inf")
    end = clock() + seconds
    while True:
        start = clock()
        out = call()
        if isinstance(out, Tensor):
            cuda.finish(out)
        now = clock()
        best = min(best, now - start)
        if now >= end:
            return best


def keep(file: Path, roof: Roof, environment: Mapping[str, Any], *, now: float) -> None:
    """Note roofs with what they were measured on and when (`now`, seconds since 1970), in the place of older ones."""
    others = [one for one in _kept(file) if one["environment"] != environment]
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}")
    partial.write_text(json.dumps([*others, {"environment": environment, "measured": now, "roof": vars(roof)}]))
    partial.replace(file)


def kept(
    file: Path, environment: Mapping[str, Any], dtypes: Iterable[torch.dtype], *, now: float
) -> tuple[Roof, float] | None:
    """The roofs noted for this environment, if they are of these dtypes, and their age in seconds."""
    for one in _kept(file):
        roof = Roof(**one["roof"])
        if one["environment"] == environment and {name_of(dtype) for dtype in dtypes} <= roof.gemm.keys():
            return roof, now - one["measured"]
    return None


def _kept(file: Path) -> list[dict[str, Any]]:
    """What stands in the file; a file that is not there, or not of this form, holds nothing worth keeping."""
    try:
        found = json.loads(file.read_text())
        return [one for one in found if Roof(**one["roof"]) and one["environment"] and one["measured"]]
    except (OSError, ValueError, TypeError, KeyError):
        return []


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    """torch with so many threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
