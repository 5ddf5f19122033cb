"""Statistics of every head: how far it attends, how evenly, and to which kind of token."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from minivit.errors import ShapeError, UsageError
from minivit.model.capabilities import ImageModel
from minivit.model.config import TokenLayout
from minivit.model.embed import check_batch
from minivit.model.swin import Swin
from minivit.study.changes import softmax_needed
from minivit.study.maps.windows import WindowProbs, observe_windows
from minivit.study.tracing import trace

MASSES = ("cls", "dist", "registers", "self", "neighbours", "patches")
STATISTICS = ("distance", "entropy", *MASSES)


def attention_distance(probs_BANM: Tensor, layout: TokenLayout, patch_size: int) -> Tensor:
    """Return the mean distance in pixels from a patch to the patches it attends to, for every head, (B, A).

    Dosovitskiy et al. 2021 (arXiv:2010.11929), figure 7 right and appendix D.7, the attended area. Distances are
    between patch centres, weighted by attention over all pairs of patches. Attention to prefix tokens has no distance
    and is left out of the weights, not counted as 0 as in some later code; `attention_mass` measures it. 0 for a head
    that attends to no patch.

    Raises:
        ShapeError: queries or keys are not the tokens of the layout.
    """
    probs_BAPP = _between_patches(probs_BANM, layout)
    apart_PP = _steps(layout).double().mul(patch_size).norm(dim=-1)
    # (B, A, P, P) -> (B, A, P*P), weighted and summed by a product with (P*P)
    weights = probs_BAPP.flatten(2)
    smallest = torch.finfo(weights.dtype).tiny
    return weights @ apart_PP.flatten().to(weights) / weights.sum(dim=-1).clamp(min=smallest)


def attention_entropy(probs_BANM: Tensor) -> Tensor:
    """Return the entropy of a query's attention in nats, mean over the queries given, for every head, (B, A).

    0 where every query attends to one token, log(N) where attention is uniform.
    """
    return torch.special.entr(_at_least_float32(probs_BANM)).sum(dim=-1).mean(dim=-1)


def attention_mass(probs_BANM: Tensor, layout: TokenLayout) -> dict[str, Tensor]:
    """Return the attention of patches to each kind of token, mean over the patches as queries, (B, A) each.

    Returns:
        "cls", "dist" and "registers", 0 where the layout has none; "self", the patch itself; "neighbours", the
        up to eight patches around it; "patches", all of them, those two included. cls, dist, registers and patches
        sum to 1.

    Raises:
        ShapeError: queries or keys are not the tokens of the layout.
    """
    probs_BAPP = _between_patches(probs_BANM, layout)
    prefix_BAPN = _at_least_float32(probs_BANM[:, :, layout.prefix :, : layout.prefix])
    kinds = prefix_BAPN.sum(dim=2).split([layout.cls, layout.dist, layout.registers], dim=-1)
    mass_BA = {name: part.sum(dim=-1) for name, part in zip(MASSES, kinds, strict=False)}
    ring_PP = _steps(layout).abs().amax(dim=-1)  # 0 is the patch itself, 1 those around it
    weights = probs_BAPP.flatten(2)
    mass_BA["self"] = weights @ (ring_PP == 0).flatten().to(weights)
    mass_BA["neighbours"] = weights @ (ring_PP == 1).flatten().to(weights)
    mass_BA["patches"] = weights.sum(dim=-1)
    return {name: total / layout.patches for name, total in mass_BA.items()}


def head_statistics(model: ImageModel, pixels_BCHW: Tensor, *, resample: bool = False) -> dict[str, Tensor]:
    """Return STATISTICS by name for every head and image, each (B, layers, A).

    One forward pass under the model's own kernel; probabilities are computed from q and k, one block at a time. The
    layers of a Swin count through its stages; it has no prefix tokens, and fewer heads than A in its first stages: nan
    stands where a layer has none. Its distances are in pixels of the image too; attention to the zeros that pad a
    window has no distance and counts for no patch.

    Args:
        resample: as in `ViT.embed`; a Swin needs none.

    Raises:
        UsageError: a kernel that is no softmax attention.
    """
    if model.windowed:
        return _window_statistics(model, pixels_BCHW)
    with softmax_needed(model, "a statistic of attention"):
        kept = trace(model, pixels_BCHW, keep=["blocks.*.q", "blocks.*.k"], limit=None, resample=resample)
    patch = model.config.patch_size
    found: dict[str, list[Tensor]] = {name: [] for name in STATISTICS}
    for probs_BANM in kept.attention:
        found["distance"].append(attention_distance(probs_BANM, kept.layout, patch))
        found["entropy"].append(attention_entropy(probs_BANM))
        for name, mass_BA in attention_mass(probs_BANM, kept.layout).items():
            found[name].append(mass_BA)
    return {name: torch.stack(layers, dim=1) for name, layers in found.items()}


@dataclass(frozen=True, kw_only=True)
class HeadSummary:
    """Statistics of every head, mean over images."""

    count: int  # images
    means: dict[str, Tensor]  # STATISTICS by name, each (layers, A), float64; nan where a layer has no such head
    kinds: list[str]  # those of them that a model with these tokens has

    def __repr__(self) -> str:
        layers, heads = self.means["distance"].shape
        return f"<HeadSummary of {layers} layers of {heads} heads, mean over {self.count} image(s)>"


def summarise_heads(model: ImageModel, batches: Iterable[Tensor], *, resample: bool = False) -> HeadSummary:
    """Return the mean over images of `head_statistics`; memory does not grow with their number.

    Args:
        batches: pixels_BCHW each.
        resample: as in `ViT.embed`.

    Raises:
        UsageError: there are no images.
    """
    sums: dict[str, Tensor] = {}
    count = 0
    for pixels_BCHW in batches:
        check_batch(pixels_BCHW, model.config.channels)
        pixels_BCHW = pixels_BCHW.to(model.patch_embed.weight)
        for name, values_BLA in head_statistics(model, pixels_BCHW, resample=resample).items():
            total = values_BLA.double().sum(dim=0)
            sums[name] = sums[name] + total if name in sums else total
        count += len(pixels_BCHW)
    if not count:
        raise UsageError("there is no image to examine")
    layout = model.config.layout
    absent = {"cls": not layout.cls, "dist": not layout.dist, "registers": not layout.registers}
    kinds = [name for name in STATISTICS if not absent.get(name)]
    return HeadSummary(count=count, means={name: total.cpu() / count for name, total in sums.items()}, kinds=kinds)


def _window_statistics(model: Swin, pixels_BCHW: Tensor) -> dict[str, Tensor]:
    config = model.config
    stages = [stage for stage, depth in enumerate(config.depths) for _ in range(depth)]
    found: dict[str, list[Tensor]] = {name: [] for name in ("distance", "entropy", "self", "neighbours", "patches")}

    def record(layer: int, attention: WindowProbs) -> None:
        probs_BWANN = _at_least_float32(attention.probs)
        windows, size = attention.windows, config.patch_size * 2 ** stages[layer]
        rows, columns = (torch.arange(side) for side in windows.grid)
        # Every token's row and column and a 1, cut as the image was; padding has zeros.
        numbers_P3 = F.pad(torch.cartesian_prod(rows, columns), (0, 1), value=1)[None].to(probs_BWANN)
        places_WN2, real_WN = windows.cut(numbers_P3).split([2, 1], dim=-1)[0], windows.cut(numbers_P3)[..., 2]
        steps_WNN2 = places_WN2[:, None] - places_WN2[:, :, None]
        between_WNN = real_WN[:, None] * real_WN[:, :, None]
        ring_WNN = steps_WNN2.abs().amax(dim=-1)

        def summed(weights_WNN: Tensor) -> Tensor:
            """Attention with these weights, over all real queries: (B, A)."""
            return torch.einsum("bwanm,wnm->ba", probs_BWANN, weights_WNN * between_WNN)

        on_patches_BA, queries = summed(torch.ones_like(ring_WNN)), real_WN.sum()
        apart_BA = summed(steps_WNN2.norm(dim=-1) * size)
        entropies_BWAN = torch.special.entr(probs_BWANN).sum(dim=-1)
        statistics = {
            "distance": apart_BA / on_patches_BA.clamp(min=torch.finfo(on_patches_BA.dtype).tiny),
            "entropy": torch.einsum("bwan,wn->ba", entropies_BWAN, real_WN) / queries,
            "self": summed((ring_WNN == 0).to(ring_WNN)) / queries,
            "neighbours": summed((ring_WNN == 1).to(ring_WNN)) / queries,
            "patches": on_patches_BA / queries,
        }
        for name, values_BA in statistics.items():
            found[name].append(F.pad(values_BA, (0, max(config.heads) - values_BA.shape[1]), value=float("nan")))

    observe_windows(model, pixels_BCHW, range(config.depth), record)
    return {name: torch.stack(layers, dim=1) for name, layers in found.items()}


def _steps(layout: TokenLayout) -> Tensor:
    """The step from every patch to every other, in rows and columns: (P, P, 2), whole numbers."""
    rows, columns = layout.grid
    places_P2 = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    return places_P2[None] - places_P2[:, None]


def _between_patches(probs_BANM: Tensor, layout: TokenLayout) -> Tensor:
    if probs_BANM.ndim != 4 or probs_BANM.shape[2:] != (layout.count, layout.count):
        raise ShapeError(
            f"attention of shape {tuple(probs_BANM.shape)}; expected (B, A, N, N) of all {layout.count} tokens"
        )
    return _at_least_float32(probs_BANM[:, :, layout.prefix :, layout.prefix :])


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
