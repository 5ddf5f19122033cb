"""minivit preprocess: the pixels that the network receives for an image, and every step to them."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from minivit.cli.shared.console import printable
from minivit.cli.shared.models import add_hub_options, add_model_option, load_model
from minivit.cli.shared.picture import check_suffix, open_photo, say_notes, show, writing

if TYPE_CHECKING:
    from torch import Tensor


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "preprocess",
        help="show the image that the network receives",
        description="Preprocess one image as the files of a model say, and show or write the pixels that the network "
        "receives.",
    )
    parser.add_argument("image", metavar="IMAGE", help="an image file, or - for standard input")
    parser.add_argument("--explain", action="store_true", help="print every step, its parameter and where that stands")
    parser.add_argument("-o", "--out", metavar="FILE", help="write the image, FILE.png (default: draw it as text)")
    add_model_option(parser)
    add_hub_options(parser)
    parser.set_defaults(run=run, device="cpu", dtype="float32")


def run(args: argparse.Namespace) -> int:
    from minivit.images.describe import explain
    from minivit.inference.predict import image_spec_of

    check_suffix(args.out, ".png")
    image, notes = open_photo(args.image)
    model = load_model(args)
    found = explain(image, image_spec_of(model), name=args.image)
    found = replace(found, warnings=(*notes, *found.warnings))
    if args.explain:
        print(f"{printable(args.image)} as {printable(str(model.name))} sees it\n{found}")
    else:
        say_notes(args.image, list(found.warnings))
    if args.out:
        with writing(args.out):
            found.seen.save(args.out)
    elif not args.explain:
        print(show(found.seen, grey(found.pixels_CHW)))
    return 0


def grey(pixels_CHW: Tensor, side: int = 40) -> Tensor:
    """Return the pixels as a grey image for the terminal, (rows, columns), at most `side` long."""
    import torch

    scale = min(1.0, side / max(pixels_CHW.shape[1:]))
    height, width = (max(1, round(length * scale)) for length in pixels_CHW.shape[1:])
    return torch.nn.functional.adaptive_avg_pool2d(pixels_CHW.mean(dim=0, keepdim=True), (height, width))[0]
