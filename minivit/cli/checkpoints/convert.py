"""minivit convert: any loaded model as files of transformers."""

from __future__ import annotations

import argparse

from minivit.cli.shared.command import HUB, checked_output, command, option
from minivit.cli.shared.console import say, show_text
from minivit.cli.shared.models import DTYPES, checkpoint_of, go_offline

FILES = ("model.safetensors", "config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")


@command(
    "convert",
    help="write a model as transformers' ViT, DeiT, DINOv2, CLIP, SigLIP or Swin",
    description="Write any model as config.json, preprocessor_config.json and model.safetensors, for two towers "
    "with the files of the tokenizer, in the layout of transformers' ViT, DeiT, DINOv2, CLIP, SigLIP, their image "
    "towers, or Swin: the first that has a place for every part of it. transformers loads the folder and computes "
    "the same numbers.",
    options=[
        option("source", metavar="SRC", help="hub id, folder or weights file"),
        option("folder", metavar="DST", help="folder for these files; those of the same names in it are replaced"),
        checked_output(argument="folder", files=FILES, replaces=True),
        option("--dtype", choices=DTYPES, help="of the stored weights (as in SRC)"),
        HUB,
    ],
)
def run(args: argparse.Namespace) -> int:
    import torch

    from minivit.weights.writer import convert_files

    if args.offline:
        go_offline()
    dtype = getattr(torch, args.dtype) if args.dtype else None
    done = convert_files(args.source, args.folder, dtype=dtype, **checkpoint_of(args))
    if not done.preprocessing:
        say(f"{done.model} does not state its preprocessing, so there is no preprocessor_config.json")
    if done.moved_crop:
        say("transformers rounds half a pixel beside the crop down: an image with an odd margin moves by one pixel")
    show_text(str(done.folder))
    return 0
