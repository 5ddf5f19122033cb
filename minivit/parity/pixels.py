"""Where two preprocessings of one image differ, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor

from minivit.images.preprocess import preprocess
from minivit.images.spec import FLOAT_RESAMPLES, RESAMPLES, ImageSpec
from minivit.parity.comparison import LAST_PLACES, Row, measure
from minivit.parity.search import Cause

MEANS_AND_STDS = {
    "halves": ((0.5,) * 3, (0.5,) * 3),
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CLIP": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "none": ((0.0,) * 3, (1.0,) * 3),
}


def compare_pixels(ours: Tensor, theirs: Tensor) -> Row:
    """Return the row "pixels" of two tensors (1, C, H, W), whose tolerance is a few units in the last place."""
    tolerance = LAST_PLACES * torch.finfo(torch.float32).eps * float(ours.abs().max())
    measures = {"float32": measure(ours, theirs, tolerance)} if ours.shape == theirs.shape else {}
    return Row(name="pixels", shape=tuple(ours.shape), theirs=tuple(theirs.shape), measures=measures)


def pixel_causes(spec: ImageSpec, image: Image.Image, theirs: Tensor) -> list[Cause]:
    """Return what another implementation does differently with an image, found by doing the same; the nearest first.

    Args:
        spec: our preprocessing of the image.
        image: upright RGB.
        theirs: the other side's pixels, (1, C, H, W).
    """
    ours = preprocess(image, spec)[None]
    before = float((ours - theirs).abs().max()) if ours.shape == theirs.shape else float("inf")
    candidates = [(says, preprocess(image, other)[None]) for says, other in other_specs(spec)]
    candidates.append(("channels are in the order BGR, here RGB", ours.flip(1)))
    found = []
    for says, pixels in candidates:
        if pixels.shape == theirs.shape:
            after = float((pixels - theirs).abs().max())
            if after <= 1e-5 * float(theirs.abs().max()) < before:
                found.append(Cause("preprocessing", says, before, after))
    return sorted(found, key=lambda cause: cause.after)


def other_specs(spec: ImageSpec) -> Iterator[tuple[str, ImageSpec]]:
    """What another implementation may do instead: in words, and as a preprocessing."""
    for name, (mean, std) in MEANS_AND_STDS.items():
        if (mean, std) != (spec.mean, spec.std):
            says = f"mean and std are those of {name}, here {spec.mean} and {spec.std}"
            yield says, replace(spec, mean=mean, std=std)
    yield "bytes are not rescaled to 0 to 1", replace(spec, rescale=1.0)
    for resample in FLOAT_RESAMPLES if spec.float_resize else RESAMPLES:
        if resample != spec.resample:
            yield f"resized by {resample}, here by {spec.resample}", replace(spec, resample=resample)
    other = "even" if spec.crop_rounding == "down" else "down"
    says = f"half a pixel beside the crop is rounded {other}, here {spec.crop_rounding}"
    yield says, replace(spec, crop_rounding=other)
    if spec.crop:
        yield "resized to the crop's size, nothing is cut off", replace(spec, resize=spec.crop, crop=None)
    if isinstance(spec.resize, int):
        square = (spec.resize, spec.resize)
        yield "resized to a square, here by the shorter edge", replace(spec, resize=square)
    elif spec.resize and spec.resize[0] == spec.resize[1] and not spec.float_resize:
        crop = spec.crop or spec.resize
        yield "resized by the shorter edge and cropped", replace(spec, resize=spec.resize[0], crop=crop)
