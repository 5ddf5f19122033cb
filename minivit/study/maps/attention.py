"""Maps of attention: of one layer, and attention rollout through all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from minivit.errors import ShapeError, UsageError
from minivit.model.attention import attention_probs
from minivit.model.config import TokenLayout
from minivit.model.vit import ViT
from minivit.study.changes import AttendCall, AttendChange, at_attention
from minivit.study.selectors import token_rows

Query = str | int | tuple[int, int]
FUSIONS = ("mean", "max", "min")


def query_weights(layout: TokenLayout, query: Query | None = None) -> Tensor:
    """Return the weight of each token in a query: (N,), float64, summing to 1.

    Args:
        query: "cls", "dist", "mean" (of the patches), (row, column) of a patch, or a token's position in
            the sequence; None is "cls" where there is such a token and else "mean".

    Raises:
        UsageError: a token that this layout does not have.
    """
    if query is None:
        query = "cls" if layout.cls else "mean"
    places = token_rows(layout, "patches" if query == "mean" else query)
    weights_N = torch.zeros(layout.count, dtype=torch.float64)
    weights_N[places] = 1 / len(places)
    return weights_N


def fuse_heads(x_BANM: Tensor, how: str | int) -> Tensor:
    """Return one matrix of all heads, (B, A, N, M) -> (B, N, M): their "mean", "max" or "min", or a head by its number.

    Raises:
        UsageError: no such fusion or head.
    """
    if isinstance(how, int):
        if not 0 <= how < x_BANM.shape[1]:
            raise UsageError(f"head {how}: there are heads 0 to {x_BANM.shape[1] - 1}")
        return x_BANM[:, how]
    if how not in FUSIONS:
        raise UsageError(f"heads are fused by {', '.join(FUSIONS)} or picked by number, not by {how!r}")
    return x_BANM.mean(dim=1) if how == "mean" else getattr(x_BANM, f"a{how}")(dim=1)


def attention_map(
    probs_BANM: Tensor, layout: TokenLayout, *, query: Query | None = None, head: str | int = "mean"
) -> Tensor:
    """Return what one query attends to in one layer: attention probabilities of the patches, (B, h, w).

    It shows which tokens are mixed in this layer alone. By then a token holds information from all patches, and the
    size of a token's value is not shown (Jain & Wallace 2019, arXiv:1902.10186).

    Args:
        probs_BANM: one layer's probabilities; (B, A, 1, M) where one query row was kept, with query None.
        query: as `query_weights`; "mean" averages the rows of all patches.
        head: "mean", "max" or "min" over the heads, or the number of one.

    Raises:
        ShapeError: the keys are not the tokens of the layout, or the queries neither all nor one.
        UsageError: no such token or head.
    """
    _check_keys(probs_BANM, layout)
    fused_BNM = fuse_heads(probs_BANM, head)
    if fused_BNM.shape[1] == 1 and query is None:
        row_BM = fused_BNM[:, 0]
    elif fused_BNM.shape[1] == layout.count:
        row_BM = query_weights(layout, query).to(fused_BNM) @ fused_BNM
    else:
        raise ShapeError(f"{fused_BNM.shape[1]} query rows; all {layout.count} are needed to pick one, or one alone")
    return layout.to_grid(row_BM)


def pool_attention(model: ViT, pixels_BCHW: Tensor, *, resample: bool = False) -> Tensor:
    """Return what the learned query of an attention pool attends to among the patches: (B, A, 1, P).

    As `attention_map`, it shows what is mixed in this one place: by then a patch's token holds information from others.

    Args:
        resample: as in `ViT.embed`.

    Raises:
        UsageError: the model has no attention pool.
    """
    pool = getattr(model, "attn_pool", None)
    if pool is None:
        raise UsageError("the model has no attention pool; SigLIP has one")
    found: list[Tensor] = []

    def record(call: AttendCall) -> None:
        found.append(attention_probs(call.q, call.k, scale=call.scale))

    with torch.no_grad(), at_attention(pool, AttendChange(record=record)):
        model(pixels_BCHW, resample=resample)
    return found[0]


def rollout(
    probs: Sequence[Tensor],
    layout: TokenLayout,
    *,
    query: Query | Tensor | None = None,
    residual: float = 0.5,
    fusion: str | int = "mean",
    discard: float = 0.0,
    start_layer: int = 0,
) -> Tensor:
    """Return attention rollout: the fraction of each patch in the query after all layers, (B, h, w).

    Abnar & Zuidema 2020 (arXiv:2005.00928), section 3: every layer is the matrix
    residual * I + (1 - residual) * attention with rows that sum to 1, and the layers are multiplied.
    Only the query's row is carried, from the last layer down, O(L N^2) instead of O(L N^3); the
    product of whole matrices is `rollout_matrix`. It ignores classes, values and MLPs.

    Args:
        probs: probs_BANM of every layer, first to last; `trace.attention` is such a sequence.
        query: as `query_weights`; or (B, N) weights of your own, such as what an attention pool attends to.
        residual: the fraction of a token that stays in place through the residual connection, 0 to 1.
        fusion: "mean", "max" or "min" over the heads, or the number of one.
        discard: the fraction of attention entries, the smallest of each image and layer, that is set to 0 before the
            rows are normalised; attention to a prefix token is never discarded. 0 to 1.
        start_layer: the first layer that takes part.

    Returns:
        The query's row, prefix tokens cut off; with them it sums to 1.

    Raises:
        UsageError: a fraction outside 0 to 1, or no such layer, head or token.
    """
    if not 0 <= start_layer < len(probs):
        raise UsageError(f"start_layer is {start_layer}; there are layers 0 to {len(probs) - 1}")
    batch = len(probs[-1])
    weights = query if isinstance(query, Tensor) else query_weights(layout, query)
    row_BN = weights.to(probs[-1]).expand(batch, -1)
    for layer in reversed(range(start_layer, len(probs))):
        row_BN = _times(row_BN, _mixing(probs[layer], layout, residual, fusion, discard))
    return layout.to_grid(row_BN)


def rollout_matrix(
    probs: Iterable[Tensor],
    layout: TokenLayout,
    *,
    residual: float = 0.5,
    fusion: str | int = "mean",
    discard: float = 0.0,
) -> Tensor:
    """Return rollout as the paper writes it, the product of all layers' matrices: (B, N, N), rows sum to 1."""
    product_BNN = torch.eye(layout.count)
    for probs_BANM in probs:
        product_BNN = _mixing(probs_BANM, layout, residual, fusion, discard) @ product_BNN.to(probs_BANM)
    return product_BNN


def _mixing(probs_BANM: Tensor, layout: TokenLayout, residual: float, fusion: str | int, discard: float) -> Tensor:
    """One layer of rollout: residual * I + (1 - residual) * attention, every row summing to 1."""
    _check_keys(probs_BANM, layout)
    if not (0 <= residual <= 1 and 0 <= discard <= 1):
        raise UsageError(f"residual is {residual} and discard {discard}; both are fractions, from 0 to 1")
    if discard and not (residual or layout.prefix):
        raise UsageError("discard without a residual and without prefix tokens may leave a row with nothing")
    fused_BNN = fuse_heads(probs_BANM, fusion)
    if discard:
        fused_BNN = _discarded(fused_BNN, layout, discard)
    mixed_BNN = (1 - residual) * fused_BNN + residual * torch.eye(layout.count).to(fused_BNN)
    # keepdim, so that rows are divided by their own sums; without it the columns would be.
    return mixed_BNN / mixed_BNN.sum(dim=-1, keepdim=True)


def _discarded(fused_BNN: Tensor, layout: TokenLayout, fraction: float) -> Tensor:
    """Every image's matrix without its smallest entries; attention to prefix tokens is kept."""
    # (B, N, N) -> (B, N * N)
    flat = fused_BNN.flatten(1)
    smallest = flat.topk(int(flat.shape[1] * fraction), dim=1, largest=False).indices
    keep = torch.ones_like(flat, dtype=torch.bool).scatter(1, smallest, False).view_as(fused_BNN)
    keep[:, :, : layout.prefix] = True
    return fused_BNN * keep


def _times(row_BN: Tensor, matrix_BNM: Tensor) -> Tensor:
    """A batch of row vectors times a batch of matrices: (B, N), (B, N, M) -> (B, M)."""
    return (row_BN[:, None] @ matrix_BNM)[:, 0]


def _check_keys(probs_BANM: Tensor, layout: TokenLayout) -> None:
    if probs_BANM.ndim != 4 or probs_BANM.shape[-1] != layout.count:
        raise ShapeError(f"attention of shape {tuple(probs_BANM.shape)}; expected (B, A, N, {layout.count} tokens)")
