"""minivit preprocess: the pixels that the network receives for an image, and every step to them."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from minivit.cli.shared.command import LOAD, ONE_IMAGE, command, option, output
from minivit.cli.shared.console import printable, show_text
from minivit.cli.shared.files import read_image, say_notes, show, writing
from minivit.cli.shared.models import load_model

if TYPE_CHECKING:
    from torch import Tensor


def on_the_cpu(parser: argparse.ArgumentParser) -> None:
    """No --device and --dtype: nothing is computed but the pixels, in float32."""
    parser.set_defaults(device="cpu", dtype="float32")


@command(
    "preprocess",
    help="show the image that the network receives",
    description="Preprocess one image as the files of a model say, and show or write the pixels that the network "
    "receives.",
    options=[
        ONE_IMAGE,
        option("--explain", action="store_true", help="print every step, its parameter and where it is stated"),
        output(".png", help="write the image, FILE.png (default: draw it as text)"),
        *LOAD,
        on_the_cpu,
    ],
)
def run(args: argparse.Namespace) -> int:
    from minivit.images.describe import explain
    from minivit.inference.predict import image_spec_of

    image, notes = read_image(args.image, icc=args.icc)
    model = load_model(args)
    found = explain(image, image_spec_of(model), name=args.image)
    found = replace(found, warnings=(*notes, *found.warnings))
    if args.explain:
        show_text(f"{printable(args.image)} as {printable(str(model.name))} sees it\n{found}")
    else:
        say_notes(args.image, list(found.warnings))
    if args.out:
        with writing(args.out) as path:
            found.seen.save(path)
    elif not args.explain:
        print(show(found.seen, grey(found.pixels_CHW)))
    return 0


def grey(pixels_CHW: Tensor, side: int = 40) -> Tensor:
    """Return the pixels as a grey image for the terminal, (rows, columns), at most `side` long."""
    import torch

    scale = min(1.0, side / max(pixels_CHW.shape[1:]))
    height, width = (max(1, round(length * scale)) for length in pixels_CHW.shape[1:])
    return torch.nn.functional.adaptive_avg_pool2d(pixels_CHW.mean(dim=0, keepdim=True), (height, width))[0]
