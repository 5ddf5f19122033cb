"""A picture becomes pixels: file -> RGB, upright -> resized, cropped -> pixels_CHW."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from io import IOBase
from typing import IO, Any

import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from minivit.config import RESAMPLES, ImageSpec
from minivit.errors import ImageError, UsageError

Picture = str | os.PathLike[str] | IO[bytes] | Image.Image

# Which files of a folder are taken for pictures. A file that is named outright is opened whatever its suffix.
IMAGE_SUFFIXES = frozenset(
    {".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)


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
    return pixels_from_image(resize_and_crop(open_image(picture), spec, name=_name(picture)), spec)


def open_image(picture: Picture, *, name: str | None = None, warn: Callable[[str], None] | None = None) -> Image.Image:
    """A picture of any kind as upright 8-bit RGB, by the policy of the README's table.

    Args:
        picture: path, binary file object or PIL image.
        name: what the error messages call it; the path when there is one.
        warn: called with one line for every liberty taken (turned, flattened, scaled, first frame).

    Raises:
        ImageError: not found, empty, not an image, truncated, above Pillow's decompression limit, or
            of a kind without an agreed conversion to RGB; the message names the file.
        UsageError: the argument is no picture at all.
    """
    if not (isinstance(picture, (str, os.PathLike, Image.Image)) or hasattr(picture, "read")):
        hint = "; wrap them in io.BytesIO" if isinstance(picture, (bytes, bytearray)) else ""
        raise UsageError(f"a picture is a path, a binary file or a PIL image, not {type(picture).__name__}{hint}")
    name = name or _name(picture)
    note = warn or (lambda message: None)
    frames = 1
    with ExitStack() as opened:
        try:
            # Damaged metadata only warns, and so does a size between one and two times Pillow's
            # limit; above that it raises, and we refuse.
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                if isinstance(picture, Image.Image):
                    image = picture
                else:
                    image = opened.enter_context(Image.open(picture))
                    # Before the load, because counting moves through the file and back.
                    frames = getattr(image, "n_frames", 1)
                # Pillow turns a TIFF while loading it, and forgets that it did.
                turned = getattr(image, "tag_v2", {}).get(ExifTags.Base.Orientation) in _TURNS
                image.load()
                turn = _TURNS.get(_orientation(image, note))
        except Exception as error:
            raise _image_error(error, picture, name) from error
        if any("EXIF" in str(warning.message) for warning in caught):
            note("its EXIF data is damaged")
        if frames > 1:
            note(f"first of {frames} frames")
        if turned or turn is not None:
            note("turned upright by its EXIF orientation")
        return _to_rgb(image if turn is None else image.transpose(turn), name, note)


def _name(picture: Picture) -> str:
    return str(picture) if isinstance(picture, (str, os.PathLike)) else "the picture"


# What makes a picture upright, by its EXIF orientation (Exif 2.32, tag 274); 1 is upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image, note: Callable[[str], None]) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises many types on a damaged EXIF block; the pixels are still good
        note("its EXIF data cannot be read, taken as upright")
        return None


def _image_error(error: Exception, picture: Picture, name: str) -> ImageError:
    """Whatever Pillow raised, as the one line a person can act on. It raises nearly every type there is."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return ImageError("not_found", f"{name}: no such file")
    if isinstance(error, IsADirectoryError):
        return ImageError("is_a_folder", f"{name}: a folder, not a picture")
    if isinstance(error, PermissionError):
        return ImageError("no_permission", f"{name}: no permission to read it")
    if isinstance(error, (Image.DecompressionBombError, MemoryError)):
        return ImageError("too_large", f"{name}: refused, too many pixels ({text})")
    if isinstance(error, UnidentifiedImageError):
        if _is_empty(picture):
            return ImageError("empty", f"{name}: the file is empty")
        return ImageError("not_an_image", f"{name}: not a picture Pillow can read")
    if isinstance(error, OSError) and error.errno:
        return ImageError("unreadable", f"{name}: cannot be read ({error.strerror})")
    if "truncated" in text.lower() or "not enough image data" in text.lower():
        return ImageError("truncated", f"{name}: the file is cut off ({text})")
    return ImageError("damaged", f"{name}: cannot be decoded ({text})")


def _is_empty(picture: Picture) -> bool:
    if isinstance(picture, (str, os.PathLike)):
        return os.path.getsize(picture) == 0
    return isinstance(picture, IOBase) and picture.seekable() and picture.seek(0) == 0 and not picture.read(1)


def _to_rgb(image: Image.Image, name: str, note: Callable[[str], None]) -> Image.Image:
    """Any mode of Pillow as 8-bit RGB."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise ImageError("unsupported", f"{name}: floating-point pixels have no agreed range; convert to 8 bit")
    try:
        if image.mode.startswith("I"):
            return _from_16_bit(image, name, note).convert("RGB")
        if image.has_transparency_data:
            note("transparency flattened on white")
            rgba = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB")
        if image.mode == "CMYK":
            note("CMYK converted without its colour profile")
        return image.convert("RGB")
    except ValueError:
        raise ImageError("unsupported", f"{name}: pixels of mode {image.mode} have no conversion to RGB") from None


def _from_16_bit(image: Image.Image, name: str, note: Callable[[str], None]) -> Image.Image:
    """16-bit grey to 8 bits by rounding value / 257, where Pillow's own conversion clips at 255."""
    values = image.convert("I")
    low, high = values.getextrema()
    if low < 0 or high > 65535:  # type: ignore[operator]
        raise ImageError("unsupported", f"{name}: integer pixels from {low} to {high}; convert it to 8 or 16 bit")
    note("16 bits a pixel scaled to 8")
    if "transparency" in image.info:
        note("its transparent grey value is not flattened")
        del values.info["transparency"]
    # Pillow cuts the fraction off, so half a step makes it round; no value lies half way.
    return values.point(lambda value: value / 257 + 0.5).convert("L")


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
