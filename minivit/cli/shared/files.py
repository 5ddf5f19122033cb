"""Reading an image, writing a file, and drawing an image on the terminal."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from minivit.cli.shared.console import printable, say
from minivit.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from minivit.images.spec import ImageSpec
    from minivit.model.capabilities import ImageModel


def read_image(argument: str, *, icc: str = "ignore") -> tuple[Image.Image, list[str]]:
    """Return the upright RGB image that an argument names ("-" is standard input), and what was done to it."""
    from minivit.images.decode import open_image

    notes: list[str] = []
    if argument == "-" and sys.stdin.isatty():
        raise UsageError("- reads an image from standard input: pipe it in")
    source = BytesIO(sys.stdin.buffer.read()) if argument == "-" else argument
    return open_image(source, name=argument, warn=notes.append, icc=icc), notes


def say_notes(argument: str, notes: list[str]) -> None:
    """Print what was done to an image on stderr, one line each."""
    for note in notes:
        say(f"{printable(argument)}: {note}")


def pixels_for(model: ImageModel, image: Image.Image) -> tuple[Tensor, ImageSpec]:
    """Return an image as pixels (1, C, H, W) on the model's device and in its dtype, and the preprocessing."""
    from minivit.images.preprocess import pixels_from_image, resize_and_crop
    from minivit.inference.predict import image_spec_of

    spec = image_spec_of(model)
    pixels_CHW = pixels_from_image(resize_and_crop(image, spec), spec)
    return pixels_CHW[None].to(model.patch_embed.weight), spec


@contextmanager
def writing(path: str | Path, *, quiet: bool = False) -> Iterator[Path]:
    """Yield the path to write for -o PATH; at the end the file is renamed onto PATH, or onto what that links to.

    Its name is said on stderr, unless `quiet`.

    Raises:
        UsageError, WriteError: as `replacing`; a file that was there is unchanged.
    """
    from minivit.weights.replacing import replacing

    with replacing(path, name=f"-o {path}") as new:
        yield new
    if not quiet:
        say(f"wrote {printable(str(path))}")


def show(image: Image.Image, values_hw: Tensor | None, columns: int = 100) -> str:
    """Return an image as text for this terminal, at most so wide; as shades of its map where there are no colours.

    Raises:
        UsageError: no colours, and no map that shades could show.
    """
    from minivit.viz import half_blocks, shades

    columns = min(shutil.get_terminal_size().columns, columns)
    unicode = "utf" in (sys.stdout.encoding or "").lower()
    if os.environ.get("NO_COLOR") or not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        if values_hw is None:
            raise UsageError("an image needs a terminal with colours; write it to a file with -o FILE.png")
        return shades(values_hw, unicode=unicode)
    deep = os.environ.get("COLORTERM", "") in ("truecolor", "24bit")
    return half_blocks(image, columns, unicode=unicode, colours=2**24 if deep else 256)
