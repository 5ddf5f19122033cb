"""The logit lens: what the model would answer if it stopped after a block."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from minivit.errors import ShapeError, UsageError
from minivit.model.vit import ViT


@torch.no_grad()
def lens(model: ViT, streams: Iterable[Tensor], *, rows: Sequence[int] | str | None = None) -> Tensor:
    """Every residual stream read by the model's own final norm and head: (T, B, R, L).

    The logit lens (nostalgebraist 2020, "interpreting GPT: the logit lens"; for ViTs Vilas et al. 2023,
    arXiv:2310.18969). The head was trained for the last block: what it says of earlier ones shows what is
    already written in its own directions, not all that is known. On the last block, with rows None, the
    result is the model's own answer to the last bit.

    Args:
        streams: T tensors (B, N, D), "embed.tokens" and "blocks.{i}.resid_post" of a trace.
        rows: None reads what the pooling reads, R = 1. "patches", or R places in the sequence, reads each token
            alone, as if the pooling had nothing else to read: an attention pool attends to it only, both heads
            of a distilled model read it. Where the head reads two (pooling "cls+mean") a patch stands in for
            the mean beside the class token, a prefix token for the class token beside the mean.

    Returns:
        Logits; of a model without a head what it returns instead, its pooled token or projection.

    Raises:
        ShapeError: a stream that is not (B, N, D); UsageError: no streams, or no such row.
    """
    answers_BRL = []
    for stream_BND in streams:
        if stream_BND.ndim != 3 or stream_BND.shape[2] != model.config.width:
            raise ShapeError(f"a stream of shape {tuple(stream_BND.shape)}; expected (B, N, {model.config.width})")
        # Where the norm covers what is pooled only, the pooling brings it.
        tokens_BND = model.norm(stream_BND) if model.config.norm == "tokens" else stream_BND
        if rows is None:
            answers_BRL.append(model.answer(tokens_BND)[:, None])
        else:
            alone_BRND = _alone(model, tokens_BND, _places(model, rows, tokens_BND.shape[1]))
            # (B, R, prefix + 1, D) -> (B*R, prefix + 1, D) -> (B, R, L)
            answers_BRL.append(model.answer(alone_BRND.flatten(0, 1)).unflatten(0, alone_BRND.shape[:2]))
    if not answers_BRL:
        raise UsageError("a lens needs at least one stream")
    return torch.stack(answers_BRL)


def divergence(logits: Tensor, final: Tensor) -> Tensor:
    """How far answers are from the final one: KL(final || answer) in nats, (..., L) and (..., L) -> (...), float64.

    The measure of Belrose et al. 2023 (arXiv:2303.08112, section 2): what is wasted by expecting the answer of a
    block where the final one comes true; 0 where they agree.
    """
    expected, there = (x.double().log_softmax(dim=-1) for x in (logits, final))
    return (there.exp() * (there - expected)).sum(dim=-1).clamp(min=0)


def _places(model: ViT, rows: Sequence[int] | str, count: int) -> list[int]:
    if rows == "patches":
        return list(range(model.config.layout.prefix, count))
    if isinstance(rows, str):
        raise UsageError(f"rows is {rows!r}; it must be None, 'patches' or places in the sequence")
    wrong = [row for row in rows if not 0 <= row < count]
    if wrong or not len(rows):
        raise UsageError(f"rows {list(rows)}: there are tokens 0 to {count - 1}")
    return list(rows)


def _alone(model: ViT, tokens_BND: Tensor, places: list[int]) -> Tensor:
    """Sequences so short that whatever a pooling picks, it reads one token: (B, N, D) -> (B, R, prefix + 1, D)."""
    prefix = model.config.layout.prefix
    alone_BRND = tokens_BND[:, places, None].repeat(1, 1, prefix + 1, 1)
    if model.config.pooling == "cls+mean":
        is_patch = torch.tensor(places, device=tokens_BND.device) >= prefix
        alone_BRND[:, is_patch, 0] = tokens_BND[:, None, 0]
        alone_BRND[:, ~is_patch, -1] = tokens_BND[:, None, prefix:].mean(dim=2)
    return alone_BRND
