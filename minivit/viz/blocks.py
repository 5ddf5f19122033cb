"""Charts of what happens block by block: numbers in cells, and heads by depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from minivit.errors import ShapeError, UsageError
from minivit.viz.colormaps import apply_colormap, to_unit
from minivit.viz.style import COLORS, PAGE, chart_style, figure_of, listed, new_axes

if TYPE_CHECKING:
    from minivit.viz.style import Axes, Figure


def cells(
    values_RC: Tensor,
    row_names: Sequence[str],
    column_names: Sequence[str],
    *,
    form: str = "{:.2f}",
    bounds: tuple[float, float] | None = None,
    cmap: str = "RdBu_r",
    title: str = "",
    label: str = "",
    ax: Axes | None = None,
    colours: str | None = None,
) -> Figure:
    """Return a table of numbers (rows, columns), each in a cell with its colour, and a colour bar.

    Args:
        form: how a number is written in its cell.
        bounds: values of the first and last colour; None is -m and m, where m is the largest magnitude.
        cmap: one of `viz.COLORMAPS`.
        title: one line or several.
        label: what the numbers are, with the unit, at the colour bar.
        ax: draw there; None makes a figure that fits the table.
        colours: former name of cmap.

    Raises:
        ShapeError: not a name for each row and column, or NaN; UsageError: unknown colormap.
    """
    if values_RC.shape != (len(row_names), len(column_names)):
        raise ShapeError(f"{tuple(values_RC.shape)} numbers for {len(row_names)} rows, {len(column_names)} columns")
    cmap = colours or cmap
    most = float(values_RC.abs().max()) if values_RC.numel() else 0.0
    unit, low, high = to_unit(values_RC, *(bounds or (-most, most)))
    if high <= low:
        unit, low, high = torch.full_like(unit, 0.5), low - 1, high + 1
    texts = [[_unsigned_zero(form.format(value)) for value in row] for row in values_RC.tolist()]
    dark_RC = apply_colormap(unit, cmap).double() @ torch.tensor([0.30, 0.59, 0.11], dtype=torch.float64) < 128
    with chart_style():
        wide = 0.055 * max(len(text) for text in [*column_names, *(text for row in texts for text in row)]) + 0.1
        names = 0.06 * max(map(len, row_names))
        width = max(3.35, names + wide * len(column_names) + 0.2)
        lines = [part for line in title.split("\n") for part in wrap(line, int(width * 14))]
        height = 0.22 * len(row_names) + 0.9 + 0.16 * len(lines)
        ax = ax or new_axes(size=(width, height))[0]
        mesh = ax.pcolormesh(
            values_RC.tolist(), cmap=listed(cmap), vmin=low, vmax=high, edgecolors="white", linewidth=1
        )
        ax.invert_yaxis()
        ax.set_title("\n".join(lines), pad=8)
        ax.xaxis.tick_top()
        ax.set_xticks([c + 0.5 for c in range(len(column_names))], column_names)
        ax.set_yticks([r + 0.5 for r in range(len(row_names))], row_names)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.grid(visible=False)
        for r, row in enumerate(texts):
            for c, text in enumerate(row):
                color = "white" if dark_RC[r, c] else "#222222"
                ax.text(c + 0.5, r + 0.5, text, ha="center", va="center", fontsize=7, color=color)
        figure = figure_of(ax)
        figure.colorbar(mesh, ax=ax, orientation="horizontal", aspect=40, fraction=0.3 / height, pad=0.02, label=label)
    return figure


def dots_by_depth(
    panels: Mapping[str, Tensor], *, title: str = "", columns: int = 2, ax: Sequence[Axes] | None = None
) -> Figure:
    """Return a panel for each name: a dot for every head, blocks from left to right, values (layers, A) upwards from 0.

    The form of Dosovitskiy et al. 2021 (arXiv:2010.11929), figure 7 right.

    Args:
        panels: what the vertical axis shows, with the unit, and the values.
        columns: panels in a row.
        ax: axes to draw in, one for each name; None makes a figure.

    Raises:
        ShapeError: not (layers, A); UsageError: no panels.
    """
    if not panels:
        raise UsageError("no numbers to draw")
    for name, values_LA in panels.items():
        if values_LA.ndim != 2:
            raise ShapeError(f"{name} has shape {tuple(values_LA.shape)}; expected (layers, A)")
    if ax is not None and len(ax) != len(panels):
        raise ShapeError(f"{len(ax)} axes for {len(panels)} panels")
    with chart_style():
        columns = min(columns, len(panels))
        rows = -(-len(panels) // columns)
        axes = list(ax or new_axes(rows, columns, size=(PAGE * columns / 2, 1.75 * rows + 0.3)))
        for panel, (name, values_LA) in zip(axes, panels.items(), strict=False):
            layers, heads = values_LA.shape
            x = [layer for layer in range(layers) for _ in range(heads)]
            panel.scatter(x, values_LA.flatten().tolist(), s=16, color=COLORS[0], edgecolors="white", linewidths=0.4)
            panel.set_ylim(bottom=0)
            panel.set_xticks(range(0, layers, -(-layers // 12)))
            panel.set(xlabel="block", ylabel="\n".join(wrap(name, 28)))
        figure = figure_of(axes[0])
        if ax is None:
            for panel in axes[len(panels) :]:
                panel.remove()
            figure.suptitle("\n".join(wrap(title, int(14 * figure.get_figwidth()))), x=0.01, ha="left")
    return figure


def _unsigned_zero(text: str) -> str:
    """Return a written number without the sign of what rounding made 0."""
    return text if float(text) else text.lstrip("+-")
