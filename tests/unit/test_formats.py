"""Image files that other readers read differently, that cost too much, or that are no raster images at all."""

from __future__ import annotations

import json
import os
import struct
import threading
import zlib
from io import BytesIO
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.profiles import DISPLAY_P3, SRGB, profile, to_srgb
from PIL import Image

import minivit
from minivit import ImageError, UsageError
from minivit.cli import main
from minivit.images import decode
from minivit.images.decode import open_image
from minivit.images.formats import FORMATS, IMAGE_SUFFIXES, UNREAD_SUFFIXES, register
from minivit.inference.prefetch import Input, run_batches

RED = (200, 60, 60)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def opened(data: bytes, **options: Any) -> tuple[list[tuple[int, ...]], list[str]]:
    """The pixels of a file, row by row, and what was said of them."""
    said: list[str] = []
    levels = open_image(BytesIO(data), warn=said.append, **options).tobytes()
    return [tuple(levels[i : i + 3]) for i in range(0, len(levels), 3)], said


def refused(data: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        open_image(BytesIO(data))
    assert "\n" not in str(caught.value)
    return caught.value


def tiff(entries: dict[int, tuple[int, list[int]]], data: bytes, pages: int = 1, order: str = "<") -> bytes:
    """A TIFF of equal pages: {tag: (type 3 or 4, values)}; tag 273 counts from the start of `data`."""
    out = bytearray((b"II*\0" if order == "<" else b"MM\0*") + b"\0" * 4 + data)
    link = 4
    for _ in range(pages):
        out += b"\0" * (len(out) % 2)
        base, rows, extra = len(out), b"", b""
        out[link : link + 4] = struct.pack(f"{order}I", base)
        for tag, (kind, values) in sorted(entries.items()):
            values = [8 + value for value in values] if tag == 273 else values
            packed = struct.pack(f"{order}{len(values)}{'HI'[kind - 3]}", *values)
            if len(packed) > 4:
                extra, packed = extra + packed, struct.pack(f"{order}I", base + 6 + 12 * len(entries) + len(extra))
            rows += struct.pack(f"{order}HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
        out += struct.pack(f"{order}H", len(entries)) + rows + b"\0" * 4 + extra
        link = len(out) - len(extra) - 4
    return bytes(out)


def grey(photometric: int, bits: int, data: bytes, width: int, **more: Any) -> dict[int, Any]:
    return {256: (4, [width]), 257: (4, [1]), 258: (3, [bits]), 259: (3, [1]), 262: (3, [photometric]),
            273: (4, [0]), 277: (3, [1]), 278: (4, [1]), 279: (4, [len(data)]), **more}  # fmt: skip


# --- nothing in a file is run


def test_postscript_is_not_given_to_ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Ghostscript that leaves a trace: neither a path, a file, nor an image that Pillow has opened starts it."""
    trace = tmp_path / "trace"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {trace}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    path = tmp_path / "1.jpg"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n{} loop\nshowpage\n%%EOF\n")
    with path.open("rb") as file, Image.open(path) as image:
        for source in (path, file, image):
            with pytest.raises(ImageError, match="PostScript") as caught:
                open_image(source)
            assert caught.value.code == "unsupported"
    assert not trace.exists()


OTHERS = {
    "PDF": b"%PDF-1.7\n" + b"\0" * 200,
    "PSD": b"8BPS\0\1" + b"\0" * 200,
    "PostScript": b"\xc5\xd0\xd3\xc6" + b"\0" * 200,
    "JPEG XL": b"\xff\x0a" + b"\0" * 200,
    "OpenEXR": b"v/1\x01" + b"\0" * 200,
    "SVG or XML": b"<svg xmlns='http://www.w3.org/2000/svg'/>" + b" " * 200,
    "raw camera": b"FUJIFILMCCD-RAW " + b"\0" * 200,
    "AppleDouble": b"\0\5\x16\7" + b"\0" * 200,
    "DDS": b"DDS " + b"\0" * 200,
    "QOI": b"qoif" + b"\0" * 200,
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_format_is_named(name: str) -> None:
    error = refused(OTHERS[name])
    assert error.code == "unsupported"
    assert name in str(error)


@pytest.mark.parametrize("length", range(1, 20))
def test_a_file_of_a_few_bytes(length: int) -> None:
    """Plugins of Pillow that read numbers at the head of a file fail on it."""
    for byte in (b"I", b"\0", b"\xff"):
        assert refused(byte * length).code in ("not_an_image", "damaged", "truncated", "unsupported")


@pytest.mark.skipif("HEIF" in FORMATS, reason="pillow-heif is installed and reads HEIC")
def test_heic_says_what_to_install() -> None:
    error = refused(b"\0\0\0\x18ftypheic" + b"\0" * 200)
    assert error.code == "unsupported"
    assert "pip install pillow-heif" in str(error)


@pytest.mark.skipif("HEIF" not in FORMATS, reason="needs pillow-heif")
def test_heic() -> None:
    pixels, _ = opened(encoded(Image.new("RGB", (64, 64), (200, 60, 60)), register()[-1], quality=100))
    assert max(abs(a - b) for a, b in zip(pixels[0], (200, 60, 60), strict=True)) <= 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "ICO", "PPM", "TGA"])
def test_every_format_of_the_list_is_read(kind: str) -> None:
    if kind not in register():
        pytest.skip(f"this Pillow is built without {kind}")
    pixels, _ = opened(encoded(Image.new("RGB", (32, 32), (204, 51, 51)), kind))
    assert max(abs(a - b) for a, b in zip(pixels[5], (204, 51, 51), strict=True)) <= 3


def test_a_format_outside_of_the_list_is_refused_though_pillow_reads_it() -> None:
    for kind in ("PCX", "SGI", "DDS"):
        assert refused(encoded(Image.new("RGB", (4, 4)), kind)).code in ("unsupported", "not_an_image")


def test_the_thumbnail_of_a_raw_file_is_not_taken_for_the_image() -> None:
    preview = grey(1, 8, b"\7", 1)
    for tag in ({254: (4, [1])}, {50706: (4, [1])}):
        error = refused(tiff({**preview, **tag}, b"\7"))
        assert error.code == "unsupported"
        assert "raw camera file" in str(error)


def test_no_suffix_is_read_and_unread() -> None:
    assert not IMAGE_SUFFIXES & UNREAD_SUFFIXES.keys()


# --- bounded cost


def test_pages_of_a_tiff_are_counted_up_to_a_hundred() -> None:
    for pages, said in ((1, []), (3, ["first of 3 frames"]), (4000, ["first of more than 100 frames"])):
        assert opened(tiff(grey(1, 8, b"\7", 1), b"\7", pages)) == ([(7, 7, 7)], said)


def test_pages_that_follow_each_other_in_a_circle_end() -> None:
    data = bytearray(tiff(grey(1, 8, b"\7", 1), b"\7", 2))
    data[-4:] = data[4:8]  # the link of the last page, to the first one
    assert opened(bytes(data)) == ([(7, 7, 7)], ["first of 2 frames"])


def flat_png(width: int, height: int, kind: int, pixel: bytes) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    body = zlib.compress((b"\0" + pixel * width) * height)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("mode, bytes_a_pixel", [("L", 5), ("RGB", 4), ("RGBA", 8)])
def test_the_memory_of_an_image_is_limited(mode: str, bytes_a_pixel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.new(mode, (30, 20)), "PNG")
    monkeypatch.setattr(decode, "MAX_DECODED_BYTES", 600 * bytes_a_pixel)
    assert len(opened(data)[0]) == 600
    monkeypatch.setattr(decode, "MAX_DECODED_BYTES", 600 * bytes_a_pixel - 1)
    error = refused(data)
    assert error.code == "too_large"
    assert "30 x 20 PNG" in str(error)


@pytest.mark.parametrize("width, height", [(3000, 3001), (1, 9000), (4_200_000, 3)])
def test_transparency_is_flattened_strip_by_strip(width: int, height: int) -> None:
    """(16, 32, 48) at 128 / 255 on white, at the top and at the bottom: 0.502 * 16 + 0.498 * 255 = 135."""
    image = open_image(BytesIO(flat_png(width, height, 6, b"\x10\x20\x30\x80")))
    for corner in ((0, 0), (width - 1, height - 1), (width // 2, height // 2)):
        assert max(abs(a - b) for a, b in zip(image.getpixel(corner), (135, 143, 151), strict=True)) <= 1


def test_sixteen_bits_are_scaled_strip_by_strip() -> None:
    image = Image.new("I;16", (2100, 2100), 257 * 9)
    image.putpixel((2099, 2099), 257 * 200)
    result = open_image(image)
    assert result.getpixel((0, 0)) == (9, 9, 9)
    assert result.getpixel((2099, 2099)) == (200, 200, 200)


class Hanging(BytesIO):
    """A file whose first read waits for `go`."""

    def __init__(self, data: bytes):
        super().__init__(data)
        self.go = threading.Event()

    def read(self, size: int | None = -1, /) -> bytes:
        self.go.wait()
        return super().read(size)


def test_an_image_that_hangs_is_given_up() -> None:
    """With one reader, which hangs: another one reads the rest."""
    data = encoded(Image.new("RGB", (4, 4), RED), "PNG")
    hanging = Hanging(data)
    spec = minivit.ImageSpec(resize=(4, 4))
    images = map(Input, (BytesIO(data), hanging, BytesIO(data)))
    results = list(run_batches(images, len_of, spec, like=torch.empty(0), readers=1, image_timeout=3))
    hanging.go.set()
    assert [one.error and one.error.code for one in results] == [None, "timeout", None]
    assert "not read within 3 s" in str(results[1].error)


def len_of(pixels_BCHW: torch.Tensor) -> list[int]:
    return [1] * len(pixels_BCHW)


# --- no wrong pixels in silence


@pytest.mark.parametrize("order", ["<", ">"])
def test_uncompressed_planar_tiff_of_16_bits_is_refused(order: str) -> None:
    planes = b"".join(struct.pack(f"{order}10H", *[value << 8 | 77] * 10) for value in (10, 100, 200))
    entries = {**grey(2, 16, planes, 10), 258: (3, [16] * 3), 273: (4, [0, 20, 40]), 277: (3, [3]), 279: (4, [20] * 3)}
    error = refused(tiff({**entries, 284: (3, [2])}, planes, order=order))
    assert error.code == "unsupported"
    assert "planar TIFF of 16 bits" in str(error)


def test_white_is_zero_in_16_bits() -> None:
    """round((65535 - v) / 257): 255, 254.996, 127.498, 0."""
    values = struct.pack("<4H", 0, 1, 32768, 65535)
    pixels, said = opened(tiff(grey(0, 16, values, 4), values))
    assert pixels == [(255,) * 3, (255,) * 3, (127,) * 3, (0,) * 3]
    assert said == ["16 bits a pixel scaled to 8"]


def test_12_bits_of_grey_are_scaled_by_4095() -> None:
    """Two values in three bytes, 0x000 0xfff 0x800 0x010: 0, 255, 127.5 -> 128, 0.996 -> 1."""
    data = bytes.fromhex("000fff800010")
    pixels, said = opened(tiff(grey(1, 12, data, 4), data))
    assert pixels == [(0,) * 3, (255,) * 3, (128,) * 3, (1,) * 3]
    assert said == ["12 bits a pixel scaled to 8"]


def test_colour_of_16_bits_is_said_to_be_cut() -> None:
    """0x80ff is 128.5 of 255; Pillow takes the upper byte."""
    data = struct.pack("<3H", 0x80FF, 0x0100, 0xFFFF)
    pixels, said = opened(tiff({**grey(2, 16, data, 1), 258: (3, [16] * 3), 277: (3, [3])}, data))
    assert pixels == [(128, 1, 255)]
    assert said == ["16 bits a channel cut to the upper 8"]


# The table: depth x channels x photometric x layout x compression x byte order, each held against the levels that were
# written by a second library. An image is equal within one level, or it is refused; it is never something else.
DEPTHS = (1, 8, 12, 16)
CHANNELS = {"minisblack": 1, "miniswhite": 1, "rgb": 3, "rgba": 4, "separated": 4}


def levels(values: Any, bits: int) -> Any:
    import numpy

    return numpy.rint(values.astype(float) * 255 / (2**bits - 1)).astype(int)


def held_against(data: bytes, expected: Any) -> bool:
    """Whether the file is read; if so, with these levels within one."""
    import numpy

    try:
        found = numpy.asarray(open_image(BytesIO(data))).astype(int)
    except ImageError as error:
        assert error.code in ("unsupported", "not_an_image", "damaged")
        return False
    assert found.shape == expected.shape
    assert abs(found - expected).max() <= 1
    return True


def drawn(shape: tuple[int, ...], bits: int, seed: int) -> Any:
    import numpy

    kind = bool if bits == 1 else numpy.uint8 if bits == 8 else numpy.uint16
    values = numpy.random.default_rng(seed).integers(0, 2**bits, shape).astype(kind)
    values[0, :2] = [[0], [2**bits - 1]]  # black and white, where wrong roundings wrap around
    return values


@pytest.mark.parametrize("photometric", CHANNELS)
@pytest.mark.parametrize("bits", DEPTHS)
def test_tiff_equals_tifffile(bits: int, photometric: str) -> None:
    pytest.importorskip("imagecodecs", reason="the second reader needs imagecodecs")
    tifffile = pytest.importorskip("tifffile", reason="the second reader is tifffile")
    import numpy

    channels, read = CHANNELS[photometric], set()
    if bits == 1 and channels > 1:
        pytest.skip("1 bit a channel of a colour is a kind that nobody has")
    for planar, pack, order, tile in product((1, 2), (None, "deflate", "lzw", "packbits", "zstd"), "<>", (None, 16)):
        if (
            (channels == 1 and planar == 2)
            or (bits in (1, 12) and (pack or tile or channels > 1))
            or (bits == 12 and order == ">")
        ):
            continue
        values = drawn((19, 24, channels), bits, seed=bits + channels)
        if photometric == "rgba":
            values[..., 3] = 2**bits - 1
        file = BytesIO()
        shown = values[..., 0] if channels == 1 else values if planar == 1 else values.transpose(2, 0, 1)
        tifffile.imwrite(
            file,
            shown,
            photometric="rgb" if photometric == "rgba" else photometric,
            planarconfig=None if channels == 1 else ("contig", "separate")[planar - 1],
            compression=pack,
            byteorder=order,
            extrasamples=["unassalpha"] if photometric == "rgba" else None,
            tile=(tile, tile) if tile else None,
            rowsperstrip=None if tile else 5,
            bitspersample=12 if bits == 12 else None,
            metadata=None,
        )
        file.seek(0)
        assert numpy.array_equal(tifffile.imread(file), shown)  # what was written is what the second reader reads
        colours = levels(values, bits)
        expected = numpy.repeat(colours, 3, -1) if channels == 1 else colours[..., :3]
        if photometric == "miniswhite":
            expected = 255 - expected
        if photometric == "separated" and bits in (8, 16):
            ink = 255 - (values >> (bits - 8)).astype(int)  # Pillow takes the upper 8 bits, before the product
            expected = numpy.rint(ink[..., :3] * ink[..., 3:] / 255).astype(int)
        if held_against(file.getvalue(), expected):
            read.add((planar, pack, order, tile))
    # The kinds that people have are read, not refused.
    expected_kinds = {(1, None, "<", None), *([(1, "deflate", "<", None)] if bits in (8, 16) else [])}
    if bits != 12:  # Pillow reads one kind of them, grey of little-endian files
        assert expected_kinds <= read


@pytest.mark.parametrize("codec", ["jp2", "j2k"])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_jpeg_2000_equals_imagecodecs(bits: int, codec: str) -> None:
    imagecodecs = pytest.importorskip("imagecodecs", reason="the second reader is imagecodecs")
    import numpy

    for channels in (1, 2, 3, 4):
        values = drawn((16, 24, channels), bits, seed=channels)
        if channels in (2, 4):
            values[..., -1] = 2**bits - 1
        shown = values[..., 0] if channels == 1 else values
        data = imagecodecs.jpeg2k_encode(shown, level=0, codecformat=codec, bitspersample=bits, reversible=True)
        assert numpy.array_equal(imagecodecs.jpeg2k_decode(data), shown)
        colours = levels(values, bits)
        expected = numpy.repeat(colours[..., :1], 3, -1) if channels < 3 else colours[..., :3]
        assert held_against(data, expected) == (bits == 8 or channels == 1)


@pytest.mark.parametrize("kind", ["png", "avif", "webp", "jpegxl"])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_other_formats_equal_imagecodecs(bits: int, kind: str) -> None:
    imagecodecs = pytest.importorskip("imagecodecs", reason="the second reader is imagecodecs")
    import numpy

    if bits not in {"png": (8, 16), "avif": (8, 10, 12), "webp": (8,), "jpegxl": (8, 16)}[kind]:
        return
    options = {"png": {}, "webp": {"lossless": True}, "jpegxl": {"lossless": True}}
    encode = getattr(imagecodecs, f"{kind}_encode")
    for channels in (1, 2, 3, 4) if kind == "png" else (3,):
        values = drawn((16, 24, channels), bits, seed=channels)
        if channels in (2, 4):
            values[..., -1] = 2**bits - 1
        shown = values[..., 0] if channels == 1 else values
        data = encode(shown, **options.get(kind, {"level": 100, "bitspersample": bits, "pixelformat": "444"}))
        expected = numpy.repeat(levels(values[..., :1], bits), 3, -1) if channels < 3 else levels(values, bits)[..., :3]
        read = held_against(data, expected) if kind != "avif" else bool(opened(data))
        assert read == (kind != "jpegxl")


# --- colour profiles

P3 = profile("Display P3", 2.2, DISPLAY_P3)


def coloured(data: bytes, colour: Any = RED, kind: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    return encoded(Image.new(mode, (16, 16), colour), kind, icc_profile=data, **options)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
def test_a_profile_is_ignored_and_said(kind: str) -> None:
    pixels, said = opened(coloured(P3, kind=kind, **({"lossless": True} if kind == "WEBP" else {"quality": 100})))
    assert max(abs(a - b) for a, b in zip(pixels[0], RED, strict=True)) <= 1
    assert said == ["its colour profile 'Display P3' is ignored, taken as sRGB"]


@pytest.mark.parametrize("colour", [(200, 60, 60), (10, 200, 30), (128, 128, 128), (255, 255, 255), (90, 80, 250)])
def test_a_profile_is_converted(colour: tuple[int, ...]) -> None:
    pixels, said = opened(coloured(P3, colour), icc="convert")
    expected = to_srgb(colour, 2.2, DISPLAY_P3)
    assert max(abs(a - b) for a, b in zip(pixels[0], expected, strict=True)) <= 2
    assert said == ["converted from its colour profile 'Display P3' to sRGB"]
    assert colour[0] == colour[1] or max(abs(a - b) for a, b in zip(colour, expected, strict=True)) >= 5


def test_transparency_stays_under_a_conversion() -> None:
    """One fifth of the converted colour, four fifths of white."""
    pixels, said = opened(coloured(P3, (*RED, 51), mode="RGBA"), icc="convert")
    expected = [0.2 * level + 204 for level in to_srgb(RED, 2.2, DISPLAY_P3)]
    assert max(abs(a - b) for a, b in zip(pixels[0], expected, strict=True)) <= 1.5
    assert len(said) == 2


@pytest.mark.parametrize("mode", ["L", "I;16"])
def test_a_linear_profile_of_grey(mode: str) -> None:
    """64 of 255 in linear light is sRGB 137: 1.055 * 0.251 ** (1 / 2.4) - 0.055 = 0.538."""
    linear = profile("linear grey", 1.0)
    data = coloured(linear, 64 * (257 if mode == "I;16" else 1), mode=mode)
    assert opened(data)[0][0] == (64, 64, 64)
    assert abs(opened(data, icc="convert")[0][0][0] - 137) <= 1


@pytest.mark.parametrize("icc", ["ignore", "convert"])
def test_profiles_that_change_nothing(icc: str) -> None:
    from PIL import ImageCms

    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert opened(coloured(srgb), icc=icc) == ([RED] * 256, [])
    broken = opened(coloured(b"no profile at all" * 20), icc=icc)
    assert broken == ([RED] * 256, ["its colour profile cannot be read, ignored"])
    other = opened(coloured(profile("grey \x1b[31m\n", 2.2)), icc=icc)
    assert other == ([RED] * 256, ["its colour profile 'grey ?[31m' is of other channels, ignored"])
    assert SRGB


def test_a_palette_has_a_profile_too() -> None:
    image = Image.new("RGB", (16, 16), RED).quantize(2)
    pixels, _ = opened(encoded(image, "PNG", icc_profile=P3), icc="convert")
    assert max(abs(a - b) for a, b in zip(pixels[0], to_srgb(RED, 2.2, DISPLAY_P3), strict=True)) <= 3


def test_a_gamma_alone_is_said() -> None:
    data = coloured(b"")
    gamma = b"gAMA" + struct.pack(">I", 100000)
    chunk = struct.pack(">I", 4) + gamma + struct.pack(">I", zlib.crc32(gamma))
    assert opened(data[:33] + chunk + data[33:]) == ([RED] * 256, ["its gamma 1 is ignored, taken as sRGB"])


def test_icc_is_a_choice_of_every_function(tmp_path: Path) -> None:
    path = tmp_path / "p3.png"
    path.write_bytes(coloured(P3))
    spec = minivit.ImageSpec(resize=None, mean=(0.0,) * 3, std=(1.0,) * 3)
    given, converted = (minivit.preprocess(path, spec, icc=icc)[:, 0, 0] * 255 for icc in ("ignore", "convert"))
    assert given.round().tolist() == list(RED)
    assert (converted - given).abs().max() > 5
    with pytest.raises(UsageError, match="icc is 'perceptual'; it must be one of ignore, convert"):
        open_image(path, icc="perceptual")


def test_icc_is_an_option_of_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The log of a run with --icc convert is not continued without it."""
    path, log = tmp_path / "p3.png", str(tmp_path / "log.jsonl")
    path.write_bytes(coloured(P3))
    classify = ["classify", str(path), "-m", "minivit/cifar10-vit", "-o", log]
    assert main([*classify, "--icc", "convert", "--image-timeout", "600"]) == 0
    said = json.loads((tmp_path / "log.jsonl").read_text())["warnings"]
    assert said == ["converted from its colour profile 'Display P3' to sRGB"]
    assert main([*classify, "--resume"]) == 2
    assert main(["preprocess", str(path), "-m", "minivit/cifar10-vit", "--explain"]) == 0
    assert "'Display P3' is ignored" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*classify, "--image-timeout", "0"])
