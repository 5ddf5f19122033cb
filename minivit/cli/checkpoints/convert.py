"""minivit convert: any loaded model as files of transformers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from minivit.cli.shared.console import say
from minivit.cli.shared.models import DTYPES, add_hub_options, go_offline
from minivit.errors import UsageError

# safetensors' names for what a file holds -> torch's
STORED = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "convert",
        help="write a model as transformers' ViT, DeiT, DINOv2, CLIP, SigLIP or Swin",
        description="Write any model as config.json, preprocessor_config.json and model.safetensors, of two towers "
        "with the tokenizer's, in the layout of transformers' ViT, DeiT, DINOv2, CLIP, SigLIP, their image towers, "
        "or Swin: the first that has a place for every part of it. transformers loads the folder and gives the same "
        "numbers.",
    )
    parser.add_argument("source", metavar="SRC", help="hub id, folder or weights file")
    parser.add_argument("folder", metavar="DST", help="folder for these files, which are replaced")
    parser.add_argument("--dtype", choices=DTYPES, help="of the stored weights (as in SRC)")
    add_hub_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import torch

    from minivit.weights import describe, load, save

    if args.offline:
        go_offline()
    folder = Path(args.folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{args.folder}: a file; DST is a folder")
    source = Path(args.source)
    if source.exists() and folder.resolve() in (source.resolve(), source.resolve().parent):
        raise UsageError(f"{args.folder}: holds SRC itself; name another folder")
    held = describe(args.source, revision=args.revision, family=args.family)["weights"]["dtypes"]
    dtype = args.dtype or (STORED.get(held[0]) if len(held) == 1 else None) or "float32"
    model = load(args.source, revision=args.revision, family=args.family, dtype=getattr(torch, dtype))
    save(model, folder)
    spec = model.image_spec
    if spec is None:
        say(f"{model.name} says nothing of its preprocessing, so there is no preprocessor_config.json")
    elif spec.crop and spec.crop_rounding != "down":
        say("transformers rounds half a pixel beside the crop down: a picture with an odd margin moves by one pixel")
    print(folder)
    return 0
