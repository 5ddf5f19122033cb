"""The steps of a Swin by name, what other libraries call them, and where another implementation parts from ours."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from minivit.errors import ShapeError, UsageError
from minivit.model.block import activation
from minivit.model.capabilities import require_windowed
from minivit.model.config import ACTIVATIONS, WINDOWINGS, SwinConfig
from minivit.model.swin import Swin, SwinBlock, WindowAttention, Windows
from minivit.parity.search import EPS, Cause, Row, compare, swap, tolerance_of

B = "blocks.{i}."

# Every step, with its place in a Swin and in three libraries. `{i}` is a block counted through the stages, `{s}` its
# stage, `{j}` its number there; ".input" is what a module reads. All are tokens (B, P, D), "pooled" (B, D) and "logits"
# (B, L). What windows hold has another form in every library and is no step: between norm1 and resid_mid is attention.
PLACES: dict[str, dict[str, str]] = {
    library: {
        "embed.tokens": embed,
        B + "norm1": f"{block}.{norm1}",
        B + "resid_mid": f"{block}.{norm2}.input",
        B + "norm2": f"{block}.{norm2}",
        B + "mlp.pre": f"{block}.mlp.{fc1}",
        B + "mlp.act": f"{block}.mlp.{fc2}.input",
        B + "mlp.out": f"{block}.mlp",
        B + "resid_post": block,
        "stages.{s}.merge": merge,
        "norm": norm,
        "pooled": f"{head}.input",
        "logits": head,
    }
    for library, embed, block, norm1, norm2, fc1, fc2, merge, norm, head in (
        ("minivit", "norm_embed", "stages.{s}.blocks.{j}", "norm1", "norm2", "fc1", "fc2", "stages.{s}.merge", "norm",
         "head"),
        ("transformers", "embeddings.norm", "encoder.layers.{s}.blocks.{j}", "layernorm_before", "layernorm_after",
         "fc1", "fc2", "encoder.layers.{s}.downsample", "layernorm", "classifier"),
        ("torchvision", "features.0.2", "features.{2s+1}.{j}", "norm1", "norm2", "0", "3", "features.{2s+2}", "norm",
         "head"),
        ("timm", "patch_embed.norm", "layers.{s}.blocks.{j}", "norm1", "norm2", "fc1", "fc2", "layers.{s+1}.downsample",
         "norm", "head.fc"),
    )
}  # fmt: skip


def swin_step_names(config: SwinConfig) -> list[str]:
    """All names in the order of the forward; `logits` only where there is a head."""
    inside = [name for name in PLACES["minivit"] if name.startswith(B)]
    names, i = ["embed.tokens"], 0
    for stage, depth in enumerate(config.depths):
        names += [name.replace("{i}", str(i + j)) for j in range(depth) for name in inside]
        names += [f"stages.{stage}.merge"] if stage < len(config.depths) - 1 else []
        i += depth
    return [*names, "norm", "pooled", *(["logits"] if config.classes else [])]


def swin_place(config: SwinConfig, name: str, library: str = "minivit") -> str:
    """Where a library has a step of this Swin.

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
    """Named steps of a forward, all of them by default: tokens (B, P, D), "pooled" (B, D), "logits" (B, L).

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


def diff_swin(
    model: Swin, pixels_BCHW: Tensor, theirs: Mapping[str, Mapping[str, Tensor]]
) -> tuple[list[Row], list[Cause]]:
    """As `diff`, of a Swin: the table of steps up to the first that differs, and what makes it the other side's.

    One thing at a time is changed, in the block, merging or norm of that step, and the whole model run again.
    """
    there = {**theirs.get("float64", {}), **theirs.get("float32", {})}
    names = [name for name in swin_step_names(model.config) if name in there]
    exact = copy.deepcopy(model).double()
    ours = {
        "float64": swin_steps(exact, pixels_BCHW.double(), names),
        "float32": swin_steps(model, pixels_BCHW.float(), names),
    }
    rows = list(compare(ours, theirs))
    if not rows or rows[-1].equal:
        return rows, []
    step = rows[-1].name
    dtype, tolerance = tolerance_of(rows[-1], theirs)
    wanted = theirs[dtype][step].double()
    mine = ours["float64"][step]
    before = float((mine - wanted).abs().max()) if mine.shape == wanted.shape else float("inf")
    found = []
    for cause, says, edit in swin_hypotheses(exact, step):
        with ExitStack() as stack:
            edit(stack)
            try:
                redone = swin_steps(exact, pixels_BCHW.double(), [step])[step]
            except ShapeError:  # a rule of padding that makes nothing of this picture
                continue
        if redone.shape == wanted.shape:
            after = float((redone - wanted).abs().max())
            if after <= tolerance and after < before / 2:
                found.append(Cause(cause, says, before, after))
    return rows, sorted(found, key=lambda cause: cause.after)


Edit = Callable[[ExitStack], None]


def swin_hypotheses(model: Swin, step: str) -> Iterator[tuple[str, str, Edit]]:
    """What another implementation may do at a step: a cause, in words, and a change of our model that does the same."""
    place = swin_place(model.config, step)
    for eps in EPS:
        if eps != model.config.eps:
            says = f"eps of the LayerNorm is {eps:g}, here {model.config.eps:g}"
            yield "eps", says, partial(_every_eps, model=model, eps=eps)
    for rule in WINDOWINGS:
        if rule != model.config.windowing:
            says = f"windows are padded and rolled as {rule} does, here as {model.config.windowing}"
            yield "windows", says, partial(_windowed, model=model, rule=rule)
    if step.startswith("blocks."):
        number = int(step.split(".")[1])
        yield from _block_hypotheses(model.blocks[number])
    if step.startswith("stages."):
        merge = model.get_submodule(place)
        for order in itertools.permutations(range(4)):
            if order != (0, 1, 2, 3):
                # Ours are upper left, lower left, upper right, lower right.
                words = ", ".join(("upper left", "lower left", "upper right", "lower right")[i] for i in order)
                yield "merge order", f"neighbours are taken as {words}", partial(_merged, merge=merge, order=order)
    if step == "norm":
        yield "norm placement", "there is no final norm", _put(model, "norm", nn.Identity())
    if step == "logits":
        yield "missing bias", "head has no bias", _put(model.head, "bias", None)


def _block_hypotheses(block: SwinBlock) -> Iterator[tuple[str, str, Edit]]:
    attn = cast(WindowAttention, block.attn)
    width, size = attn.proj.in_features, attn.proj.in_features // attn.heads
    for name in ACTIVATIONS:
        says = f"the MLP bends by {name}"
        yield "GELU form", says, _put(block.mlp, "act", activation(name))
    rows = torch.arange(3 * width).view(3, width)
    for order in itertools.permutations(range(3)):
        if order != (0, 1, 2):
            letters = ", ".join("qkv"[part] for part in order)
            index = torch.cat([rows[order.index(part)] for part in range(3)])
            says = f"rows of the fused projection are taken as {letters}, here as q, k, v"
            yield "qkv order", says, partial(_qkv, attn=attn, index=index)
    for path in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "norm1", "norm2"):
        module = block.get_submodule(path)
        if module.bias is not None:
            zeros = torch.zeros_like(cast(Tensor, module.bias))
            yield "missing bias", f"{path} has no bias", _put(module, "bias", zeros)
    for scale, words in ((1.0, "nothing"), (width**-0.5, "1/sqrt(width)"), (1 / size, "1/head_dim")):
        says = f"scores are scaled by {words}, here by 1/sqrt(head_dim)"
        yield "scale", says, _put(attn, "scale", scale)
    table = attn.bias_table
    for says, other in (
        ("nothing is added for places", torch.zeros_like(table)),
        ("the bias is that of key minus query, here of query minus key", table.flip(0)),
        ("the bias is read by columns and rows, here by rows and columns",
         table.unflatten(0, (2 * attn.window - 1, -1)).transpose(0, 1).flatten(0, 1)),
    ):  # fmt: skip
        yield "position bias", says, _put(attn, "bias_table", other)

    def other_windows(change: Callable[[Windows], Windows], masked: bool) -> Edit:
        own = block.forward

        def forward(x: Tensor, windows: Windows, mask: Tensor | None = None) -> Tensor:
            changed = change(windows)
            return own(x, changed, changed.mask(x) if masked else None)

        return _put(block, "forward", forward)

    yield "mask", "shifted windows have no mask", other_windows(lambda w: w, False)
    yield "shift", "the windows are not shifted", other_windows(lambda w: replace(w, shift=(0, 0)), True)
    half = attn.window // 2
    yield (
        "shift",
        "the windows are shifted, here they are not",
        other_windows(lambda w: replace(w, shift=(half,) * 2), True),
    )
    turned = other_windows(lambda w: _Turned(grid=w.grid, window=w.window, shift=w.shift, pad_first=w.pad_first), True)
    yield "shift", "the picture is rolled down and to the right, here up and to the left", turned


class _Turned(Windows):
    """Windows of a picture rolled the other way, under the mask of ours."""

    def cut(self, x_BPD: Tensor) -> Tensor:
        return self._back().cut(x_BPD)

    def stitch(self, x_VND: Tensor) -> Tensor:
        return self._back().stitch(x_VND)

    def _back(self) -> Windows:
        return Windows(
            grid=self.grid, window=self.window, shift=(-self.shift[0], -self.shift[1]), pad_first=self.pad_first
        )


def _put(module: nn.Module, name: str, value: object) -> Edit:
    return lambda stack: swap(stack, module, name, value)


def _every_eps(stack: ExitStack, *, model: Swin, eps: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            swap(stack, module, "eps", eps)


def _windowed(stack: ExitStack, *, model: Swin, rule: str) -> None:
    for stage in model.stages:
        swap(stack, stage, "config", replace(model.config, windowing=rule))


def _qkv(stack: ExitStack, *, attn: nn.Module, index: Tensor) -> None:
    qkv = attn.get_submodule("qkv")
    swap(stack, qkv, "weight", qkv.weight[index])  # type: ignore[index]
    if qkv.bias is not None:
        swap(stack, qkv, "bias", qkv.bias[index])  # type: ignore[index]


def _merged(stack: ExitStack, *, merge: nn.Module, order: Sequence[int]) -> None:
    """Neighbours in another order under the same weights: the weights in the opposite order."""
    norm, reduction = merge.get_submodule("norm"), merge.get_submodule("reduction")
    back = [order.index(i) for i in range(4)]

    def turned(weight: Tensor) -> Tensor:
        return weight.unflatten(-1, (4, -1))[..., back, :].flatten(-2)

    for module, name in ((norm, "weight"), (norm, "bias"), (reduction, "weight")):
        swap(stack, module, name, turned(getattr(module, name)))
