"""The image formats that are opened, their suffixes, and what other files are."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from typing import IO

from PIL import Image

_HEIF = find_spec("pillow_heif") is not None

# Pillow's names of the raster formats that are opened. Pillow knows more: it hands PostScript to Ghostscript, which
# runs what the file says. HEIF needs pillow-heif.
FORMATS = (
    *("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "ICO", "PPM", "TGA"),
    *(("HEIF",) if _HEIF else ()),
)

# The suffixes of the image files in a folder. A file that is named itself is opened whatever its suffix.
IMAGE_SUFFIXES = frozenset(
    {".apng", ".avif", ".bmp", ".dib", ".gif", ".ico", ".j2c", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpf"}
    | {".jpg", ".jpx", ".mpo", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}
    | ({".heic", ".heif", ".hif"} if _HEIF else set())
)

MAX_FRAMES = 100  # pages of a TIFF that are counted

_RAW = "convert raw camera files to JPEG or TIFF"
_CONVERT = "convert to PNG"
# The suffixes of images that are not read, each with what to do. A folder with such files is said to have them.
UNREAD_SUFFIXES = {
    **({} if _HEIF else dict.fromkeys((".heic", ".heif", ".hif"), "pip install pillow-heif")),
    **dict.fromkeys((".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef"), _RAW),
    **dict.fromkeys((".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf"), _RAW),
    **dict.fromkeys((".srw", ".x3f"), _RAW),
    **dict.fromkeys((".ai", ".dcm", ".dds", ".eps", ".exr", ".fits", ".hdr", ".jxl", ".jxr", ".pcx", ".pdf"), _CONVERT),
    **dict.fromkeys((".pfm", ".ps", ".psb", ".psd", ".qoi", ".sgi", ".svg", ".svgz", ".wdp", ".xcf"), _CONVERT),
}

# The first bytes of files that Pillow does not know by itself.
_SIGNATURES = (
    (0, b"%PDF", "PDF"),
    (0, b"%!", "PostScript"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"II\xbc", "JPEG XR"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"FUJIFILMCCD", "a raw camera file"),
    (0, b"FOVb", "a raw camera file"),
    (0, b"\0MRM", "a raw camera file"),
    (4, b"ftypcrx", "a raw camera file"),
    (0, b"gimp xcf", "GIMP"),
    (0, b"\0\x05\x16\x07", "AppleDouble, the attributes of a file of macOS"),
    *((4, b"ftyp" + brand, "HEIC (pip install pillow-heif)") for brand in (b"hei", b"hev", b"mif1", b"msf1")),
    (128, b"DICM", "DICOM"),
)


@cache
def register() -> tuple[str, ...]:
    """Return the FORMATS that this Pillow has, after its plugins and pillow-heif are loaded."""
    if _HEIF:
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def real_format(head: bytes) -> str | None:
    """Return what the first bytes of a file, at least 132, say that it is; None for an unknown kind.

    Nothing is opened: Pillow's plugins only compare the bytes.
    """
    for start, signature, name in _SIGNATURES:
        if head[start:].startswith(signature):
            return name
    if b"<svg" in head or head.lstrip().startswith(b"<?xml"):
        return "SVG or XML"
    for name, (_, accept) in Image.OPEN.items():
        with suppress(Exception):  # a plugin that compares numbers fails on a file of a few bytes
            if accept is not None and accept(head[:16]) is True:
                return name
    return None


def count_frames(image: Image.Image, limit: int = MAX_FRAMES) -> int:
    """Return the number of frames of an image that is open, at most limit + 1 for a TIFF.

    Pillow reads all tags of every page of a TIFF to count them, in quadratic time. Here only the links between the
    pages are followed.

    Raises:
        ValueError: a page lies outside of the file.
    """
    if image.format != "TIFF":
        return getattr(image, "n_frames", 1)
    file: IO[bytes] = image.fp  # type: ignore[attr-defined]
    place = file.tell()
    try:
        return _count_pages(file, limit)
    finally:
        file.seek(place)


def _count_pages(file: IO[bytes], limit: int) -> int:
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(16)
    order = "little" if head[:2] == b"II" else "big"

    def number(data: bytes) -> int:
        return int.from_bytes(data, order)  # type: ignore[arg-type]

    # Sizes in bytes of the number of tags, of one tag and of an offset. 43 is BigTIFF.
    count, tag, offset = (8, 20, 8) if number(head[2:4]) == 43 else (2, 12, 4)
    page = number(head[8:16] if offset == 8 else head[4:8])
    seen: set[int] = set()
    while page and page not in seen and len(seen) <= limit:
        seen.add(page)
        file.seek(page)
        link = page + count + tag * number(file.read(count))
        if link + offset > end:
            raise ValueError(f"page {len(seen)} lies outside of the file")
        file.seek(link)
        page = number(file.read(offset))
    return len(seen)


def channel_depth(image: Image.Image) -> int:
    """Return the bits of one channel in the file of an open TIFF, JPEG 2000 or PNG; 8 for other formats."""
    if image.format == "TIFF":
        return max(image.tag_v2.get(258, (1,)))  # type: ignore[attr-defined]
    if image.format != "JPEG2000":
        return _png_depth(image)
    file: IO[bytes] = image.fp  # type: ignore[attr-defined]
    place = file.tell()
    try:
        return _jpeg2000_depth(file)
    finally:
        file.seek(place)


def _png_depth(image: Image.Image) -> int:
    return 16 if image.format == "PNG" and "16" in str(image.tile[0][3]) else 8  # type: ignore[attr-defined]


def _jpeg2000_depth(file: IO[bytes]) -> int:
    """Return the largest depth in the SIZ marker of the codestream (ISO/IEC 15444-1, A.5.1)."""
    file.seek(0)
    if file.read(4) != b"\xff\x4f\xff\x51":  # a JP2 file: boxes, of which jp2c holds the codestream
        file.seek(0)
        while True:
            box = file.read(8)
            length, kind = int.from_bytes(box[:4], "big"), box[4:]
            header = 8
            if length == 1:
                length, header = int.from_bytes(file.read(8), "big"), 16
            if kind == b"jp2c":
                file.seek(4, os.SEEK_CUR)
                break
            if length < header:
                raise ValueError("no codestream in it")
            file.seek(length - header, os.SEEK_CUR)
    size = file.read(38)  # after the two markers: Lsiz, Rsiz, eight numbers of 4 bytes, Csiz
    channels = int.from_bytes(size[36:38], "big")
    depths = file.read(3 * channels)[::3]
    if not depths:
        raise ValueError("the header of its codestream is truncated")
    return max((depth & 0x7F) + 1 for depth in depths)
