"""The image preprocessing of a checkpoint, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from minivit.errors import UsageError

RESAMPLES = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # in the order of Pillow's codes 0 to 5
FLOAT_RESAMPLES = ("bilinear", "bicubic")  # of these, the ones PyTorch has for a resize in float32
CROP_ROUNDINGS = ("down", "even")


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """The steps from an RGB image to pixels_CHW, as the checkpoint's files state them."""

    resize: tuple[int, int] | int | None  # (height, width), or the shorter edge, in pixels; None: no resize
    crop: tuple[int, int] | None = None  # centre crop (height, width) in pixels, after the resize
    resample: str = "bilinear"  # one of RESAMPLES, Pillow's filter of that name
    float_resize: bool = False  # resize after the rescale, in float32 with PyTorch's antialiased filter (DINOv3)
    crop_rounding: str = "down"  # of half a pixel of margin: "down" (transformers), "even" (torchvision, timm)
    rescale: float = 1 / 255  # factor for the 8-bit values, before mean and std
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)  # per channel R, G, B, subtracted after the rescale
    std: tuple[float, ...] = (0.5, 0.5, 0.5)  # per channel, divided by after the mean
    source: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)  # field -> file and key

    def __post_init__(self) -> None:
        if self.resample not in RESAMPLES:
            raise UsageError(f"resample is {self.resample!r}; it must be one of {', '.join(RESAMPLES)}")
        possible = isinstance(self.resize, tuple) and not self.crop and self.resample in FLOAT_RESAMPLES
        if self.float_resize and not possible:
            known = " or ".join(FLOAT_RESAMPLES)
            raise UsageError(f"float_resize needs resize (height, width), resample {known}, and no crop")
        if self.crop_rounding not in CROP_ROUNDINGS:
            raise UsageError(f"crop_rounding is {self.crop_rounding!r}; it must be one of {', '.join(CROP_ROUNDINGS)}")
        if len(self.mean) != 3 or len(self.std) != 3:
            raise UsageError(f"mean and std have {len(self.mean)} and {len(self.std)} values; RGB needs 3 and 3")
        if 0 in self.std:
            raise UsageError(f"std is {self.std}; it must not contain 0")

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the result in pixels; None if it depends on the image."""
        return self.crop or (self.resize if isinstance(self.resize, tuple) else None)

    def __str__(self) -> str:
        steps = []
        if isinstance(self.resize, int):
            steps.append(f"resize shorter edge to {self.resize} ({self.resample})")
        elif self.resize:
            steps.append(f"resize to {self.resize[0]} x {self.resize[1]} ({self.resample})")
        if self.crop:
            steps.append(f"centre crop {self.crop[0]} x {self.crop[1]}")
        scaling = "x 1/255" if self.rescale == 1 / 255 else f"x {self.rescale:g}"
        steps = [scaling, *steps] if self.float_resize else [*steps, scaling]
        steps.append(f"- mean {self.mean}, / std {self.std}")
        return ", ".join(steps)
