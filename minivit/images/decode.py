"""From an image file to upright 8-bit RGB."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress
from io import IOBase
from typing import IO, Any

from PIL import ExifTags, Image, UnidentifiedImageError

from minivit.errors import ImageError, UsageError
from minivit.images.formats import (
    FORMATS,
    IMAGE_SUFFIXES,
    MAX_FRAMES,
    channel_depth,
    count_frames,
    real_format,
    register,
)
from minivit.images.rgb import to_rgb

# What every function that takes an image accepts: a path, a binary file or a PIL image.
ImageInput = str | os.PathLike[str] | IO[bytes] | Image.Image
Picture = ImageInput  # an older name
__all__ = ["ICC", "IMAGE_SUFFIXES", "ImageInput", "Picture", "name_of", "open_image"]

ICC = ("ignore", "convert")  # what is done with a colour profile that is not sRGB

# The most memory that one image may take while it is decoded, beside Pillow's limit of its pixels.
MAX_DECODED_BYTES = 2**31


def open_image(
    source: ImageInput,
    *,
    name: str | None = None,
    warn: Callable[[str], None] | None = None,
    icc: str = "ignore",
) -> Image.Image:
    """Return an image as upright 8-bit RGB. The table in images/README.md says what is done to each kind of image.

    Args:
        source: path, binary file object or PIL image.
        name: the name in error messages; by default the path, if there is one.
        warn: called with one line for each change: turned, flattened, scaled, first frame, profile ignored.
        icc: what is done with a colour profile that is not sRGB. "ignore", as the reference libraries; or
            "convert" to sRGB, relative colorimetric.

    Raises:
        ImageError: not found, empty, not an image, of a format that is not in FORMATS, truncated, above Pillow's
            decompression limit or MAX_DECODED_BYTES, or of a kind without an agreed conversion to RGB; the message
            names the file.
        UsageError: the argument is not an image, or icc is not in ICC.
    """
    if not (isinstance(source, (str, os.PathLike, Image.Image)) or hasattr(source, "read")):
        hint = "; wrap bytes in io.BytesIO" if isinstance(source, (bytes, bytearray)) else ""
        raise UsageError(f"an image is a path, a binary file or a PIL image, not {type(source).__name__}{hint}")
    if icc not in ICC:
        raise UsageError(f"icc is {icc!r}; it must be one of {', '.join(ICC)}")
    name = name or name_of(source)
    note = warn or (lambda message: None)
    with ExitStack() as opened:
        try:
            return _decode(source, opened, name, note, icc)
        except ImageError:
            raise
        except Exception as error:
            raise _image_error(error, source, name) from error


def _decode(source: ImageInput, opened: ExitStack, name: str, note: Callable[[str], None], icc: str) -> Image.Image:
    """Return an image as upright 8-bit RGB; raises ImageError, or any exception of Pillow."""
    frames = 1
    # Pillow only warns of damaged metadata, and of a size between one and two times its limit. Above that it raises.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if isinstance(source, Image.Image):
            image = source
        else:
            image = opened.enter_context(Image.open(source, formats=register()))
            frames = count_frames(image)
        tags = image.tag_v2 if image.format == "TIFF" and hasattr(image, "tag_v2") else {}
        # Pillow turns a TIFF upright while it loads it, and then drops the orientation.
        turned = tags.get(ExifTags.Base.Orientation) in _TURNS
        white = 4095 if max(tags.get(_BITS, (16,))) == 12 else 65535
        if getattr(image, "tile", None):
            _check_before_load(image, tags, name, note)
        image.load()
        turn = _TURNS.get(_orientation(image, note))
    if any("EXIF" in str(warning.message) for warning in caught):
        note("its EXIF data is damaged")
    if frames > 1:
        note(f"first of {frames} frames" if frames <= MAX_FRAMES else f"first of more than {MAX_FRAMES} frames")
    if turned or turn is not None:
        note("turned upright by its EXIF orientation")
    upright = image if turn is None else image.transpose(turn)
    return to_rgb(upright, name, note, icc=icc, white=white, inverted=tags.get(_PHOTOMETRIC) == 0)


# Tags of TIFF.
_SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC, _PLANAR, _DNG = 254, 258, 259, 262, 284, 50706


def _check_before_load(image: Image.Image, tags: Any, name: str, note: Callable[[str], None]) -> None:
    """Refuse an open image that Pillow would decode at too great a cost, by another program, or wrongly."""
    if image.format == "EPS":
        raise ImageError("unsupported", f"{name}: PostScript is a program, which is not run; convert to PNG")
    if tags.get(_SUBFILE, 0) & 1 or _DNG in tags:
        raise ImageError("unsupported", f"{name}: a raw camera file, of which only a preview could be read; convert it")
    needed = decoded_bytes(image)
    if needed > MAX_DECODED_BYTES:
        size = f"{image.width} x {image.height} {image.format} would take {needed / 2**30:.1f} GiB"
        raise ImageError("too_large", f"{name}: refused, {size} to decode (limit {MAX_DECODED_BYTES / 2**30:g} GiB)")
    depth, colour = channel_depth(image), not image.mode.startswith(("I", "F")) and image.mode not in ("1", "L")
    if depth == 8 or not colour:
        return
    if image.format == "JPEG2000" and depth > 8:
        kind = f"JPEG 2000 of {depth} bits a channel in colour or with transparency"
        raise ImageError("unsupported", f"{name}: {kind}, which Pillow decodes wrongly; convert to 8 bits")
    if depth > 8 and tags.get(_PLANAR) == 2 and tags.get(_COMPRESSION, 1) == 1:
        kind = f"uncompressed planar TIFF of {depth} bits a channel"
        raise ImageError("unsupported", f"{name}: {kind}, which Pillow decodes wrongly; convert to 8 bits")
    if depth > 8:
        note(f"{depth} bits a channel cut to the upper 8")


# What a decoder holds beside the image of Pillow, in bytes a pixel, rounded up: 32 bits a channel in OpenJPEG, planes
# and canvases in the others.
_DECODER_BYTES = {"JPEG2000": 16, "WEBP": 8, "AVIF": 12, "HEIF": 12}


def decoded_bytes(image: Image.Image) -> int:
    """Return about how many bytes an open image takes while it is decoded and converted to RGB."""
    stored = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
    converted = 0 if image.mode == "RGB" else 4
    decoder = _DECODER_BYTES.get(image.format or "", 6 if image.info.get("progressive") else 0)
    return image.width * image.height * (stored + converted + decoder)


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
        found = real_format(_head(source))
        if found is None:
            return ImageError("not_an_image", f"{name}: not an image that Pillow can read")
        if found in FORMATS:
            return ImageError("not_an_image", f"{name}: not an image that Pillow can read (it begins as {found})")
        return ImageError("unsupported", f"{name}: its real format is not read: {found}")
    if isinstance(error, OSError) and error.errno:
        return ImageError("unreadable", f"{name}: cannot be read ({error.strerror})")
    if "truncated" in text.lower() or "not enough image data" in text.lower():
        return ImageError("truncated", f"{name}: the file is cut off ({text})")
    return ImageError("damaged", f"{name}: cannot be decoded ({text})")


def _head(source: Any) -> bytes:
    """Return the first bytes of a file; nothing if it cannot be read again."""
    with suppress(OSError, ValueError):
        if isinstance(source, (str, os.PathLike)):
            with open(source, "rb") as file:
                return file.read(512)
        source.seek(0)
        return bytes(source.read(512))
    return b""


def _is_empty(source: ImageInput) -> bool:
    if isinstance(source, (str, os.PathLike)):
        return os.path.getsize(source) == 0
    return isinstance(source, IOBase) and source.seekable() and source.seek(0) == 0 and not source.read(1)
