"""Charts with axes: curves of training, and confusion matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from minivit.errors import ShapeError
from minivit.viz.style import COLORS, COLUMN, chart_style, figure_of, new_axes

if TYPE_CHECKING:
    from minivit.viz.style import Axes, Figure

MANY_CLASSES = 30  # from here on a confusion chart has no numbers in its cells


def line_chart(
    title: str,
    x_label: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    y_label: str = "",
    log: str = "",
    ax: Axes | None = None,
) -> Figure:
    """Return a chart of named series of (x, y) points on common axes.

    Args:
        x_label, y_label: what the axes show, with the unit.
        log: axes with a logarithmic scale: "", "x", "y" or "xy". The y axis starts at 0 otherwise.
        ax: draw there; None makes a figure as wide as a column of a paper.
    """
    with chart_style():
        ax = ax or new_axes(size=(COLUMN, 2.3))[0]
        for i, (name, points) in enumerate(series.items()):
            x, y = zip(*points, strict=True) if points else ((), ())
            ax.plot(x, y, color=COLORS[i % len(COLORS)], label=name, marker="o" if len(x) < 20 else None, markersize=3)
        ax.set(title=title, xlabel=x_label, ylabel=y_label)
        if "x" in log:
            ax.set_xscale("log")
        if "y" in log:
            ax.set_yscale("log")
        else:
            ax.set_ylim(bottom=0)
        if series:
            ax.legend()
    return figure_of(ax)


def confusion_chart(
    title: str, classes: Sequence[str], confusion: Sequence[Sequence[int]], *, ax: Axes | None = None
) -> Figure:
    """Return a confusion matrix: rows are true classes, columns predicted ones, shaded by the fraction of the row.

    Cells show the number of images, for fewer than 30 classes.

    Args:
        ax: draw there; None makes a figure that grows with the number of classes.

    Raises:
        ShapeError: not a row and a column for each class.
    """
    count = len(classes)
    if len(confusion) != count or any(len(row) != count for row in confusion):
        raise ShapeError(f"a confusion matrix of {count} classes needs {count} rows of {count} numbers")
    fractions = [[value / (sum(row) or 1) for value in row] for row in confusion]
    few = count < MANY_CLASSES
    with chart_style():
        side = min(max(COLUMN, 1.7 + 0.36 * count + 0.05 * max(map(len, classes), default=0)), 14)
        ax = ax or new_axes(size=(side + 0.5, side))[0]
        mesh = ax.pcolormesh(fractions, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=0.5 if few else 0)
        ax.set(title=title, xlabel="predicted class", ylabel="true class", aspect="equal")
        ax.invert_yaxis()
        size = 7 if few else max(1.5, 7 * MANY_CLASSES / count)
        places = [i + 0.5 for i in range(count)]
        ax.set_xticks(places, classes, rotation=45, ha="right", rotation_mode="anchor", fontsize=size)
        ax.set_yticks(places, classes, fontsize=size)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        ax.grid(visible=False)
        for i, row in enumerate(confusion if few else ()):
            for j, value in enumerate(row):
                color = "white" if fractions[i][j] > 0.55 else "#222222"
                ax.text(j + 0.5, i + 0.5, f"{value}", ha="center", va="center", fontsize=7, color=color)
        figure = figure_of(ax)
        figure.colorbar(mesh, ax=ax, shrink=0.7, label="fraction of the true class")
    return figure
