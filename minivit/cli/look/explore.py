"""minivit explore: one HTML file in which a model can be explored on an image."""

from __future__ import annotations

import argparse
from pathlib import Path

from minivit.cli.shared.command import IMAGE_SIZE, ONE_IMAGE, RUN, command, option, output
from minivit.cli.shared.console import positive, printable, say
from minivit.cli.shared.drawing import add_cmap_option
from minivit.cli.shared.files import writing
from minivit.cli.shared.image import one_image


@command(
    "explore",
    help="write one HTML file in which a model can be explored on an image",
    description="Write one self-contained HTML file that opens a model on an image: attention of every token, rollout, "
    "relevance, the logit lens, properties of the tokens. No server and no network; it can be mailed.",
    options=[
        ONE_IMAGE,
        output(".html", ".htm", required=True, help="the page to write, FILE.html"),
        option(
            "--maps",
            choices=("all", "cls"),
            default="all",
            help="attention of all tokens (default), or of the class and other prefix tokens only: a much smaller file",
        ),
        option("-k", "--top-k", type=positive, default=5, metavar="K", help="classes that are followed (5)"),
        add_cmap_option,
        option("--open", action="store_true", help="show the page in the browser"),
        IMAGE_SIZE,
        *RUN,
    ],
)
def run(args: argparse.Namespace) -> int:
    from minivit.images.describe import size_warnings
    from minivit.images.preprocess import image_from_pixels, seen_box
    from minivit.study import explore
    from minivit.viz import explorer

    one = one_image(args, quiet=True)  # the page itself tells what was done to the image
    page = explorer(
        explore(one.model, one.pixels_BCHW, top_k=args.top_k),
        one.image,
        image_from_pixels(one.pixels_BCHW[0].float(), one.spec),
        box=seen_box(one.image.size, one.spec, patch=one.model.config.patch_size),
        labels=one.model.labels,
        maps=args.maps,
        cmap=args.cmap,
        title="standard input" if args.image == "-" else printable(Path(args.image).name),
        model=printable(str(one.model.name)),
        revision=one.model.revision,
        preprocessing=str(one.spec),
        notes=one.notes + size_warnings(one.image.size, one.spec),
    )
    data = page.encode()
    with writing(args.out, quiet=True) as path:  # the line below names it
        path.write_bytes(data)
    large = args.maps == "all" and one.model.config.cls_token and len(data) > 25e6
    hint = "; --maps cls makes a small one" if large else ""
    say(f"{printable(args.out)}: {len(data) / 1e6:.1f} MB, open it in any browser{hint}")
    if args.open:
        import webbrowser

        if not webbrowser.open(Path(args.out).resolve().as_uri()):
            say("no browser could be started here")
    return 0
