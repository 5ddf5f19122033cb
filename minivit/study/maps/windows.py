"""Where the tokens of a Swin look: the attention of every window, and stitched to the picture."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from minivit.errors import UsageError
from minivit.model.attention import BiasedAttend, attention_probs
from minivit.model.capabilities import require_windowed
from minivit.model.swin import Swin, Windows
from minivit.study.maps.attention import fuse_heads
from minivit.study.tracing import attend_swapped


class WindowProbs(NamedTuple):
    """The attention of one block, window by window."""

    probs: Tensor  # (B, W, A, N, N): who looks at whom in each of W windows of N tokens, rows summing to 1
    windows: Windows  # how the block cut its grid


def window_attention(model: Swin, pixels_BCHW: Tensor, layer: int) -> WindowProbs:
    """The attention probabilities of a block, bias and mask included, recomputed from the q and k its kernel received.

    Args:
        layer: the number of the block, counted through all stages.

    Raises:
        UsageError: not a Swin, or no such layer.
    """
    require_windowed(model, "window_attention")
    if not 0 <= layer < model.config.depth:
        raise UsageError(f"layer {layer}: there are layers 0 to {model.config.depth - 1}")
    found: list[WindowProbs] = []
    hear_windows(model, pixels_BCHW, [layer], lambda _, probs: found.append(probs))
    return found[0]


@torch.no_grad()
def hear_windows(
    model: Swin, pixels_BCHW: Tensor, layers: Iterable[int], hear: Callable[[int, WindowProbs], None]
) -> None:
    """One forward, in which `hear(layer, its attention)` is called where each of these blocks attends."""
    seen: dict[int, Windows] = {}

    def listen(layer: int, own: BiasedAttend) -> BiasedAttend:
        def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float, bias: Tensor) -> Tensor:
            probs_VANN = attention_probs(q, k, scale=scale, bias=bias)
            hear(layer, WindowProbs(probs_VANN.unflatten(0, (len(pixels_BCHW), -1)), seen[layer]))
            return own(q, k, v, scale=scale, bias=bias)

        return attend

    with ExitStack() as stack:
        for layer in layers:
            attn = model.blocks[layer].attn
            see = attn.register_forward_pre_hook(lambda module, args, layer=layer: seen.update({layer: args[1]}))
            stack.callback(see.remove)
            stack.enter_context(attend_swapped(attn, partial(listen, layer)))  # type: ignore[arg-type]
        model(pixels_BCHW)


def window_map(found: WindowProbs, *, query: tuple[int, int] | None = None, head: str | int = "mean") -> Tensor:
    """Attention of one block as a picture of its grid: (B, h, w).

    Shows one layer's windows alone: a window knows nothing of its neighbours, so that values are compared inside
    of a window, and borders between windows are the model's, not the picture's.

    Args:
        query: (row, column) of a token: where it looks, 0 outside of its window. None: how much each token
            is looked at, on average over the tokens of its window.
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
        # Every token's number, from 1, cut as the picture was; 0 is padding.
        numbers = torch.arange(1.0, rows * columns + 1)[None, :, None]
        window, place = (windows.cut(numbers)[:, :, 0] == row * columns + column + 1).nonzero()[0].tolist()
        fused_BWNN = fused_VNN.unflatten(0, (batch, -1))
        values_BWN = torch.zeros_like(fused_BWNN[:, :, 0])
        values_BWN[:, window] = fused_BWNN[:, window, place]
        values_VN = values_BWN.flatten(0, 1)
    return windows.stitch(values_VN[:, :, None])[:, :, 0].unflatten(1, windows.grid)
