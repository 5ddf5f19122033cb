"""The options that choose a model and where it runs, and the model they choose."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minivit.cli.shared.console import positive, say
from minivit.errors import ModelUnavailableError, UsageError

if TYPE_CHECKING:
    from minivit.model.capabilities import ImageModel, Model
    from minivit.model.clip import CLIP
    from minivit.model.vit import ViT

DEFAULT_MODEL = "google/vit-base-patch16-224"
BUNDLED_MODEL = "minivit/cifar10-vit"
DTYPES = ("float32", "float64", "bfloat16", "float16")


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
    parser.add_argument("--adapter", metavar="FOLDER", help="LoRA adapter (PEFT) that is merged into the weights")
    heads: dict[str, Any] = {"dest": "file_heads", "type": int, "metavar": "N"}
    heads["help"] = "attention heads per block, for files of --family facebook that do not state them"
    try:
        parser.add_argument("--heads", **heads)
    except argparse.ArgumentError:  # a command with heads of its own
        parser.add_argument("--file-heads", **heads)
    parser.add_argument(
        "--prefix", metavar="TEXT", help="what stands before the names of the tensors in a training file: 'model.'"
    )
    parser.add_argument("--offline", action="store_true", help="never use the network (as HF_HUB_OFFLINE=1)")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """--device and --dtype, for commands that run the model."""
    parser.add_argument("--device", default="auto", metavar="DEVICE", help="auto (default), cpu, cuda, cuda:N or mps")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of weights and arithmetic")
    add_threads_option(parser)


def add_threads_option(parser: argparse.ArgumentParser) -> None:
    """--threads, for commands that compute on the CPU; `Command` applies it."""
    parser.add_argument("--threads", type=positive, metavar="N", help="CPU threads (the cores that other work leaves)")
    parser.set_defaults(limits_threads=True)


@contextmanager
def threads_limited(asked: int | None) -> Iterator[None]:
    """Let PyTorch use --threads on the CPU, else as many as there are idle cores; the number before is restored.

    PyTorch's threads wait for each other at every operator. Where another program holds one core, all of them wait for
    it: integrated gradients took 114 s with two threads and 8 s with one beside other work. OMP_NUM_THREADS is obeyed.
    """
    import torch

    before = torch.get_num_threads()
    obeyed = asked is None and "OMP_NUM_THREADS" in os.environ
    torch.set_num_threads(before if obeyed else asked or min(before, idle_cores()))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def idle_cores() -> int:
    """Return the number of cores that no other program is using now, at least 1; else all of them."""
    cores = os.cpu_count() or 1
    try:
        running = []
        for _ in range(8):  # one program that runs for a moment is no load
            running.append(int(Path("/proc/loadavg").read_text().split()[3].partition("/")[0]))
            time.sleep(0.005)
    except (OSError, ValueError, IndexError):
        return cores
    return max(1, cores - (min(running) - 1))  # one of those that run is this process


def checkpoint_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `weights.load` that say how a checkpoint is read."""
    names = ("revision", "family", "adapter", "prefix")
    return {**{name: getattr(args, name) for name in names}, "heads": args.file_heads}


def family_only(args: argparse.Namespace, command: str) -> None:
    """Refuse the options of a checkpoint that a command does not honour.

    Raises:
        UsageError: --adapter, --heads or --prefix.
    """
    for name in ("adapter", "file_heads", "prefix"):
        if getattr(args, name):
            raise UsageError(f"{command} reads no --{name}; write the checkpoint with it first: minivit convert")


def go_offline() -> None:
    """Keep huggingface_hub off the network; it reads its environment once, when first imported."""
    os.environ["HF_HUB_OFFLINE"] = "1"


def load_any(args: argparse.Namespace) -> Model:
    """Return the model that the options name; what `load` decided, and that `auto` fell back to another, is said."""
    from minivit.model.capabilities import image_model

    model = _load(args)
    for note in image_model(model).notes:
        say(f"{model.name}: {note}")
    return model


def _load(args: argparse.Namespace) -> Model:
    import torch

    from minivit.weights import load

    if args.offline:
        go_offline()
    device = pick_device(args.device)
    dtype = getattr(torch, args.dtype)
    if args.model != "auto":
        return load(args.model, **checkpoint_of(args), dtype=dtype, device=device)
    for name in ("family", "adapter", "file_heads", "prefix"):
        if getattr(args, name):
            raise UsageError(f"--{name} {getattr(args, name)} belongs to a file; name the file with --model")
    try:
        return load(DEFAULT_MODEL, revision=args.revision, dtype=dtype, device=device)
    except ModelUnavailableError as error:
        say(str(error))
        say(f"using the bundled {BUNDLED_MODEL} instead: it knows ten classes and sees 32 x 32 pixels")
        return load(BUNDLED_MODEL, dtype=dtype, device=device)


def pick_device(name: str) -> str:
    """Return a torch device for --device; `auto` is the first of cuda, mps, cpu that is available.

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


def load_model(args: argparse.Namespace) -> ViT:
    """Return the ViT that the options name, as `vit_of`; else as `load_any`."""
    return vit_of(load_image_model(args))


def vit_of(model: Model) -> ViT:
    """Return a loaded model as a ViT: the image tower of a CLIP, else the model itself.

    Raises:
        UsageError: a Swin, for commands that need the tokens of a ViT.
    """
    from minivit.model.capabilities import image_model, require_vit

    return require_vit(image_model(model), "this command")


def load_image_model(args: argparse.Namespace) -> ImageModel:
    """Return the model of images, a ViT or a Swin: of two towers the image tower; else as `load_any`.

    Where the command takes --labels and they were given, these texts are its classes; with --image-size it takes images
    of that size.
    """
    from minivit.cli.shared.sizes import resized_model
    from minivit.model.capabilities import image_model

    zero_shot = load_zero_shot(args)
    model = image_model(load_any(args)) if zero_shot is None else zero_shot
    return resized_model(model, getattr(args, "image_size", None))


def add_label_options(parser: argparse.ArgumentParser) -> None:
    """--labels, --labels-file and --template, for commands that take texts as classes."""
    group = parser.add_argument_group("texts as classes", "of a model with a text tower (CLIP, SigLIP)")
    group.add_argument("--labels", nargs="+", metavar="TEXT", help="the classes, each a text")
    group.add_argument("--labels-file", metavar="FILE", help="more of them, one a line")
    group.add_argument(
        "--template",
        action="append",
        metavar="TEXT",
        help='the text of a label, such as "a photo of a {}"; several are averaged as embeddings ("{}")',
    )


def load_zero_shot(args: argparse.Namespace) -> ViT | None:
    """Return the model of the options with a class for every label; None where there are no labels.

    Raises:
        UsageError: a template without labels, a labels file that cannot be read, or a model without a text tower.
    """
    labels = labels_of(args)
    if labels is None:
        return None
    return load_towers(args).zero_shot(labels, args.template or ["{}"])


def labels_of(args: argparse.Namespace) -> list[str] | None:
    """Return the labels of the options, in their order; None where there are none, or the command takes none."""
    if not hasattr(args, "labels"):
        return None
    if args.labels is None and args.labels_file is None:
        if args.template:
            raise UsageError("--template needs labels; give them with --labels or --labels-file")
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
    """Return the model with two towers that the options name.

    Raises:
        UsageError: a model without a text tower.
    """
    from minivit.model.capabilities import require_text

    if args.model == "auto":
        raise UsageError("texts need a model with a text tower: --model openai/clip-vit-base-patch32, for example")
    return require_text(load_any(args))
