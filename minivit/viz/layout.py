"""Parts of drawn images: wrapped text, colour bars, frames."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from minivit.errors import UsageError
from minivit.viz.colormaps import apply_colormap

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

INK, PAPER = (34, 34, 34), (255, 255, 255)


def wrap(text: str, font: Font, width: float) -> list[str]:
    """Return the text as lines of at most this width in pixels; a longer word is divided, nothing is cut off."""
    lines = []
    for paragraph in text.split("\n") if text else []:
        line = ""
        for word in paragraph.split(" "):
            if line and font.getlength(f"{line} {word}") > width:
                lines.append(line)
                line = ""
            line = f"{line} {word}" if line else word
            while font.getlength(line) > width and len(line) > 1:
                fits = next(n for n in range(len(line) - 1, 0, -1) if n == 1 or font.getlength(line[:n]) <= width)
                lines.append(line[:fits])
                line = line[fits:]
        lines.append(line)
    return lines


def draw_lines(
    draw: ImageDraw.ImageDraw, place: tuple[int, int], lines: Sequence[str], font: Font, *, center: int = 0
) -> None:
    """Draw lines of text below each other from (left, top), each in the middle of `center` pixels where given."""
    left, top = place
    step = 1.35 * getattr(font, "size", 10)
    for i, line in enumerate(lines):
        x = left + (center - font.getlength(line)) / 2 if center else left
        draw.text((x, top + round(step * i)), line, INK, font)


def draw_bar(
    image: Image.Image, box: tuple[int, int, int, int], cmap: str, low: float | None, high: float | None, font: Font
) -> None:
    """Draw a colour bar with round numbers below it; without numbers, with the words min and max."""
    left, top, right, bottom = box
    width = max(2, right - left)
    levels = apply_colormap(torch.linspace(0, 1, width, dtype=torch.float64), cmap)
    image.paste(image_from_rgb(levels[None]).resize((width, bottom - top)), (left, top))
    if low is None or high is None:
        ticks = [(0.0, "min of each map"), (1.0, "max of each map")]
    elif high <= low:
        ticks = [(0.0, f"{low:.4g}")]
    else:
        ticks = [((value - low) / (high - low), f"{value:g}") for value in round_ticks(low, high)]
    draw, tick = ImageDraw.Draw(image), max(2, (bottom - top) // 4)
    for place, text in ticks:
        x, length = left + place * (width - 1), font.getlength(text)
        draw.line((x, bottom, x, bottom + tick), INK, max(1, tick // 3))
        # A number stands below its tick, moved where it would leave the bar.
        draw.text((min(max(x - length / 2, left), right - length), bottom + tick), text, INK, font)


def round_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """Return at most `count` round numbers from low to high: multiples of 1, 2 or 5 times a power of ten."""
    unit = 10.0 ** math.floor(math.log10((high - low) / count))
    for step in (unit * factor for factor in (1, 2, 5, 10, 20)):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first < count:
            break
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def draw_frame(image: Image.Image, patch: tuple[int, int], grid: Sequence[int]) -> None:
    """Draw a white frame with a black edge around one patch (row, column) of an image that is all patches.

    Raises:
        UsageError: the patch is outside of the grid.
    """
    (row, column), (rows, columns) = patch, grid
    if not (0 <= row < rows and 0 <= column < columns):
        raise UsageError(f"patch {row}, {column} is outside of the {rows} x {columns} patches")
    wide, high = image.width / columns, image.height / rows
    box = [round(side) for side in (column * wide, row * high, (column + 1) * wide - 1, (row + 1) * high - 1)]
    line = max(1, round(min(wide / 14, high / 14, 2 + max(image.size) / 300)))
    draw = ImageDraw.Draw(image)
    for outside, color in ((line, (0, 0, 0)), (0, (255, 255, 255))):
        draw.rectangle((box[0] - outside, box[1] - outside, box[2] + outside, box[3] + outside), None, color, line)


def image_from_rgb(rgb_hwc: Tensor) -> Image.Image:
    """Return uint8 (h, w, 3) as a Pillow image."""
    h, w = rgb_hwc.shape[:2]
    return Image.frombytes("RGB", (w, h), bytes(rgb_hwc.flatten().tolist()))
