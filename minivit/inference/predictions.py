"""From logits to predictions: the k best classes with their names and scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """One class that the model predicts."""

    index: int  # of the output of the head
    label: str | None  # its name, None when the checkpoint has no names
    score: float  # 0 to 1: softmax probability, or for SigLIP the sigmoid of this class alone


def top_k(
    logits_BL: Tensor, labels: Mapping[int, str] | None, k: int = 5, score: str = "softmax"
) -> list[list[Prediction]]:
    """Return the k most likely classes of every row, best first; all of them when there are fewer than k.

    The softmax is taken in float64: scores of half-precision logits sum to 1. `score` is ViTConfig's.
    """
    exact_BL = logits_BL.double()
    probs_BL = exact_BL.sigmoid() if score == "sigmoid" else exact_BL.softmax(dim=-1)
    scores_BK, indices_BK = probs_BL.topk(min(k, probs_BL.shape[-1]), dim=-1)
    return [
        [
            Prediction(index=index, label=labels[index] if labels else None, score=score)
            for index, score in zip(indices, scores, strict=True)
        ]
        for indices, scores in zip(indices_BK.tolist(), scores_BK.tolist(), strict=True)
    ]
