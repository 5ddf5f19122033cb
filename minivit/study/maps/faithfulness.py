"""What a map is worth: does what it marks matter to the model, does it depend on the weights, do methods agree?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minivit.errors import ShapeError, UsageError
from minivit.model.config import TokenLayout
from minivit.model.vit import ViT
from minivit.study.maps.methods import method_map

REPLACEMENTS = ("mean", "blur")

# The cascade of `randomised`: what has lost its weights at each stage, as a share of the blocks from the last back.
STAGES = {"head": 0.0, "last quarter": 0.25, "last half": 0.5, "all": 1.0}
LATE = "last half"  # the stage that decides
SURVIVES = 0.5**0.5  # a rank correlation above it: more than half of the variance of the ranks survived


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Deletion and insertion curves of several maps of one picture; float32, on the CPU."""

    shares: Tensor  # (S,), share of the patches deleted or inserted, from 0 to 1
    deletion_curves: Tensor  # (M, S), the score after deleting that share, the map's greatest patches first
    insertion_curves: Tensor  # (M, S), the score after inserting it into the replacement

    @property
    def deletion(self) -> Tensor:
        """Area under every deletion curve, (M,), by the trapezoid rule; the lower the better."""
        return torch.trapezoid(self.deletion_curves, self.shares)

    @property
    def insertion(self) -> Tensor:
        """Area under every insertion curve, (M,), by the trapezoid rule; the higher the better."""
        return torch.trapezoid(self.insertion_curves, self.shares)


@torch.no_grad()
def curves(
    model: ViT,
    pixels_1CHW: Tensor,
    maps_Mhw: Tensor,
    *,
    target: int | None = None,
    replacement: str = "mean",
    steps: int | None = None,
    batch_size: int = 32,
) -> Curves:
    """Delete the patches of a picture in the order of a map, and insert them: what becomes of the class?

    Petsiuk et al. 2018 (RISE, arXiv:1806.07421), section 3.3, with patches in the place of pixels. The score is the
    softmax probability of the class; of a model without a head the cosine of its output with that for the whole
    picture. Patches of one value go in reading order. All steps of all maps run in common batches; both ends of the
    curves are the same for every map and run once.

    Args:
        pixels_1CHW: one picture, as the model reads it.
        maps_Mhw: the maps to judge, each one number a patch.
        target: the class; None is the one the picture is given.
        replacement: what stands where a patch is gone: the "mean" pixel of this picture, or the picture under a
            "blur", a Gaussian with a standard deviation of one patch.
        steps: how many times a part of the patches goes, the curve having one point more; None is 16, or P where the
            picture has fewer patches.
        batch_size: pictures in one forward.

    Raises:
        ShapeError: not one picture, or maps that are not the picture's patches.
        UsageError: no such replacement or class, or not 1 to P steps.
    """
    layout = model.layout_of(pixels_1CHW)
    if len(pixels_1CHW) != 1 or maps_Mhw.ndim != 3 or tuple(maps_Mhw.shape[1:]) != layout.grid:
        raise ShapeError(
            f"{len(pixels_1CHW)} picture(s) and maps of shape {tuple(maps_Mhw.shape)}; expected one picture and "
            f"(M, {layout.grid[0]}, {layout.grid[1]})"
        )
    steps = min(16, layout.patches) if steps is None else steps
    if not 1 <= steps <= layout.patches:
        raise UsageError(f"steps is {steps}; a picture of {layout.patches} patches has 1 to {layout.patches}")
    filler_1CHW = replaced(pixels_1CHW, layout, replacement)
    score = _scorer(model, pixels_1CHW, target)
    counts_S = torch.arange(steps + 1) * layout.patches // steps
    # Place of every patch in the order of its map, 0 for the greatest.
    places_MP = maps_Mhw.flatten(1).cpu().argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    gone_MSP = places_MP[:, None] < counts_S[1:-1, None]
    # (2, M, S - 2, P): what is still there of a deletion, then of an insertion
    there = torch.stack([~gone_MSP, gone_MSP]).flatten(0, 2)
    ends = torch.stack([torch.ones(layout.patches), torch.zeros(layout.patches)]).bool()
    patch = model.config.patch_size
    scores: list[Tensor] = []
    for there_BP in torch.cat([ends, there]).split(batch_size):
        mask_BHW = layout.to_grid(there_BP).repeat_interleave(patch, 1).repeat_interleave(patch, 2)
        # What makes no whole patch is not seen, whatever stands there.
        mask_BHW = F.pad(
            mask_BHW, (0, pixels_1CHW.shape[3] - mask_BHW.shape[2], 0, pixels_1CHW.shape[2] - mask_BHW.shape[1])
        )
        mask_B1HW = mask_BHW[:, None].to(pixels_1CHW.device)
        scores.append(score(torch.where(mask_B1HW, pixels_1CHW, filler_1CHW)).float().cpu())
    (whole, empty), inner = torch.cat(scores).split([2, len(there)])
    maps = len(maps_Mhw)
    deleted_MS, inserted_MS = inner.reshape(2, maps, steps - 1)
    whole_M1, empty_M1 = whole.expand(maps, 1), empty.expand(maps, 1)
    return Curves(
        shares=counts_S / layout.patches,
        deletion_curves=torch.cat([whole_M1, deleted_MS, empty_M1], dim=1),
        insertion_curves=torch.cat([empty_M1, inserted_MS, whole_M1], dim=1),
    )


def _scorer(model: ViT, pixels_1CHW: Tensor, target: int | None) -> Callable[[Tensor], Tensor]:
    """What the curves show, as a function of pictures: (B, C, H, W) -> (B,)."""
    whole_1L, classes = model(pixels_1CHW), model.config.classes
    if target is not None and not 0 <= target < classes:
        raise UsageError(f"target is {target}; there are {f'classes 0 to {classes - 1}' if classes else 'no classes'}")
    index = int(whole_1L.argmax()) if target is None else target

    def score(pixels_BCHW: Tensor) -> Tensor:
        out_BL = model(pixels_BCHW)
        return out_BL.float().softmax(dim=-1)[:, index] if classes else torch.cosine_similarity(out_BL, whole_1L)

    return score


def replaced(pixels_BCHW: Tensor, layout: TokenLayout, replacement: str = "mean") -> Tensor:
    """The picture without anything in it, (B, C, H, W): its "mean" pixel everywhere, or itself under a "blur".

    The blur is a Gaussian with a standard deviation of one patch, cut off at three, over repeated borders.

    Raises:
        UsageError: no such replacement.
    """
    if replacement == "mean":
        return pixels_BCHW.mean(dim=(2, 3), keepdim=True).expand_as(pixels_BCHW)
    if replacement != "blur":
        raise UsageError(f"replacement is {replacement!r}; it must be one of {', '.join(REPLACEMENTS)}")
    sigma = pixels_BCHW.shape[2] // layout.grid[0]
    reach = 3 * sigma
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=pixels_BCHW.device) / sigma) ** 2)
    weights = (weights / weights.sum()).to(pixels_BCHW)
    # (B, C, H, W) -> (B * C, 1, H, W), one axis after the other
    x = F.pad(pixels_BCHW.flatten(0, 1)[:, None], (reach,) * 4, mode="replicate")
    x = F.conv2d(F.conv2d(x, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))
    return x.view_as(pixels_BCHW)


def random_maps(layout: TokenLayout, count: int, *, seed: int = 0) -> Tensor:
    """Maps that know nothing, (count, h, w), uniform from 0 to 1: what deleting in any order does."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, *layout.grid, generator=generator)


def centre_gaussian(layout: TokenLayout) -> Tensor:
    """The map of someone who has not looked, (1, h, w): most in the centre, where photographers put things.

    A Gaussian whose standard deviation is a quarter of the picture along either side.
    """
    rows, columns = (((torch.arange(side) + 0.5) / side - 0.5) / 0.25 for side in layout.grid)
    return torch.exp(-0.5 * (rows[:, None] ** 2 + columns**2))[None]


def pointing(maps_Mhw: Tensor, box: tuple[float, float, float, float]) -> tuple[Tensor, Tensor]:
    """Does a map point at the thing in a box? Two shares for every map, each (M,).

    Args:
        maps_Mhw: one number a patch; what is below 0 counts as 0.
        box: left, upper, right, lower in patches, as `preprocess.box_on_grid` gives it.

    Returns:
        The pointing game (Zhang et al. 2016, arXiv:1608.00507, section 4.2): how much of the map's greatest patch
        lies in the box, which is the chance that a point in that patch hits; of several greatest their mean. And the
        energy-based one (Wang et al. 2020, arXiv:1910.01279, section 4.3): the share of the map's sum that lies in the
        box. A map of zeros has no sum: nan.
    """
    cover_hw = box_cover(box, maps_Mhw.shape[1:])
    maps_MP, cover_P = maps_Mhw.float().cpu().flatten(1), cover_hw.flatten()
    greatest_MP = (maps_MP == maps_MP.amax(dim=1, keepdim=True)).float()
    hit = (greatest_MP * cover_P).sum(dim=1) / greatest_MP.sum(dim=1)
    mass_MP = maps_MP.clamp(min=0)
    return hit, (mass_MP * cover_P).sum(dim=1) / mass_MP.sum(dim=1)


def box_cover(box: tuple[float, float, float, float], grid: tuple[int, int] | torch.Size) -> Tensor:
    """The share of every patch that a box (left, upper, right, lower) in patches covers: (h, w), float32."""
    left, upper, right, lower = box

    def along(begin: float, end: float, side: int) -> Tensor:
        edges = torch.arange(side + 1, dtype=torch.float32).clamp(begin, end)
        return edges.diff()

    return along(upper, lower, grid[0])[:, None] * along(left, right, grid[1])


def ranks(x: Tensor) -> Tensor:
    """The rank of every number along the last axis, 1 for the least; equal ones share the mean of their ranks."""
    less = (x[..., :, None] > x[..., None, :]).sum(dim=-1)
    equal = (x[..., :, None] == x[..., None, :]).sum(dim=-1)
    return less + (equal + 1) / 2


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation of maps (..., h, w), or of rows (..., P) where there is one axis only: (...).

    The correlation of the ranks, which is right for ties too. nan where either map is the same everywhere.
    """
    a, b = (ranks(x.flatten(-2) if x.ndim > 1 else x).double() for x in (a, b))
    a, b = (x - x.mean(dim=-1, keepdim=True) for x in (a, b))
    return (a * b).sum(dim=-1) / ((a * a).sum(dim=-1) * (b * b).sum(dim=-1)).sqrt()


def agreement(maps_Mhw: Tensor) -> Tensor:
    """How much methods agree: Spearman's rank correlation of every map with every other, (M, M)."""
    return spearman(maps_Mhw[:, None], maps_Mhw[None])


@torch.no_grad()
def randomised(model: ViT, *, seed: int = 0) -> Iterator[tuple[str, ViT]]:
    """A copy of a model that loses what it learned, from the head backwards, at every stage of STAGES more.

    Adebayo et al. 2018 (arXiv:1810.03292), section 3, the cascade. Every tensor of what a stage takes is shuffled: its
    numbers keep their size and spread and mean nothing any more. "head" is all that stands behind the blocks,
    "all" takes the blocks and what makes the tokens.

    Yields:
        The stage's name and the copy, always the same object, which the next stage changes further.
    """
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    depth = model.config.depth
    first = depth  # the first block that has lost its weights
    tokens = {"cls_token", "dist_token", "reg_tokens", "pos_embed", "patch_embed", "norm_pre"}
    for stage, share in STAGES.items():
        begin = depth - max(1, round(share * depth)) if share else depth
        for name, parameter in model.named_parameters():
            part, _, rest = name.partition(".")
            if part == "blocks":
                turn = begin <= int(rest.partition(".")[0]) < first
            else:
                turn = stage == ("all" if part in tokens else "head")
            if turn:
                order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
        first = begin
        yield stage, model


def randomisation_check(
    model: ViT, methods: Mapping[str, Callable[[ViT], Tensor]], *, seed: int = 0
) -> dict[str, tuple[Tensor, Tensor]]:
    """Does a map depend on the weights? Rank correlation of every method's maps before and after they are randomised.

    Args:
        methods: by name, what makes maps (B, h, w) of a model; the pictures are its own.
        seed: of the shuffling.

    Returns:
        For every method its maps (B, h, w), and correlations (stages, B) in the order of STAGES, which `survives`
        judges; nan where a map is flat.
    """
    before = {name: method(model) for name, method in methods.items()}
    found: dict[str, list[Tensor]] = {name: [] for name in methods}
    for _, changed in randomised(model, seed=seed):
        for name, method in methods.items():
            found[name].append(spearman(before[name], method(changed)))
    return {name: (before[name], torch.stack(rows)) for name, rows in found.items()}


def survives(correlations: Tensor) -> Tensor:
    """Whether more than half of a map is left when the late half of the weights means nothing: (stages, ...) -> (...).

    Such a map shows the picture and not the model: it fails the check. Half is meant of the variance of its ranks,
    the square of the rank correlation.
    """
    return correlations[list(STAGES).index(LATE)] > SURVIVES


def plain_map(model: ViT, pixels_BCHW: Tensor, method: str, **settings: Any) -> Tensor:
    """`method_map` as one number a patch, (B, h, w): of "pca" how far the patch lies from the mean of all patches."""
    values = method_map(model, pixels_BCHW, method, **settings)
    return values.norm(dim=-1) if values.ndim == 4 else values
