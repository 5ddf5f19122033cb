"""The logit lens: the answer that the final norm and head give after every block."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from minivit.errors import ShapeError, UsageError
from minivit.model.capabilities import require_vit
from minivit.model.classes import class_scores, score_of
from minivit.model.vit import ViT
from minivit.study.tracing import trace


@torch.no_grad()
def lens(model: ViT, streams: Iterable[Tensor], *, rows: Sequence[int] | str | None = None) -> Tensor:
    """Return every residual stream read by the model's own final norm and head: (T, B, R, L).

    The logit lens (nostalgebraist 2020, "interpreting GPT: the logit lens"; for ViTs Vilas et al. 2023,
    arXiv:2310.18969). The head was trained for the last block; of earlier ones it shows what is
    already written in its own directions, not all that is known. On the last block, with rows None, the
    result is the model's own answer to the last bit.

    Args:
        streams: T tensors (B, N, D), "embed.tokens" and "blocks.{i}.resid_post" of a trace.
        rows: None reads what the pooling reads, R = 1. "patches", or R places in the sequence, reads each token
            alone, as if there were no other: an attention pool attends to it only, and both heads of a distilled
            model read it. Where the head reads two (pooling "cls+mean") a patch takes the place of the mean
            beside the class token, and a prefix token that of the class token beside the mean.

    Returns:
        Logits; for a model without a head its pooled token or projection.

    Raises:
        ShapeError: a stream that is not (B, N, D); UsageError: no streams, or no such row.
    """
    answers_BRL = []
    for stream_BND in streams:
        if stream_BND.ndim != 3 or stream_BND.shape[2] != model.config.width:
            raise ShapeError(f"a stream of shape {tuple(stream_BND.shape)}; expected (B, N, {model.config.width})")
        # A norm of what is pooled is part of the pooling.
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


def divergence(logits: Tensor, final: Tensor, score: str = "softmax") -> Tensor:
    """Return KL(final || answer) in nats, float64: (..., L) and (..., L) -> (...); 0 where they agree.

    The measure of Belrose et al. 2023 (arXiv:2303.08112, section 2).

    Args:
        score: how logits become scores. Of "softmax" it is one distribution over the classes; of "sigmoid" one of
            each class, whose divergences are summed; of "none" there is none, and the result is nan.
    """
    if score == "none":
        return torch.full_like(logits[..., 0], torch.nan, dtype=torch.float64)
    if score == "sigmoid":
        # log sigmoid(x) and log(1 - sigmoid(x)) of each class: (..., L, 2)
        expected, there = (torch.stack([logsigmoid(x), logsigmoid(-x)], dim=-1)
                           for x in (logits.double(), final.double()))  # fmt: skip
        return (there.exp() * (there - expected)).sum(dim=(-2, -1)).clamp(min=0)
    expected, there = (x.double().log_softmax(dim=-1) for x in (logits, final))
    return (there.exp() * (there - expected)).sum(dim=-1).clamp(min=0)


@dataclass(frozen=True, kw_only=True)
class LensReading:
    """The answers of the lens at T places for R tokens: what the head reads (R = 1), or all patches."""

    names: list[str]  # of the T places: "embedding", "layer 0", ...
    final: Tensor  # (L,), the model's own scores: as config.score says, probabilities or logits
    followed: int  # a class
    top: Tensor  # (T, R), the most likely class
    top_score: Tensor  # (T, R), its score
    score: Tensor  # (T, R), the score of the class followed
    kl: Tensor  # (T, R), divergence from the final answer in nats; nan where scores are no probabilities
    probs: Tensor | None  # (T, L), all scores where R is 1
    grid: tuple[int, int] | None  # the patches as (rows, columns) where they are read

    @property
    def best(self) -> int:
        """The model's own answer."""
        return int(self.final.argmax())

    def __repr__(self) -> str:
        rows = f"{self.top.shape[1]} patches" if self.grid else "what the head reads"
        return f"<LensReading of {rows} at {len(self.names)} places, class {self.followed}>"


def lens_reading(
    model: ViT, pixels_BCHW: Tensor, *, target: int | None = None, patches: bool = False, resample: bool = False
) -> LensReading:
    """Return what the lens reads of one image after the embedding and after every block.

    Args:
        pixels_BCHW: one image, (1, C, H, W).
        target: the class to follow; None is the model's own answer.
        patches: read every patch alone, instead of what the head reads.
        resample: as in `ViT.embed`.

    Raises:
        UsageError: the model has no classes.
    """
    if not require_vit(model, "lens_reading").config.classes:
        raise UsageError(f"{model.name}: has no classifier, so a lens has no labels to show")
    selector = "" if patches or model.config.pooling != "cls" else "[cls]"
    keep = [*(name + selector for name in ("embed.tokens", "blocks.*.resid_post")), "logits"]
    kept = trace(model, pixels_BCHW, keep=keep, limit=None, resample=resample)
    *streams, logits_BL = kept.values()
    followed = int(logits_BL.argmax()) if target is None else target
    found: dict[str, list[Tensor]] = {"top": [], "top_score": [], "score": [], "kl": []}
    probs, how = [], score_of(model)
    for stream_BND in streams:  # one at a time: with many classes, the answers of all patches are large
        answers_RL = lens(model, [stream_BND], rows="patches" if patches else None)[0, 0].double()
        probs_RL = class_scores(answers_RL, how)
        top_score, top = probs_RL.max(dim=-1)
        numbers = (top, top_score, probs_RL[:, followed], divergence(answers_RL, logits_BL[0], how))
        for values, number in zip(found.values(), numbers, strict=True):
            values.append(number.cpu())
        probs += [] if patches else [probs_RL[0].cpu()]
    return LensReading(
        names=["embedding", *(f"layer {i}" for i in range(model.config.depth))],
        final=class_scores(logits_BL[0], how).cpu(),
        followed=followed,
        probs=torch.stack(probs) if probs else None,
        grid=kept.layout.grid if patches else None,
        **{name: torch.stack(values) for name, values in found.items()},
    )


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
    """Sequences of one token each, repeated for any pooling: (B, N, D) -> (B, R, prefix + 1, D)."""
    prefix = model.config.layout.prefix
    alone_BRND = tokens_BND[:, places, None].repeat(1, 1, prefix + 1, 1)
    if model.config.pooling == "cls+mean":
        is_patch = torch.tensor(places, device=tokens_BND.device) >= prefix
        alone_BRND[:, is_patch, 0] = tokens_BND[:, None, 0]
        alone_BRND[:, ~is_patch, -1] = tokens_BND[:, None, prefix:].mean(dim=2)
    return alone_BRND
