"""What speaks for a class: methods that follow the gradient of one logit back to the patches.

Methods that need the gradient of attention probabilities run the forward with those in the graph, by the formula of
`attend_reference`, inside the contexts that are open (`ablate`, `knockout`, `patched`). A kernel that returns something
else than softmax attention is refused. No parameter receives a gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from minivit.errors import ShapeError, UsageError
from minivit.model.attention import AttentionPool, attention_probs
from minivit.model.block import Block
from minivit.model.capabilities import require_vit
from minivit.model.config import TokenLayout, ViTConfig
from minivit.model.embed import check_batch
from minivit.model.vit import ViT
from minivit.study.changes import AttendCall, AttendChange, ModuleChange, at_attention, at_module
from minivit.study.maps.attention import Query, fuse_heads, query_weights

Target = int | Tensor | None


def grad_rollout(
    model: ViT,
    pixels_BCHW: Tensor,
    *,
    target: Target = None,
    residual: float = 0.5,
    fusion: str | int = "mean",
    start_layer: int = 0,
    query: Query | None = None,
    resample: bool = False,
) -> Tensor:
    """Attention rollout with every probability weighed by its gradient: (B, h, w).

    Gildenblat 2020 (github.com/jacobgil/vit-explain, vit_grad_rollout.py): a layer's matrix is
    residual * I + (1 - residual) * max(fuse(gradient * attention), 0), its rows made to sum to 1. Gradients are
    often small beside I, so that the residual weight decides how deep the map looks.

    Args:
        target: the class, one number for all images or (B,); None is the most likely one of each image.
        residual, fusion, start_layer: as in `rollout`.
        query: as `query_weights`; None is what the head reads.
        resample: as in `ViT.embed`.

    Raises:
        UsageError: a model without a head, or no such class, layer, head or token.
    """
    if not 0 <= residual <= 1:
        raise UsageError(f"residual is {residual}; it is a share, from 0 to 1")
    _check_head(model)
    layout = model.layout_of(pixels_BCHW, resample=resample)
    attended = zip(*_probs_and_grads(model, pixels_BCHW, target, start_layer, query, resample), strict=True)
    weighed = [fuse_heads(probs_BANM * grads_BANM, fusion).clamp(min=0) for probs_BANM, grads_BANM in attended]
    if _reads_pool(model, query):
        pool_BN = _pool_row(weighed.pop(), layout)
        sums_B1 = pool_BN.sum(dim=-1, keepdim=True)
        row_BN = pool_BN / sums_B1.where(sums_B1 > 0, 1)
    else:
        row_BN = _start(model.config, layout, query, weighed[-1])
    for weighed_BNN in reversed(weighed):
        mixed_BNN = (1 - residual) * weighed_BNN + residual * torch.eye(layout.count).to(weighed_BNN)
        sums_BN1 = mixed_BNN.sum(dim=-1, keepdim=True)
        # Without a residual a row may be all zero: nothing of it speaks for the class.
        row_BN = (row_BN[:, None] @ (mixed_BNN / sums_BN1.where(sums_BN1 > 0, 1)))[:, 0]
    return layout.to_grid(row_BN)


def relevance(
    model: ViT,
    pixels_BCHW: Tensor,
    *,
    target: Target = None,
    start_layer: int = 0,
    query: Query | None = None,
    resample: bool = False,
) -> Tensor:
    """Relevance of every patch for a class: (B, h, w), at least 0.

    Chefer, Gur & Wolf 2021b (arXiv:2103.15679), equations 5 and 6 for self-attention: with
    A = mean over heads of max(gradient * attention, 0), R grows layer by layer from I to R + A R. The
    row of the query is carried from the last layer down, r to r + r A, which gives the same row.
    An attention pool, which looks at the patches with a query of its own, is their cross-attention: equations 8 to 10.

    Args:
        target: the class, one number for all images or (B,); None is the most likely one of each image.
        start_layer: the first layer that takes part.
        query: as `query_weights`; None is what the head reads.
        resample: as in `ViT.embed`.

    Raises:
        UsageError: a model without a head, or no such class, layer or token.
    """
    _check_head(model)
    layout = model.layout_of(pixels_BCHW, resample=resample)
    probs, grads = _probs_and_grads(model, pixels_BCHW, target, start_layer, query, resample)
    return layout.to_grid(_relevances(model, layout, query, probs, grads)[0])


def relevance_by_start(
    model: ViT, pixels_BCHW: Tensor, targets: Sequence[int], *, query: Query | None = None, resample: bool = False
) -> Tensor:
    """`relevance` of several classes and from every first layer: (targets, layers, B, h, w).

    One forward, and one backward for each class; `result[t, s]` is relevance(target=targets[t], start_layer=s).

    Args:
        targets: classes, each for all images.
        query: as `query_weights`; None is what the head reads.
        resample: as in `ViT.embed`.

    Raises:
        UsageError: a model without a head, or no such class or token.
    """
    _check_head(model)
    layout = model.layout_of(pixels_BCHW, resample=resample)
    with _attention_in_graph(model, 0, pool=_reads_pool(model, query)) as probs:
        logits_BL = _run(model, pixels_BCHW, resample)
        found = []
        for target in targets:
            score = _picked(logits_BL, _classes(model, logits_BL, target)).sum()
            grads = torch.autograd.grad(score, probs, retain_graph=True)
            rows = _relevances(model, layout, query, [probs_BANM.detach() for probs_BANM in probs], list(grads))
            found.append(torch.stack([layout.to_grid(row) for row in rows]))
    return torch.stack(found)


def _relevances(
    model: ViT, layout: TokenLayout, query: Query | None, probs: list[Tensor], grads: list[Tensor]
) -> list[Tensor]:
    """The query's row of relevance (B, N), by the first layer that takes part."""
    mixed = [(p_BANM * g_BANM).clamp(min=0).mean(dim=1) for p_BANM, g_BANM in zip(probs, grads, strict=True)]
    if not _reads_pool(model, query):
        row_BN = _start(model.config, layout, query, mixed[-1])
        return [row_BN + added_BN for added_BN in _added(row_BN, mixed)]
    pool_BN = _pool_row(mixed.pop(), layout)
    rows = []
    for first in range(len(mixed)):
        layers = mixed[first:]
        # Sums of the rows of R - I, by which equation 9 divides them: the same sum of paths, from the other end.
        sums_BN = _added(torch.ones_like(pool_BN), [layer_BNN.mT for layer_BNN in reversed(layers)])[0]
        rows.append(pool_BN + _added(pool_BN / sums_BN.where(sums_BN > 0, 1), layers)[0])
    return rows


def _added(row_BN: Tensor, layers_BNN: list[Tensor]) -> list[Tensor]:
    """What (I + A_last) ... (I + A_first) - I makes of a row, by the first layer that takes part."""
    added_BN, found = torch.zeros_like(row_BN), []
    for layer_BNN in reversed(layers_BNN):
        added_BN = added_BN + ((row_BN + added_BN)[:, None] @ layer_BNN)[:, 0]
        found.append(added_BN)
    return found[::-1]


def legrad(
    model: ViT,
    pixels_BCHW: Tensor,
    *,
    target: Target = None,
    start_layer: int = 0,
    pool: str = "mean",
    resample: bool = False,
) -> Tensor:
    """LeGrad: how much more attention to a patch would raise the class, layer by layer, (B, h, w), at least 0.

    Bousselham et al. 2024 (arXiv:2404.03214), section 3: every layer's tokens are read by the model's own
    final norm and head; the positive part of that logit's gradient by the layer's attention is averaged
    over heads and queries, then over layers. Where an attention pool stands before the head, the gradient is that by
    the pool's attention to the layer's tokens (the authors' compute_legrad_siglip). The paper's last step, scaling the
    map to 0 to 1, is left to whoever draws it.

    Args:
        target: the class, one number for all images or (B,); None is the most likely one of each image.
        start_layer: the first layer that takes part.
        pool: what the head reads of a layer: the "mean" of all its tokens, as the authors' code does, or what the
            model's own "head" reads, with the gradient by the layer's attention; then only the rows of the tokens read
            have gradients.

    Raises:
        UsageError: a model without a head, or no such class, layer or pool.
    """
    if pool not in ("mean", "head"):
        raise UsageError(f"pool is {pool!r}; it must be mean or head")
    _check_head(model)
    layout = model.layout_of(pixels_BCHW, resample=resample)
    of_pool = model.attn_pool is not None and pool == "mean"
    layers: list[Tensor] = []
    with _attention_in_graph(model, start_layer, pool=of_pool) as probs, ExitStack() as stack:
        for block in model.blocks[start_layer:]:
            stack.enter_context(at_module(block, ModuleChange(record_output=layers.append)))
        logits_BL = _run(model, pixels_BCHW, resample)
        classes_B = _classes(model, logits_BL, target)
        total_BM = logits_BL.new_zeros(())
        for i, tokens_BND in enumerate(layers):
            if pool == "mean" and not of_pool:
                # Every token becomes the mean, so that whatever the head picks it reads the mean.
                tokens_BND = tokens_BND.mean(dim=1, keepdim=True).expand_as(tokens_BND)
            if model.config.norm == "tokens":  # else the pooling brings the norm
                tokens_BND = model.norm(tokens_BND)
            score = _picked(model.answer(tokens_BND), classes_B).sum()
            probs_BANM = probs[-1] if of_pool else probs[i]  # the pool's last run is the one of this layer
            (grad_BANM,) = torch.autograd.grad(score, probs_BANM, retain_graph=True)
            total_BM = total_BM + grad_BANM.clamp(min=0).mean(dim=(1, 2))
    return layout.to_grid(total_BM / len(layers))


def input_gradients(model: ViT, pixels_BCHW: Tensor, *, target: Target = None, resample: bool = False) -> Tensor:
    """The gradient of a class's logit by the pixels: (B, C, H, W).

    Simonyan et al. 2013 (arXiv:1312.6034), section 3; `per_patch` makes a map of it. Says what a
    small change would do, not what made the score; noisy.

    Args:
        target: the class, one number for all images or (B,); None is the most likely one of each image.
        resample: as in `ViT.embed`.

    Raises:
        UsageError: a model without a head, no such class, or inference mode, which keeps no gradients.
    """
    _check_gradients(model)
    check_batch(pixels_BCHW, model.config.channels)
    with torch.enable_grad():
        pixels_BCHW = _normal(pixels_BCHW).detach().requires_grad_()
        logits_BL = _run(model, pixels_BCHW, resample)
        score = _picked(logits_BL, _classes(model, logits_BL, target)).sum()
        return torch.autograd.grad(score, pixels_BCHW)[0]


def integrated_gradients(
    model: ViT,
    pixels_BCHW: Tensor,
    *,
    target: Target = None,
    baseline: Tensor | None = None,
    steps: int = 32,
    resample: bool = False,
) -> Tensor:
    """What every pixel adds to a class's logit on the straight way from a baseline: (B, C, H, W).

    Sundararajan et al. 2017 (arXiv:1703.01365), equation 1 by the midpoint rule. The sum over a picture
    is the logit's rise from the baseline, the nearer the more steps.

    Args:
        target: the class, one number for all images or (B,); None is the most likely one of each image.
        baseline: pixels that broadcast to (B, C, H, W), where the way begins; None is zeros, the mean
            colour of the training pictures after normalisation. The map depends on it.
        steps: how many points of the way are run, one forward and backward each.
        resample: as in `ViT.embed`.

    Raises:
        UsageError: a model without a head, no such class, or fewer than one step.
    """
    if steps < 1:
        raise UsageError(f"steps is {steps}; it must be at least 1")
    check_batch(pixels_BCHW, model.config.channels)
    start = torch.zeros_like(pixels_BCHW) if baseline is None else baseline.expand_as(pixels_BCHW)
    with torch.no_grad():
        classes_B = _classes(model, _run(model, pixels_BCHW, resample), target)
    total = torch.zeros_like(pixels_BCHW)
    for step in range(steps):
        share = (step + 0.5) / steps
        at_BCHW = start + share * (pixels_BCHW - start)
        total += input_gradients(model, at_BCHW, target=classes_B, resample=resample)
    return (pixels_BCHW - start) * total / steps


def per_patch(attribution_BCHW: Tensor, layout: TokenLayout, *, patch: int | None = None) -> Tensor:
    """Values of pixels as a map of patches: the sum of their magnitudes in each, (B, C, H, W) -> (B, h, w).

    Args:
        patch: side of a patch in pixels, for a model that does not see what makes no whole one at the right and below.

    Raises:
        ShapeError: the pixels are not a whole number per patch.
    """
    rows, columns = layout.grid
    if patch:
        attribution_BCHW = attribution_BCHW[:, :, : rows * patch, : columns * patch]
    height, width = attribution_BCHW.shape[2:]
    if height % rows or width % columns:
        raise ShapeError(f"{height} x {width} pixels do not make {rows} x {columns} patches of equal size")
    # (B, C, H, W) -> (B, C, h, patch, w, patch) -> (B, h, w)
    parts = attribution_BCHW.abs().unflatten(3, (columns, -1)).unflatten(2, (rows, -1))
    return parts.sum(dim=(1, 3, 5))


@contextmanager
def _attention_in_graph(model: ViT, start_layer: int, pool: bool = False) -> Iterator[list[Tensor]]:
    """Run a forward inside: the list fills with probs_BANM of the layers from `start_layer`, all in the graph, and
    perhaps those of the attention pool, (B, A, 1, P)."""
    if not 0 <= start_layer < model.config.depth:
        raise UsageError(f"start_layer is {start_layer}; there are layers 0 to {model.config.depth - 1}")
    _check_gradients(model)
    probs: list[Tensor] = []

    def kernel(call: AttendCall) -> Tensor:
        probs_BANM = attention_probs(call.q, call.k, scale=call.scale, bias=call.bias)
        if not probs_BANM.requires_grad:  # a model with frozen weights
            probs_BANM.requires_grad_()
        probs.append(probs_BANM)
        return probs_BANM @ call.v

    change = AttendChange(kernel=kernel, softmax="this map")
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        for block in model.blocks[start_layer:]:
            stack.enter_context(at_attention(cast(Block, block).attn, change))
        if pool:
            stack.enter_context(at_attention(cast(AttentionPool, model.attn_pool), change))
        yield probs


def _probs_and_grads(
    model: ViT, pixels_BCHW: Tensor, target: Target, start_layer: int, query: Query | None, resample: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """probs_BANM of the layers from `start_layer` on, and of the attention pool where the query is what it reads; and
    the gradient of the class's logit by each."""
    with _attention_in_graph(model, start_layer, pool=_reads_pool(model, query)) as probs:
        logits_BL = _run(model, pixels_BCHW, resample)
        score = _picked(logits_BL, _classes(model, logits_BL, target)).sum()
        grads = torch.autograd.grad(score, probs)
    return [probs_BANM.detach() for probs_BANM in probs], list(grads)


def _reads_pool(model: ViT, query: Query | None) -> bool:
    """Whether the way back begins at the attention pool."""
    return model.attn_pool is not None and query in (None, "pool")


def _pool_row(pool_B1P: Tensor, layout: TokenLayout) -> Tensor:
    """One row of the pool as of all tokens, (B, 1, P) -> (B, N): it sees no prefix token."""
    return F.pad(pool_B1P[:, 0], (layout.prefix, 0))


def _start(config: ViTConfig, layout: TokenLayout, query: Query | None, like_BNN: Tensor) -> Tensor:
    """Every picture's first row (B, N): the query, or the tokens the head reads."""
    read = {"cls": ["cls"], "mean": ["mean"], "cls&dist": ["cls", "dist"], "cls+mean": ["cls", "mean"]}
    queries: list[Query] = [*read[config.pooling]] if query is None else [query]
    weights_N = torch.stack([query_weights(layout, each) for each in queries]).mean(dim=0)
    return weights_N.to(like_BNN).expand(len(like_BNN), -1)


def _check_head(model: ViT) -> None:
    if not isinstance(model.config, ViTConfig):
        require_vit(model, "relevance")
    if not model.config.classes:
        raise UsageError("the model has no head, so no class can be followed back; look at attention or rollout")


def _check_gradients(model: ViT) -> None:
    """Raise UsageError where autograd cannot work."""
    if torch.is_inference_mode_enabled():
        raise UsageError("this map needs gradients, and torch.inference_mode() turns them off; call it outside, or in "
                         "torch.no_grad()")  # fmt: skip
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise UsageError(
            "this map needs gradients, and the model was loaded in torch.inference_mode(); load it outside"
        )


def _run(model: ViT, pixels_BCHW: Tensor, resample: bool) -> Tensor:
    """The model's logits; gradients by pixels work for any module, which need not know `resample`."""
    return model(_normal(pixels_BCHW), resample=True) if resample else model(_normal(pixels_BCHW))


def _normal(x: Tensor) -> Tensor:
    """The tensor as one that autograd may save, which tensors made in inference mode are not."""
    return x.clone() if x.is_inference() else x


def _classes(model: ViT, logits_BL: Tensor, target: Target) -> Tensor:
    """The class of every picture as (B,)."""
    _check_head(model)
    if target is None:
        return logits_BL.detach().argmax(dim=-1)
    classes_B = torch.as_tensor(target, device=logits_BL.device).expand(len(logits_BL))
    low, high = (int(bound) for bound in classes_B.aminmax())
    if low < 0 or high >= logits_BL.shape[-1]:
        raise UsageError(f"target is {target}; there are classes 0 to {logits_BL.shape[-1] - 1}")
    return classes_B


def _picked(logits_BL: Tensor, classes_B: Tensor) -> Tensor:
    """Each picture's logit of its class: (B,)."""
    return logits_BL.gather(1, classes_B[:, None])[:, 0]
