"""How good a classifier is: accuracy, confusion and calibration over labelled pictures."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from minivit.errors import CheckpointError, UsageError
from minivit.images.preprocess import normalize
from minivit.model.capabilities import ImageModel
from minivit.training.dataset import AugmentedPhotos, Photos
from minivit.training.recipe import Augmentation

BINS = 15  # of the calibration error, as in its paper


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What `evaluate` found."""

    images: int
    top1: float  # share of pictures whose best class is right, 0 to 1
    top5: float  # share of pictures whose right class is among the best five
    calibration_error: float  # expected calibration error over BINS equal bins, 0 to 1
    images_per_second: float  # reading, preprocessing and model together
    classes: list[str]  # names along the axes of `confusion`
    confusion: list[list[int]]  # [true class][predicted class] -> pictures

    @property
    def per_class(self) -> dict[str, float]:
        """Share of right answers among the pictures of each class; classes without pictures are left out."""
        return {
            name: row[i] / sum(row)
            for i, (name, row) in enumerate(zip(self.classes, self.confusion, strict=True))
            if sum(row)
        }


@torch.inference_mode()
def evaluate(
    model: ImageModel,
    photos: Photos,
    *,
    batch_size: int = 64,
    workers: int = 0,
    report: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Run every picture through the model, prepared as its ImageSpec says.

    Args:
        model: a ViT with a head and an image_spec.
        photos: their class folders must be named as the model's labels.
        workers: processes that read pictures ahead.
        report: called with the number of pictures done.

    Raises:
        UsageError: a class folder that is no label of the model.
        CheckpointError: the model has no head or no preprocessing of a fixed size.
    """
    spec = model.image_spec
    if not model.config.classes or spec is None or spec.size != model.config.image_size:
        raise CheckpointError(f"{model.name}: needs a classifier, and preprocessing to {model.config.image_size}")
    output_of = torch.tensor(match_classes(photos, model.labels, model.config.classes))
    loader: torch.utils.data.DataLoader = torch.utils.data.DataLoader(
        AugmentedPhotos(photos, spec, Augmentation(), seed=0),  # type: ignore[arg-type]
        batch_sampler=[
            [(0, index) for index in range(start, min(start + batch_size, len(photos)))]
            for start in range(0, len(photos), batch_size)
        ],
        num_workers=workers,
    )
    started = time.perf_counter()
    truths, guesses, scores, in_top5, done = [], [], [], 0, 0
    for levels, labels in loader:
        probs_BL = model(normalize(levels, spec).to(model.patch_embed.weight)).double().softmax(-1).cpu()
        truth = output_of[labels]
        score, guess = probs_BL.max(-1)
        best = probs_BL.topk(min(5, probs_BL.shape[-1])).indices
        in_top5 += int((best == truth[:, None]).any(-1).sum())
        truths.append(truth)
        guesses.append(guess)
        scores.append(score)
        done += len(labels)
        report(done)
    seconds = time.perf_counter() - started
    truth, guess, score = torch.cat(truths), torch.cat(guesses), torch.cat(scores)
    confusion = torch.zeros(model.config.classes, model.config.classes, dtype=torch.long)
    confusion.index_put_((truth, guess), torch.ones_like(truth), accumulate=True)
    return Evaluation(
        images=len(photos),
        top1=(guess == truth).double().mean().item(),
        top5=in_top5 / len(photos),
        calibration_error=calibration_error(score, guess == truth),
        images_per_second=len(photos) / seconds,
        classes=[(model.labels or {}).get(index, f"class {index}") for index in range(model.config.classes)],
        confusion=confusion.tolist(),
    )


def calibration_error(score: Tensor, correct: Tensor) -> float:
    """Expected calibration error of best scores (n) against whether they were right (n).

    Guo et al. 2017 (arXiv:1706.04599), equation 3: over equal bins of the score, the gap between mean
    score and accuracy, weighted by the share of pictures.
    """
    bins = (score * BINS).ceil().clamp(1, BINS).long() - 1
    gaps = torch.zeros(BINS, dtype=torch.double).index_add_(0, bins, score.double() - correct.double())
    return (gaps.abs().sum() / len(score)).item()


def match_classes(photos: Photos, labels: Mapping[int, str] | None, outputs: int) -> list[int]:
    """For every class folder, the output of the head it stands for.

    A folder is matched by any of a label's comma-separated names, whatever their case, `_` as space.
    Without label names, folders in sorted order must be as many as the outputs.

    Raises:
        UsageError: naming the folders that match nothing.
    """
    if labels is None:
        if len(photos.classes) != outputs:
            raise UsageError(f"{photos.source}: {len(photos.classes)} class folders for {outputs} unnamed outputs")
        return list(range(outputs))
    output_of = {_plain(name): index for index, label in labels.items() for name in [label, *label.split(",")]}
    unknown = [name for name in photos.classes if _plain(name) not in output_of]
    if unknown:
        listed = ", ".join(unknown[:5]) + (" ..." if len(unknown) > 5 else "")
        known = ", ".join(list(labels.values())[:5]) + (" ..." if len(labels) > 5 else "")
        raise UsageError(f"{photos.source}: class folders that are no labels of the model: {listed} (labels: {known})")
    return [output_of[_plain(name)] for name in photos.classes]


def _plain(name: str) -> str:
    return re.sub(r"[\s_]+", " ", name).strip().casefold()
