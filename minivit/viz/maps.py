"""Maps as images: over the image they belong to, or many on one sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from minivit.errors import ShapeError, UsageError
from minivit.viz.colormaps import colormap, components_to_rgb, rgb, to_unit
from minivit.viz.layout import INK, PAPER, draw_bar, draw_frame, draw_lines, image_from_rgb, wrap
from minivit.viz.style import COLORS

Box = tuple[float, float, float, float]

OTHER = (150, 150, 150)  # grey of labels without a colour of their own
MIN_WIDTH = 1000  # pixels: smaller images are enlarged, so that title and patches can be read
SHEET_WIDTH = 2000  # pixels: a sheet is at least as wide


def overlay(
    image: Image.Image,
    values_hw: Tensor,
    *,
    box: Box | None = None,
    cmap: str = "turbo",
    bounds: tuple[float, float] | None = None,
    opacity: float = 0.5,
    smooth: bool = False,
    query: tuple[int, int] | None = None,
    title: str = "",
    width: int | None = None,
    colours: str | None = None,
) -> Image.Image:
    """Return the image with a map over it, a title and a colour bar below.

    The map's own min has the first colour, its max the last. Three maps (h, w, 3) become red, green and blue,
    each from its own min to its own max, without a bar.

    Args:
        image: upright RGB, as `minivit.open_image` returns it.
        values_hw: one number for each patch, (h, w), or three, (h, w, 3).
        box: where in the image the patches lie (left, upper, right, lower), as `images.preprocess.seen_box`
            returns it; None is the whole image.
        cmap: one of `viz.COLORMAPS`.
        bounds: values of the first and last colour instead: (-m, m) for values around 0.
        opacity: of the map over the image, 0 to 1.
        smooth: interpolate between patches (bicubic); otherwise each patch is one block.
        query: row and column of the patch the map belongs to; it gets a frame.
        title: one line or several; long lines are wrapped.
        width: of the result in pixels; None is the image's own, enlarged to 1,000 (or a height of 4,000).
        colours: former name of cmap.

    Raises:
        ShapeError: not a map; UsageError: unknown colormap, or an opacity outside 0 to 1.
    """
    if not 0 <= opacity <= 1:
        raise UsageError(f"opacity is {opacity}; it must be from 0 to 1")
    cmap = colours or cmap
    enlarged = min(MIN_WIDTH / image.width, 4 * MIN_WIDTH / image.height)  # a long narrow image stays a small file
    factor = width / image.width if width else max(1.0, enlarged)
    large = image.convert("RGB")
    if factor != 1:
        large = large.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.LANCZOS)
        box = box and (box[0] * factor, box[1] * factor, box[2] * factor, box[3] * factor)
    painted = paint(large, values_hw, box=box, cmap=cmap, bounds=bounds, opacity=opacity, smooth=smooth, query=query)
    size = max(11, round(painted.width / 42))
    font, margin = ImageFont.load_default(size), size // 2
    lines = wrap(title, font, painted.width - 2 * margin)
    text_height = round(1.35 * size * len(lines))
    bar_height = round(2.8 * size) if values_hw.ndim == 2 else 0
    sheet = Image.new("RGB", (painted.width, painted.height + text_height + bar_height + size), PAPER)
    sheet.paste(painted)
    draw = ImageDraw.Draw(sheet)
    y = painted.height + size // 3
    draw_lines(draw, (margin, y), lines, font)
    if values_hw.ndim == 2:
        _, low, high = to_unit(values_hw, *(bounds or ()))
        top = y + text_height + size // 4
        draw_bar(sheet, (margin, top, painted.width - margin, top + size), cmap, low, high, font)
    return sheet


def paint(
    image: Image.Image,
    values_hw: Tensor,
    *,
    box: Box | None = None,
    cmap: str = "turbo",
    bounds: tuple[float, float] | None = None,
    opacity: float = 0.5,
    smooth: bool = False,
    query: tuple[int, int] | None = None,
    colours: str | None = None,
) -> Image.Image:
    """Return the image, in its own size, with the map blended over it; arguments as in `overlay`."""
    if values_hw.ndim not in (2, 3):
        raise ShapeError(f"a map is (h, w) or (h, w, 3), not {tuple(values_hw.shape)}")
    left, upper, right, lower = (round(side) for side in box or (0, 0, image.width, image.height))
    size = (max(1, right - left), max(1, lower - upper))
    colored = color_map(values_hw, size, cmap=colours or cmap, bounds=bounds, smooth=smooth)
    result = image.convert("RGB")
    under = result.crop((left, upper, right, lower))
    over = Image.blend(under, colored, opacity)
    if query is not None:
        draw_frame(over, query, values_hw.shape[:2])
    result.paste(over, (left, upper))
    return result


def color_map(
    values_hw: Tensor,
    size: tuple[int, int],
    *,
    cmap: str = "turbo",
    bounds: tuple[float, float] | None = None,
    smooth: bool = False,
) -> Image.Image:
    """Return a map (h, w) or (h, w, 3) as an image of this (width, height)."""
    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    if values_hw.ndim == 3:
        return image_from_rgb(components_to_rgb(values_hw)).resize(size, how)
    unit, _, _ = to_unit(values_hw, *(bounds or ()))
    h, w = unit.shape
    levels = Image.frombytes("L", (w, h), bytes((unit * 255).round().to(torch.uint8).flatten().tolist()))
    # Values are interpolated, not colours: between blue and red lies green, not violet.
    indexed = levels.resize(size, how).convert("P")
    indexed.putpalette(bytes(colormap(cmap).flatten().tolist()))
    return indexed.convert("RGB")


def sheet(
    maps: Tensor,
    row_names: Sequence[str],
    column_names: Sequence[str],
    *,
    cmap: str = "turbo",
    scale: str = "each",
    tile: int | None = None,
    smooth: bool = False,
    query: tuple[int, int] | None = None,
    title: str = "",
    colours: str | None = None,
) -> Image.Image:
    """Return many maps on one sheet with a colour bar: (rows, columns, h, w), for example layers x heads.

    Args:
        scale: "each" map from its own min to its own max, which compares places and not strengths, or
            "shared": all from the min to the max of the whole sheet.
        tile: the longer side of a map in pixels; patches are whole pixels. None makes the sheet 2,000 wide or more.
        smooth, query, title, cmap: as in `overlay`.
        colours: former name of cmap.

    Raises:
        ShapeError: not four axes, or not a name for each row and column.
        UsageError: unknown scale or colormap.
    """
    if maps.ndim != 4 or maps.shape[:2] != (len(row_names), len(column_names)):
        raise ShapeError(
            f"maps of shape {tuple(maps.shape)} for {len(row_names)} row and {len(column_names)} column names; "
            "expected (rows, columns, h, w)"
        )
    if scale not in ("each", "shared"):
        raise UsageError(f"scale is {scale!r}; it must be each or shared")
    cmap = colours or cmap
    rows, columns, h, w = maps.shape
    if tile is None:
        patch, size = -(-SHEET_WIDTH // (columns * max(h, w))), 36
    else:
        patch, size = max(1, tile // max(h, w)), max(13, tile // 8)
    font, gap = ImageFont.load_default(size), size // 3
    tall = h * patch
    names_width = max(math.ceil(font.getlength(name)) for name in row_names) + 2 * gap
    heads = [wrap(name, font, w * patch) for name in column_names]
    wide = max([w * patch, *(math.ceil(font.getlength(line)) for lines in heads for line in lines)])
    width = max(names_width + columns * (wide + gap) + gap, 24 * size)
    lines = wrap(title, font, width - 2 * gap)
    top = gap + round(1.35 * size * len(lines)) + gap
    head = top + round(1.35 * size * max(map(len, heads)))
    result = Image.new("RGB", (width, head + rows * (tall + gap) + 4 * size), PAPER)
    draw = ImageDraw.Draw(result)
    draw_lines(draw, (gap, gap), lines, font)
    for c, lines in enumerate(heads):
        draw_lines(draw, (names_width + c * (wide + gap), top), lines, font, center=wide)
    low, high = (None, None) if scale == "each" else (float(maps.min()), float(maps.max()))
    bounds = None if low is None or high is None else (low, high)
    for r, name in enumerate(row_names):
        y = head + r * (tall + gap)
        draw.text((names_width - font.getlength(name) - gap, y + tall / 2 - 0.6 * size), name, INK, font)
        for c in range(columns):
            colored = color_map(maps[r, c], (w * patch, tall), cmap=cmap, bounds=bounds, smooth=smooth)
            if query is not None:
                draw_frame(colored, query, (h, w))
            result.paste(colored, (names_width + c * (wide + gap) + (wide - w * patch) // 2, y))
    bar = (names_width, result.height - round(3.2 * size), width - size, result.height - round(2.2 * size))
    draw_bar(result, bar, cmap, low, high, font)
    return result


def label_maps(
    photo: Image.Image,
    labels_Thw: Tensor,
    names: Sequence[str],
    labels: Mapping[int, str],
    *,
    always: Sequence[int] = (),
    opacity: float = 0.7,
    tile: int = 390,
    columns: int = 5,
    title: str = "",
) -> Image.Image:
    """Return which label every patch has: a tile for each of T maps over the image, with a legend.

    The ten labels of most patches, counted over all tiles, have a colour each. All others are grey.

    Args:
        photo: the image as the model sees it; it is resized to the grid of patches.
        labels_Thw: index of the label of each patch.
        names: of the tiles.
        labels: names of the indices.
        always: indices that have a colour however few patches have them.
        tile: the longer side of a tile in pixels.

    Raises:
        ShapeError: not a map for each name.
    """
    if labels_Thw.ndim != 3 or len(labels_Thw) != len(names):
        raise ShapeError(f"labels of shape {tuple(labels_Thw.shape)} for {len(names)} names; expected (T, h, w)")
    rows, across = labels_Thw.shape[1:]
    index, count = labels_Thw.unique(return_counts=True)
    most = index[count.argsort(descending=True, stable=True)].tolist()
    colored = [*dict.fromkeys(label for label in [*always, *most] if label in most)][: len(COLORS)]
    palette = torch.tensor([rgb(color) for color in COLORS], dtype=torch.uint8)
    size = max(13, tile // 14)
    font, gap = ImageFont.load_default(size), size // 2
    wide, high = round(tile * min(1, across / rows)), round(tile * min(1, rows / across))
    under = photo.convert("RGB").resize((wide, high), Image.Resampling.BICUBIC)
    tiles = [("image", under)]
    for name, labels_hw in zip(names, labels_Thw, strict=True):
        patches = torch.tensor(OTHER, dtype=torch.uint8).repeat(rows, across, 1)
        for place, label in enumerate(colored):
            patches[labels_hw == label] = palette[place]
        over = image_from_rgb(patches).resize((wide, high), Image.Resampling.NEAREST)
        tiles.append((name, Image.blend(under, over, opacity)))
    columns = min(columns, len(tiles))
    legend = [(labels.get(label, f"class {label}"), rgb(COLORS[place])) for place, label in enumerate(colored)]
    legend += [("another label", OTHER)] if len(index) > len(colored) else []
    width = max(columns * (wide + gap) + gap, 24 * size)
    lines, line = wrap(title, font, width - 2 * gap), round(1.4 * size)
    head, step = gap + line * (len(lines) or 1), high + line + gap
    below = head + -(-len(tiles) // columns) * step
    result = Image.new("RGB", (width, below + len(legend) * line + size), PAPER)
    draw = ImageDraw.Draw(result)
    draw_lines(draw, (gap, gap), lines, font)
    for place, (name, image) in enumerate(tiles):
        x, y = gap + place % columns * (wide + gap), head + place // columns * step
        draw.text((x, y), name, INK, font)
        result.paste(image, (x, y + line))
    for place, (name, color) in enumerate(legend):
        y = below + place * line
        draw.rectangle((gap, y + 2, gap + size, y + 2 + size), color)
        draw.text((2 * gap + size, y), name, INK, font)
    return result
