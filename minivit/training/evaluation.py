"""Evaluation of a classifier on labelled images: accuracy, confusion matrix, calibration error."""

from __future__ import annotations

import csv
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from minivit.errors import CheckpointError, UsageError
from minivit.images.preprocess import normalize
from minivit.model.capabilities import ImageModel
from minivit.training.dataset import LabelledImages, TrainingImages
from minivit.training.loader import load_batches
from minivit.training.recipe import Augmentation

BINS = 15  # of the calibration error, as in its paper


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of `evaluate`."""

    images: int
    top1: float  # fraction of images whose most likely class is right, 0 to 1
    top5: float  # fraction of images whose class is among the five most likely
    calibration_error: float  # expected calibration error over BINS equal bins, 0 to 1
    images_per_second: float  # reading, preprocessing and model together
    classes: list[str]  # names along the axes of `confusion`
    confusion: list[list[int]]  # [true class][predicted class] -> images

    @property
    def per_class(self) -> dict[str, float]:
        """The accuracy on the images of each class; classes without images are left out."""
        return {
            name: row[i] / sum(row)
            for i, (name, row) in enumerate(zip(self.classes, self.confusion, strict=True))
            if sum(row)
        }

    def write_confusion(self, path: str | Path) -> None:
        """Write the confusion matrix as CSV, with the names of the classes."""
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["true \\ predicted", *self.classes])
            writer.writerows([name, *row] for name, row in zip(self.classes, self.confusion, strict=True))


@torch.inference_mode()
def evaluate(
    model: ImageModel,
    images: LabelledImages,
    *,
    batch_size: int = 64,
    workers: int = 0,
    report: Callable[[int], None] = lambda done: None,
) -> Evaluation:
    """Return how well the model classifies the images, preprocessed by its ImageSpec.

    Args:
        model: a ViT with a head and an image_spec.
        images: their class folders are named as the model's labels.
        workers: processes that read images ahead.
        report: called with the number of images done so far.

    Raises:
        UsageError: a class folder that is not a label of the model.
        ImageError: an image cannot be read.
        CheckpointError: the model has no head or no preprocessing of a fixed size.
    """
    spec = model.image_spec
    if not model.config.classes or spec is None or spec.size != model.config.image_size:
        raise CheckpointError(f"{model.name}: needs a classifier, and preprocessing to {model.config.image_size}")
    output_of = torch.tensor(match_classes(images, model.labels, model.config.classes))
    keys = [
        [(0, index) for index in range(start, min(start + batch_size, len(images)))]
        for start in range(0, len(images), batch_size)
    ]
    loader = load_batches(TrainingImages(images, spec, Augmentation(), seed=0), keys, workers=workers)
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
        images=len(images),
        top1=(guess == truth).double().mean().item(),
        top5=in_top5 / len(images),
        calibration_error=calibration_error(score, guess == truth),
        images_per_second=len(images) / seconds,
        classes=[(model.labels or {}).get(index, f"class {index}") for index in range(model.config.classes)],
        confusion=confusion.tolist(),
    )


def calibration_error(score: Tensor, correct: Tensor) -> float:
    """Return the expected calibration error of the best scores (n), given whether they were right (n).

    Guo et al. 2017 (arXiv:1706.04599), equation 3: the gap between mean score and accuracy in equal
    bins of the score, weighted by the fraction of images in each.
    """
    bins = (score * BINS).ceil().clamp(1, BINS).long() - 1
    gaps = torch.zeros(BINS, dtype=torch.double).index_add_(0, bins, score.double() - correct.double())
    return (gaps.abs().sum() / len(score)).item()


def match_classes(images: LabelledImages, labels: Mapping[int, str] | None, outputs: int) -> list[int]:
    """Return for every class folder the index of its output of the head.

    A folder matches any of a label's comma-separated names, ignoring case, with `_` as a space. Without label
    names, the number of folders must equal the number of outputs.

    Raises:
        UsageError: folders that match no label, or several, or the same one.
    """
    if labels is None:
        if len(images.classes) != outputs:
            raise UsageError(f"{images.source}: {len(images.classes)} class folders for {outputs} unnamed outputs")
        return list(range(outputs))
    # A folder is the exact label, else a label after folding, else one of its comma-separated names.
    levels: tuple[dict[str, set[int]], ...] = ({}, {}, {})
    for index, label in labels.items():
        for names, forms in zip(levels, ([label], [_plain(label)], map(_plain, label.split(","))), strict=True):
            for form in forms:
                names.setdefault(form, set()).add(index)
    found: dict[str, int] = {}
    for name in images.classes:
        matches = next(
            (hit for names, form in zip(levels, _forms(name), strict=True) if (hit := names.get(form))), set()
        )
        if len(matches) > 1:
            some = ", ".join(f"{labels[index]} ({index})" for index in sorted(matches)[:4])
            raise UsageError(f"{images.source}: class folder {name} matches several labels of the model: {some}")
        for index in matches:
            found[name] = index
    unknown = [name for name in images.classes if name not in found]
    if unknown:
        listed = ", ".join(unknown[:5]) + (" ..." if len(unknown) > 5 else "")
        known = ", ".join(list(labels.values())[:5]) + (" ..." if len(labels) > 5 else "")
        raise UsageError(f"{images.source}: class folders that are no labels of the model: {listed} (labels: {known})")
    folded = Counter((_plain(name), found[name]) for name in images.classes)
    same = [name for name in images.classes if folded[_plain(name), found[name]] > 1]
    if same:
        raise UsageError(f"{images.source}: class folders of one label of the model: {', '.join(same[:4])}; merge them")
    return [found[name] for name in images.classes]


def _forms(name: str) -> tuple[str, str, str]:
    return name, _plain(name), _plain(name)


def _plain(name: str) -> str:
    return re.sub(r"[\s_]+", " ", name).strip().casefold()
