"""--image-size: a model that takes images of another size than it was trained for."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from minivit.errors import UsageError

if TYPE_CHECKING:
    from minivit.images.spec import ImageSpec
    from minivit.model.capabilities import ImageModel


def image_size(text: str) -> tuple[int, int]:
    """Return (height, width) from "224x320" or "224"; argparse reports what is neither."""
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH in pixels")
    return int(sides[0]), int(sides[-1])


def resized_model(model: ImageModel, size: tuple[int, int] | None) -> ImageModel:
    """Return the model, which then takes and preprocesses images of `size` (height, width); None changes nothing.

    Raises:
        UsageError: a Swin; ShapeError: not a whole number of patches.
    """
    if size is None:
        return model
    if model.windowed:
        raise UsageError("--image-size is for a ViT; a Swin takes any size as it is")
    model.config.layout_for(size)
    model.config = replace(model.config, any_size=True)
    if model.image_spec is not None:
        model.image_spec = _resized_spec(model.image_spec, size)
    return model


def _resized_spec(spec: ImageSpec, size: tuple[int, int]) -> ImageSpec:
    """The same steps for another size: a crop keeps its fraction of the resized image."""
    if spec.crop is None:
        return replace(spec, resize=size)
    if isinstance(spec.resize, int):
        factor = max(new / old for new, old in zip(size, spec.crop, strict=True))
        return replace(spec, resize=round(spec.resize * factor), crop=size)
    if spec.resize is None:
        return replace(spec, crop=size)
    height, width = (round(side * new / old) for side, new, old in zip(spec.resize, size, spec.crop, strict=True))
    return replace(spec, resize=(height, width), crop=size)
