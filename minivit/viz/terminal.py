"""Pictures as text: two pixels a character in colour, or one patch in two characters without."""

from __future__ import annotations

from PIL import Image
from torch import Tensor

from minivit.viz.colormaps import to_unit

SHADES = " \u2591\u2592\u2593\u2588"  # blank, three densities, full block
ASCII = " .:-=+*#%@"


def half_blocks(image: Image.Image, columns: int, *, unicode: bool = True, colours: int = 2**24) -> str:
    """A picture `columns` characters wide in ANSI colours, every line reset at its end.

    Args:
        unicode: use the upper half block, two pixels above each other in one character; without it
            a pixel is two blanks on a coloured ground, half as fine.
        colours: 2**24, or 256 for a terminal that knows only those.
    """
    wide = columns if unicode else max(1, columns // 2)
    high = max(1, round(image.height * wide / image.width))
    if unicode:
        high += high % 2
    small = image.convert("RGB").resize((wide, high), Image.Resampling.BOX)
    pixel = small.load()
    assert pixel is not None

    def code(ground: int, x: int, y: int) -> str:
        r, g, b = pixel[x, y]  # type: ignore[misc]
        if colours == 256:
            r, g, b = (round(level / 51) for level in (r, g, b))
            return f"\x1b[{ground};5;{16 + 36 * r + 6 * g + b}m"
        return f"\x1b[{ground};2;{r};{g};{b}m"

    lines = []
    for y in range(0, high, 2 if unicode else 1):
        if unicode:
            cells = (code(38, x, y) + code(48, x, y + 1) + "\u2580" for x in range(wide))
        else:
            cells = (code(48, x, y) + "  " for x in range(wide))
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


def shades(values_hw: Tensor, *, unicode: bool = True) -> str:
    """A map (h, w) without colours: two characters a patch, blank for its least value, full for its greatest."""
    steps = SHADES if unicode else ASCII
    unit, _, _ = to_unit(values_hw)
    levels = (unit * (len(steps) - 1)).round().long().tolist()
    return "\n".join("".join(2 * steps[level] for level in row) for row in levels)
