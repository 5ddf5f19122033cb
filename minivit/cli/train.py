"""minivit train: train or fine-tune a ViT on a folder of class folders."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minivit.cli.console import add_model_options, go_offline, pick_device, positive, say
from minivit.errors import UsageError

if TYPE_CHECKING:
    from minivit.model import ViT
    from minivit.photos import Photos
    from minivit.train import Recipe


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train or fine-tune a ViT on your own pictures",
        description="Train a ViT from scratch, or from --init MODEL, on a folder of class folders or a tar of one. "
        "OUT becomes a checkpoint that minivit and transformers load. Several processes: torchrun "
        "--nproc-per-node 2 -m minivit train ... SIGINT saves the state; --resume goes on from it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("data", metavar="DATA", help="folder of class folders (cat/1.jpg), or an uncompressed tar of one")
    parser.add_argument("-o", "--out", required=True, metavar="OUT", help="folder for the checkpoint and the metrics")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/checkpoint.pt, bit for bit")
    parser.add_argument("--val", metavar="DATA", help="pictures to evaluate the final weights on")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that read pictures ahead")
    parser.add_argument("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps")

    model = parser.add_argument_group("the model")
    model.add_argument("--init", metavar="MODEL", help="start from these weights, with a new head for DATA's classes")
    model.add_argument("--preset", metavar="SIZE", help="a named size such as Ti/16, instead of the six numbers below")
    for name, default in (("image-size", 32), ("patch-size", 4), ("width", 192), ("depth", 6), ("heads", 3)):
        model.add_argument(f"--{name}", type=positive, default=default, metavar="N", help=" ")
    model.add_argument("--mlp-width", type=positive, metavar="N", help="4 x width when not given")
    model.add_argument("--mean", type=float, nargs=3, default=[0.5] * 3, metavar="X", help="of the pictures, RGB in 0..1")
    model.add_argument("--std", type=float, nargs=3, default=[0.5] * 3, metavar="X", help="of the pictures, RGB in 0..1")

    recipe = parser.add_argument_group("the recipe", "see minivit/train.py (Recipe) for sources and meanings")
    for option, kind, default in OPTIONS:
        flag = f"--{option.replace('_', '-')}"
        if kind is bool:
            recipe.add_argument(flag, action="store_true", help=" ")
        else:
            recipe.add_argument(flag, type=kind, default=default, metavar=kind.__name__.upper(), help=" ")
    add_model_options(parser)
    parser.set_defaults(run=run)
