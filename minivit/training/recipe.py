"""How a model is trained, as data. No torch here, so that `minivit train --help` can read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from minivit.errors import UsageError


def option(default: Any, help: str) -> Any:
    """A dataclass field whose explanation the command line prints too."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How a training picture is varied. All off gives the picture as the model will later see it."""

    crop: str = option("none", "padded (shift by up to 1/8 of the side), resized (random part and aspect) or none")
    smallest: float = option(0.25, "of crop resized: the smallest share of the picture's area")
    flip: bool = option(False, "mirror every second picture")
    operations: int = option(0, "how many random operations on each picture, after RandAugment (arXiv:1909.13719)")
    magnitude: float = option(0.3, "how far each operation goes, 0 to 1")

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
    """Everything that decides a training run, apart from the model and the pictures."""

    epochs: int = option(30, "passes over the pictures")
    batch_size: int = option(128, "pictures per step, over all processes together")
    optimizer: str = option("adamw", "for the matrices of the blocks: adamw, or muon (Jordan 2024); the rest is AdamW")
    lr: float = option(1e-3, "peak learning rate")
    weight_decay: float = option(0.05, "decoupled, on matrices only")
    warmup: float = option(0.05, "share of all steps in which the learning rate rises linearly")
    final_lr: float = option(0.01, "share of the peak at which the cosine ends")
    clip: float = option(1.0, "largest norm of the gradient; 0 leaves it alone")
    label_smoothing: float = option(0.1, "share of the target spread over all classes")
    mixup: float = option(0.0, "alpha of the Beta distribution (arXiv:1710.09412); 0 is off")
    cutmix: float = option(0.0, "alpha of the Beta distribution (arXiv:1905.04899); 0 is off; with mixup, a coin")
    drop_path: float = option(0.0, "stochastic depth (arXiv:1603.09382): rate of the last block, linear from 0")
    ema: float = option(0.0, "decay per step of the averaged weights that are kept; 0 keeps the last ones")
    start_size: int = option(0, "shorter edge of the first pictures, growing to full (arXiv:2104.00298); 0 is off")
    full_size_from: float = option(0.7, "of start_size: share of the run after which pictures have their full size")
    layer_decay: float = option(1.0, "learning-rate factor from each block to the one below (arXiv:2106.08254)")
    freeze: bool = option(False, "train the head alone: a linear probe")
    bfloat16: bool = option(False, "autocast the forward pass to bfloat16")
    compile: bool = option(False, "torch.compile the model")
    seed: int = option(0, "decides every random choice")
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        if self.optimizer not in ("adamw", "muon"):
            raise UsageError(f"optimizer is {self.optimizer!r}; it must be adamw or muon")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.batch_size % 2 and (self.mixup or self.cutmix):
            raise UsageError(f"batch_size is {self.batch_size}; mixup and cutmix pair pictures, so it must be even")
        for name in ("warmup", "final_lr", "label_smoothing", "drop_path", "ema", "full_size_from"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must lie in [0, 1)")
        for name in ("lr", "layer_decay"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("weight_decay", "clip", "mixup", "cutmix", "start_size"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be 0 or more")
