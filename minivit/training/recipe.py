"""How a model is trained, as data. Without torch, so that `minivit train --help` can read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from minivit.errors import UsageError


def option(default: Any, help: str, *, flag: str | None = None) -> Any:
    """Return a dataclass field with the help of its option, and the option's better name if the field's is odd."""
    return field(default=default, metadata={"help": help, "flag": flag})


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How a training image is augmented. The defaults leave it as inference preprocesses it."""

    crop: str = option("none", "padded (RandomCrop, padding 1/8 of the side), resized (RandomResizedCrop) or none")
    smallest: float = option(0.25, "min scale of RandomResizedCrop, a fraction of the area", flag="--min-scale")
    flip: bool = option(False, "random horizontal flip, probability 0.5")
    operations: int = option(0, "RandAugment N: operations per image (arXiv:1909.13719)", flag="--randaugment-n")
    magnitude: float = option(0.3, "RandAugment M: strength of each operation, 0 to 1", flag="--randaugment-m")

    def __post_init__(self) -> None:
        if self.crop not in ("none", "padded", "resized"):
            raise UsageError(f"crop is {self.crop!r}; it must be none, padded or resized")
        if not 0 < self.smallest <= 1:
            raise UsageError(f"smallest is {self.smallest}; it must lie in (0, 1]")
        if not 0 <= self.magnitude <= 1:
            raise UsageError(f"magnitude is {self.magnitude}; it must lie in [0, 1]")
        if self.operations < 0:
            raise UsageError(f"operations is {self.operations}; it must be 0 or more")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that decides a training run, apart from the model and the images."""

    epochs: int = option(30, "passes over the images")
    batch_size: int = option(128, "images per step, over all processes together")
    optimizer: str = option("adamw", "for the matrices of the blocks: adamw, or muon (Jordan 2024); the rest is AdamW")
    lr: float = option(1e-3, "peak learning rate")
    weight_decay: float = option(0.05, "decoupled weight decay, on matrices only")
    warmup: float = option(0.05, "fraction of all steps with linear warm-up of the learning rate")
    final_lr: float = option(0.01, "final learning rate of the cosine schedule, a fraction of the peak")
    clip: float = option(1.0, "max grad norm; 0 is off", flag="--max-grad-norm")
    label_smoothing: float = option(0.1, "fraction of the target spread over all classes")
    mixup: float = option(0.0, "alpha of mixup (arXiv:1710.09412); 0 is off")
    cutmix: float = option(0.0, "alpha of cutmix (arXiv:1905.04899); 0 is off; with mixup, one of them per batch")
    drop_path: float = option(0.0, "stochastic depth (arXiv:1603.09382): rate of the last block, linear from 0")
    ema: float = option(0.0, "decay per step of the exponential moving average of the weights; 0 is off")
    start_size: int = option(0, "progressive resizing (arXiv:2104.00298): shorter edge of the first images; 0 is off")
    full_size_from: float = option(0.7, "progressive resizing: fraction of the run after which images have full size")
    layer_decay: float = option(1.0, "learning-rate factor from each block to the previous one (arXiv:2106.08254)")
    freeze: bool = option(False, "train the head alone: a linear probe")
    bfloat16: bool = option(False, "autocast the forward pass to bfloat16")
    compile: bool = option(False, "torch.compile the model")
    seed: int = option(0, "seed of every random choice")
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "muon"):
            raise UsageError(f"optimizer is {self.optimizer!r}; it must be adamw or muon")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.batch_size % 2 and (self.mixup or self.cutmix):
            raise UsageError(f"batch_size is {self.batch_size}; mixup and cutmix pair images, so it must be even")
        for name in ("warmup", "final_lr", "label_smoothing", "drop_path", "ema", "full_size_from"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must lie in [0, 1)")
        for name in ("lr", "layer_decay"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("weight_decay", "clip", "mixup", "cutmix", "start_size"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be 0 or more")
