"""What the commands share: talk on stderr, the options that choose a model."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from minivit.errors import ModelUnavailableError, UsageError

if TYPE_CHECKING:
    from minivit.model import ViT

DEFAULT_MODEL = "google/vit-base-patch16-224"
BUNDLED_MODEL = "minivit/cifar10-vit"
DTYPES = ("float32", "float64", "bfloat16", "float16")


def say(message: str) -> None:
    """One line of talk on stderr."""
    print(f"minivit: {message}", file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """A file name or label as it may stand on a terminal: control characters escaped, one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def columns(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Rows of cells under each other: the first `left` columns flush left, numbers flush right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) if i < left else cell.rjust(width)
                 for i, (cell, width) in enumerate(zip(row, widths, strict=True))]  # fmt: skip
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def add_model_option(parser: argparse.ArgumentParser) -> None:
    """--model, which defaults to `auto`."""
    parser.add_argument(
        "-m",
        "--model",
        default="auto",
        metavar="ID|PATH",
        help=f"hub id, folder or weights file; auto (the default) is {DEFAULT_MODEL} when it is cached "
        f"or can be downloaded, else the bundled {BUNDLED_MODEL}",
    )


def add_hub_options(parser: argparse.ArgumentParser) -> None:
    """--revision and --offline, for commands that may download a model."""
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub model")
    parser.add_argument(
        "--family",
        metavar="FAMILY",
        help="what a weights file without config.json is: torchvision/MODEL, timm/MODEL, facebook or jax",
    )
    parser.add_argument("--offline", action="store_true", help="never use the network (as HF_HUB_OFFLINE=1)")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """--device and --dtype, for commands that run the model."""
    parser.add_argument("--device", default="auto", metavar="DEVICE", help="auto (default), cpu, cuda, cuda:N or mps")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of weights and arithmetic")


def go_offline() -> None:
    """Keep huggingface_hub from the network; it reads its environment once, when first imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"


def load_model(args: argparse.Namespace) -> ViT:
    """The ViT the options ask for, as `plain_vit`; else as `load_any`."""
    return plain_vit(load_picture_model(args), args.model)


def plain_vit(model: Any, name: str) -> ViT:
    """A loaded model as a ViT: of two towers, the image tower.

    Raises:
        UsageError: a Swin, for commands that read the tokens of a ViT.
    """
    from minivit.clip import CLIP
    from minivit.swin import Swin

    if isinstance(model, Swin):
        raise UsageError(
            f"{name}: is a Swin, whose tokens see only their window and merge from stage to stage; this command reads "
            "the tokens of a plain ViT through all layers. Swin is for classify, embed, eval, info, verify, convert, "
            "diff, heads and attention --method raw"
        )
    return model.image if isinstance(model, CLIP) else model


def load_picture_model(args: argparse.Namespace) -> Any:
    """The model that reads pictures, a ViT or a Swin: of two towers, the image tower; else as `load_any`.

    Where the command takes --labels and they were given, their texts are its classes.
    """
    from minivit.cli.texts import load_zero_shot
    from minivit.clip import CLIP

    if (zero_shot := load_zero_shot(args)) is not None:
        return zero_shot
    model = load_any(args)
    return model.image if isinstance(model, CLIP) else model


def load_any(args: argparse.Namespace) -> Any:
    """The model the options ask for; `auto` may fall back to the bundled one, and says so."""
    import torch

    from minivit.weights import load

    if args.offline:
        go_offline()
    device = pick_device(args.device)
    dtype = getattr(torch, args.dtype)
    if args.model != "auto":
        return load(args.model, revision=args.revision, family=args.family, dtype=dtype, device=device)
    if args.family:
        raise UsageError(f"--family {args.family} says what a file is; name the file with --model")
    try:
        return load(DEFAULT_MODEL, revision=args.revision, dtype=dtype, device=device)
    except ModelUnavailableError as error:
        say(str(error))
        say(f"using the bundled {BUNDLED_MODEL} instead: it knows ten classes and sees 32 x 32 pixels")
        return load(BUNDLED_MODEL, dtype=dtype, device=device)


def pick_device(name: str) -> str:
    """A torch device for --device; `auto` is the first of cuda, mps, cpu that is there.

    Raises:
        UsageError: no such device, or not on this machine.
    """
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return next(kind for kind, available in there.items() if available)
    try:
        kind, index = torch.device(name).type, torch.device(name).index
    except RuntimeError:
        raise UsageError(f"--device {name}: no such device; use auto, cpu, cuda, cuda:N or mps") from None
    if not there.get(kind) or (kind == "cuda" and index is not None and index >= torch.cuda.device_count()):
        raise UsageError(f"--device {name}: not available on this machine; use --device cpu or auto")
    return name
