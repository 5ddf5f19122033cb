"""From logits to predictions: the k best classes, or all above a threshold, with their names and scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One class that the model predicts."""

    index: int  # of the output of the head
    label: str | None  # its name, None when the checkpoint has no names
    score: float  # softmax probability, sigmoid of this class alone, or its logit: ViTConfig.score says which
    category: str | None = None  # of the class, where the checkpoint groups its classes


def scores_of(logits_BL: Tensor, score: str = "softmax") -> Tensor:
    """Return scores_BL, float64, of logits; `score` is ViTConfig's.

    In float64 the scores of half-precision logits sum to 1 under a softmax.
    """
    exact_BL = logits_BL.double()
    if score == "none":
        return exact_BL
    return exact_BL.sigmoid() if score == "sigmoid" else exact_BL.softmax(dim=-1)


def top_k(
    logits_BL: Tensor,
    labels: Mapping[int, str] | None,
    k: int = 5,
    score: str = "softmax",
    *,
    threshold: float | None = None,
    categories: Mapping[int, str] | None = None,
) -> list[list[Prediction]]:
    """Return the k best classes of every row, best first; all of them when there are fewer than k.

    Args:
        score: how logits become scores, ViTConfig's.
        threshold: return all classes with this score or a higher one instead of the k best; there may be none.
        categories: {index: category} of the classes.
    """
    scores_BL = scores_of(logits_BL, score)
    classes = scores_BL.shape[-1]
    scores_BK, indices_BK = scores_BL.topk(classes if threshold is not None else min(k, classes), dim=-1)
    least = -torch.inf if threshold is None else threshold
    return [
        [
            Prediction(
                index=index,
                label=labels.get(index) if labels else None,
                score=score,
                category=categories.get(index) if categories else None,
            )
            for index, score in zip(indices, scores, strict=True)
            if not score < least
        ]
        for indices, scores in zip(indices_BK.tolist(), scores_BK.tolist(), strict=True)
    ]
