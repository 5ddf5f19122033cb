"""Texts on the command line: labels that become the classes of a model with a text tower."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from minivit.cli.console import load_any
from minivit.errors import UsageError

if TYPE_CHECKING:
    from minivit.clip import CLIP
    from minivit.model import ViT


def add_label_options(parser: argparse.ArgumentParser) -> None:
    """--labels, --labels-file and --template, for commands that take texts as classes."""
    group = parser.add_argument_group("texts as classes", "of a model with a text tower (CLIP, SigLIP)")
    group.add_argument("--labels", nargs="+", metavar="TEXT", help="the classes, each a text")
    group.add_argument("--labels-file", metavar="FILE", help="more of them, one a line")
    group.add_argument(
        "--template",
        action="append",
        metavar="TEXT",
        help='what is said of a label, such as "a photo of a {}"; several are averaged as embeddings ("{}")',
    )


def load_zero_shot(args: argparse.Namespace) -> ViT | None:
    """The model of the options with a class for every label; None where there are no labels.

    Raises:
        UsageError: a template without labels, a labels file that cannot be read, or a model without a text tower.
    """
    labels = labels_of(args)
    if labels is None:
        return None
    return load_towers(args).zero_shot(labels, args.template or ["{}"])


def labels_of(args: argparse.Namespace) -> list[str] | None:
    """The labels of the options, in their order; None where none were asked for, or the command takes none."""
    if not hasattr(args, "labels"):
        return None
    if args.labels is None and args.labels_file is None:
        if args.template:
            raise UsageError("--template says how labels are spoken of; give them with --labels or --labels-file")
        return None
    labels = list(args.labels or [])
    if args.labels_file is not None:
        try:
            lines = Path(args.labels_file).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            raise UsageError(f"{args.labels_file}: no text file to read ({error})") from None
        labels += [line.strip() for line in lines if line.strip()]
    return labels


def load_towers(args: argparse.Namespace) -> CLIP:
    """The two towers the options ask for.

    Raises:
        UsageError: a model without a text tower.
    """
    from minivit.clip import CLIP

    if args.model == "auto":
        raise UsageError("texts need a model with a text tower: --model openai/clip-vit-base-patch32, for example")
    model = load_any(args)
    if not isinstance(model, CLIP):
        raise UsageError(f"{args.model}: has no text tower; texts need one, as in openai/clip-vit-base-patch32")
    return model
