"""The roofline model: the minimum time of a call, from the work that attention needs and what a device can do.

Three roofs: GEMM and memory (Williams et al. 2009, doi:10.1145/1498765.1498785), and exp, of which attention needs one
for every probability. A kernel cannot be faster than the slowest of them; a time below the GEMM or memory bound means
that some work was not done. Roofs are measured (see peaks), not taken from data sheets.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from minivit.bench.checks.cases import DTYPES, Spec

SLACK = 0.9  # a time below this fraction of the bound is impossible; clock boosts vary by less


@dataclass(frozen=True, kw_only=True)
class Work:
    """The minimum work of one call."""

    flops: int  # of the GEMM; an addition and a multiplication count as two
    bytes: int  # every input read and every output written once
    exps: int


def work(spec: Spec, direction: str) -> Work:
    """Return the minimum work of a direction ("fwd" or "bwd").

    Forward: two GEMM of 2 B A N N K FLOPs, q, k, v read, the output written, an exp for every probability.

    Backward: four GEMM (dv, dp, dq, dk), q, k, v and the gradient of the output read, three gradients written. A
    flash kernel recomputes q k^T and its exps. Others often count that fifth GEMM (2.5 x forward instead of 2 x).
    """
    gemms, tensors, exps = {"fwd": (2, 4, spec.work // spec.head_dim), "bwd": (4, 7, 0)}[direction]
    size = torch.finfo(spec.dtype).bits // 8
    return Work(flops=gemms * 2 * spec.work, bytes=tensors * spec.elements * size, exps=exps)


@dataclass(frozen=True, kw_only=True)
class Roof:
    """The limits of a device with so many threads; every number is the fastest that was measured."""

    gemm: dict[str, float]  # FLOP/s by the name of the dtype
    memory: float  # bytes/s beyond every cache, read or copied
    cache: float  # bytes/s in the cache of a core
    exp: float  # exp/s in float32
    cache_bytes: int  # the last-level cache

    def peak(self, dtype: torch.dtype) -> float:
        """Return FLOP/s of the fastest dtype that is at least as wide: a kernel may convert."""
        wider = [name for name, one in DTYPES.items() if torch.promote_types(one, dtype) == one and name in self.gemm]
        return max(self.gemm[name] for name in wider)


def higher(roofs: Iterable[Roof]) -> Roof:
    """Return the fastest values of several measurements."""
    every = list(roofs)
    gemm: dict[str, float] = {}
    for roof in every:
        gemm |= {name: max(peak, gemm.get(name, 0.0)) for name, peak in roof.gemm.items()}
    most = {name: max(getattr(roof, name) for roof in every) for name in ("memory", "cache", "exp", "cache_bytes")}
    return Roof(gemm=gemm, **most)


@dataclass(frozen=True, kw_only=True)
class Bound:
    """The minimum seconds of a call by each roof."""

    gemm: float
    memory: float
    exp: float

    @property
    def seconds(self) -> float:
        return max(self.gemm, self.memory, self.exp)

    @property
    def binds(self) -> str:
        """The roof that gives the largest time: gemm, memory or exp."""
        return max(("gemm", "memory", "exp"), key=lambda name: getattr(self, name))

    @property
    def hard(self) -> float:
        """The bound without exp: a kernel may have a faster exp than the measured one."""
        return max(self.gemm, self.memory)


def bound(spec: Spec, direction: str, mode: str, roof: Roof) -> Bound:
    """Return the minimum time of a call. Hot inputs that fit the last-level cache are read at the speed of a cache."""
    needs = work(spec, direction)
    fits = mode == "hot" and needs.bytes <= roof.cache_bytes
    return Bound(
        gemm=needs.flops / roof.peak(spec.dtype),
        memory=needs.bytes / (roof.cache if fits else roof.memory),
        exp=needs.exps / roof.exp,
    )


def impossible(seconds: float, spec: Spec, direction: str, mode: str, roof: Roof) -> str | None:
    """Return why a call cannot have been this fast, or None."""
    minimum = bound(spec, direction, mode, roof)
    if seconds >= SLACK * minimum.hard:
        return None
    which = "gemm" if minimum.gemm >= minimum.memory else "memory"
    return f"{seconds * 1e6:.4g} us is below the {minimum.hard * 1e6:.4g} us that the {which} roof allows"
