"""minivit explore: one HTML file that opens a model on a photo."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from minivit.cli.shared.console import positive, printable, say
from minivit.cli.shared.drawing import add_cmap_option
from minivit.cli.shared.models import add_hub_options, add_model_option, add_run_options, load_model
from minivit.cli.shared.picture import check_suffix, open_photo, pixels_for, writing


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "explore",
        help="write one HTML file in which a model can be explored on a picture",
        description="Write one self-contained HTML file that opens a model on a picture: who attends to whom, rollout, "
        "relevance, the logit lens, what tokens hold. No server and no network; it can be mailed.",
    )
    parser.add_argument("image", metavar="IMAGE", help="a picture file, or - for standard input")
    parser.add_argument("-o", "--out", metavar="FILE", required=True, help="the page to write, FILE.html")
    parser.add_argument(
        "--maps",
        choices=("all", "cls"),
        default="all",
        help="attention of all tokens (default), or of the class and other prefix tokens only: a much smaller file",
    )
    parser.add_argument("-k", "--top-k", type=positive, default=5, metavar="K", help="classes that are followed (5)")
    add_cmap_option(parser)
    parser.add_argument("--open", action="store_true", help="show the page in the browser")
    add_model_option(parser)
    add_hub_options(parser)
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from minivit.images.describe import size_warnings
    from minivit.images.preprocess import image_from_pixels, seen_box
    from minivit.study import explore
    from minivit.viz import explorer

    check_suffix(args.out, ".html", ".htm")
    photo, notes = open_photo(args.image)
    model = load_model(args)
    pixels_BCHW, spec = pixels_for(model, photo)
    page = explorer(
        explore(model, pixels_BCHW, top_k=args.top_k),
        photo,
        image_from_pixels(pixels_BCHW[0].float(), spec),
        box=seen_box(photo.size, spec, patch=model.config.patch_size),
        labels=model.labels,
        maps=args.maps,
        cmap=args.cmap,
        title="standard input" if args.image == "-" else printable(Path(args.image).name),
        model=printable(str(model.name)),
        revision=model.revision,
        preprocessing=str(spec),
        notes=notes + size_warnings(photo.size, spec),
    )
    data = page.encode()
    with writing(args.out):
        Path(args.out).write_bytes(data)
    large = args.maps == "all" and model.config.cls_token and len(data) > 25e6
    hint = "; --maps cls makes a small one" if large else ""
    say(f"{printable(args.out)}: {len(data) / 1e6:.1f} MB, open it in any browser{hint}")
    if args.open:
        import webbrowser

        if not webbrowser.open(Path(args.out).resolve().as_uri()):
            say("no browser could be started here")
    return 0
