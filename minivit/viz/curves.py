"""Deletion and insertion curves of saliency maps."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor

from minivit.errors import ShapeError
from minivit.viz.style import COLORS, GREY, PAGE, chart_style, figure_of, new_axes

if TYPE_CHECKING:
    from minivit.viz.style import Axes, Figure

DELETION, INSERTION = COLORS[:2]


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
    y_label: str = "score of the class",
    ax: Sequence[Axes] | None = None,
) -> Figure:
    """Return a panel for every method: its deletion and insertion curve, and the area under each (AUC).

    Args:
        names: of the M methods.
        shares_S: fraction of patches removed or inserted at each of S steps, 0 to 1: the common horizontal axis.
        deletion_MS, insertion_MS: a curve for each method; all panels share the vertical axis.
        random: deletion and insertion curve of random maps, (S,) each, drawn grey in every panel.
        pictures: an image for each method, shown above its curves; or none.
        columns: panels in a row, at most.
        y_label: what the vertical axis shows, with the unit.
        ax: M axes to draw the curves in, without the images; None makes a figure.

    Raises:
        ShapeError: not one curve, one image (where there are any) and one of `ax` for each name.
    """
    count = len(names)
    if not deletion_MS.shape == insertion_MS.shape == (count, len(shares_S)) or len(pictures) not in (0, count):
        raise ShapeError(
            f"{count} names, curves {tuple(deletion_MS.shape)} and {tuple(insertion_MS.shape)} of {len(shares_S)} "
            f"steps, {len(pictures)} images; expected one of each for every name"
        )
    if ax is not None and len(ax) != count:
        raise ShapeError(f"{len(ax)} axes for {count} methods")
    top = max(float(torch.cat([deletion_MS, insertion_MS, torch.stack(random)]).max()), 1e-6)
    with chart_style():
        columns = -(-count // -(-count // columns))  # rows of about the same length
        panels = list(ax or _panels(names, columns, pictures, title))
        for i, (panel, name) in enumerate(zip(panels, names, strict=True)):
            lines = [
                panel.plot(
                    shares_S.tolist(), line_S.tolist(), color=color, label=label, linewidth=1 if color == GREY else 1.4
                )[0]
                for line_S, color, label in (
                    (random[0], GREY, "random maps"),
                    (random[1], GREY, None),
                    (deletion_MS[i], DELETION, "deletion (lower is better)"),
                    (insertion_MS[i], INSERTION, "insertion (higher is better)"),
                )
            ]
            panel.set(xlim=(0, 1), ylim=(min(0, float(panel.dataLim.y0)), 1.05 * top), xticks=(0, 0.5, 1))
            panel.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
            if ax is not None or not pictures:
                panel.set_title(name, pad=14)
            areas = [float(torch.trapezoid(line_S, shares_S)) for line_S in (deletion_MS[i], insertion_MS[i])]
            for x, area, color, align in zip((0, 1), areas, (DELETION, INSERTION), ("left", "right"), strict=True):
                panel.text(x, 1.03, f"AUC {area:.3f}", color=color, ha=align, fontsize=7, transform=panel.transAxes)
            panel.set_xlabel("fraction of patches")
            if i % columns == 0 or ax is not None:
                panel.set_ylabel("\n".join(wrap(y_label, 24)))
        figure = figure_of(panels[0])
        if ax is None:
            figure.legend(handles=[lines[i] for i in (2, 3, 0)], loc="outside lower center", ncols=3)
    return figure


def _panels(names: Sequence[str], columns: int, pictures: Sequence[Image.Image], title: str) -> list[Axes]:
    """Return axes for the curves of every name in a new figure, each below its image where there are images."""
    rows = -(-len(names) // columns)
    wide, high = PAGE / columns, 1.2
    heights = [high] * rows
    if pictures:
        heights = [(wide - 0.15) * pictures[0].height / pictures[0].width, high] * rows
    panels = new_axes(len(heights), columns, size=(PAGE, sum(heights) + 0.35 * len(heights) + 0.9), heights=heights)
    figure = figure_of(panels[0])
    figure.suptitle("\n".join(wrap(title, 95)), x=0.01, ha="left")
    found = []
    for i, panel in enumerate(panels):
        row, column = divmod(i, columns)
        of_image = bool(pictures) and row % 2 == 0
        method = (row // 2 if pictures else row) * columns + column
        if method >= len(names):
            panel.remove()
        elif of_image:
            panel.imshow(pictures[method], interpolation="antialiased")
            panel.set_title(names[method])
            panel.set_axis_off()
        else:
            panel.tick_params(labelleft=column == 0)
            found.append(panel)
    return found
