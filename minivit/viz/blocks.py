"""What happens block by block: numbers as coloured cells, the labels of patches, heads by depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from minivit.errors import ShapeError, UsageError
from minivit.viz.charts import COLOURS, round_up
from minivit.viz.colormaps import colourise, to_unit
from minivit.viz.maps import INK, PAPER, draw_bar, fit, image_from_rgb

GRID, OTHER = (221, 221, 221), (150, 150, 150)
# Beside those of the charts, so that ten labels can be told apart (Okabe and Ito 2008; Tol 2018).
LABEL_COLOURS = (*COLOURS, "#56b4e9", "#f0e442", "#332288", "#882255", "#44aa99")
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def cells(
    values_RC: Tensor,
    row_names: Sequence[str],
    column_names: Sequence[str],
    *,
    form: str = "{:.2f}",
    bounds: tuple[float, float] | None = None,
    colours: str = "blue-white-red",
    title: str = "",
) -> Image.Image:
    """A table of numbers (rows, columns), each on a ground in its colour, with a colour bar.

    Args:
        form: how a number is written in its cell.
        bounds: the numbers of the first and last colour; None is the greatest magnitude below and above 0.
        title: one line or several.

    Raises:
        ShapeError: not a name for each row and column, or NaN; UsageError: no such colours.
    """
    if values_RC.shape != (len(row_names), len(column_names)):
        raise ShapeError(f"{tuple(values_RC.shape)} numbers for {len(row_names)} rows, {len(column_names)} columns")
    most = float(values_RC.abs().max()) if values_RC.numel() else 0.0
    unit, low, high = to_unit(values_RC, *(bounds or (-most, most)))
    unit = unit if high > low else torch.full_like(unit, 0.5)
    size, gap = 13, 6
    font = ImageFont.load_default(size)
    texts = [[_unsigned_zero(form.format(value)) for value in row] for row in values_RC.tolist()]
    wide = max(round(font.getlength(text)) for text in [*column_names, *(text for row in texts for text in row)]) + gap
    left = max(round(font.getlength(name)) for name in row_names) + 2 * gap
    lines, high_cell = title.split("\n"), 2 * size - 4
    top = round(1.4 * size * len(lines)) + 2 * size
    width = max(left + wide * len(column_names) + gap, 420)
    image = Image.new("RGB", (width, top + high_cell * len(row_names) + 4 * size), PAPER)
    draw = ImageDraw.Draw(image)
    for i, line in enumerate(lines):
        draw.text((gap, size // 2 + round(1.4 * size * i)), fit(line, font, width - 2 * gap), INK, font)
    for c, name in enumerate(column_names):
        _centred(draw, (left + wide * c, top - size - 4, wide), name, font)
    ground = colourise(unit, colours)
    for r, name in enumerate(row_names):
        y = top + high_cell * r
        draw.text((left - gap - font.getlength(name), y + 4), name, INK, font)
        for c, text in enumerate(texts[r]):
            colour = tuple(ground[r, c].tolist())
            draw.rectangle((left + wide * c, y, left + wide * (c + 1) - 2, y + high_cell - 2), colour)
            dark = colour[0] * 0.30 + colour[1] * 0.59 + colour[2] * 0.11 < 128
            _centred(draw, (left + wide * c, y + 4, wide - 2), text, font, PAPER if dark else INK)
    bar = (left, image.height - 3 * size, width - gap, image.height - 2 * size)
    draw_bar(image, bar, colours, low, high, font)
    return image


def label_maps(
    photo: Image.Image,
    labels_Thw: Tensor,
    names: Sequence[str],
    labels: Mapping[int, str],
    *,
    always: Sequence[int] = (),
    opacity: float = 0.7,
    tile: int = 160,
    columns: int = 5,
    title: str = "",
) -> Image.Image:
    """Which label every patch has, a tile for each of T maps over the photo, with a legend.

    Ten labels have a colour each, those that most patches have over all tiles; what is grey has another.

    Args:
        photo: what the network sees of the picture; it is stretched onto the grid of patches.
        labels_Thw: a label's index for each patch.
        names: of the tiles.
        labels: names of the indices.
        always: indices that have a colour however few patches have them.

    Raises:
        ShapeError: not a map for each name.
    """
    if labels_Thw.ndim != 3 or len(labels_Thw) != len(names):
        raise ShapeError(f"labels of shape {tuple(labels_Thw.shape)} for {len(names)} names; expected (T, h, w)")
    rows, across = labels_Thw.shape[1:]
    size, gap = 13, 6
    font = ImageFont.load_default(size)
    index, count = labels_Thw.unique(return_counts=True)
    most = index[count.argsort(descending=True, stable=True)].tolist()
    coloured = [*dict.fromkeys(label for label in [*always, *most] if label in most)][: len(LABEL_COLOURS)]
    palette = torch.tensor([_rgb(colour) for colour in LABEL_COLOURS], dtype=torch.uint8)
    wide, high = round(tile * min(1, across / rows)), round(tile * min(1, rows / across))
    under = photo.convert("RGB").resize((wide, high), Image.Resampling.BICUBIC)
    tiles = [("photo", under)]
    for name, labels_hw in zip(names, labels_Thw, strict=True):
        rgb = torch.tensor(OTHER, dtype=torch.uint8).repeat(rows, across, 1)
        for place, label in enumerate(coloured):
            rgb[labels_hw == label] = palette[place]
        over = image_from_rgb(rgb).resize((wide, high), Image.Resampling.NEAREST)
        tiles.append((name, Image.blend(under, over, opacity)))
    columns = min(columns, len(tiles))
    legend = [(labels.get(label, f"class {label}"), LABEL_COLOURS[place]) for place, label in enumerate(coloured)]
    legend += [("another label", "#{:02x}{:02x}{:02x}".format(*OTHER))] if len(index) > len(coloured) else []
    width = max(columns * (wide + gap) + gap, 420)
    head, below = 2 * size, -(-len(tiles) // columns) * (high + 2 * size)
    image = Image.new("RGB", (width, head + below + (len(legend) + 1) * (size + 5)), PAPER)
    draw = ImageDraw.Draw(image)
    draw.text((gap, size // 2), fit(title, font, width - 2 * gap), INK, font)
    for place, (name, picture) in enumerate(tiles):
        x, y = gap + place % columns * (wide + gap), head + place // columns * (high + 2 * size)
        draw.text((x, y + 3), fit(name, font, wide), INK, font)
        image.paste(picture, (x, y + 3 + size + 4))
    for place, (name, colour) in enumerate(legend):
        y = head + below + 4 + place * (size + 5)
        draw.rectangle((gap, y + 2, gap + size, y + 2 + size), colour)
        draw.text((2 * gap + size, y), fit(name, font, width - 4 * gap - size), INK, font)
    return image


def dots_by_depth(panels: Mapping[str, Tensor], *, title: str = "", columns: int = 2) -> Image.Image:
    """A panel for each name: a dot for every head, blocks from left to right, numbers (layers, A) upwards from 0.

    The form of Dosovitskiy et al. 2021 (arXiv:2010.11929), figure 7 right.

    Raises:
        ShapeError: not (layers, A); UsageError: no panels.
    """
    if not panels:
        raise UsageError("no numbers to draw")
    for name, values_LA in panels.items():
        if values_LA.ndim != 2:
            raise ShapeError(f"{name} has shape {tuple(values_LA.shape)}; expected (layers, A)")
    columns = min(columns, len(panels))
    wide, high, fine = 440, 250, 3  # drawn three times as large, for round dots
    image = Image.new("RGB", (columns * wide, 30 + -(-len(panels) // columns) * high), PAPER)
    font = ImageFont.load_default(13)
    ImageDraw.Draw(image).text((10, 7), fit(title, font, image.width - 20), INK, font)
    for place, (name, values_LA) in enumerate(panels.items()):
        panel = _dots(name, values_LA, (wide * fine, high * fine), fine).resize((wide, high), Image.Resampling.LANCZOS)
        image.paste(panel, (place % columns * wide, 30 + place // columns * high))
    return image


def _dots(name: str, values_LA: Tensor, size: tuple[int, int], fine: int) -> Image.Image:
    image = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(12 * fine)
    left, right, top, bottom = 52 * fine, size[0] - 14 * fine, 26 * fine, size[1] - 34 * fine
    layers = len(values_LA)
    most = round_up(float(values_LA.max()))
    draw.text((left, 5 * fine), name, INK, font)
    for i in range(5):
        y = bottom - (bottom - top) * i / 4
        draw.line((left, y, right, y), GRID, fine)
        text = f"{most * i / 4:g}"
        draw.text((left - 6 * fine - font.getlength(text), y - 8 * fine), text, INK, font)
    step = (right - left) / layers
    every = -(-layers // 12)
    for layer, values_A in enumerate(values_LA.tolist()):
        x = left + step * (layer + 0.5)
        if layer % every == 0:
            _centred(draw, (round(x - step), bottom + 4 * fine, round(2 * step)), str(layer), font)
        for value in values_A:
            y, r = bottom - value / most * (bottom - top), 3.5 * fine
            draw.ellipse((x - r, y - r, x + r, y + r), _rgb(COLOURS[0]), PAPER, fine // 2)
    _centred(draw, (left, bottom + 17 * fine, right - left), "layer", font)
    return image


def _unsigned_zero(text: str) -> str:
    """A number as it is written, without the sign of what rounding made 0."""
    return text if float(text) else text.lstrip("+-")


def _centred(
    draw: ImageDraw.ImageDraw, place: tuple[int, int, int], text: str, font: Font, colour: tuple[int, int, int] = INK
) -> None:
    """Text in the middle of a place: left, top, width."""
    left, top, width = place
    draw.text((left + (width - font.getlength(text)) / 2, top), text, colour, font)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
