"""minivit train: train or fine-tune a ViT on a folder of class folders."""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import Field, asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minivit.cli.shared.command import HUB, THREADS, command, folder_output, option
from minivit.cli.shared.console import positive, printable, say, show_text, whole
from minivit.cli.shared.files import writing
from minivit.cli.shared.models import checkpoint_of, go_offline, pick_device, vit_of
from minivit.errors import UsageError
from minivit.training.recipe import Augmentation, Recipe

if TYPE_CHECKING:
    from minivit.model.vit import ViT
    from minivit.training.dataset import LabelledImages

# What a run writes into its folder.
FILES = (
    *("checkpoint.pt", "metrics.jsonl", "model.safetensors", "config.json", "preprocessor_config.json"),
    *("training.json", "curve.svg"),
)

# Sizes of a model from scratch: ViTConfig field -> (default, explanation).
SIZES = {
    "image_size": (32, "sides of the square image, in pixels"),
    "patch_size": (4, "sides of a patch, in pixels"),
    "width": (192, "size of a token"),
    "depth": (6, "blocks"),
    "heads": (3, "attention heads"),
    "mlp_width": (None, "hidden size of the MLP"),
}


def recipe_fields() -> list[Field]:
    """Return the fields of the recipe and of its augmentation; each one is an option."""
    return [entry for entry in fields(Recipe) if entry.name != "augmentation"] + list(fields(Augmentation))


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add --init, --preset, the sizes, --mean and --std."""
    model = parser.add_argument_group("the model", "from --init, from --preset, or from the sizes that follow")
    model.add_argument("--init", metavar="MODEL", help="start from these weights, with a new head for DATA's classes")
    model.add_argument("--preset", metavar="SIZE", help="a named size such as Ti/16")
    for name, (default, text) in SIZES.items():
        flag = f"--{name.replace('_', '-')}"
        model.add_argument(flag, type=positive, metavar="N", help=f"{text} ({default or '4 x width'})")
    for name in ("mean", "std"):
        text = f"{name} of the images, R G B in 0..1 (0.5)"
        model.add_argument(f"--{name}", type=float, nargs=3, metavar="X", help=text)


def add_recipe_options(parser: argparse.ArgumentParser) -> None:
    """Add one option per field of the recipe; a field with an odd name has a better one, and keeps its own."""
    group = parser.add_argument_group("the recipe")
    for entry in recipe_fields():
        own, better = f"--{entry.name.replace('_', '-')}", entry.metadata["flag"]
        flags, text, kind = ([better, own] if better else [own]), entry.metadata["help"], type(entry.default)
        settings: dict[str, Any] = {"action": "store_true"}
        if kind is not bool:
            settings = {"type": kind, "default": entry.default, "metavar": kind.__name__.upper()}
            text = f"{text} ({entry.default})"
        if better:
            text += f"; {own} is its former name"
        group.add_argument(*flags, dest=entry.name, help=text, **settings)


@command(
    "train",
    help="train or fine-tune a ViT on your own images",
    description="Train a ViT from scratch, or from --init MODEL, on a folder of class folders or a tar of one. "
    "OUT becomes a checkpoint that minivit and transformers load. Several processes: torchrun "
    "--nproc-per-node 2 -m minivit train ... SIGINT and SIGTERM save the state; --resume continues from it.",
    options=[
        option("data", metavar="DATA", help="folder of class folders (cat/1.jpg), or a tar of one"),
        folder_output(*FILES, required=True, help="folder for the checkpoint and the metrics"),
        option("--resume", action="store_true", help="continue from OUT/checkpoint.pt, bit for bit"),
        option(
            "--val",
            metavar="DATA",
            help="images to evaluate the final weights on; opened before the first step",
        ),
        option("--workers", type=whole, default=1, metavar="N", help="processes that read images ahead (1)"),
        option("--device", default="auto", metavar="DEVICE", help="auto (default), cpu, cuda, cuda:N or mps"),
        THREADS,
        add_model_options,
        add_recipe_options,
        HUB,
    ],
)
def run(args: argparse.Namespace) -> int:
    import torch

    from minivit.training.dataset import find_images
    from minivit.training.evaluation import evaluate
    from minivit.training.loop import curves, read_metrics, train
    from minivit.weights import save

    if args.offline:
        go_offline()
    images = find_images(args.data)
    held_out = find_images(args.val) if args.val else None
    for source, found in ((args.data, images), (args.val, held_out)):
        for line in found.skipped if found else ():
            say(f"{printable(source)}: {printable(line)}")
    recipe, out = recipe_of(args), Path(args.out)
    with process_group(pick_device(args.device)) as (device, first):
        drawn = can_draw(first)
        torch.manual_seed(recipe.seed)
        model = model_of(args, images.classes).to(device)
        if held_out and first:
            check_held_out(held_out, model)
        with tempfile.TemporaryDirectory() as scratch:
            save(model, scratch)  # refuses now, not after hours, what cannot be written
        bar = progress(args, len(images) // recipe.batch_size * recipe.epochs) if first else (lambda metrics: None)
        try:
            with stop_signals() as stopped:
                trained = train(
                    *(model, images, recipe, out), resume=args.resume, workers=args.workers, report=bar, stop=stopped
                )
            if not first:
                return 0
            save(trained, out)
            metrics = read_metrics(out)
            if drawn:
                with writing(out / "curve.svg") as path:
                    draw(curves(metrics), path)
            facts = {"data": images.source.name, "recipe": asdict(recipe), "last_step": metrics[-1]}
            if held_out:
                trained.name = args.out
                result = evaluate(trained, held_out, batch_size=recipe.batch_size, workers=args.workers)
                facts["evaluation"] = {"data": held_out.source.name, **asdict(result)}
                scores = f"top-1 {result.top1:.4f}, top-5 {result.top5:.4f}"
                say(f"{scores} on the {result.images} images of {held_out.source}")
            with writing(out / "training.json") as path:
                path.write_text(json.dumps(facts, indent=2) + "\n")
            show_text(str(out))
        except KeyboardInterrupt:
            say(f"interrupted; continue with: minivit train ... -o {args.out} --resume")
            return 130
    return 0


def recipe_of(args: argparse.Namespace) -> Recipe:
    """Return the recipe of the options."""
    names = {kind: [entry.name for entry in fields(kind)] for kind in (Recipe, Augmentation)}
    given = {kind: {name: getattr(args, name) for name in names[kind] if hasattr(args, name)} for kind in names}
    return Recipe(augmentation=Augmentation(**given[Augmentation]), **given[Recipe])


def model_of(args: argparse.Namespace, classes: list[str]) -> ViT:
    """Return the model to train, with a head and labels for the classes.

    Raises:
        UsageError: options that exclude each other.
    """
    from minivit.training.models import attend_for, new_model, with_new_head
    from minivit.weights import load

    attend = attend_for(pick_device(args.device))
    sizes = {name: getattr(args, name) for name in SIZES if getattr(args, name) is not None}
    if args.init:
        if sizes or args.preset or args.mean or args.std:
            raise UsageError(
                "--init brings its own sizes and preprocessing; leave out --preset, sizes, --mean and --std"
            )
        given = load(args.init, attend=attend, **checkpoint_of(args))
        return with_new_head(vit_of(given), classes)
    side = sizes.pop("image_size", 224 if args.preset else SIZES["image_size"][0])
    if args.preset and sizes:
        raise UsageError(f"--preset {args.preset} sets the sizes; of them only --image-size can be given too")
    if not args.preset:
        sizes = {**{name: SIZES[name][0] for name in ("patch_size", "width", "depth", "heads")}, **sizes}
        sizes.setdefault("mlp_width", 4 * sizes["width"])
    colours: dict[str, Any] = {name: tuple(getattr(args, name)) for name in ("mean", "std") if getattr(args, name)}
    return new_model(classes, preset=args.preset, image_size=side, attend=attend, **colours, **sizes)


@contextmanager
def process_group(device: str) -> Iterator[tuple[str, bool]]:
    """Join the process group of torchrun, if there is one; yield this process's device, and whether it is the first."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:  # torchrun sets this variable, and LOCAL_RANK
        yield device, True
        return
    import torch

    # DistributedDataParallel imports this. If that happened while the process group exists, default arguments would
    # keep the group for good: its threads would outlive Python, and one of them can abort the process at the end.
    import torch._dynamo
    import torch.distributed as dist

    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    try:
        yield device, dist.get_rank() == 0
    finally:
        dist.destroy_process_group()
        gc.collect()  # DistributedDataParallel is a cycle that holds the group; its threads end when it is freed


@contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether SIGINT or SIGTERM has come, which end nothing meanwhile."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, frame: received.append(number)) for number in numbers]
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def check_held_out(held_out: LabelledImages, model: ViT) -> None:
    """Refuse images of --val that could not be evaluated when the training is over.

    Raises:
        UsageError: a class that is not one of the training images.
        ImageError: an image that cannot be read.
    """
    from minivit.training.evaluation import match_classes

    match_classes(held_out, model.labels, model.config.classes)

    def check(index: int) -> None:
        held_out.open(index)

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(check, range(len(held_out))):
            pass


def progress(args: argparse.Namespace, steps: int) -> Callable[[dict], None]:
    """Return a function that shows metrics: in one line that is overwritten on a terminal, else once per epoch."""
    terminal = sys.stderr.isatty()
    epoch = -1

    def show(metrics: dict) -> None:
        nonlocal epoch
        done = metrics["step"] + 1
        text = (
            f"epoch {metrics['epoch'] + 1}/{args.epochs}  step {done}/{steps}  loss {metrics['loss']:.3f}  "
            f"accuracy {metrics['accuracy']:.3f}  {metrics['images_per_second']:.0f} images/s  "
            f"{metrics['seconds_left'] / 60:.1f} min left"
        )
        if terminal:
            print(f"\r{text}", end="\n" if done == steps else "", file=sys.stderr, flush=True)
        elif metrics["epoch"] != epoch or done == steps:
            say(text)
        epoch = metrics["epoch"]

    return show


def can_draw(first: bool) -> bool:
    """Return whether matplotlib is installed; if not, the first process says that there will be no curve."""
    from minivit.viz.style import require_matplotlib

    try:
        require_matplotlib()
    except UsageError as error:  # no reason to lose a training run
        if first:
            say(f"curve.svg will not be drawn: {error}")
        return False
    return True


def draw(series: dict[str, list[tuple[float, float]]], path: Path) -> None:
    """Draw loss and accuracy over epochs."""
    from minivit.viz import line_chart, save

    save(line_chart("training", "epoch", series, y_label="loss (nats), accuracy (fraction)"), path)
