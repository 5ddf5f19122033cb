"""Edits of a model that last until a stack of contexts closes, and the candidates that are made of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from minivit.model.block import Block

# Changes a model until the stack closes. The number is that of a block, or -1 outside the blocks.
Edit = Callable[[ExitStack, Any, int], None]
B = "blocks.{i}."


class Candidate(NamedTuple):
    """One thing that another implementation may do differently, as edits of our model."""

    cause: str  # its short name: eps, GELU form, head order, qkv order, missing bias, scale, ...
    says: str  # in words
    edits: tuple[tuple[str, Edit], ...]  # each behind the first step that it changes; "{i}" in it: in every block
    whole: bool = False  # proven only where every one of its steps is known
    slack: float = 0.0  # error that remains at best, as a fraction of the largest magnitude


def at(steps: Sequence[str], edit: Edit) -> tuple[tuple[str, Edit], ...]:
    """Return one edit behind each of several steps; it is applied once, whichever of them it is needed for."""
    return tuple((step, edit) for step in steps)


def swap(stack: ExitStack, owner: nn.Module, name: str, value: object) -> None:
    """Replace a parameter, module or attribute until the stack closes."""
    homes: tuple[dict[str, Any], ...] = (owner._parameters, owner._modules, owner.__dict__)
    home = next((home for home in homes if name in home), None)
    if home is None:
        stack.callback(owner.__dict__.pop, name)
        owner.__dict__[name] = value
    else:
        stack.callback(home.__setitem__, name, home[name])
        home[name] = value


def block_of(model: Any, i: int) -> Block:
    """Return block i with its type."""
    return cast(Block, model.blocks[i])


def put(path: str, name: str, value: object) -> Edit:
    """Return the edit that sets an attribute of a module of a block, or of the model outside the blocks.

    Args:
        path: of the module inside the block or the model; "" is the block or the model itself.
    """

    def edit(stack: ExitStack, model: Any, i: int) -> None:
        owner = (model.blocks[i] if i >= 0 else model).get_submodule(path)
        # A copy for each block, because hooks tell the modules of blocks apart.
        swap(stack, owner, name, copy.deepcopy(value) if isinstance(value, nn.Module) else value)

    return edit


def configured(**changes: Any) -> Edit:
    """Return the edit that changes values of the configuration."""
    return lambda stack, model, i: swap(stack, model, "config", replace(model.config, **changes))


def qkv_rows(index: Tensor) -> Edit:
    """Return the edit that takes the rows of a block's fused projection in another order."""

    def edit(stack: ExitStack, model: Any, i: int) -> None:
        qkv = block_of(model, i).attn.qkv
        swap(stack, qkv, "weight", qkv.weight[index])
        if qkv.bias is not None:
            swap(stack, qkv, "bias", qkv.bias[index])

    return edit
