"""The attention of a Swin: of every window, and stitched to the image."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from minivit.errors import UsageError
from minivit.model.attention import attention_probs
from minivit.model.capabilities import require_windowed
from minivit.model.swin import Swin, Windows
from minivit.study.changes import AttendCall, AttendChange, ModuleChange, at_attention, at_module
from minivit.study.maps.attention import fuse_heads


class WindowProbs(NamedTuple):
    """The attention of one block, window by window."""

    probs: Tensor  # (B, W, A, N, N): attention in each of W windows of N tokens, rows sum to 1
    windows: Windows  # how the block cuts its grid


def window_attention(model: Swin, pixels_BCHW: Tensor, layer: int) -> WindowProbs:
    """Return the attention probabilities of a block, bias and mask included, from the q and k that its kernel received.

    Args:
        layer: the number of the block, counted through all stages.

    Raises:
        UsageError: not a Swin, or no such layer.
    """
    require_windowed(model, "window_attention")
    if not 0 <= layer < model.config.depth:
        raise UsageError(f"layer {layer}: there are layers 0 to {model.config.depth - 1}")
    found: list[WindowProbs] = []
    observe_windows(model, pixels_BCHW, [layer], lambda _, probs: found.append(probs))
    return found[0]


@torch.no_grad()
def observe_windows(
    model: Swin, pixels_BCHW: Tensor, layers: Iterable[int], observe: Callable[[int, WindowProbs], None]
) -> None:
    """Run one forward pass that calls `observe(layer, its attention)` in each of these blocks."""
    seen: dict[int, Windows] = {}

    def record(layer: int, call: AttendCall) -> None:
        probs_VANN = attention_probs(call.q, call.k, scale=call.scale, bias=call.bias)
        observe(layer, WindowProbs(probs_VANN.unflatten(0, (len(pixels_BCHW), -1)), seen[layer]))

    with ExitStack() as stack:
        for layer in layers:
            attn = model.blocks[layer].attn
            see = partial(lambda layer, tokens_BPD, windows, *_: seen.update({layer: windows}), layer)
            stack.enter_context(at_module(attn, ModuleChange(record_input=see)))
            stack.enter_context(at_attention(attn, AttendChange(record=partial(record, layer))))
        model(pixels_BCHW)


def window_map(found: WindowProbs, *, query: tuple[int, int] | None = None, head: str | int = "mean") -> Tensor:
    """Return the attention of one block on its grid: (B, h, w).

    It shows the windows of one layer. Attention stays inside a window: compare values inside a window only; borders
    between windows come from the model, not from the image.

    Args:
        query: (row, column) of a token: what it attends to, 0 outside its window. None: the attention that each token
            receives, mean over the tokens of its window.
        head: "mean", "max" or "min" over the heads, or the number of one.

    Raises:
        UsageError: no such token or head.
    """
    probs_BWANN, windows = found
    batch, (rows, columns) = len(probs_BWANN), windows.grid
    # (B, W, A, N, N) -> (B*W, N, N)
    fused_VNN = fuse_heads(probs_BWANN.flatten(0, 1), head)
    if query is None:
        values_VN = fused_VNN.mean(dim=1)
    else:
        row, column = query
        if not (0 <= row < rows and 0 <= column < columns):
            raise UsageError(f"no token in row {row}, column {column}: this layer has {rows} rows of {columns}")
        # Every token's number, from 1, cut as the image was; 0 is padding.
        numbers = torch.arange(1.0, rows * columns + 1)[None, :, None]
        window, place = (windows.cut(numbers)[:, :, 0] == row * columns + column + 1).nonzero()[0].tolist()
        fused_BWNN = fused_VNN.unflatten(0, (batch, -1))
        values_BWN = torch.zeros_like(fused_BWNN[:, :, 0])
        values_BWN[:, window] = fused_BWNN[:, window, place]
        values_VN = values_BWN.flatten(0, 1)
    return windows.stitch(values_VN[:, :, None])[:, :, 0].unflatten(1, windows.grid)
