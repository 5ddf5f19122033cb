"""The steps of a Swin by name, and where they are in the modules of other libraries."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from minivit.errors import UsageError
from minivit.model.capabilities import require_windowed
from minivit.model.config import SwinConfig
from minivit.model.swin import Swin
from minivit.weights.families.base import swin_places
from minivit.weights.families.registry import FAMILIES, SWIN_STEPS

B = "blocks.{i}."

# Every step, with its place in minivit's Swin and, from the checkpoint families, in three libraries. `{i}` is a block
# counted through the stages, `{s}` its stage, `{j}` its number in the stage; ".input" is the input of a module. All are
# tokens (B, P, D), but "pooled" (B, D) and "logits" (B, L). Attention lies between norm1 and resid_mid: the content of
# windows has another form in every library.
PLACES: dict[str, Mapping[str, str]] = {
    "minivit": swin_places({name: (name,) for name in FAMILIES["swin"].rows}, "head"),
    **SWIN_STEPS,
}


def swin_step_names(config: SwinConfig) -> list[str]:
    """Return the names of all steps in the order of the forward pass; `logits` only where there is a head."""
    inside = [name for name in PLACES["minivit"] if name.startswith(B)]
    names, i = ["embed.tokens"], 0
    for stage, depth in enumerate(config.depths):
        names += [name.replace("{i}", str(i + j)) for j in range(depth) for name in inside]
        names += [f"stages.{stage}.merge"] if stage < len(config.depths) - 1 else []
        i += depth
    return [*names, "norm", "pooled", *(["logits"] if config.classes else [])]


def swin_place(config: SwinConfig, name: str, library: str = "minivit") -> str:
    """Return the place of a step of this Swin in a library.

    Raises:
        UsageError: no such step.
    """
    if name not in swin_step_names(config):
        raise UsageError(f"no step of this Swin is called {name!r}")
    kind, number, *_ = (*name.split("."), "")
    s = j = 0
    if kind == "blocks":
        s, j = next(
            (stage, int(number) - first)
            for stage, first in enumerate(itertools.accumulate(config.depths, initial=0))
            if first <= int(number) < first + config.depths[stage]
        )
        name = name.replace(f"blocks.{number}.", B)
    elif kind == "stages":
        s, name = int(number), "stages.{s}.merge"
    places = {"{s}": s, "{j}": j, "{s+1}": s + 1, "{2s+1}": 2 * s + 1, "{2s+2}": 2 * s + 2}
    place = PLACES[library][name]
    for mark, value in places.items():
        place = place.replace(mark, str(value))
    return place


@torch.no_grad()
def swin_steps(model: Swin, pixels_BCHW: Tensor, names: Sequence[str] | None = None) -> dict[str, Tensor]:
    """Return named steps of a forward pass, all by default: tokens (B, P, D), "pooled" (B, D), "logits" (B, L).

    Raises:
        UsageError: not a Swin, or no such step.
    """
    require_windowed(model, "swin_steps")
    found: dict[str, Tensor] = {}

    def hook(name: str, module: nn.Module, args: tuple[Any, ...], output: Tensor | None = None) -> None:
        found[name] = (args[0] if output is None else output).clone()

    names = swin_step_names(model.config) if names is None else names
    with ExitStack() as stack:
        for name in names:
            place = swin_place(model.config, name)
            module = model.get_submodule(place.removesuffix(".input"))
            listen = module.register_forward_pre_hook if place.endswith(".input") else module.register_forward_hook
            stack.callback(listen(partial(hook, name)).remove)
        model(pixels_BCHW)
    return {name: found[name] for name in swin_step_names(model.config) if name in found}
