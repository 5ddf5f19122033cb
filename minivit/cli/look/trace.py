"""minivit trace: the tensors a picture becomes on its way through a model, by name."""

from __future__ import annotations

import argparse
from typing import Any

from minivit.cli.shared.models import add_hub_options, add_model_option, add_run_options, load_model
from minivit.cli.shared.picture import check_suffix, open_photo, pixels_for, say_notes, writing


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "trace",
        help="list or save every tensor of a forward",
        description="Run one picture and print a table of the tensors kept: name, shape, dtype, bytes, mean, standard "
        "deviation and greatest magnitude.",
        epilog="names: embed.patches embed.tokens, blocks.N. with norm1 q k v attn.scores attn.probs attn.mix attn.out "
        "resid_mid norm2 mlp.pre mlp.act mlp.out resid_post, then norm pooled logits; behind a name: [cls] [dist] "
        "[registers] [patches], [5] for token 5, [(3,7)] for the patch in row 3 and column 7, [heads=0,2], or both, "
        "[cls; heads=0]",
    )
    parser.add_argument("image", metavar="IMAGE", help="a picture file, or - for standard input")
    parser.add_argument(
        "--keep",
        action="append",
        required=True,
        metavar="GLOB",
        help="names to keep, with * and perhaps a selector: 'blocks.*.attn.probs[cls]'; may be repeated",
    )
    parser.add_argument(
        "--limit", default="512M", metavar="BYTES", help="refuse to keep more; none for no limit (512M)"
    )
    parser.add_argument("-o", "--out", metavar="FILE", help="write the tensors there, FILE.safetensors")
    add_model_option(parser)
    add_hub_options(parser)
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from minivit.study import trace

    check_suffix(args.out, ".safetensors")
    photo, notes = open_photo(args.image)
    say_notes(args.image, notes)
    model = load_model(args)
    pixels_BCHW, _ = pixels_for(model, photo)
    kept = trace(model, pixels_BCHW, keep=args.keep, limit=None if args.limit == "none" else args.limit)
    print(kept)
    if args.out:
        with writing(args.out):
            kept.save(args.out)
    return 0
