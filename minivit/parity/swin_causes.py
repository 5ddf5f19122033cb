"""The causes that are tried on a Swin: each has a name, the steps where it shows, and an edit of our model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn

from minivit.model.block import activation
from minivit.model.config import ACTIVATIONS, WINDOWINGS
from minivit.model.swin import Swin, WindowAttention, Windows
from minivit.parity.causes import EPS
from minivit.parity.edits import B, Candidate, Edit, put, qkv_rows, swap

MERGE = "stages.{i}.merge"


def candidates(model: Swin) -> Iterator[Candidate]:
    """Return all that is tried on this model."""
    config = model.config
    for eps in EPS:
        if eps != config.eps:
            steps = ("embed.tokens", B + "norm1", B + "norm2", MERGE, "norm")
            says = f"eps of the LayerNorm is {eps:g}, here {config.eps:g}"
            yield Candidate("eps", says, tuple((step, _every_eps(eps)) for step in steps))
    for rule in WINDOWINGS:
        if rule != config.windowing:
            says = f"windows are padded and rolled as {rule} does, here as {config.windowing}"
            yield Candidate("windows", says, ((B + "resid_mid", _windowed(rule)), (MERGE, _windowed(rule))))
    for name in ACTIVATIONS:
        says = f"the activation of the MLP is {name}, here {config.activation}"
        yield Candidate("GELU form", says, ((B + "mlp.act", put("mlp", "act", activation(name))),))
    yield from _attention_candidates()
    for path, step in (
        ("attn.qkv", "resid_mid"),
        ("attn.proj", "resid_mid"),
        ("mlp.fc1", "mlp.pre"),
        ("mlp.fc2", "mlp.out"),
        ("norm1", "norm1"),
        ("norm2", "norm2"),
    ):
        yield Candidate("missing bias", f"{path} has no bias", ((B + step, _without_bias(path)),))
    for order in itertools.permutations(range(4)):
        if order != (0, 1, 2, 3):
            # Ours are upper left, lower left, upper right, lower right.
            words = ", ".join(("upper left", "lower left", "upper right", "lower right")[i] for i in order)
            yield Candidate("merge order", f"neighbours are taken as {words}", ((MERGE, _merged(order)),))
    yield Candidate("norm placement", "there is no final norm", (("norm", put("", "norm", nn.Identity())),))
    yield Candidate("missing bias", "head has no bias", (("logits", _without_bias("head")),))


def _attention_candidates() -> Iterator[Candidate]:
    """What happens inside the windows, which first shows behind them."""

    def shows(cause: str, says: str, edit: Edit) -> Candidate:
        return Candidate(cause, says, ((B + "resid_mid", edit),))

    for order in itertools.permutations(range(3)):
        if order != (0, 1, 2):
            letters = ", ".join("qkv"[part] for part in order)
            says = f"rows of the fused projection are taken as {letters}, here as q, k, v"
            yield shows("qkv order", says, _qkv(order))
    scales: tuple[tuple[str, Callable[[int, int], float]], ...] = (
        ("nothing", lambda width, size: 1.0),
        ("1/sqrt(width)", lambda width, size: width**-0.5),
        ("1/head_dim", lambda width, size: 1 / size),
    )
    for words, scale in scales:
        yield shows("scale", f"scores are scaled by {words}, here by 1/sqrt(head_dim)", _scaled(scale))
    tables: tuple[tuple[str, Callable[[Tensor, int], Tensor]], ...] = (
        ("no bias is added for positions", lambda table, window: torch.zeros_like(table)),
        ("the bias is that of key minus query, here of query minus key", lambda table, window: table.flip(0)),
        (
            "the bias is indexed by columns and rows, here by rows and columns",
            lambda table, window: table.unflatten(0, (2 * window - 1, -1)).transpose(0, 1).flatten(0, 1),
        ),
    )
    for says, change in tables:
        yield shows("position bias", says, _biased(change))
    yield shows("mask", "shifted windows have no mask", _other_windows(lambda w, side: w, masked=False))
    unshifted = _other_windows(lambda w, side: replace(w, shift=(0, 0)))
    yield shows("shift", "the windows are not shifted", unshifted)
    shifted = _other_windows(lambda w, side: replace(w, shift=(side // 2, side // 2)))
    yield shows("shift", "the windows are shifted, here they are not", shifted)
    turned = _other_windows(lambda w, side: _Turned(grid=w.grid, window=w.window, shift=w.shift, pad_first=w.pad_first))
    yield shows("shift", "the image is rolled down and to the right, here up and to the left", turned)


class _Turned(Windows):
    """Windows of an image that is rolled the other way, under our mask."""

    def cut(self, x_BPD: Tensor) -> Tensor:
        return self._back().cut(x_BPD)

    def stitch(self, x_VND: Tensor) -> Tensor:
        return self._back().stitch(x_VND)

    def _back(self) -> Windows:
        return Windows(
            grid=self.grid, window=self.window, shift=(-self.shift[0], -self.shift[1]), pad_first=self.pad_first
        )


def _attention(model: Swin, i: int) -> WindowAttention:
    return cast(WindowAttention, model.blocks[i].attn)


def _every_eps(eps: float) -> Edit:
    def edit(stack: ExitStack, model: Swin, i: int) -> None:
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                swap(stack, module, "eps", eps)

    return edit


def _windowed(rule: str) -> Edit:
    def edit(stack: ExitStack, model: Swin, i: int) -> None:
        for stage in model.stages:
            swap(stack, stage, "config", replace(model.config, windowing=rule))

    return edit


def _without_bias(path: str) -> Edit:
    def edit(stack: ExitStack, model: Swin, i: int) -> None:
        module = (model.blocks[i] if i >= 0 else model).get_submodule(path)
        if getattr(module, "bias", None) is not None:
            swap(stack, module, "bias", torch.zeros_like(cast(Tensor, module.bias)))

    return edit


def _qkv(order: Sequence[int]) -> Edit:
    def edit(stack: ExitStack, model: Swin, i: int) -> None:
        rows = torch.arange(3 * _attention(model, i).proj.in_features).view(3, -1)
        # Their q is the rows of our part order.index(0), and so on.
        qkv_rows(torch.cat([rows[order.index(part)] for part in range(3)]))(stack, model, i)

    return edit


def _scaled(scale: Callable[[int, int], float]) -> Edit:
    def edit(stack: ExitStack, model: Swin, i: int) -> None:
        attn = _attention(model, i)
        width = attn.proj.in_features
        swap(stack, attn, "scale", scale(width, width // attn.heads))

    return edit


def _biased(change: Callable[[Tensor, int], Tensor]) -> Edit:
    def edit(stack: ExitStack, model: Swin, i: int) -> None:
        attn = _attention(model, i)
        swap(stack, attn, "bias_table", change(attn.bias_table, attn.window))

    return edit


def _other_windows(change: Callable[[Windows, int], Windows], *, masked: bool = True) -> Edit:
    def edit(stack: ExitStack, model: Swin, i: int) -> None:
        block, window = model.blocks[i], _attention(model, i).window
        own = block.forward

        def forward(x: Tensor, windows: Windows, mask: Tensor | None = None) -> Tensor:
            changed = change(windows, window)
            return own(x, changed, changed.mask(x) if masked else None)

        swap(stack, block, "forward", forward)

    return edit


def _merged(order: Sequence[int]) -> Edit:
    """Neighbours in another order under the same weights: the weights in the opposite order."""
    back = [order.index(i) for i in range(4)]

    def turned(weight: Tensor) -> Tensor:
        return weight.unflatten(-1, (4, -1))[..., back, :].flatten(-2)

    def edit(stack: ExitStack, model: Swin, i: int) -> None:
        merge = model.get_submodule(MERGE.replace("{i}", str(i)))
        norm, reduction = merge.get_submodule("norm"), merge.get_submodule("reduction")
        for module, name in ((norm, "weight"), (norm, "bias"), (reduction, "weight")):
            swap(stack, module, name, turned(getattr(module, name)))

    return edit
