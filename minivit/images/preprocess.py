"""From an image to pixels: file -> upright RGB -> resize, crop -> rescale, normalize -> pixels_CHW."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minivit.errors import ImageError, UsageError
from minivit.images.decode import ImageInput, name_of, open_image
from minivit.images.spec import RESAMPLES, ImageSpec


def preprocess(image: ImageInput, spec: ImageSpec, *, icc: str = "ignore") -> Tensor:
    """Return the pixels_CHW, float32, that the model receives for an image.

    The steps and their order are those of transformers' Pillow image processors (image_processing_backends.py, class
    PilBackend), and the pixels are equal to theirs.

    Args:
        image: path, binary file object or PIL image.
        spec: the preprocessing of the checkpoint, `model.image_spec`.
        icc: what is done with a colour profile, as in `open_image`.

    Raises:
        ImageError: as `open_image` and `resize_and_crop`.
        UsageError: `spec` is no ImageSpec, such as the model itself.
    """
    if not isinstance(spec, ImageSpec):
        hint = "model.image_spec" if hasattr(spec, "image_spec") or spec is None else "an ImageSpec"
        why = "; it is None where the checkpoint's files do not state it" if spec is None else ""
        raise UsageError(f"spec is {'None' if spec is None else f'a {type(spec).__name__}'}; expected {hint}{why}")
    return pixels_from_image(resize_and_crop(open_image(image, icc=icc), spec, name=name_of(image)), spec)


def resize_and_crop(image: Image.Image, spec: ImageSpec, *, name: str = ImageError.UNNAMED) -> Image.Image:
    """Return an RGB image after the geometric steps of a spec. A crop larger than the image is padded with black.

    Args:
        name: the name in error messages.

    Raises:
        ImageError: the image is so narrow that after the resize of its shorter edge the longer one would exceed
            Pillow's decompression limit.
    """
    if spec.resize and not spec.float_resize:
        width, height = resized(image.size, spec.resize)
        if Image.MAX_IMAGE_PIXELS and width * height > 2 * Image.MAX_IMAGE_PIXELS:
            sizes = f"{image.width} x {image.height} pixels would become {width} x {height}"
            raise ImageError("too_large", f"{name}: refused, {sizes} (resize shorter edge to {spec.resize})")
        image = image.resize((width, height), RESAMPLES.index(spec.resample))
    if spec.crop:
        height, width = spec.crop
        left, top = (_margin(spare, spec.crop_rounding) for spare in (image.width - width, image.height - height))
        image = image.crop((left, top, left + width, top + height))
    return image


def _margin(spare: int, rounding: str) -> int:
    """Return where a centre crop starts: half the spare pixels, rounded "down" or to the nearest "even" number."""
    return spare // 2 if rounding == "down" else round(spare / 2)


def resized(size: tuple[int, int], resize: tuple[int, int] | int) -> tuple[int, int]:
    """Return Pillow's (width, height) after the resize. The longer edge is rounded down, as in transformers."""
    if not isinstance(resize, int):
        return resize[1], resize[0]
    width, height = size
    if width <= height:
        return resize, int(resize * height / width)
    return int(resize * width / height), resize


def pixels_from_image(image: Image.Image, spec: ImageSpec) -> Tensor:
    """Return pixels_CHW, float32, from the 8-bit RGB image of `resize_and_crop`: rescale, then normalize.

    With float_resize the resize comes between the two, as in transformers' DINOv3ViTImageProcessor.
    """
    if not spec.float_resize:
        return normalize(levels_from_image(image), spec)
    pixels_1CHW = (levels_from_image(image).float() * spec.rescale)[None]
    pixels_1CHW = F.interpolate(pixels_1CHW, size=spec.size, mode=spec.resample, antialias=True)
    return _standardize(pixels_1CHW[0], spec)


def image_from_pixels(pixels_CHW: Tensor, spec: ImageSpec) -> Image.Image:
    """Return pixels_CHW as an 8-bit RGB image: rescale and normalization are undone, and values rounded.

    It is the inverse of `pixels_from_image` for specs without float_resize.
    """
    mean, std = (torch.tensor(values)[:, None, None].to(pixels_CHW) for values in (spec.mean, spec.std))
    levels = ((pixels_CHW * std + mean) / spec.rescale).round().clamp(0, 255).to("cpu", torch.uint8)
    # (C, H, W) -> (H, W, C) -> (H * W * C)
    values = levels.permute(1, 2, 0).flatten().tolist()
    return Image.frombytes("RGB", (levels.shape[2], levels.shape[1]), bytes(values))


def levels_from_image(image: Image.Image) -> Tensor:
    """Return the values of an RGB image: (C, H, W), uint8."""
    levels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    # (H * W * C) -> (H, W, C) -> (C, H, W)
    return levels.view(image.height, image.width, 3).permute(2, 0, 1)


def normalize(levels: Tensor, spec: ImageSpec) -> Tensor:
    """Return (levels * rescale - mean) / std, float32, for 8-bit values (..., C, H, W), uint8.

    The product is computed in float64 and rounded once to float32, as in transformers' `rescale`.
    """
    # A table of the 256 results for each channel needs one pass over the image instead of three. It is computed on
    # the CPU, because not every device has float64.
    steps = torch.arange(256, dtype=torch.float64).mul(spec.rescale).float()
    table_C256 = _standardize(steps.expand(3, 1, 256), spec).flatten(1).to(levels.device)
    channel = torch.arange(3, dtype=torch.int32, device=levels.device)[:, None, None]
    return table_C256.flatten().index_select(0, (levels + 256 * channel).flatten()).view(levels.shape)


def _standardize(pixels: Tensor, spec: ImageSpec) -> Tensor:
    """Return (pixels - mean) / std for rescaled pixels (..., C, H, W)."""
    mean, std = (torch.tensor(v, dtype=torch.float32)[:, None, None].to(pixels) for v in (spec.mean, spec.std))
    return ((pixels - mean) / std).contiguous()


def seen_box(size: tuple[int, int], spec: ImageSpec, *, patch: int = 1) -> tuple[float, float, float, float]:
    """Return the part of an upright image that the network receives: (left, upper, right, lower) in image pixels.

    The crop removes what is outside of the box. Where the box extends beyond the image, there is padding.

    Args:
        size: (width, height) of the image in pixels.
        patch: side of a patch in pixels; pixels at the right and bottom that do not fill a patch are outside too.
    """
    width, height = resized(size, spec.resize) if spec.resize else size
    down, across = spec.crop or (height, width)
    left, upper = (_margin(a - b, spec.crop_rounding) for a, b in ((width, across), (height, down)))
    right, lower = left + across - across % patch, upper + down - down % patch
    return left * size[0] / width, upper * size[1] / height, right * size[0] / width, lower * size[1] / height


def box_on_grid(
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    spec: ImageSpec,
    grid: tuple[int, int],
    *,
    patch: int = 1,
) -> tuple[float, float, float, float]:
    """Return a box of the image in units of patches: (left, upper, right, lower), fractions included.

    The box is clipped to the part of the image that the network receives.

    Args:
        box: left, upper, right, lower in pixels of the upright image.
        size: (width, height) of the image in pixels.
        grid: patches as (rows, columns).
        patch: side of a patch in pixels, as in `seen_box`.

    Raises:
        UsageError: an empty box, or one outside of the part that the network receives.
    """
    left, upper, right, lower = seen_box(size, spec, patch=patch)
    rows, columns = grid
    across, down = columns / (right - left), rows / (lower - upper)
    if box[0] >= box[2] or box[1] >= box[3]:
        raise UsageError(f"box {box}: expected left, upper, right, lower, with left < right and upper < lower")
    x0, x1 = (min(max((x - left) * across, 0.0), float(columns)) for x in (box[0], box[2]))
    y0, y1 = (min(max((y - upper) * down, 0.0), float(rows)) for y in (box[1], box[3]))
    if x0 >= x1 or y0 >= y1:
        seen = ", ".join(f"{side:.0f}" for side in (left, upper, right, lower))
        raise UsageError(f"box {box}: outside of what the network receives, ({seen}) of {size[0]} x {size[1]} pixels")
    return x0, y0, x1, y1
