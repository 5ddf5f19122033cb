"""A picture becomes pixels: file -> RGB, upright -> resized, cropped -> pixels_CHW."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from io import BytesIO
from typing import IO

import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from minivit.config import RESAMPLES, ImageSpec
from minivit.errors import ImageError

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
    return pixels_from_image(resize_and_crop(open_image(picture), spec), spec)


def open_image(picture: Picture, *, name: str | None = None, warn: Callable[[str], None] | None = None) -> Image.Image:
    """A picture of any kind as upright 8-bit RGB, by the policy of the README's table.

    Args:
        picture: path, binary file object or PIL image.
        name: what the error messages call it; the path when there is one.
        warn: called with one line for every liberty taken (turned, flattened, scaled, first frame).

    Raises:
        ImageError: not found, empty, not an image, truncated, above Pillow's decompression limit, or
            of a kind without an agreed conversion to RGB; the message names the file.
    """
    name = name or (str(picture) if isinstance(picture, (str, os.PathLike)) else "the picture")
    note = warn or (lambda message: None)
    try:
        with warnings.catch_warnings():
            # Damaged metadata only warns, and so does a size between one and two times Pillow's
            # limit; above that it raises, and we refuse.
            warnings.simplefilter("ignore")
            image = picture if isinstance(picture, Image.Image) else Image.open(picture)
            image.load()
    except Exception as error:
        raise _image_error(error, picture, name) from error
    if getattr(image, "n_frames", 1) > 1:
        note(f"first of {image.n_frames} frames")  # type: ignore[attr-defined]
    return _to_rgb(_upright(image, note), name, note)


def _image_error(error: Exception, picture: Picture, name: str) -> ImageError:
    """Whatever Pillow raised, as the one line a person can act on. It raises nearly every type there is."""
    text = str(error)
    if isinstance(error, FileNotFoundError):
        return ImageError("not_found", f"{name}: no such file")
    if isinstance(error, IsADirectoryError):
        return ImageError("is_a_folder", f"{name}: a folder, not a picture")
    if isinstance(error, PermissionError):
        return ImageError("no_permission", f"{name}: no permission to read it")
    if isinstance(error, (Image.DecompressionBombError, MemoryError)):
        return ImageError("too_large", f"{name}: refused, too many pixels ({text})")
    if isinstance(error, UnidentifiedImageError):
        if isinstance(picture, (str, os.PathLike)) and os.path.getsize(picture) == 0:
            return ImageError("empty", f"{name}: the file is empty")
        if isinstance(picture, BytesIO) and not picture.getbuffer().nbytes:
            return ImageError("empty", f"{name}: no data")
        return ImageError("not_an_image", f"{name}: not a picture Pillow can read")
    if "truncated" in text.lower() or "not enough image data" in text.lower():
        return ImageError("truncated", f"{name}: the file is cut off ({text})")
    return ImageError("damaged", f"{name}: cannot be decoded ({text or type(error).__name__})")


def _upright(image: Image.Image, note: Callable[[str], None]) -> Image.Image:
    """The picture as its EXIF orientation says it should be looked at."""
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
        image = ImageOps.exif_transpose(image) if turned else image
    except Exception:  # Pillow raises many types on a damaged EXIF block; the pixels are still good
        note("its EXIF data cannot be read, taken as upright")
    else:
        if turned:
            note("turned upright by its EXIF orientation")
    return image


def _to_rgb(image: Image.Image, name: str, note: Callable[[str], None]) -> Image.Image:
    """Any mode of Pillow as 8-bit RGB."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise ImageError("unsupported", f"{name}: floating-point pixels have no agreed range; convert to 8 bit")
    if image.mode.startswith("I"):
        return _from_16_bit(image, name, note).convert("RGB")
    if image.has_transparency_data:
        note("transparency flattened on white")
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB")
    if image.mode == "CMYK":
        note("CMYK converted without its colour profile")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image, name: str, note: Callable[[str], None]) -> Image.Image:
    """16-bit grey to 8 bits by rounding value / 257, where Pillow's own conversion clips at 255."""
    values = torch.frombuffer(bytearray(image.convert("I").tobytes()), dtype=torch.int32)
    low, high = (int(bound) for bound in values.aminmax())
    if low < 0 or high > 65535:
        raise ImageError("unsupported", f"{name}: integer pixels from {low} to {high}; convert it to 8 or 16 bit")
    note("16 bits a pixel scaled to 8")
    scaled = (values + 128).div(257, rounding_mode="floor").to(torch.uint8)
    return Image.frombytes("L", image.size, bytes(scaled.tolist()))


def resize_and_crop(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """The geometric steps of a spec on an RGB picture; a crop larger than the picture is padded with black."""
    if spec.resize:
        image = image.resize(resized(image.size, spec.resize), RESAMPLES.index(spec.resample))
    if spec.crop:
        height, width = spec.crop
        left, top = (image.width - width) // 2, (image.height - height) // 2
        image = image.crop((left, top, left + width, top + height))
    return image


def resized(size: tuple[int, int], resize: tuple[int, int] | int) -> tuple[int, int]:
    """Pillow's (width, height) after the resize; the longer edge is rounded down as transformers does it."""
    if not isinstance(resize, int):
        return resize[1], resize[0]
    width, height = size
    if width <= height:
        return resize, int(resize * height / width)
    return int(resize * width / height), resize


def pixels_from_image(image: Image.Image, spec: ImageSpec) -> Tensor:
    """The arithmetic steps of a spec on a picture of its final size: 8-bit RGB -> pixels_CHW, float32."""
    return normalize(levels_from_image(image), spec)


def levels_from_image(image: Image.Image) -> Tensor:
    """An RGB picture as its bytes: (C, H, W), uint8."""
    levels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    # (H * W * C) -> (H, W, C) -> (C, H, W)
    return levels.view(image.height, image.width, 3).permute(2, 0, 1)


def normalize(levels: Tensor, spec: ImageSpec) -> Tensor:
    """Bytes (..., C, H, W) -> pixels (..., C, H, W), float32: (levels * rescale - mean) / std.

    The product is taken in float64 and rounded once to float32, as transformers' `rescale` does.
    """
    pixels = levels.double().mul(spec.rescale).float()
    mean, std = (torch.tensor(values, device=levels.device)[:, None, None] for values in (spec.mean, spec.std))
    return ((pixels - mean) / std).contiguous()


def seen_box(size: tuple[int, int], spec: ImageSpec) -> tuple[float, float, float, float]:
    """What the network sees of an upright picture: (left, upper, right, lower) in the picture's own pixels.

    Whatever lies outside is cut off by the crop; a box that reaches beyond the picture is padded there.

    Args:
        size: (width, height) of the picture in pixels.
    """
    width, height = resized(size, spec.resize) if spec.resize else size
    if not spec.crop:
        return 0.0, 0.0, float(size[0]), float(size[1])
    left, upper = (width - spec.crop[1]) // 2, (height - spec.crop[0]) // 2
    across, down = size[0] / width, size[1] / height
    return left * across, upper * down, (left + spec.crop[1]) * across, (upper + spec.crop[0]) * down
