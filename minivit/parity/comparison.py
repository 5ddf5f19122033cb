"""Two implementations of one model, step by step: how far apart they are, and how far they may be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

# In float64 a sum of some thousand products is right to 1e-12 of the largest magnitude, and a few dozen blocks add
# little; another formula differs by more than this fraction.
EXACT = 1e-9
# In float32 each side has its own rounding error. Ours is measured against float64, and the other side's is of the same
# size: eight times ours is allowed, and at least four units in the last place.
ROUNDINGS = 8
LAST_PLACES = 4
# The rounding error of bfloat16 and float16 is large, and eight times as much would hide a wrong formula.
HALF_ROUNDINGS = 2


class Measure(NamedTuple):
    """How far two tensors of one shape are apart."""

    max_abs: float  # largest difference
    max_rel: float  # the same as a fraction of the largest magnitude
    cosine: float  # of all numbers as one vector
    tolerance: float  # the largest max_abs that is equal

    @property
    def equal(self) -> bool:
        return self.max_abs <= self.tolerance


@dataclass(frozen=True, kw_only=True)
class Row:
    """One step of both sides."""

    name: str
    shape: tuple[int, ...]
    theirs: tuple[int, ...]  # the other side's shape
    measures: dict[str, Measure]  # "float64", "float32", as far as the other side has them; empty where shapes differ

    @property
    def equal(self) -> bool:
        return self.shape == self.theirs and all(measure.equal for measure in self.measures.values())

    @property
    def broken(self) -> str | None:
        """The dtype that is out of tolerance, the finer one first; None where shapes differ or nothing is."""
        return next((dtype for dtype, measure in self.measures.items() if not measure.equal), None)


def name_of(dtype: torch.dtype) -> str:
    """Return the plain name of a dtype, such as float32."""
    return str(dtype).removeprefix("torch.")


def measure(ours: Tensor, theirs: Tensor, tolerance: float) -> Measure:
    """Return how far two tensors of one shape are apart, computed in float64."""
    a, b = ours.double(), theirs.double()
    apart = float((a - b).abs().max())
    # nan compares as different.
    apart = float("inf") if apart != apart else apart
    largest = float(b.abs().max())
    lengths = float(a.norm() * b.norm())
    cosine = float((a * b).sum()) / lengths if lengths else float(not apart)
    return Measure(apart, apart / largest if largest else float(apart > 0), cosine, tolerance)


def tolerance_of(row: Row, theirs: Mapping[str, Mapping[str, Tensor]]) -> tuple[str, float]:
    """Return the dtype in which a step is examined, and how near a cause must come to the other side's numbers."""
    dtype = row.broken or next(dtype for dtype in theirs if row.name in theirs[dtype])
    if row.measures:
        return dtype, row.measures[dtype].tolerance
    # Of another shape.
    return dtype, (EXACT if dtype == "float64" else 1e-5) * float(theirs[dtype][row.name].abs().max())


def compare(ours: Mapping[str, Mapping[str, Tensor]], theirs: Mapping[str, Mapping[str, Tensor]]) -> Iterator[Row]:
    """Yield the steps of both sides in the order of ours, up to and with the first that is out of tolerance.

    In float64 a step may differ by EXACT of its largest magnitude; more is another formula. In float32 it may differ
    by ROUNDINGS times our own rounding error, which is measured against float64, and at least by LAST_PLACES
    units in the last place of the largest magnitude.

    Args:
        ours: {"float64": {step: tensor}, "float32": {step: tensor}}, both.
        theirs: the same, with one dtype or both; a step that is missing is not compared. Tensors of fewer bits stand
            under "float32". Where `ours` has them under the name of their dtype, HALF_ROUNDINGS times our own rounding
            error in that dtype is allowed.
    """
    for name, exact in ours["float64"].items():
        there = {dtype: theirs[dtype][name] for dtype in ("float64", "float32") if name in theirs.get(dtype, {})}
        if not there:
            continue
        shapes = {tuple(tensor.shape) for tensor in there.values()}
        shape = next((shape for shape in shapes if shape != exact.shape), tuple(exact.shape))
        measures = {}
        if shape == exact.shape:
            rounded = ours["float32"][name]
            largest = float(exact.abs().max())
            own = float((rounded.double() - exact).abs().max())
            allowed = {
                "float64": EXACT * largest,
                "float32": max(ROUNDINGS * own, LAST_PLACES * torch.finfo(torch.float32).eps * largest),
            }
            mine = {"float64": exact, "float32": rounded}
            half = there.get("float32", rounded).dtype
            if name in ours.get(name_of(half), {}) and half != torch.float32:
                own = float((ours[name_of(half)][name].double() - exact).abs().max())
                allowed["float32"] = max(HALF_ROUNDINGS * own, LAST_PLACES * torch.finfo(half).eps * largest)
            measures = {dtype: measure(mine[dtype], tensor, allowed[dtype]) for dtype, tensor in there.items()}
        row = Row(name=name, shape=tuple(exact.shape), theirs=shape, measures=measures)
        yield row
        if not row.equal:
            return
