"""Images: pixels equal to transformers' Pillow processors, every kind of file, every form of the spec."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import BitImageProcessorPil, ViTImageProcessorPil

import minivit
from minivit import CheckpointError, ImageError, ImageSpec, UsageError
from minivit.images.decode import open_image
from minivit.images.preprocess import preprocess
from minivit.images.spec import RESAMPLES
from minivit.weights.preprocessing import read_image_spec

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    levels = torch.randint(256, (height * width * 3,), generator=torch.manual_seed(seed), dtype=torch.uint8)
    return Image.frombytes("RGB", (width, height), bytes(levels.tolist()))


# --- equal to the reference, bit for bit

# Smaller and larger than every target below, flat, thin, a single pixel.
SIZES = [(1, 1), (1, 211), (211, 1), (2, 3), (37, 211), (211, 37), (53, 53), (101, 97)]


def reference(processor: Any, image: Image.Image) -> torch.Tensor:
    return processor(image, return_tensors="pt")["pixel_values"][0]


@pytest.mark.parametrize("code", range(len(RESAMPLES)))
def test_resized_to_a_fixed_size(code: int) -> None:
    spec = ImageSpec(resize=(41, 29), resample=RESAMPLES[code], mean=MEAN, std=STD)
    size = {"height": 41, "width": 29}
    processor = ViTImageProcessorPil(size=size, resample=code, image_mean=list(MEAN), image_std=list(STD))
    for width, height in SIZES:
        image = noise(width, height, seed=width)
        assert torch.equal(preprocess(image, spec), reference(processor, image)), (width, height)


@pytest.mark.parametrize("code", range(len(RESAMPLES)))
def test_shorter_edge_then_centre_crop(code: int) -> None:
    """Odd and even margins on both sides, and crops that are larger than the image in one direction or both."""
    for edge, crop in ((23, (23, 23)), (31, (20, 17)), (13, (19, 7)), (11, (61, 67))):
        spec = ImageSpec(resize=edge, crop=crop, resample=RESAMPLES[code], mean=MEAN, std=STD)
        size = {"height": crop[0], "width": crop[1]}
        processor = BitImageProcessorPil(
            size={"shortest_edge": edge}, crop_size=size, resample=code, image_mean=list(MEAN), image_std=list(STD)
        )
        for width, height in SIZES:
            image = noise(width, height, seed=height)
            pixels = preprocess(image, spec)
            assert pixels.shape == (3, *crop)
            assert torch.equal(pixels, reference(processor, image)), (width, height, edge, crop)


@pytest.mark.parametrize("width, height", [(1, 5000), (5000, 1)])
def test_a_line_of_pixels(width: int, height: int) -> None:
    image = noise(width, height)
    spec = ImageSpec(resize=(224, 224))
    assert torch.equal(preprocess(image, spec), reference(ViTImageProcessorPil(), image))
    spec = ImageSpec(resize=5, crop=(7, 7), resample="bicubic", mean=MEAN, std=STD)
    processor = BitImageProcessorPil(
        size={"shortest_edge": 5}, crop_size=7, image_mean=list(MEAN), image_std=list(STD), resample=3
    )
    assert torch.equal(preprocess(image, spec), reference(processor, image))


@pytest.mark.parametrize("scale", [1 / 255, 1 / 127.5, 0.3])
def test_arithmetic_alone(scale: float) -> None:
    """Every level of a byte, without a resize: the rounding of each step is the reference's."""
    image = Image.frombytes("RGB", (256, 1), bytes(level for level in range(256) for _ in range(3)))
    for mean, std in (
        (MEAN, STD),
        ((0.5,) * 3, (0.5,) * 3),
        ((0, 0, 0), (1, 1, 1)),
        ((0.1, 1e-3, 7.0), (3.0, 1e-3, 0.7)),
    ):
        spec = ImageSpec(resize=None, rescale=scale, mean=mean, std=std)
        processor = ViTImageProcessorPil(
            do_resize=False, rescale_factor=scale, image_mean=list(mean), image_std=list(std)
        )
        assert torch.equal(preprocess(image, spec), reference(processor, image))


def test_the_pixels_of_a_known_image() -> None:
    """By hand: 0, 51, 255 are -1, -0.6, 1 when normalised with mean and std of one half."""
    image = Image.frombytes("RGB", (2, 1), bytes([0, 51, 255, 255, 0, 51]))
    pixels = preprocess(image, ImageSpec(resize=None))
    assert pixels.dtype == torch.float32
    assert pixels.is_contiguous()
    torch.testing.assert_close(pixels, torch.tensor([[[-1.0, 1.0]], [[-0.6, -1.0]], [[1.0, -0.6]]]))


def test_the_default_dtype_of_torch_changes_nothing() -> None:
    image, spec = noise(5, 3), ImageSpec(resize=(7, 11), mean=MEAN, std=STD)
    expected = preprocess(image, spec)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(preprocess(image, spec), expected)
        assert preprocess(image, spec).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_photos_equal_the_reference(photos: list[Path]) -> None:
    squashed, cropped = ImageSpec(resize=(224, 224)), ImageSpec(resize=256, crop=(224, 224), resample="bicubic")
    half = [0.5, 0.5, 0.5]
    bit = BitImageProcessorPil(size={"shortest_edge": 256}, crop_size=224, image_mean=half, image_std=half)
    for photo in photos:
        with Image.open(photo) as image:
            rgb = image.convert("RGB")
        assert torch.equal(minivit.preprocess(photo, squashed), reference(ViTImageProcessorPil(), rgb)), photo.name
        assert torch.equal(minivit.preprocess(photo, cropped), reference(bit, rgb)), photo.name


def test_a_hair_is_not_blown_up() -> None:
    """The shorter edge of 1 x 60000 resized to 224 would make three thousand million pixels."""
    image = Image.new("RGB", (1, 60000))
    with pytest.raises(ImageError, match=r"60000 pixels would become 224 x 13440000") as caught:
        preprocess(image, ImageSpec(resize=224, crop=(224, 224)))
    assert caught.value.code == "too_large"


# --- the zoo: every mode and kind of file, with its pixels or its refusal

GREY = "L", (3, 1), bytes([0, 100, 255])
AS_GREY = [(0, 0, 0), (100, 100, 100), (255, 255, 255)]
FLAT = "transparency flattened on white"
DEEP = "16 bits a pixel scaled to 8"


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rows(image: Image.Image) -> list[tuple[int, ...]]:
    data = image.tobytes()
    return [tuple(data[i : i + 3]) for i in range(0, len(data), 3)]


def palette(indices: bytes, mode: str = "P") -> Image.Image:
    """Index 0 is (100, 50, 200), 1 is (1, 2, 3), 2 is (250, 150, 50)."""
    image = Image.frombytes(mode, (len(indices) // len(mode), 1), indices)
    image.putpalette([100, 50, 200, 1, 2, 3, 250, 150, 50])
    return image


def deep(mode: str, *values: int) -> Image.Image:
    kinds = {"I;16": "<{}H", "I;16B": ">{}H", "I": "={}i", "F": "={}f"}
    return Image.frombytes(mode, (len(values), 1), struct.pack(kinds[mode].format(len(values)), *values))


def animation(kind: str, **options: Any) -> bytes:
    first, *others = (Image.new("RGB", (3, 2), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))
    return encoded(first, kind, save_all=True, append_images=others, **options)


# round(v / 257): 128 and 129 lie around the first step, 32767 and 32768 around the middle one.
STEPS = (0, 128, 129, 257, 32767, 32768, 65535)
STEPPED = [(level,) * 3 for level in (0, 0, 1, 1, 127, 128, 255)]
# 51 / 255 is one fifth: 0.2 * (100, 50, 200) + 0.8 * white = (224, 214, 244)
ALPHA = [(224, 214, 244), (1, 2, 3), (255, 255, 255)]
RGBA = bytes([100, 50, 200, 51, 1, 2, 3, 255, 9, 9, 9, 0])
RGB = Image.frombytes("RGB", (2, 1), bytes([1, 2, 3, 4, 5, 6]))

# name: (file, expected pixels, expected warnings)
FILES: dict[str, tuple[Callable[[], bytes], list[tuple[int, ...]], list[str]]] = {
    "L.png": (lambda: encoded(Image.frombytes(*GREY), "PNG"), AS_GREY, []),
    "L transparent.png": (
        lambda: encoded(Image.frombytes(*GREY), "PNG", transparency=100),
        [(0, 0, 0), (255, 255, 255), (255, 255, 255)],
        [FLAT],
    ),
    # 0.2 * 100 + 0.8 * 255 = 224
    "LA.png": (
        lambda: encoded(Image.frombytes("LA", (3, 1), bytes([100, 51, 7, 255, 7, 0])), "PNG"),
        [(224,) * 3, (7,) * 3, (255,) * 3],
        [FLAT],
    ),
    "P.png": (lambda: encoded(palette(b"\0\1\2"), "PNG"), [(100, 50, 200), (1, 2, 3), (250, 150, 50)], []),
    "P transparent.png": (
        lambda: encoded(palette(b"\0\1\2"), "PNG", transparency=2),
        [(100, 50, 200), (1, 2, 3), (255, 255, 255)],
        [FLAT],
    ),
    "P alpha.png": (lambda: encoded(palette(b"\0\1\2"), "PNG", transparency=bytes([51, 255, 0])), ALPHA, [FLAT]),
    "P transparent.gif": (
        lambda: encoded(palette(b"\0\1\2"), "GIF", transparency=1),
        [(100, 50, 200), (255, 255, 255), (250, 150, 50)],
        [FLAT],
    ),
    "RGB.png": (lambda: encoded(RGB, "PNG"), [(1, 2, 3), (4, 5, 6)], []),
    "RGB.bmp": (lambda: encoded(RGB, "BMP"), [(1, 2, 3), (4, 5, 6)], []),
    "RGB.webp": (lambda: encoded(RGB, "WEBP", lossless=True), [(1, 2, 3), (4, 5, 6)], []),
    "RGB.ppm": (lambda: encoded(RGB, "PPM"), [(1, 2, 3), (4, 5, 6)], []),
    "RGB transparent.png": (
        lambda: encoded(RGB, "PNG", transparency=(4, 5, 6)),
        [(1, 2, 3), (255, 255, 255)],
        [FLAT],
    ),
    "RGBA.png": (lambda: encoded(Image.frombytes("RGBA", (3, 1), RGBA), "PNG"), ALPHA, [FLAT]),
    "RGBA.tif": (lambda: encoded(Image.frombytes("RGBA", (3, 1), RGBA), "TIFF"), ALPHA, [FLAT]),
    # (255 - C)(255 - K) / 255: 204 * 204 / 255 = 163.2 in the second
    "CMYK.tif": (
        lambda: encoded(Image.frombytes("CMYK", (2, 1), bytes([51, 102, 153, 0, 51, 0, 255, 51])), "TIFF"),
        [(204, 153, 102), (163, 204, 0)],
        ["CMYK converted without its colour profile"],
    ),
    "1.png": (lambda: encoded(Image.frombytes("1", (3, 1), b"\xa0"), "PNG"), [(255,) * 3, (0,) * 3, (255,) * 3], []),
    "1 transparent.png": (
        lambda: encoded(Image.frombytes("1", (3, 1), b"\xa0"), "PNG", transparency=0),
        [(255,) * 3] * 3,
        [FLAT],
    ),
    "1.tif": (
        lambda: encoded(Image.frombytes("1", (3, 1), b"\xa0"), "TIFF", compression="group4"),
        [(255,) * 3, (0,) * 3, (255,) * 3],
        [],
    ),
    "16 bit.png": (lambda: encoded(deep("I;16", *STEPS), "PNG"), STEPPED, [DEEP]),
    "16 bit transparent.png": (
        lambda: encoded(deep("I;16", *STEPS), "PNG", transparency=257),
        STEPPED,
        [DEEP, "its transparent grey value is not flattened"],
    ),
    "16 bit.tif": (lambda: encoded(deep("I;16", *STEPS), "TIFF"), STEPPED, [DEEP]),
    "16 bit big endian.tif": (lambda: encoded(deep("I;16B", *STEPS), "TIFF"), STEPPED, [DEEP]),
    "16 bit.pgm": (lambda: encoded(deep("I;16", *STEPS), "PPM"), STEPPED, [DEEP]),
    "32 bit.tif": (lambda: encoded(deep("I", *STEPS), "TIFF"), STEPPED, [DEEP]),
    "animated.gif": (lambda: animation("GIF"), [(255, 0, 0)] * 6, ["first of 3 frames"]),
    "animated.png": (lambda: animation("PNG"), [(255, 0, 0)] * 6, ["first of 3 frames"]),
    "animated.webp": (lambda: animation("WEBP", lossless=True), [(255, 0, 0)] * 6, ["first of 3 frames"]),
    "pages.tif": (lambda: animation("TIFF"), [(255, 0, 0)] * 6, ["first of 3 frames"]),
}


@pytest.mark.parametrize("name", FILES)
def test_files(name: str, tmp_path: Path) -> None:
    """The same pixels and warnings from a path, an open file, bytes in memory and a PIL image."""
    make, expected, warnings = FILES[name]
    path = tmp_path / name
    path.write_bytes(make())
    with path.open("rb") as file, Image.open(path) as image:
        file.seek(1)
        for source in (path, str(path), file, BytesIO(path.read_bytes()), image):
            heard: list[str] = []
            upright = open_image(source, warn=heard.append)
            assert upright.mode == "RGB"
            assert rows(upright) == expected
            # A frame of a PIL image was chosen by whoever made it.
            assert heard == ([] if source is image and "frames" in str(warnings) else warnings)


@pytest.mark.parametrize(
    "image, expected",
    [
        (palette(bytes([0, 51, 1, 255, 2, 0]), "PA"), ALPHA),
        (Image.frombytes("RGBa", (2, 1), bytes([20, 10, 40, 51, 1, 2, 3, 255])), ALPHA[:2]),
        (Image.frombytes("RGBX", (1, 1), bytes([1, 2, 3, 4])), [(1, 2, 3)]),
        (Image.frombytes("HSV", (2, 1), bytes([0, 255, 255, 170, 0, 99])), [(255, 0, 0), (99, 99, 99)]),
        # JFIF: R = 76 + 1.402 * 127 = 254, G = 76 - 0.344 * (85 - 128) - 0.714 * 127 = 0
        (Image.frombytes("YCbCr", (1, 1), bytes([76, 85, 255])), [(254, 0, 0)]),
        (deep("I;16B", *STEPS), STEPPED),
        (deep("I", *STEPS), STEPPED),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_modes_only_pil_has(image: Image.Image, expected: list[tuple[int, ...]]) -> None:
    assert rows(open_image(image)) == expected


@pytest.mark.parametrize("mode, colour", [("RGB", (204, 153, 102)), ("L", 77), ("CMYK", (51, 102, 153, 0))])
def test_jpeg(mode: str, colour: Any) -> None:
    """A flat colour survives JPEG but for the rounding of YCbCr; CMYK is stored inverted and comes back upright."""
    expected = torch.tensor((77,) * 3 if mode == "L" else (204, 153, 102))
    data = encoded(Image.new(mode, (16, 16), colour), "JPEG", quality=100)
    pixels = torch.tensor(rows(open_image(BytesIO(data))))
    assert (pixels - expected).abs().max() <= 1


def test_lab() -> None:
    """L* of 255, 128 and 0 out of 255 with a* = b* = 0: white, the sRGB grey of L* = 50.2, black."""
    data = encoded(Image.frombytes("LAB", (3, 1), bytes([255, 0, 0, 128, 0, 0, 0, 0, 0])), "TIFF")
    pixels = torch.tensor(rows(open_image(BytesIO(data))))
    assert (pixels - torch.tensor([[255], [119], [0]])).abs().max() <= 1


def test_mpo_is_its_first_image(tmp_path: Path) -> None:
    path = tmp_path / "stereo.mpo"
    first, second = Image.new("RGB", (16, 8), (10, 20, 30)), Image.new("RGB", (16, 8), (200, 200, 200))
    first.save(path, "MPO", save_all=True, append_images=[second], quality=100)
    heard: list[str] = []
    image = open_image(path, warn=heard.append)
    assert max(abs(a - b) for row in rows(image) for a, b in zip(row, (10, 20, 30), strict=True)) <= 1
    assert heard == ["first of 2 frames"]


# Stored as a b c / d e f; what a person sees, by the definition of tag 274 (row 0 and column 0 stand for ...).
UPRIGHT = {
    1: ("abc", "def"),  # top, left
    2: ("cba", "fed"),  # top, right
    3: ("fed", "cba"),  # bottom, right
    4: ("def", "abc"),  # bottom, left
    5: ("ad", "be", "cf"),  # left, top
    6: ("da", "eb", "fc"),  # right, top
    7: ("fc", "eb", "da"),  # right, bottom
    8: ("cf", "be", "ad"),  # left, bottom
}


@pytest.mark.parametrize("kind, options", [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(orientation: int, kind: str, options: dict[str, Any]) -> None:
    stored = Image.frombytes("RGB", (3, 2), b"".join(letter * 3 for letter in (b"a", b"b", b"c", b"d", b"e", b"f")))
    exif = Image.Exif()
    exif[274] = orientation
    heard: list[str] = []
    image = open_image(BytesIO(encoded(stored, kind, exif=exif, **options)), warn=heard.append)
    seen = UPRIGHT[orientation]
    assert image.size == (len(seen[0]), len(seen))
    assert "".join(chr(row[0]) for row in rows(image)) == "".join(seen)
    assert heard == ([] if orientation == 1 else ["turned upright by its EXIF orientation"])


def test_an_orientation_outside_the_standard_turns_nothing() -> None:
    for value in (0, 9, 77):
        exif = Image.Exif()
        exif[274] = value
        assert open_image(BytesIO(encoded(RGB, "PNG", exif=exif))).size == RGB.size


@pytest.mark.parametrize("damage", [b"MM\0\x2a\xff\xff\xff\xff", b"II\x2a\0\x08\0\0\0\xff\xff"])
def test_damaged_exif_is_said_and_the_pixels_are_used(damage: bytes) -> None:
    exif = Image.Exif()
    exif[274] = 6
    data = encoded(Image.new("RGB", (16, 8), "red"), "JPEG", exif=exif)
    start = data.index(b"Exif\0\0") + 6
    heard: list[str] = []
    image = open_image(BytesIO(data[:start] + damage + data[start + len(damage) :]), warn=heard.append)
    assert image.size == (16, 8)
    assert heard == ["its EXIF data is damaged"]


def test_exif_that_raises_is_said_and_the_pixels_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Image.Image) -> Image.Exif:
        raise struct.error("unpack requires a buffer of 2 bytes")

    monkeypatch.setattr(Image.Image, "getexif", broken)
    heard: list[str] = []
    assert rows(open_image(RGB, warn=heard.append)) == [(1, 2, 3), (4, 5, 6)]
    assert heard == ["its EXIF data cannot be read, taken as upright"]


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def forged_png(width: int, height: int) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(b"\0" * 64)) + png_chunk(b"IEND", b"")


def cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


REFUSED: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "empty.jpg": (lambda: b"", "empty", "the file is empty"),
    "text.jpg": (lambda: b"no picture at all\n" * 20, "not_an_image", "not an image that Pillow can read"),
    "cut.jpg": (lambda: cut(encoded(noise(64, 64), "JPEG"), 0.5), "truncated", "the file is cut off"),
    "cut.png": (lambda: cut(encoded(noise(64, 64), "PNG"), 0.5), "truncated", "the file is cut off"),
    "cut.bmp": (lambda: cut(encoded(noise(64, 64), "BMP"), 0.5), "truncated", "the file is cut off"),
    "cut.webp": (lambda: cut(encoded(noise(64, 64), "WEBP"), 0.5), "damaged", "cannot be decoded"),
    "cut in the header.png": (lambda: encoded(noise(64, 64), "PNG")[:20], "truncated", "the file is cut off"),
    "cut behind the first frame.gif": (lambda: cut(animation("GIF"), 0.78), "damaged", "cannot be decoded"),
    "cut behind the first page.tif": (lambda: cut(animation("TIFF"), 0.5), "damaged", "cannot be decoded"),
    "a flipped byte.png": (lambda: flipped(encoded(noise(64, 64), "PNG"), 5000), "damaged", "cannot be decoded"),
    "bomb.png": (lambda: forged_png(100_000, 100_000), "too_large", "too many pixels"),
    "float.tif": (lambda: encoded(deep("F", 1, 2), "TIFF"), "unsupported", "floating-point pixels"),
    "above 16 bit.tif": (lambda: encoded(deep("I", 0, 65536), "TIFF"), "unsupported", "from 0 to 65536"),
    "below 0.tif": (lambda: encoded(deep("I", -1, 65535), "TIFF"), "unsupported", "from -1 to 65535"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, tmp_path: Path) -> None:
    """One line with the file's name, from a path, an open file and bytes in memory alike."""
    make, code, message = REFUSED[name]
    path = tmp_path / name
    path.write_bytes(make())
    with path.open("rb") as file:
        for source in (path, file, BytesIO(path.read_bytes())):
            with pytest.raises(ImageError, match=message) as caught:
                open_image(source)
            text = str(caught.value)
            assert caught.value.code == code
            assert caught.value.exit_code == 3
            assert text.startswith(f"{path}: " if source is path else "the image: ")
            assert "\n" not in text
    with pytest.raises(ImageError, match=r"^photo 7: "):
        open_image(path, name="photo 7")


def test_paths_without_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def code_of(path: Path) -> str:
        with pytest.raises(ImageError) as caught:
            open_image(path)
        assert str(caught.value).startswith(f"{path}: ")
        return caught.value.code

    file = tmp_path / "a.png"
    file.write_bytes(encoded(RGB, "PNG"))
    assert code_of(tmp_path) == "is_a_folder"
    assert code_of(tmp_path / "none.jpg") == "not_found"
    assert code_of(file / "b.jpg") == "not_found"
    assert code_of(tmp_path / ("x" * 300)) == "unreadable"
    if os.geteuid():  # root may read everything
        file.chmod(0)
        assert code_of(file) == "no_permission"

    def failing(*args: object, **options: object) -> Image.Image:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Image, "open", failing)
    assert code_of(file) == "unreadable"


@pytest.mark.parametrize("wrong", [b"bytes", 7, None, torch.zeros(3, 2, 2), ["a.jpg"]])
def test_what_is_no_image_at_all(wrong: Any) -> None:
    with pytest.raises(UsageError, match=type(wrong).__name__):
        open_image(wrong)


def test_an_image_between_one_and_two_limits_passes_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    assert rows(open_image(BytesIO(encoded(RGB, "PNG")))) == [(1, 2, 3), (4, 5, 6)]


def test_the_callers_image_is_left_as_it_is() -> None:
    image = palette(b"\0\1\2")
    image.info["transparency"] = 2
    open_image(image)
    assert image.mode == "P"
    assert image.info == {"transparency": 2}
    assert image.tobytes() == b"\0\1\2"
    sixteen = deep("I;16", *STEPS)
    sixteen.info["transparency"] = 257
    open_image(sixteen)
    assert sixteen.mode == "I;16"
    assert sixteen.info == {"transparency": 257}


# --- preprocessor_config.json

OLD = {  # as google/vit-base-patch16-224 was published in 2021
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "ViTFeatureExtractor",
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 2,
    "size": 29,
}
NEW = {
    "image_processor_type": "ViTImageProcessor",
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": list(MEAN),
    "image_std": list(STD),
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"height": 31, "width": 29},
}


@pytest.mark.parametrize(
    "given, spec",
    [
        (OLD, ImageSpec(resize=(29, 29))),
        ({key: OLD[key] for key in ("size",)}, ImageSpec(resize=(29, 29))),
        (NEW, ImageSpec(resize=(31, 29), resample="bicubic", mean=MEAN, std=STD)),
        ({**NEW, "image_processor_type": "ViTImageProcessorFast", "resample": 0}, {"resample": "nearest"}),
        ({**NEW, "image_processor_type": "ViTImageProcessorPil"}, {}),
        ({**NEW, "do_resize": False}, {"resize": None, "resample": "bilinear"}),
        ({**NEW, "do_rescale": False}, {"rescale": 1.0}),
        ({**NEW, "rescale_factor": 0.1}, {"rescale": 0.1}),
        ({**NEW, "do_normalize": False}, {"mean": (0.0,) * 3, "std": (1.0,) * 3}),
        ({**NEW, "image_mean": 0.25, "image_std": 2}, {"mean": (0.25,) * 3, "std": (2,) * 3}),
        (
            {**NEW, "size": {"shortest_edge": 31}, "do_center_crop": True, "crop_size": 17},
            {"resize": 31, "crop": (17, 17)},
        ),
        ({**NEW, "do_center_crop": True, "crop_size": {"height": 17, "width": 19}}, {"crop": (17, 19)}),
        ({**NEW, "size": {"shortest_edge": 31, "longest_edge": None}}, {"resize": 31}),
        ({**NEW, "do_center_crop": None, "crop_size": None, "do_pad": None}, {}),
        ({**NEW, "do_resize": None, "size": None, "resample": None}, {"resize": None, "resample": "bilinear"}),
        ({**NEW, "do_normalize": None, "image_mean": None}, {"mean": (0.0,) * 3, "std": (1.0,) * 3}),
        ({}, ImageSpec(resize=(224, 224))),
    ],
)
def test_every_form_of_the_file_means_what_the_reference_reads(given: dict, spec: ImageSpec | dict) -> None:
    """Against the expected spec, and against what transformers makes of the same file on the same image."""
    read = read_image_spec(given, "here")
    new = {"resize": (31, 29), "resample": "bicubic", "mean": MEAN, "std": STD}
    assert read == (spec if isinstance(spec, ImageSpec) else ImageSpec(**{**new, **spec}))
    image = noise(43, 37)
    theirs = reference(ViTImageProcessorPil.from_dict(dict(given)), image)
    assert torch.equal(preprocess(image, read), theirs.float())


@pytest.mark.parametrize(
    "key, value",
    [
        ("size", 0),
        ("size", None),
        ("resample", None),
        ("rescale_factor", None),
        ("image_mean", None),
        ("size", "224"),
        ("size", {"height": 31}),
        ("size", {"height": 31, "width": -29}),
        ("size", {"longest_edge": 31}),
        ("size", {"shortest_edge": 31, "longest_edge": 47}),
        ("size", {"height": 31, "width": 29, "shortest_edge": 31}),
        ("size", [31, 29, 3]),
        ("resample", 6),
        ("resample", -1),
        ("resample", "sinc"),
        ("resample", 2.0),
        ("rescale_factor", "1/255"),
        ("rescale_factor", float("nan")),
        ("image_mean", [0.5, 0.5]),
        ("image_mean", [0.5, 0.5, "half"]),
        ("image_mean", [0.5, 0.5, float("inf")]),
        ("image_mean", {}),
        ("image_std", [0.5, 0.0, 0.5]),
        ("do_resize", "false"),
        ("do_normalize", 2),
        ("do_pad", True),
    ],
)
def test_a_value_that_cannot_be_honoured_is_named(key: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match=rf"^here: preprocessor_config.json has {key} = ") as caught:
        read_image_spec({**NEW, key: value}, "here")
    assert repr(value) in str(caught.value)
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("crop", [None, 0, {"shortest_edge": 17}])
def test_a_crop_without_a_size_is_named(crop: Any) -> None:
    with pytest.raises(CheckpointError, match="has crop_size = "):
        read_image_spec({**NEW, "do_center_crop": True, "crop_size": crop}, "here")


def test_an_unknown_processor_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"for LlavaImageProcessor; known are .*ViT"):
        read_image_spec({**NEW, "image_processor_type": "LlavaImageProcessor"}, "here")
