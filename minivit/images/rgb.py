"""From any mode of Pillow to 8-bit RGB."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from PIL import Image

from minivit.errors import ImageError
from minivit.images.profiles import apply_profile

STRIP = 2**22  # pixels that are converted at a time, so that a large image has no second and third copy


def to_rgb(
    image: Image.Image,
    name: str,
    note: Callable[[str], None],
    *,
    icc: str = "ignore",
    white: int = 65535,
    inverted: bool = False,
) -> Image.Image:
    """Return a loaded image of any mode of Pillow as 8-bit RGB.

    Args:
        name: the name in error messages.
        note: called with one line for each change.
        icc: what is done with a colour profile that is not sRGB: "ignore" or "convert".
        white: the largest value of a 16-bit grey image; 4095 for 12 bits.
        inverted: 0 is white in a 16-bit grey image.

    Raises:
        ImageError: pixels that have no agreed conversion.
    """
    profile = image.info.get("icc_profile")
    if image.mode == "F":
        raise ImageError("unsupported", f"{name}: floating-point pixels have no agreed range; convert them to 8 bits")
    try:
        if image.mode.startswith("I"):
            image = _from_16_bit(image, name, note, white, inverted)
        if profile:
            image = apply_profile(image, profile, icc, note)
        elif abs(image.info.get("gamma", 0.45455) - 0.45455) > 0.01 and "srgb" not in image.info:
            note(f"its gamma {image.info['gamma']:g} is ignored, taken as sRGB")
        if image.mode == "RGB" and "transparency" not in image.info:
            return image
        if image.has_transparency_data:
            note("transparency flattened on white")
            return _by_strips(image, "RGB", _flatten)
        if image.mode == "CMYK":
            note("CMYK converted without its colour profile")
        return image.convert("RGB")
    except ValueError:
        raise ImageError("unsupported", f"{name}: pixels of mode {image.mode} have no conversion to RGB") from None


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield (top, part) for parts of an image of about STRIP pixels; an image below that is one part."""
    rows = max(1, STRIP // max(1, image.width))
    if rows >= image.height:
        yield 0, image
        return
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _by_strips(image: Image.Image, mode: str, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    parts = _strips(image)
    result = None
    for top, part in parts:
        done = convert(part)
        if done.size == image.size:
            return done
        if result is None:
            result = Image.new(mode, image.size)
        result.paste(done, (0, top))
    assert result is not None
    return result


def _flatten(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, (255, 255, 255, 255)), rgba).convert("RGB")


def _from_16_bit(image: Image.Image, name: str, note: Callable[[str], None], white: int, inverted: bool) -> Image.Image:
    """Return a 16-bit grey image in 8 bits, round(value * 255 / white); Pillow's own conversion clips at 255."""
    bounds = [part.convert("I").getextrema() for _, part in _strips(image)]
    low, high = min(low for low, _ in bounds), max(high for _, high in bounds)
    if low < 0 or high > white:  # type: ignore[operator]
        raise ImageError("unsupported", f"{name}: integer pixels from {low} to {high}; convert to 8 or 16 bits")
    note(f"{white.bit_length()} bits a pixel scaled to 8")
    if "transparency" in image.info:
        note("its transparent grey value is not flattened")
    # Pillow truncates, so adding 0.5 rounds; no value of 16 bits lies exactly between two levels.
    scale, start = (-255 / white, 255.5) if inverted else (255 / white, 0.5)

    def convert(part: Image.Image) -> Image.Image:
        values = part.convert("I")
        values.info.pop("transparency", None)
        return values.point(lambda value: value * scale + start).convert("L")

    return _by_strips(image, "L", convert)
