"""From an image file to upright 8-bit RGB."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from io import IOBase
from typing import IO, Any

from PIL import ExifTags, Image, UnidentifiedImageError

from minivit.errors import ImageError, UsageError

# What every function that takes an image accepts: a path, a binary file or a PIL image.
ImageInput = str | os.PathLike[str] | IO[bytes] | Image.Image
Picture = ImageInput  # an older name

# The suffixes of the image files in a folder. A file that is named itself is opened whatever its suffix.
IMAGE_SUFFIXES = frozenset(
    {".apng", ".avif", ".bmp", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".jpx"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
)


def open_image(
    source: ImageInput, *, name: str | None = None, warn: Callable[[str], None] | None = None
) -> Image.Image:
    """Return an image as upright 8-bit RGB. The table in images/README.md says what is done to each kind of image.

    Args:
        source: path, binary file object or PIL image.
        name: the name in error messages; by default the path, if there is one.
        warn: called with one line for each change: turned, flattened, scaled, first frame.

    Raises:
        ImageError: not found, empty, not an image, truncated, above Pillow's decompression limit, or of a kind
            without an agreed conversion to RGB; the message names the file.
        UsageError: the argument is not an image.
    """
    if not (isinstance(source, (str, os.PathLike, Image.Image)) or hasattr(source, "read")):
        hint = "; wrap bytes in io.BytesIO" if isinstance(source, (bytes, bytearray)) else ""
        raise UsageError(f"an image is a path, a binary file or a PIL image, not {type(source).__name__}{hint}")
    name = name or name_of(source)
    note = warn or (lambda message: None)
    frames = 1
    with ExitStack() as opened:
        try:
            # Pillow only warns of damaged metadata, and of a size between one and two times its limit. Above that
            # it raises.
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                if isinstance(source, Image.Image):
                    image = source
                else:
                    image = opened.enter_context(Image.open(source))
                    # Before the load, because counting seeks in the file.
                    frames = getattr(image, "n_frames", 1)
                # Pillow turns a TIFF upright while it loads it, and then drops the orientation.
                turned = getattr(image, "tag_v2", {}).get(ExifTags.Base.Orientation) in _TURNS
                image.load()
                turn = _TURNS.get(_orientation(image, note))
        except Exception as error:
            raise _image_error(error, source, name) from error
        if any("EXIF" in str(warning.message) for warning in caught):
            note("its EXIF data is damaged")
        if frames > 1:
            note(f"first of {frames} frames")
        if turned or turn is not None:
            note("turned upright by its EXIF orientation")
        return _to_rgb(image if turn is None else image.transpose(turn), name, note)


def name_of(source: ImageInput) -> str:
    """Return the name of an image in error messages: its path, else ImageError.UNNAMED."""
    return str(source) if isinstance(source, (str, os.PathLike)) else ImageError.UNNAMED


# The transposition that makes an image upright, by its EXIF orientation (Exif 2.32, tag 274); 1 is upright.
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


def _image_error(error: Exception, source: ImageInput, name: str) -> ImageError:
    """Return an ImageError of one line for an exception of Pillow, which raises nearly every type."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return ImageError("not_found", f"{name}: no such file")
    if isinstance(error, IsADirectoryError):
        return ImageError("is_a_folder", f"{name}: a folder, not an image")
    if isinstance(error, PermissionError):
        return ImageError("no_permission", f"{name}: no permission to read it")
    if isinstance(error, (Image.DecompressionBombError, MemoryError)):
        return ImageError("too_large", f"{name}: refused, too many pixels ({text})")
    if isinstance(error, UnidentifiedImageError):
        if _is_empty(source):
            return ImageError("empty", f"{name}: the file is empty")
        return ImageError("not_an_image", f"{name}: not an image that Pillow can read")
    if isinstance(error, OSError) and error.errno:
        return ImageError("unreadable", f"{name}: cannot be read ({error.strerror})")
    if "truncated" in text.lower() or "not enough image data" in text.lower():
        return ImageError("truncated", f"{name}: the file is cut off ({text})")
    return ImageError("damaged", f"{name}: cannot be decoded ({text})")


def _is_empty(source: ImageInput) -> bool:
    if isinstance(source, (str, os.PathLike)):
        return os.path.getsize(source) == 0
    return isinstance(source, IOBase) and source.seekable() and source.seek(0) == 0 and not source.read(1)


def _to_rgb(image: Image.Image, name: str, note: Callable[[str], None]) -> Image.Image:
    """Return an image of any mode of Pillow as 8-bit RGB."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise ImageError("unsupported", f"{name}: floating-point pixels have no agreed range; convert them to 8 bits")
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
    """Return a 16-bit grey image in 8 bits, round(value / 257); Pillow's own conversion clips at 255."""
    values = image.convert("I")
    low, high = values.getextrema()
    if low < 0 or high > 65535:  # type: ignore[operator]
        raise ImageError("unsupported", f"{name}: integer pixels from {low} to {high}; convert to 8 or 16 bits")
    note("16 bits a pixel scaled to 8")
    if "transparency" in image.info:
        note("its transparent grey value is not flattened")
        del values.info["transparency"]
    # Pillow truncates, so adding 0.5 rounds; no value lies exactly between two levels.
    return values.point(lambda value: value / 257 + 0.5).convert("L")
