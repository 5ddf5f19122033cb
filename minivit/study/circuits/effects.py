"""The effect of taking parts away, for one image and one class: each part in turn, or some together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from minivit.model.classes import class_scores, score_of
from minivit.model.vit import ViT
from minivit.study.circuits.ablate import Token, ablate, patched, scan
from minivit.study.selectors import spell_tokens
from minivit.study.tracing import trace


@dataclass(frozen=True, kw_only=True)
class ScanEffect:
    """The change of one logit without each part in turn."""

    what: str  # "heads", "mlps" or "patches"
    how: str  # "zero" or "mean"
    target: int  # the class
    logit: Tensor  # (), of the whole model, float64
    change: Tensor  # heads (layers, A), mlps (layers,), patches (h, w); float64

    def strongest(self, count: int) -> list[tuple[str, float]]:
        """Return the parts with the largest changes, by name: "3.1", "4" or "(2,5)"."""
        if self.what == "patches":
            rows, columns = self.change.shape
            names = [f"({r},{c})" for r in range(rows) for c in range(columns)]
        elif self.what == "heads":
            names = [f"{i}.{a}" for i in range(self.change.shape[0]) for a in range(self.change.shape[1])]
        else:
            names = [str(i) for i in range(len(self.change))]
        parts = zip(names, self.change.flatten().tolist(), strict=True)
        return sorted(parts, key=lambda part: -abs(part[1]))[:count]

    def __repr__(self) -> str:
        first = ", ".join(f"{name} {value:+.3f}" for name, value in self.strongest(3))
        return f"<ScanEffect of {self.what} ({self.how}) on class {self.target}: {first}, ...>"


def scan_effect(
    model: ViT,
    pixels_BCHW: Tensor,
    target: int,
    what: str = "heads",
    *,
    how: str = "zero",
    batch_size: int = 8,
    report: Callable[[int, int], None] | None = None,
    resample: bool = False,
) -> ScanEffect:
    """Return the change of one class's logit without each head, MLP or patch of one image; arguments as `scan`."""
    with torch.inference_mode():
        whole = model(pixels_BCHW, resample=resample)[0, target].double()
    logits = scan(model, pixels_BCHW, what, how=how, batch_size=batch_size, report=report, resample=resample)
    change = (logits[0, ..., target].double() - whole).cpu()
    return ScanEffect(what=what, how=how, target=target, logit=whole.cpu(), change=change)


@dataclass(frozen=True, kw_only=True)
class AblationEffect:
    """The answer with everything there, and without some parts."""

    target: int  # the class
    before: Tensor  # (L,), logits of the whole model, float64
    after: Tensor  # (L,), of what is left
    score: str = "softmax"  # how logits become scores p, as config.score

    @property
    def change(self) -> float:
        """The change of the class's logit."""
        return float(self.after[self.target] - self.before[self.target])

    def rows(self) -> list[tuple[int, list[float]]]:
        """Return the class, and the five best before and the best after, each with [p, p after, logit, logit after]."""
        p, p_after = class_scores(self.before, self.score), class_scores(self.after, self.score)
        shown = {self.target, *p.topk(min(5, len(p))).indices.tolist(), int(p_after.argmax())}
        order = [index for index in p.argsort(descending=True).tolist() if index in shown]
        return [(i, [float(x[i]) for x in (p, p_after, self.before, self.after)]) for i in order]

    def __repr__(self) -> str:
        return (
            f"<AblationEffect on class {self.target}: logit {float(self.before[self.target]):.3f} {self.change:+.3f}>"
        )


def ablation_effect(
    model: ViT,
    pixels_BCHW: Tensor,
    target: int,
    *,
    heads: Iterable[tuple[int, int]] = (),
    mlps: Iterable[int] = (),
    tokens: Iterable[Token] = (),
    how: str | Tensor = "zero",
    source: Tensor | None = None,
    resample: bool = False,
) -> AblationEffect:
    """Return the answer for one image without some heads, MLPs and tokens.

    Args:
        heads, mlps, tokens, how: as in `ablate`.
        source: pixels of another image, whose activations take their place, instead of `how`.
        resample: as in `ViT.embed`; then both images must have one size.

    Raises:
        UsageError, ShapeError: as `ablate`, or with a source as `patched`.
    """
    heads, mlps, tokens = list(heads), list(mlps), list(tokens)
    context: AbstractContextManager[None]
    if source is not None:
        keep = [f"blocks.{block}.attn.mix[heads={head}]" for block, head in heads]
        keep += [f"blocks.{block}.mlp.out" for block in mlps]
        keep += [f"embed.tokens[{spell_tokens(tokens)}]"] if tokens else []
        context = patched(model, trace(model, source, keep=keep, limit=None, resample=resample))
    else:
        context = ablate(model, heads=heads, mlps=mlps, tokens=tokens, how=how)
    with torch.inference_mode():
        before = model(pixels_BCHW, resample=resample)[0].double()
        with context:
            after = model(pixels_BCHW, resample=resample)[0].double()
    return AblationEffect(target=target, before=before, after=after, score=score_of(model))
