"""Deletion and insertion curves as a sheet of small charts, a tile for every method."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from minivit.errors import ShapeError
from minivit.viz.maps import INK, PAPER, fit

DELETION, INSERTION, GREY, FAINT = (0, 114, 178), (213, 94, 0), (150, 150, 150), (225, 225, 225)


def curve_sheet(
    names: Sequence[str],
    shares_S: Tensor,
    deletion_MS: Tensor,
    insertion_MS: Tensor,
    *,
    random: tuple[Tensor, Tensor],
    pictures: Sequence[Image.Image] = (),
    title: str = "",
    columns: int = 5,
) -> Image.Image:
    """A tile for every method: its picture where there are any, its two curves, and the area under each in words.

    Args:
        names: of the M methods.
        shares_S: the common horizontal axis, from 0 to 1; all curves share the vertical one, from 0 to their greatest.
        random: deletion and insertion of random maps, (S,) each, drawn grey behind every tile's curves.
        pictures: one for each method, or none.
        columns: tiles beside each other.

    Raises:
        ShapeError: not a curve, or not a picture, for every name.
    """
    if (
        deletion_MS.shape != insertion_MS.shape
        or len(deletion_MS) != len(names)
        or len(pictures) not in (0, len(names))
    ):
        raise ShapeError(
            f"{len(names)} names, curves {tuple(deletion_MS.shape)} and {tuple(insertion_MS.shape)}, "
            f"{len(pictures)} pictures; expected one of each for every name"
        )
    columns = min(columns, len(names))
    wide, high, gap, size = 210, 120, 12, 13
    font = ImageFont.load_default(size)
    top = max(float(torch.cat([deletion_MS, insertion_MS, *(line[None] for line in random)]).max()), 1e-6)
    photo_high = round(wide * pictures[0].height / pictures[0].width) if pictures else 0
    tile = 2 * size + photo_high + high + 4 * size
    rows = -(-len(names) // columns)
    result = Image.new("RGB", (max(columns * (wide + gap) + gap, 860), 5 * size + rows * (tile + gap)), PAPER)
    draw = ImageDraw.Draw(result)
    draw.text((gap, size // 2), fit(title, font, result.width - 2 * gap), INK, font)
    x = float(gap)
    for words, colour in (("deletion, lower is better", DELETION), ("insertion, higher is better", INSERTION),
                          ("the same for random maps", GREY)):  # fmt: skip
        draw.line((x, 3 * size, x + 20, 3 * size), colour, 2)
        draw.text((x + 26, 2.4 * size), words, INK, font)
        x += 26 + font.getlength(words) + 2 * gap
    draw.text((x, 2.4 * size), f"across: share of the patches; up: 0 to {top:.3g}", INK, font)
    for i, name in enumerate(names):
        left = gap + (i % columns) * (wide + gap)
        y = 5 * size + (i // columns) * (tile + gap)
        draw.text((left, y), fit(name, font, wide), INK, font)
        y += 2 * size
        if pictures:
            result.paste(pictures[i].resize((wide, photo_high), Image.Resampling.LANCZOS), (left, y))
            y += photo_high + size // 2
        lines = [(random[0], GREY), (random[1], GREY), (deletion_MS[i], DELETION), (insertion_MS[i], INSERTION)]
        result.paste(_chart(shares_S, lines, top, (wide, high)), (left, y))
        areas = [float(torch.trapezoid(line, shares_S)) for line in (deletion_MS[i], insertion_MS[i])]
        draw.text((left, y + high + 2), f"deletion {areas[0]:.3f}", DELETION, font)
        right = f"insertion {areas[1]:.3f}"
        draw.text((left + wide - font.getlength(right), y + high + 2), right, INSERTION, font)
    return result


def _chart(
    shares_S: Tensor, lines: Sequence[tuple[Tensor, tuple[int, int, int]]], top: float, size: tuple[int, int]
) -> Image.Image:
    """Curves on axes from 0 to 1 and 0 to `top`, drawn four times as large and reduced, which smooths them."""
    wide, high = (4 * side for side in size)
    chart = Image.new("RGB", (wide, high), PAPER)
    draw = ImageDraw.Draw(chart)
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        draw.line((0, share * (high - 4), wide, share * (high - 4)), FAINT, 4)
    for line, colour in lines:
        values = ((1 - line / top) * (high - 8) + 2).tolist()
        draw.line(list(zip((shares_S * (wide - 1)).tolist(), values, strict=True)), colour, 8, joint="curve")
    return chart.resize(size, Image.Resampling.LANCZOS)
