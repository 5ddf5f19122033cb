"""minivit trace: the tensors of one forward pass, by name."""

from __future__ import annotations

import argparse

from minivit.cli.shared.command import IMAGE_SIZE, ONE_IMAGE, RUN, command, option, output
from minivit.cli.shared.console import show_text
from minivit.cli.shared.files import writing
from minivit.cli.shared.image import one_image


@command(
    "trace",
    help="list or save every tensor of a forward pass",
    description="Run one image and print a table of the tensors kept: name, shape, dtype, bytes, mean, standard "
    "deviation and largest magnitude.",
    epilog="names: embed.patches embed.tokens, blocks.N. with norm1 q k v attn.scores attn.probs attn.mix attn.out "
    "resid_mid norm2 mlp.pre mlp.act mlp.out resid_post, then norm pooled logits; behind a name: [cls] [dist] "
    "[registers] [patches], [5] for token 5, [(3,7)] for the patch in row 3 and column 7, [heads=0,2], or both, "
    "[cls; heads=0]",
    options=[
        ONE_IMAGE,
        option(
            "--keep",
            action="append",
            required=True,
            metavar="GLOB",
            help="names to keep, with * and perhaps a selector: 'blocks.*.attn.probs[cls]'; may be repeated",
        ),
        option("--limit", default="512M", metavar="BYTES", help="refuse to keep more; none for no limit (512M)"),
        output(".safetensors", help="write the tensors there, FILE.safetensors"),
        IMAGE_SIZE,
        *RUN,
    ],
)
def run(args: argparse.Namespace) -> int:
    from minivit.study import trace

    one = one_image(args)
    kept = trace(one.model, one.pixels_BCHW, keep=args.keep, limit=None if args.limit == "none" else args.limit)
    show_text(str(kept))
    if args.out:
        with writing(args.out) as path:
            kept.save(path)
    return 0
