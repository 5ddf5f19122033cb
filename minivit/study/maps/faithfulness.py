"""How good a map is: whether its patches matter to the model, whether it depends on the weights, and agreement."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minivit.errors import ShapeError, UsageError
from minivit.model.capabilities import require_vit
from minivit.model.classes import class_scores, score_of
from minivit.model.config import TokenLayout
from minivit.model.embed import check_pixels
from minivit.model.vit import ViT
from minivit.study.maps.methods import method_map
from minivit.study.maps.table import METHODS

REPLACEMENTS = ("mean", "blur")

# The cascade of `randomised`: what has lost its weights at each stage, as a fraction of the blocks from the last back.
STAGES = {"head": 0.0, "last quarter": 0.25, "last half": 0.5, "all": 1.0}
LATE = "last half"  # the stage that decides
SURVIVES = 0.5**0.5  # a rank correlation above it: more than half of the variance of the ranks is left


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Deletion and insertion curves of several maps of one image; float32, on the CPU."""

    shares: Tensor  # (S,), fraction of the patches deleted or inserted, from 0 to 1
    deletion_curves: Tensor  # (M, S), the score after deleting that fraction, the map's largest patches first
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
    resample: bool = False,
) -> Curves:
    """Return the score of the class while the patches of an image are deleted, or inserted, in the order of each map.

    Petsiuk et al. 2018 (RISE, arXiv:1806.07421), section 3.3, with patches in the place of pixels. The score is that
    of the class, as config.score says: its probability, or its logit, as of a head of one class; of a model without a
    head it is the cosine of its output with that for the whole image. Patches of equal value go in reading order. All
    steps of all maps run in common batches; both ends of the curves are the same for every map and run once.

    Args:
        pixels_1CHW: one image.
        maps_Mhw: the maps, each one number a patch.
        target: the class; None is the most likely one.
        replacement: what replaces a patch: the "mean" pixel of this image, or the image under a
            "blur", a Gaussian with a standard deviation of one patch.
        steps: in how many steps the patches go; the curve has one point more. None is 16, or P where the image has
            fewer patches.
        batch_size: images in one forward pass.
        resample: as in `ViT.embed`.

    Raises:
        ShapeError: not one image, or maps that do not fit its patches.
        UsageError: no such replacement or class, not 1 to P steps, or a map with nan, which has no order.
    """
    if model.windowed:
        require_vit(model, "curves")
    check_pixels(pixels_1CHW, model.patch_embed.weight)
    layout = model.layout_of(pixels_1CHW, resample=resample)
    if len(pixels_1CHW) != 1 or maps_Mhw.ndim != 3 or tuple(maps_Mhw.shape[1:]) != layout.grid:
        raise ShapeError(
            f"{len(pixels_1CHW)} image(s) and maps of shape {tuple(maps_Mhw.shape)}; expected one image and "
            f"(M, {layout.grid[0]}, {layout.grid[1]})"
        )
    _check_numbers(maps_Mhw)
    steps = min(16, layout.patches) if steps is None else steps
    if not 1 <= steps <= layout.patches:
        raise UsageError(f"steps is {steps}; an image of {layout.patches} patches has 1 to {layout.patches}")
    filler_1CHW = replaced(pixels_1CHW, layout, replacement)
    score = _scorer(partial(model, resample=resample), score_of(model), pixels_1CHW, target, model.config.classes)
    counts_S = torch.arange(steps + 1) * layout.patches // steps
    # The rank of every patch in its map, 0 for the largest.
    places_MP = maps_Mhw.flatten(1).cpu().argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    gone_MSP = places_MP[:, None] < counts_S[1:-1, None]
    # (2, M, S - 2, P): the patches left by a deletion, then by an insertion
    there = torch.stack([~gone_MSP, gone_MSP]).flatten(0, 2)
    ends = torch.stack([torch.ones(layout.patches), torch.zeros(layout.patches)]).bool()
    patch = model.config.patch_size
    scores: list[Tensor] = []
    for there_BP in torch.cat([ends, there]).split(batch_size):
        mask_BHW = layout.to_grid(there_BP).repeat_interleave(patch, 1).repeat_interleave(patch, 2)
        # Pixels that make no whole patch are not seen.
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


def _scorer(
    run: Callable[[Tensor], Tensor], how: str, pixels_1CHW: Tensor, target: int | None, classes: int
) -> Callable[[Tensor], Tensor]:
    """The score of the curves as a function of images: (B, C, H, W) -> (B,)."""
    if target is not None and not 0 <= target < classes:
        raise UsageError(f"target is {target}; there are {f'classes 0 to {classes - 1}' if classes else 'no classes'}")
    whole_1L = run(pixels_1CHW)
    index = int(whole_1L.argmax()) if target is None else target

    def score(pixels_BCHW: Tensor) -> Tensor:
        out_BL = run(pixels_BCHW)
        return class_scores(out_BL, how)[:, index] if classes else torch.cosine_similarity(out_BL, whole_1L)

    return score


def _check_numbers(maps: Tensor) -> None:
    """Raise UsageError for maps with nan."""
    if wrong := int(maps.isnan().sum()):
        raise UsageError(f"{wrong} of {maps.numel()} values of the maps are nan; a map with nan has no order to score")


def replaced(pixels_BCHW: Tensor, layout: TokenLayout, replacement: str = "mean") -> Tensor:
    """Return the image with every patch replaced, (B, C, H, W): its "mean" pixel everywhere, or itself under a "blur".

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
    """Return random maps (count, h, w), uniform from 0 to 1: the baseline of any order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, *layout.grid, generator=generator)


def centre_gaussian(layout: TokenLayout) -> Tensor:
    """Return the map of the centre, (1, h, w): the baseline of where photographers put things.

    A Gaussian whose standard deviation is a quarter of the image along either side.
    """
    rows, columns = (((torch.arange(side) + 0.5) / side - 0.5) / 0.25 for side in layout.grid)
    return torch.exp(-0.5 * (rows[:, None] ** 2 + columns**2))[None]


def pointing(maps_Mhw: Tensor, box: tuple[float, float, float, float]) -> tuple[Tensor, Tensor]:
    """Return how much every map points at a box: two fractions, each (M,).

    Args:
        maps_Mhw: one number a patch; values below 0 count as 0.
        box: left, upper, right, lower in patches, as `box_on_grid` returns it.

    Returns:
        The pointing game (Zhang et al. 2016, arXiv:1608.00507, section 4.2): how much of the map's largest patch lies
        in the box, which is the chance that a point in that patch hits; of several equal ones their mean. And the
        energy-based one (Wang et al. 2020, arXiv:1910.01279, section 4.3): the fraction of the map's sum that lies in
        the box. A map of zeros has no sum: nan.
    """
    cover_hw = box_cover(box, maps_Mhw.shape[1:])
    _check_numbers(maps_Mhw)
    maps_MP, cover_P = maps_Mhw.float().cpu().flatten(1), cover_hw.flatten()
    largest_MP = (maps_MP == maps_MP.amax(dim=1, keepdim=True)).float()
    hit = (largest_MP * cover_P).sum(dim=1) / largest_MP.sum(dim=1)
    mass_MP = maps_MP.clamp(min=0)
    return hit, (mass_MP * cover_P).sum(dim=1) / mass_MP.sum(dim=1)


def box_cover(box: tuple[float, float, float, float], grid: tuple[int, int] | torch.Size) -> Tensor:
    """Return the fraction of every patch that a box (left, upper, right, lower) in patches covers: (h, w), float32."""
    left, upper, right, lower = box

    def along(begin: float, end: float, side: int) -> Tensor:
        edges = torch.arange(side + 1, dtype=torch.float32).clamp(begin, end)
        return edges.diff()

    return along(upper, lower, grid[0])[:, None] * along(left, right, grid[1])


def ranks(x: Tensor) -> Tensor:
    """Return the rank of every number along the last axis, 1 for the smallest; equal ones have their mean rank."""
    less = (x[..., :, None] > x[..., None, :]).sum(dim=-1)
    equal = (x[..., :, None] == x[..., None, :]).sum(dim=-1)
    return less + (equal + 1) / 2


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Return Spearman's rank correlation of maps (..., h, w), or of rows (..., P) where there is one axis only: (...).

    The correlation of the ranks, also with ties. nan where either map is constant.

    Raises:
        UsageError: a map with nan, which has no ranks.
    """
    _check_numbers(a)
    _check_numbers(b)
    a, b = (ranks(x.flatten(-2) if x.ndim > 1 else x).double() for x in (a, b))
    a, b = (x - x.mean(dim=-1, keepdim=True) for x in (a, b))
    return (a * b).sum(dim=-1) / ((a * a).sum(dim=-1) * (b * b).sum(dim=-1)).sqrt()


def agreement(maps_Mhw: Tensor) -> Tensor:
    """Return Spearman's rank correlation of every map with every other, (M, M)."""
    return spearman(maps_Mhw[:, None], maps_Mhw[None])


@torch.no_grad()
def randomised(model: ViT, *, seed: int = 0) -> Iterator[tuple[str, ViT]]:
    """Yield a copy of a model whose weights are shuffled from the head backwards, at every stage of STAGES more.

    Adebayo et al. 2018 (arXiv:1810.03292), section 3, the cascade. Every tensor of a stage is shuffled, so its values
    keep their distribution. "head" is everything after the blocks, "all" the blocks and what makes the tokens.

    Yields:
        The stage's name and the copy, always the same object, which the next stage changes further.
    """
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    depth = model.config.depth
    first = depth  # the first block that has lost its weights
    tokens = {"cls_token", "dist_token", "reg_tokens", "pos_embed", "patch_embed", "norm_pre"}
    for stage, fraction in STAGES.items():
        begin = depth - max(1, round(fraction * depth)) if fraction else depth
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
    """Return the rank correlation of every method's maps before and after the weights are randomised.

    Args:
        methods: by name, a function from a model to maps (B, h, w) of images of its own.
        seed: of the shuffling.

    Returns:
        For every method its maps (B, h, w), and correlations (stages, B) in the order of STAGES, for `survives`; nan
        where a map is constant.
    """
    before = {name: method(model) for name, method in methods.items()}
    found: dict[str, list[Tensor]] = {name: [] for name in methods}
    for _, changed in randomised(model, seed=seed):
        for name, method in methods.items():
            found[name].append(spearman(before[name], method(changed)))
    return {name: (before[name], torch.stack(rows)) for name, rows in found.items()}


def survives(correlations: Tensor) -> Tensor:
    """Return whether more than half of a map is left when late weights are random: (stages, ...) -> (...).

    Such a map shows the image and not the model: it fails the check. Half of the variance of its ranks is meant, the
    square of the rank correlation.
    """
    return correlations[list(STAGES).index(LATE)] > SURVIVES


def plain_map(model: ViT, pixels_BCHW: Tensor, method: str, **settings: Any) -> Tensor:
    """Return `method_map` as one number a patch, (B, h, w): of "pca" the distance of a patch from the mean of all."""
    values = method_map(model, pixels_BCHW, method, **settings)
    return values.norm(dim=-1) if values.ndim == 4 else values


@dataclass(frozen=True, kw_only=True)
class MapScore:
    """The areas of one map's deletion and insertion curves, beside the mean areas of random maps."""

    target: int | None  # the class; None: the cosine of a model without a head
    deletion: float
    insertion: float
    random_deletion: float
    random_insertion: float
    steps: int
    replacement: str = "mean"


def map_score(
    model: ViT,
    pixels_1CHW: Tensor,
    map_hw: Tensor,
    *,
    target: int | None = None,
    random: int = 5,
    resample: bool = False,
) -> MapScore:
    """Return the score of one map (h, w), or (h, w, components) by their L2 norm; arguments as `curves`."""
    map_1hw = (map_hw.norm(dim=-1) if map_hw.ndim == 3 else map_hw)[None].float().cpu()
    if target is None and model.config.classes:
        with torch.inference_mode():
            target = int(model(pixels_1CHW, resample=resample).argmax())
    maps_Mhw = torch.cat([map_1hw, random_maps(model.layout_of(pixels_1CHW, resample=resample), random)])
    found = curves(model, pixels_1CHW, maps_Mhw, target=target, resample=resample)
    (deletion, *others), (insertion, *more) = found.deletion.tolist(), found.insertion.tolist()
    return MapScore(
        target=target,
        deletion=deletion,
        insertion=insertion,
        random_deletion=sum(others) / random,
        random_insertion=sum(more) / random,
        steps=len(found.shares) - 1,
    )


AREAS = ("deletion", "insertion")


@dataclass(frozen=True, kw_only=True)
class Faithfulness:
    """The scores of the maps of M methods on B images, beside the map of the centre and R random maps."""

    methods: list[str]
    left_out: dict[str, str]  # methods that this model cannot have, with the reason
    targets: list[int | None]  # the class of every image; None without a head
    probabilities: list[float | None]  # of that class; its score where config.score is none
    maps: Tensor  # (B, M, h, w), float32
    curves: list[Curves]  # of every image; of its M maps, the centre and the R random maps
    correlations: Tensor  # (M, stages, B), rank correlation with the map of a randomised model
    agreement: Tensor  # (B, M, M), rank correlation between methods
    pointing: tuple[Tensor, Tensor] | None  # of the first image, two of (M + 1 + R,), as `pointing` returns them
    box_fraction: float | None  # of what the network sees
    replacement: str
    random: int  # R
    seed: int
    threshold: float = SURVIVES  # of the rank correlation above which a method fails

    def scores(self, images: slice = slice(None)) -> dict[str, Any]:
        """Return means over some images, JSON-ready: "methods" by name, "centre", "random", "agreement".

        Every method has "deletion", "insertion", with a box "pointing" and "in_box", "randomised" by stage and "fails".
        What is not a number is None.
        """
        areas = {kind: torch.stack([getattr(c, kind) for c in self.curves[images]]).mean(dim=0) for kind in AREAS}
        boxed = dict(zip(("pointing", "in_box"), self.pointing or (), strict=False))
        values, count = areas | boxed, len(self.methods)
        kept_MS = self.correlations[:, :, images].nanmean(dim=2)
        return {
            "methods": {
                name: {kind: _number(value[i]) for kind, value in values.items()}
                | {"randomised": dict(zip(STAGES, map(_number, kept_MS[i]), strict=True))}
                | {"fails": bool(survives(kept_MS[i]))}
                for i, name in enumerate(self.methods)
            },
            "centre": {kind: _number(value[count]) for kind, value in values.items()},
            "random": {
                kind: {"mean": _number(value[count + 1 :].mean()), "std": _number(value[count + 1 :].std(correction=0))}
                for kind, value in values.items()
            },
            "agreement": [[_number(rho) for rho in row] for row in self.agreement[images].nanmean(dim=0)],
        }

    def __repr__(self) -> str:
        means = self.scores()["methods"].items()
        parts = ", ".join(f"{name} {score['deletion']:.3f}/{score['insertion']:.3f}" for name, score in means)
        return f"<Faithfulness over {len(self.maps)} image(s), deletion/insertion: {parts}>"


def faithfulness(
    model: ViT,
    pixels: Sequence[Tensor],
    *,
    methods: Sequence[str] | None = None,
    target: int | None = None,
    box: tuple[float, float, float, float] | None = None,
    replacement: str = "mean",
    steps: int | None = None,
    random: int = 5,
    seed: int = 0,
    batch_size: int = 32,
    resample: bool = False,
) -> Faithfulness:
    """Return the scores of the maps of several methods on several images.

    Args:
        pixels: (1, C, H, W) of every image.
        methods: names of METHODS; None is all that this model can have.
        target: the class of all images; None is the most likely one of each.
        box: of the first image, left, upper, right, lower in patches (`box_on_grid`).
        replacement, steps, batch_size: as `curves`.
        random: the number of random maps.
        seed: of the random maps and the shuffled weights.
        resample: as in `ViT.embed`; then all images must have one size.

    Raises:
        UsageError: a method that was asked for cannot be had, or a setting of `curves`.
    """
    if not isinstance(pixels, (Tensor, list, tuple)):
        raise UsageError(f"pixels are a {type(pixels).__name__}; expected a list of tensors (1, C, H, W)")
    for pixels_1CHW in pixels:
        check_pixels(pixels_1CHW, model.patch_embed.weight)
    layout = model.layout_of(pixels[0], resample=resample)
    if steps and steps > layout.patches:
        raise UsageError(f"--steps {steps}: {model.name} reads {layout.patches} patches, so at most as many steps")
    targets, probabilities = zip(*(_class_of(model, x, target, resample) for x in pixels), strict=True)
    first, left_out = _first_maps(model, pixels[0], targets[0], methods, resample)

    def maker(name: str) -> Callable[[ViT], Tensor]:
        """The maps of all images as a function of the model; the first image's own map is there already."""

        def make(which: ViT) -> Tensor:
            known = [first[name]] if which is model else []
            rest = range(len(known), len(pixels))
            return torch.cat(known + [_map_of(which, pixels[i], name, targets[i], resample) for i in rest])

        return make

    checked = randomisation_check(model, {name: maker(name) for name in first}, seed=seed)
    maps_BMhw = torch.stack([maps.float().cpu() for maps, _ in checked.values()], dim=1)
    others_Rhw = torch.cat([centre_gaussian(layout), random_maps(layout, random, seed=seed)])
    settings: dict[str, Any] = {
        "replacement": replacement,
        "steps": steps,
        "batch_size": batch_size,
        "resample": resample,
    }
    return Faithfulness(
        methods=list(first),
        left_out=left_out,
        targets=list(targets),
        probabilities=list(probabilities),
        maps=maps_BMhw,
        curves=[
            curves(model, x, torch.cat([maps_Mhw, others_Rhw]), target=index, **settings)
            for x, maps_Mhw, index in zip(pixels, maps_BMhw, targets, strict=True)
        ],
        correlations=torch.stack([rows for _, rows in checked.values()]).cpu(),
        agreement=torch.stack([agreement(maps_Mhw) for maps_Mhw in maps_BMhw]),
        pointing=pointing(torch.cat([maps_BMhw[0], others_Rhw]), box) if box else None,
        box_fraction=float(box_cover(box, layout.grid).mean()) if box else None,
        replacement=replacement,
        random=random,
        seed=seed,
    )


def _number(value: Any) -> float | None:
    """A number for JSON, which has no nan."""
    return None if math.isnan(value) else float(value)


@torch.inference_mode()
def _class_of(model: ViT, pixels_1CHW: Tensor, target: int | None, resample: bool) -> tuple[int | None, float | None]:
    """The class to follow in an image and its score; None without a head."""
    if target is None and not model.config.classes:
        return None, None
    logits_1L = model(pixels_1CHW, resample=resample)
    index = int(logits_1L.argmax()) if target is None else target
    return index, float(class_scores(logits_1L, score_of(model))[0, index])


def _map_of(model: ViT, pixels_1CHW: Tensor, method: str, target: int | None, resample: bool) -> Tensor:
    """A method's map with its default settings, for the class where it follows one: (1, h, w)."""
    settings: dict[str, Any] = {"target": target} if "class" in METHODS[method].takes else {}
    return plain_map(model, pixels_1CHW, method, resample=resample, **settings)


def _first_maps(
    model: ViT, pixels_1CHW: Tensor, target: int | None, asked: Sequence[str] | None, resample: bool
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The first image's maps, and which methods this model cannot have, with the reason."""
    maps, left_out = {}, {}
    for name in asked or (name for name in METHODS if name != "pool" or model.attn_pool is not None):
        try:
            maps[name] = _map_of(model, pixels_1CHW, name, target, resample)
        except UsageError as error:
            if asked:
                raise UsageError(f"--methods {name}: {error}") from None
            left_out[name] = str(error)
    return maps, left_out
