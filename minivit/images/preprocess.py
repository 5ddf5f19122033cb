"""A picture becomes pixels: file -> RGB, upright -> resized, cropped -> pixels_CHW."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from minivit.errors import ImageError, UsageError
from minivit.images.decode import Picture, name_of, open_image
from minivit.images.spec import RESAMPLES, ImageSpec


def preprocess(picture: Picture, spec: ImageSpec) -> Tensor:
    """A picture as the model reads it: pixels_CHW, float32.

    The steps and their order are those of transformers' Pillow image processors
    (image_processing_backends.py, class PilBackend), so the pixels are equal to theirs.

    Args:
        picture: path, binary file object or PIL image.
        spec: the preprocessing of the checkpoint.

    Raises:
        ImageError: as `open_image`.
    """
    return pixels_from_image(resize_and_crop(open_image(picture), spec, name=name_of(picture)), spec)


def resize_and_crop(image: Image.Image, spec: ImageSpec, *, name: str = "the picture") -> Image.Image:
    """The geometric steps of a spec on an RGB picture; a crop larger than the picture is padded with black.

    Raises:
        ImageError: a picture so narrow that resizing its shorter edge would blow the other one up
            beyond Pillow's decompression limit.
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
    """Where a centre crop begins: half the spare pixels, a half rounded "down" or to the next "even" number."""
    return spare // 2 if rounding == "down" else round(spare / 2)


def resized(size: tuple[int, int], resize: tuple[int, int] | int) -> tuple[int, int]:
    """Pillow's (width, height) after the resize; the longer edge is rounded down as transformers does it."""
    if not isinstance(resize, int):
        return resize[1], resize[0]
    width, height = size
    if width <= height:
        return resize, int(resize * height / width)
    return int(resize * width / height), resize


def pixels_from_image(image: Image.Image, spec: ImageSpec) -> Tensor:
    """The arithmetic steps of a spec on what `resize_and_crop` returned: 8-bit RGB -> pixels_CHW, float32.

    Under float_resize the resize is one of them, between rescale and normalisation, as in transformers'
    DINOv3ViTImageProcessor.
    """
    if not spec.float_resize:
        return normalize(levels_from_image(image), spec)
    pixels_1CHW = (levels_from_image(image).float() * spec.rescale)[None]
    pixels_1CHW = F.interpolate(pixels_1CHW, size=spec.size, mode=spec.resample, antialias=True)
    return _standardise(pixels_1CHW[0], spec)


def levels_from_image(image: Image.Image) -> Tensor:
    """An RGB picture as its bytes: (C, H, W), uint8."""
    levels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    # (H * W * C) -> (H, W, C) -> (C, H, W)
    return levels.view(image.height, image.width, 3).permute(2, 0, 1)


def normalize(levels: Tensor, spec: ImageSpec) -> Tensor:
    """Bytes (..., C, H, W) -> pixels (..., C, H, W), float32: (levels * rescale - mean) / std.

    The product is taken in float64 and rounded once to float32, as transformers' `rescale` does.
    """
    # What each of the 256 levels becomes is worked out once and looked up: one pass over the picture instead of
    # three. On the CPU, because not every device has float64.
    steps = torch.arange(256, dtype=torch.float64).mul(spec.rescale).float()
    table_C256 = _standardise(steps.expand(3, 1, 256), spec).flatten(1).to(levels.device)
    channel = torch.arange(3, dtype=torch.int32, device=levels.device)[:, None, None]
    return table_C256.flatten().index_select(0, (levels + 256 * channel).flatten()).view(levels.shape)


def _standardise(pixels: Tensor, spec: ImageSpec) -> Tensor:
    """Rescaled pixels (..., C, H, W) -> (pixels - mean) / std."""
    mean, std = (torch.tensor(v, dtype=torch.float32)[:, None, None].to(pixels) for v in (spec.mean, spec.std))
    return ((pixels - mean) / std).contiguous()


def seen_box(size: tuple[int, int], spec: ImageSpec, *, patch: int = 1) -> tuple[float, float, float, float]:
    """What the network sees of an upright picture: (left, upper, right, lower) in the picture's own pixels.

    Whatever lies outside is cut off by the crop; a box that reaches beyond the picture is padded there.

    Args:
        size: (width, height) of the picture in pixels.
        patch: side of a patch in pixels: what makes no whole one at the right and below is not seen either.
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
    """Where a box of the picture lies in the patches the network reads: (left, upper, right, lower), in patches.

    Resize and crop are followed exactly; what the crop cuts off is cut off the box.

    Args:
        box: left, upper, right, lower in pixels of the upright picture.
        size: (width, height) of the picture in pixels.
        grid: patches as (rows, columns).
        patch: side of a patch in pixels, as in `seen_box`.

    Raises:
        UsageError: no box, or one of which the network sees nothing.
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
        raise UsageError(f"box {box}: the network sees nothing of it; it sees ({seen}) of {size[0]} x {size[1]} pixels")
    return x0, y0, x1, y1
