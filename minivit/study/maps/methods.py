"""From the name of a method to its map, or to all of its maps with their names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minivit.errors import UsageError
from minivit.model.capabilities import ImageModel, require_vit
from minivit.model.classes import class_name
from minivit.model.swin import Swin
from minivit.model.vit import ViT
from minivit.study.changes import softmax_needed
from minivit.study.maps.attention import Query, attention_map, fuse_heads, pool_attention, rollout
from minivit.study.maps.relevance import (
    grad_rollout,
    input_gradients,
    integrated_gradients,
    legrad,
    per_patch,
    relevance,
)
from minivit.study.maps.table import METHODS, SETTINGS
from minivit.study.maps.tokens import norms, pca, similarity
from minivit.study.maps.windows import window_attention, window_map
from minivit.study.tracing import trace


def method_map(model: ViT, pixels_BCHW: Tensor, method: str, **settings: Any) -> Tensor:
    """Return the map of a method for every image: (B, h, w), of "pca" (B, h, w, 3).

    Args:
        method: a name of METHODS.
        settings: what the method takes: `target` (the class), `query`, `head`, `layer`, `start_layer`, `residual`,
            `discard`, `steps`, each as in `minivit.study`'s function of the method. A `layer` of None is the last one,
            or for "similarity" and "pca" the tokens after the final norm. "all" as `layer`, and for "raw" as `head`,
            returns every one, each on an axis behind B, layers first. "rollout" has one more `query`, "pool": the query
            of the model's attention pool. Every method takes `resample`, as in `ViT.embed`.

    Raises:
        UsageError: no such method, layer, head, token or class, or a model without what the method needs.
        TypeError: a setting that the method does not take.
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
    resample: bool = False,
) -> Tensor:
    layers = _layers(model, layer)
    keep = [f"blocks.{i}.{part}" for i in layers for part in "qk"]
    with softmax_needed(model, "a map of attention"):
        kept = trace(model, pixels_BCHW, keep=keep, limit=None, resample=resample)
    heads = range(model.config.heads) if head == "all" else [head]

    def of_layer(i: int) -> Tensor:
        probs_BANM = kept.attention[i]
        return torch.stack([attention_map(probs_BANM, kept.layout, query=query, head=a) for a in heads], dim=1)

    # (B, layers, heads, h, w), without the axes that were not asked for
    maps = torch.stack([of_layer(i) for i in layers], dim=1)
    maps = maps if head == "all" else maps[:, :, 0]
    return maps if layer == "all" else maps[:, 0]


def _pool(model: ViT, pixels_BCHW: Tensor, *, head: int | str = "mean", resample: bool = False) -> Tensor:
    probs_BA1P = pool_attention(model, pixels_BCHW, resample=resample)
    return model.layout_of(pixels_BCHW, resample=resample).to_grid(fuse_heads(probs_BA1P, head)[:, 0])


def _rollout(
    model: ViT,
    pixels_BCHW: Tensor,
    *,
    head: int | str = "mean",
    query: Query | None = None,
    resample: bool = False,
    **settings: Any,
) -> Tensor:
    with softmax_needed(model, "rollout"):
        kept = trace(model, pixels_BCHW, keep=["blocks.*.q", "blocks.*.k"], limit=None, resample=resample)
    start: Query | Tensor | None = query
    if query == "pool":
        start = F.pad(_pool(model, pixels_BCHW, head=head, resample=resample).flatten(1), (kept.layout.prefix, 0))
    return rollout(kept.attention, kept.layout, fusion=head, query=start, **settings)


def _grad_rollout(model: ViT, pixels_BCHW: Tensor, *, head: int | str = "mean", **settings: Any) -> Tensor:
    return grad_rollout(model, pixels_BCHW, fusion=head, **settings)


def _per_patch(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def of_patches(model: ViT, pixels_BCHW: Tensor, *, resample: bool = False, **settings: Any) -> Tensor:
        attribution_BCHW = function(model, pixels_BCHW, resample=resample, **settings)
        layout = model.layout_of(pixels_BCHW, resample=resample)
        return per_patch(attribution_BCHW, layout, patch=model.config.patch_size)

    return of_patches


def _of_tokens(function: Callable[..., Tensor], final: bool) -> Callable[..., Tensor]:
    """A function of one step's tokens; without a layer those after the final norm, or of the last block."""

    def of_layers(
        model: ViT,
        pixels_BCHW: Tensor,
        *,
        layer: int | str | None = None,
        resample: bool = False,
        **settings: Any,
    ) -> Tensor:
        after_norm = final and layer is None
        steps = ["norm"] if after_norm else [f"blocks.{i}.resid_post" for i in _layers(model, layer)]
        kept = trace(model, pixels_BCHW, keep=steps, limit=None, resample=resample)
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
    "norms": _of_tokens(norms, final=False),  # the final norm would hide their L2 norms
    "pca": _of_tokens(pca, final=True),
}


@dataclass(frozen=True, kw_only=True)
class Maps:
    """The maps of one image: one, or a sheet of them."""

    method: str
    values: Tensor  # (rows, columns, h, w); of pca (h, w, 3)
    rows: list[str] = field(default_factory=lambda: [""])  # their names
    columns: list[str] = field(default_factory=lambda: [""])
    title: str  # method, model, class, query and settings in words
    target: int | None = None  # the class that was followed

    @property
    def single(self) -> bool:
        """Whether there is one map only."""
        return self.values.ndim == 3 or self.values.shape[:2] == (1, 1)

    @property
    def unit(self) -> str:
        """What the numbers are."""
        return METHODS[self.method].unit

    def one(self) -> Tensor:
        """Return the single map, (h, w) or (h, w, 3)."""
        return self.values if self.values.ndim == 3 else self.values[0, 0]

    def __repr__(self) -> str:
        return f"<Maps {tuple(self.values.shape)}: {self.title}>"


def compute(
    model: ImageModel, pixels_1CHW: Tensor, method: str = "raw", *, resample: bool = False, **settings: Any
) -> Maps:
    """Return the map or maps of one image by a method, with their names.

    Args:
        pixels_1CHW: one image. method: a name of METHODS; of a Swin "raw" only. settings: those that
            METHODS[method].takes, without "scale", and `target` instead of "class". `layer` is a number or "all",
            `head` a number, "mean", "max" or "min", `grid=True` returns layers x heads. resample: as in
            `ViT.embed`; a Swin needs none.

    Raises:
        UsageError: no such method, a setting that it does not take, or no such layer, head, token or class.
    """
    if method not in METHODS:
        raise UsageError(f"no method {method!r}; known are {', '.join(METHODS)}")
    takes = {"target" if name == "class" else name for name in METHODS[method].takes}
    if unknown := sorted(settings.keys() - takes):
        raise UsageError(f"{method} does not take {', '.join(unknown)}; it takes {', '.join(sorted(takes))}")
    name = model.name or "the model"
    if model.windowed:
        return _of_windows(model, pixels_1CHW, f"{method} of {name}", settings)
    config = require_vit(model, method).config
    settings = {key: SETTINGS[key] for key in SETTINGS if key in takes and SETTINGS[key] is not None} | settings
    settings.pop("scale", None)
    grid, chosen = settings.pop("grid", None), settings.pop("layer", None)
    chosen = "all" if grid and chosen is None else chosen
    title = [f"{method} of {name}"]
    if "target" in takes:
        if settings.get("target") is None:
            with torch.inference_mode():
                settings["target"] = int(model(pixels_1CHW, resample=resample).argmax())
        title.append(f"for {class_name(model, settings['target'])}")
    asked = settings.get("query")
    if asked is None and "query" in takes and "target" not in takes:
        asked = settings["query"] = "cls" if config.cls_token else "mean"
    if asked is not None:
        title.append("of the patch in row {}, column {}".format(*asked) if isinstance(asked, tuple) else f"of {asked}")
    if grid:
        settings["head"] = "all"
    elif "head" in takes:
        title.append(_fused(settings.get("head", "mean")))
    title += [f"{key.replace('_', ' ')} {settings[key]:g}" for key, default in SETTINGS.items()
              if isinstance(default, (int, float)) and key in settings]  # fmt: skip
    if "layer" not in takes:
        values = method_map(model, pixels_1CHW, method, resample=resample, **settings)[0]
        return _one(method, values, title, settings.get("target"))
    values = method_map(model, pixels_1CHW, method, layer=chosen, resample=resample, **settings)[0]
    layers = range(config.depth) if chosen == "all" else [config.depth - 1 if chosen is None else chosen]
    names = [f"layer {i}" for i in layers]
    if grid or len(names) > 1:
        heads = [f"head {a}" for a in range(config.heads)]
        rows, columns = (names, heads) if grid else ([""], names)
        values = values.reshape(len(rows), len(columns), *values.shape[-2:])
        return Maps(method=method, values=values, rows=rows, columns=columns, title=", ".join(title))
    final = chosen is None and method in ("similarity", "pca")
    return _one(method, values[0] if chosen == "all" else values,
                [*title, "after the final norm" if final else names[0]])  # fmt: skip


def _fused(head: int | str) -> str:
    return f"head {head}" if isinstance(head, int) else f"{head} over heads"


def _one(method: str, values: Tensor, title: list[str], target: int | None = None) -> Maps:
    """A single map, (h, w), or (h, w, 3) of pca."""
    values = values if values.ndim == 3 else values[None, None]
    return Maps(method=method, values=values, title=", ".join(title), target=target)


def _of_windows(model: Swin, pixels_1CHW: Tensor, what: str, settings: dict[str, Any]) -> Maps:
    """The raw attention of one block of a Swin, its windows stitched to the image."""
    query, head, layer = (settings.get(name) for name in ("query", "head", "layer"))
    if not what.startswith("raw ") or settings.get("grid") or layer == "all" or isinstance(query, str):
        raise UsageError(
            "a Swin has another grid in every stage and no token but its patches: give --layer one number, --query a "
            "ROW,COL of its grid or nothing, and leave --grid out"
        )
    head, layer = "mean" if head is None else head, model.config.depth - 1 if layer is None else layer
    found = window_attention(model, pixels_1CHW, layer)
    values = window_map(found, query=query, head=head)
    whose = "of the token in row {}, column {}".format(*query) if query else "received by each token"
    side, shift = found.windows.window, found.windows.shift
    windows = f"windows of {side} x {side}" + (f" shifted by {shift[0]}, {shift[1]}" if any(shift) else "")
    return _one("raw", values[0], [what, whose, _fused(head), f"layer {layer}", windows])
