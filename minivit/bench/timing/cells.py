"""What can be timed: the shapes of published models, and cells (a shape, a dtype, a direction and a mode)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from minivit.bench.checks.cases import LAYOUTS, Spec
from minivit.errors import UsageError

DIRECTIONS = ("fwd", "bwd")
MODES = ("hot", "cold")
# (batch, heads, tokens, head_dim): the tokens of 224, 384 and 512 pixels (ViT-H/14: 224, 378 and 518), in batches of
# about equal work.
SHAPES = {
    **{
        name: ((8, heads, 197, 64), (2, heads, 577, 64), (1, heads, 1025, 64))
        for name, heads in (("vit-ti", 3), ("vit-s", 6), ("vit-b", 12), ("vit-l", 16))
    },
    "vit-h": ((8, 16, 257, 80), (2, 16, 730, 80), (1, 16, 1370, 80)),
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One combination that is timed."""

    spec: Spec
    direction: str  # one of DIRECTIONS; bwd: the backward pass alone
    mode: str  # one of MODES: hot: inputs are in the cache; cold: they rotate over three times its size

    def __post_init__(self) -> None:
        if self.direction == "bwd" and self.mode == "cold":
            raise UsageError("bwd is timed hot only: its inputs have just been read by the forward")

    def __str__(self) -> str:
        return f"{self.spec} {self.direction} {self.mode}"

    def key(self) -> dict[str, Any]:
        """Return the fields of its JSON records."""
        return {**self.spec.key(), "direction": self.direction, "mode": self.mode}


def parse_shape(text: str) -> tuple[tuple[int, int, int, int], ...]:
    """Return (batch, heads, tokens, head_dim) of "8,12,197,64", or the three shapes of a model name in SHAPES.

    Raises:
        UsageError: neither.
    """
    if text in SHAPES:
        return SHAPES[text]
    try:
        batch, heads, tokens, head_dim = (int(size) for size in text.split(","))
    except ValueError:
        batch = heads = tokens = head_dim = 0
    if min(batch, heads, tokens, head_dim) < 1:
        raise UsageError(f"--shapes {text}: give B,A,N,K such as 8,12,197,64, or one of {', '.join(SHAPES)}")
    return ((batch, heads, tokens, head_dim),)


def cells_of(
    shapes: Iterable[str],
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    *,
    directions: Sequence[str] = ("fwd",),
    mode: str = "hot",
    layout: str = "packed",
    device: str = "cpu",
) -> tuple[Cell, ...]:
    """Return a cell for every shape (see parse_shape) in every dtype and direction, each once.

    Raises:
        UsageError: an unknown shape or layout, or a combination that cannot be timed.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"--layout {layout}: choose from {', '.join(LAYOUTS)}")
    sizes = [size for text in shapes for size in parse_shape(text)]
    found = []
    for direction in directions:
        for dtype in dtypes:
            for batch, heads, tokens, head_dim in sizes:
                spec = Spec(
                    batch=batch,
                    heads=heads,
                    tokens=tokens,
                    head_dim=head_dim,
                    dtype=dtype,
                    layout=layout,
                    device=device,
                    grads=direction == "bwd",
                )
                found.append(Cell(spec=spec, direction=direction, mode=mode))
    return tuple(dict.fromkeys(found))
