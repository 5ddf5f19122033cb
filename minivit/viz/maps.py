"""Maps as pictures: over the photo, or many on one sheet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from minivit.errors import ShapeError, UsageError
from minivit.viz.colormaps import colourise, components_to_rgb, ramp, to_unit

Box = tuple[float, float, float, float]

INK, PAPER = (34, 34, 34), (255, 255, 255)


def overlay(
    photo: Image.Image,
    values_hw: Tensor,
    *,
    box: Box | None = None,
    colours: str = "blue-red",
    bounds: tuple[float, float] | None = None,
    opacity: float = 0.5,
    smooth: bool = False,
    title: str = "",
) -> Image.Image:
    """A map over its photo, with a colour bar that says what the colours are worth.

    Normalisation: the map's own least value takes the first colour, its greatest the last; both numbers stand
    at the bar. Three maps (h, w, 3) become red, green and blue, each from its own least to most, without a bar.

    Args:
        photo: upright RGB, as `minivit.preprocess.open_image` returns it; the result has its size and a strip below.
        values_hw: one number for each patch, (h, w), or three, (h, w, 3).
        box: where in the photo the patches lie (left, upper, right, lower), as `preprocess.seen_box` tells; None is
            the whole photo.
        colours: "blue-red", much in red, "cubehelix", much in white, or another of `colours.RAMPS`.
        bounds: the numbers of the first and last colour instead, -m and m for numbers around 0.
        opacity: share of the map in each pixel, 0 to 1.
        smooth: interpolate between patches; otherwise every patch shows as the block it is.
        title: for the strip, one line or several.

    Raises:
        ShapeError: not a map; UsageError: no such colours, or an opacity outside 0 to 1.
    """
    if not 0 <= opacity <= 1:
        raise UsageError(f"opacity is {opacity}; it is a share, from 0 to 1")
    painted = paint(photo, values_hw, box=box, colours=colours, bounds=bounds, opacity=opacity, smooth=smooth)
    size = max(11, round(photo.width / 42))
    lines = title.split("\n")
    height = round(size * (1.3 * len(lines) + (3.1 if values_hw.ndim == 2 else 0.5)))
    sheet = Image.new("RGB", (photo.width, photo.height + height), PAPER)
    sheet.paste(painted)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size)
    margin, y = size // 2, photo.height + size // 4
    for i, line in enumerate(lines):
        draw.text((margin, y + round(1.3 * size * i)), fit(line, font, photo.width - 2 * margin), INK, font)
    if values_hw.ndim == 2:
        _, low, high = to_unit(values_hw, *(bounds or ()))
        top = y + round(size * (1.3 * len(lines) + 0.2))
        draw_bar(sheet, (margin, top, photo.width - margin, top + size), colours, low, high, font)
    return sheet


def paint(
    photo: Image.Image,
    values_hw: Tensor,
    *,
    box: Box | None = None,
    colours: str = "blue-red",
    bounds: tuple[float, float] | None = None,
    opacity: float = 0.5,
    smooth: bool = False,
) -> Image.Image:
    """The photo with the map blended over it, and nothing else; as `overlay`."""
    if values_hw.ndim not in (2, 3):
        raise ShapeError(f"a map is (h, w) or (h, w, 3), not {tuple(values_hw.shape)}")
    left, upper, right, lower = (round(side) for side in box or (0, 0, photo.width, photo.height))
    size = (max(1, right - left), max(1, lower - upper))
    if values_hw.ndim == 3:
        coloured = image_from_rgb(components_to_rgb(values_hw)).resize(size, _filter(smooth))
    else:
        unit, _, _ = to_unit(values_hw, *(bounds or ()))
        # The numbers are interpolated, not their colours: between blue and red lies green, not violet.
        levels = _grey(unit).resize(size, _filter(smooth))
        coloured = levels.convert("P")
        coloured.putpalette(bytes(ramp(colours).flatten().tolist()))
        coloured = coloured.convert("RGB")
    result = photo.convert("RGB")
    under = result.crop((left, upper, right, lower))
    result.paste(Image.blend(under, coloured, opacity), (left, upper))
    return result


def sheet(
    maps: Tensor,
    row_names: Sequence[str],
    column_names: Sequence[str],
    *,
    colours: str = "blue-red",
    scale: str = "each",
    tile: int = 96,
    title: str = "",
) -> Image.Image:
    """Many maps on one sheet with a colour bar: (rows, columns, h, w), for example layers x heads.

    Args:
        scale: "each" map from its own least to its own most, which compares places and not strengths, or
            "shared", all by the least and most of the whole sheet.
        tile: the longer side of a map in pixels; patches keep their shape and whole pixels.

    Raises:
        ShapeError: not four axes, or not a name for each row and column.
        UsageError: no such scale or colours.
    """
    if maps.ndim != 4 or maps.shape[:2] != (len(row_names), len(column_names)):
        raise ShapeError(
            f"maps of shape {tuple(maps.shape)} for {len(row_names)} row and {len(column_names)} column names; "
            "expected (rows, columns, h, w)"
        )
    if scale not in ("each", "shared"):
        raise UsageError(f"scale is {scale!r}; it must be each or shared")
    rows, columns, h, w = maps.shape
    patch = max(1, tile // max(h, w))
    gap, size = 4, 13
    font = ImageFont.load_default(size)
    names_width = max(round(font.getlength(name)) for name in row_names) + 3 * gap
    head = (2 * size if title else 0) + 2 * size
    across = names_width + columns * (w * patch + gap) + gap
    result = Image.new("RGB", (max(across, 420), head + rows * (h * patch + gap) + 4 * size), PAPER)
    draw = ImageDraw.Draw(result)
    draw.text((gap, size // 2), fit(title, font, result.width - 2 * gap), INK, font)
    low, high = (None, None) if scale == "each" else (float(maps.min()), float(maps.max()))
    for c, name in enumerate(column_names):
        x = names_width + c * (w * patch + gap)
        text = fit(name, font, w * patch)
        draw.text((x + (w * patch - font.getlength(text)) / 2, head - size - gap), text, INK, font)
    for r, name in enumerate(row_names):
        y = head + r * (h * patch + gap)
        draw.text((names_width - font.getlength(name) - gap, y + h * patch / 2 - size / 2), name, INK, font)
        for c in range(columns):
            colour = image_from_rgb(colourise(to_unit(maps[r, c], low, high)[0], colours))
            place = (names_width + c * (w * patch + gap), y)
            result.paste(colour.resize((w * patch, h * patch), Image.Resampling.NEAREST), place)
    bar = (names_width, result.height - 3 * size, max(across, 420) - gap, result.height - 2 * size)
    draw_bar(result, bar, colours, low, high, font)
    return result


def draw_bar(
    image: Image.Image,
    box: tuple[int, int, int, int],
    colours: str,
    low: float | None,
    high: float | None,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """A colour bar with its least, middle and greatest number below it; without numbers, in words."""
    left, top, right, bottom = box
    width = max(2, right - left)
    levels = colourise(torch.linspace(0, 1, width, dtype=torch.float64), colours)
    image.paste(image_from_rgb(levels[None]).resize((width, bottom - top)), (left, top))
    if low is None or high is None:
        texts = ["least of each map", "", "most of each map"]
    else:
        texts = [f"{value:.4g}" for value in (low, (low + high) / 2, high)]
    draw = ImageDraw.Draw(image)
    for text, share in zip(texts, (0.0, 0.5, 1.0), strict=True):
        draw.text((left + share * (width - font.getlength(text)), bottom + 2), text, INK, font)


def image_from_rgb(rgb_hwc: Tensor) -> Image.Image:
    """uint8 (h, w, 3) as a Pillow image."""
    h, w = rgb_hwc.shape[:2]
    return Image.frombytes("RGB", (w, h), bytes(rgb_hwc.flatten().tolist()))


def _grey(unit_hw: Tensor) -> Image.Image:
    h, w = unit_hw.shape
    return Image.frombytes("L", (w, h), bytes((unit_hw * 255).round().to(torch.uint8).flatten().tolist()))


def _filter(smooth: bool) -> Image.Resampling:
    return Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST


def fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    """The text, cut with an ellipsis where it is longer than its place."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..." if text else ""
