"""From the name of a method to its map: the one way there, for every command that draws maps or judges them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minivit.errors import UsageError
from minivit.model.vit import ViT
from minivit.study.maps.attention import Query, attention_map, fuse_heads, pool_attention, rollout
from minivit.study.maps.relevance import (
    grad_rollout,
    input_gradients,
    integrated_gradients,
    legrad,
    per_patch,
    relevance,
)
from minivit.study.maps.tokens import norms, pca, similarity
from minivit.study.tracing import trace


def method_map(model: ViT, pixels_BCHW: Tensor, method: str, **settings: Any) -> Tensor:
    """The map a method makes of pictures: (B, h, w), and of "pca" (B, h, w, 3).

    Args:
        method: a name of MAPS.
        settings: what the method's function takes beside model and pixels: `target` (the class), `query`, `head`,
            `layer`, `start_layer`, `residual`, `discard`, `steps`, each as in `minivit.study`'s function of the method.
            A `layer` of None is the last, or for "similarity" and "pca" the tokens after the final norm. "all"
            as `layer`, and for "raw" as `head`, gives every one, each on an axis behind B, layers first. "rollout" has
            one more `query`, "pool": where the model's attention pool looks.

    Raises:
        UsageError: no such method, layer, head, token or class, or a model without what the method needs.
        TypeError: a setting the method has no use for.
    """
    if method not in MAPS:
        raise UsageError(f"no method {method!r}; known are {', '.join(MAPS)}")
    return MAPS[method](model, pixels_BCHW, **settings)


def _raw(
    model: ViT,
    pixels_BCHW: Tensor,
    *,
    layer: int | str | None = None,
    head: int | str = "mean",
    query: Query | None = None,
) -> Tensor:
    layers = _layers(model, layer)
    keep = [f"blocks.{i}.{part}" for i in layers for part in "qk"]
    kept = trace(model, pixels_BCHW, keep=keep, limit=None)
    heads = range(model.config.heads) if head == "all" else [head]

    def of_layer(i: int) -> Tensor:
        probs_BANM = kept.attention[i]
        return torch.stack([attention_map(probs_BANM, kept.layout, query=query, head=a) for a in heads], dim=1)

    # (B, layers, heads, h, w), without the axes nobody asked for
    maps = torch.stack([of_layer(i) for i in layers], dim=1)
    maps = maps if head == "all" else maps[:, :, 0]
    return maps if layer == "all" else maps[:, 0]


def _pool(model: ViT, pixels_BCHW: Tensor, *, head: int | str = "mean") -> Tensor:
    return model.layout_of(pixels_BCHW).to_grid(fuse_heads(pool_attention(model, pixels_BCHW), head)[:, 0])


def _rollout(
    model: ViT, pixels_BCHW: Tensor, *, head: int | str = "mean", query: Query | None = None, **settings: Any
) -> Tensor:
    kept = trace(model, pixels_BCHW, keep=["blocks.*.q", "blocks.*.k"], limit=None)
    start: Query | Tensor | None = query
    if query == "pool":
        start = F.pad(_pool(model, pixels_BCHW, head=head).flatten(1), (kept.layout.prefix, 0))
    return rollout(kept.attention, kept.layout, fusion=head, query=start, **settings)


def _grad_rollout(model: ViT, pixels_BCHW: Tensor, *, head: int | str = "mean", **settings: Any) -> Tensor:
    return grad_rollout(model, pixels_BCHW, fusion=head, **settings)


def _per_patch(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def of_patches(model: ViT, pixels_BCHW: Tensor, **settings: Any) -> Tensor:
        attribution_BCHW = function(model, pixels_BCHW, **settings)
        return per_patch(attribution_BCHW, model.layout_of(pixels_BCHW), patch=model.config.patch_size)

    return of_patches


def _of_tokens(function: Callable[..., Tensor], final: bool) -> Callable[..., Tensor]:
    """A function of one step's tokens; without a layer of those after the final norm, or of the last block's."""

    def of_layers(model: ViT, pixels_BCHW: Tensor, *, layer: int | str | None = None, **settings: Any) -> Tensor:
        after_norm = final and layer is None
        steps = ["norm"] if after_norm else [f"blocks.{i}.resid_post" for i in _layers(model, layer)]
        kept = trace(model, pixels_BCHW, keep=steps, limit=None)
        maps = [function(kept[step], kept.layout, **settings) for step in steps]
        return torch.stack(maps, dim=1) if layer == "all" else maps[0]

    return of_layers


def _layers(model: ViT, layer: int | str | None) -> list[int]:
    depth = model.config.depth
    if layer == "all":
        return list(range(depth))
    if layer is None:
        return [depth - 1]
    if not isinstance(layer, int) or not 0 <= layer < depth:
        raise UsageError(f"layer {layer}: there are layers 0 to {depth - 1}")
    return [layer]


MAPS: dict[str, Callable[..., Tensor]] = {
    "raw": _raw,
    "pool": _pool,
    "rollout": _rollout,
    "grad-rollout": _grad_rollout,
    "relevance": relevance,
    "legrad": legrad,
    "gradients": _per_patch(input_gradients),
    "integrated-gradients": _per_patch(integrated_gradients),
    "similarity": _of_tokens(similarity, final=True),
    "norms": _of_tokens(norms, final=False),  # the final norm would hide lengths
    "pca": _of_tokens(pca, final=True),
}
