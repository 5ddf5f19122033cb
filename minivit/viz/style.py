"""One style for all charts, and how pictures are saved. matplotlib is imported only when a chart is drawn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from minivit.errors import UsageError
from minivit.viz.colormaps import colormap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

COLUMN, PAGE = 3.35, 6.9  # widths of a figure in inches: one column of a paper, and both

# Told apart by colour-blind readers: Okabe and Ito 2008, then three of Tol 2018.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442", "#332288", "#882255", "#44aa99")
GREY = "#8c8c8c"

STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # matplotlib's own: the same letters on every machine
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "figure.titlesize": 9,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.4,
    "figure.dpi": 150,
    "savefig.dpi": 300,  # PAGE is 2,070 pixels
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "minivit",  # the same file for the same chart
    "pdf.fonttype": 42,
}


def require_matplotlib() -> None:
    """Do nothing where matplotlib is installed.

    Raises:
        UsageError: it is not; the message names the extra.
    """
    if find_spec("matplotlib") is None:
        raise UsageError("charts need matplotlib, which is not installed: pip install 'minivit[plot]'")


@contextmanager
def chart_style() -> Iterator[None]:
    """Apply STYLE while a chart is made or saved; matplotlib's settings are restored afterwards."""
    require_matplotlib()
    import matplotlib

    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]  # the names of settings are a Literal there
        yield


def figure_of(ax: Axes) -> Figure:
    """Return the figure that holds the axes, also where a subfigure is between."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def new_axes(
    rows: int = 1, columns: int = 1, *, size: tuple[float, float], heights: Sequence[float] | None = None
) -> list[Axes]:
    """Return axes of a new figure in reading order; call it inside `chart_style`.

    Args:
        size: width and height of the figure in inches.
        heights: relative height of each row.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return list(figure.subplots(rows, columns, squeeze=False, height_ratios=heights).flat)


def listed(cmap: str) -> ListedColormap:
    """Return one of our colormaps for matplotlib."""
    from matplotlib.colors import ListedColormap

    return ListedColormap((colormap(cmap).double() / 255).tolist())


def save(picture: Image.Image | Figure, path: str | Path) -> None:
    """Write an image, or a chart as PNG, SVG or PDF by the suffix of the path.

    A chart is written without a date: the same chart gives the same file.
    """
    if isinstance(picture, Image.Image):
        picture.save(path)
        return
    date = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    with chart_style():
        picture.savefig(path, metadata=date.get(Path(path).suffix.lower()))


def svg(figure: Figure) -> str:
    """Return a chart as one <svg> element, to be put into an HTML page."""
    text = StringIO()
    with chart_style():
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]
