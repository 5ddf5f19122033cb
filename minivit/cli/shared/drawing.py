"""Options of the commands that draw maps and charts."""

from __future__ import annotations

import argparse

from minivit.cli.shared.outputs import CHARTS, check_suffix

CMAPS = ("turbo", "viridis", "inferno")
FORMER_CMAPS = {"blue-red": "turbo", "cubehelix": "viridis"}


def check_drawing(path: str | None, *, maps: bool) -> None:
    """Refuse a drawing that cannot be written: maps are .png by Pillow, charts PNG, SVG or PDF by matplotlib.

    Raises:
        UsageError: the suffix, the folder, or that matplotlib is not installed.
    """
    from minivit.viz.style import require_matplotlib

    if path is None:
        return
    check_suffix(path, *((".png",) if maps else CHARTS))
    if not maps:
        require_matplotlib()


def add_map_options(parser: argparse.ArgumentParser) -> None:
    """Add --cmap (and --colours, its former name) and --smooth: how a map is drawn."""
    add_cmap_option(parser)
    parser.add_argument("--smooth", action="store_true", help="interpolate between patches (bicubic)")


def add_cmap_option(parser: argparse.ArgumentParser) -> None:
    """Add --cmap, and --colours, its former name."""
    parser.add_argument(
        "--cmap",
        choices=CMAPS,
        default="turbo",
        help="colormap: turbo (default), small values blue and large ones red; viridis or inferno, even in lightness",
    )
    parser.add_argument(
        "--colours",
        dest="cmap",
        type=former_cmap,
        metavar="NAME",
        default=argparse.SUPPRESS,
        help="former name of --cmap: blue-red is now turbo, cubehelix is now viridis",
    )


def former_cmap(text: str) -> str:
    """Return an argparse value: the colormap that a name of --colours stands for."""
    name = FORMER_CMAPS.get(text, text)
    if name not in CMAPS:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join([*FORMER_CMAPS, *CMAPS])}")
    return name
