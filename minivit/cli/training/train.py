"""minivit train: train or fine-tune a ViT on a folder of class folders."""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import Field, asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minivit.cli.shared.console import positive, say
from minivit.cli.shared.models import add_hub_options, go_offline, pick_device, plain_vit
from minivit.errors import UsageError
from minivit.training.recipe import Augmentation, Recipe

if TYPE_CHECKING:
    from minivit.model.vit import ViT
    from minivit.training.dataset import Photos


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "train",
        help="train or fine-tune a ViT on your own pictures",
        description="Train a ViT from scratch, or from --init MODEL, on a folder of class folders or a tar of one. "
        "OUT becomes a checkpoint that minivit and transformers load. Several processes: torchrun "
        "--nproc-per-node 2 -m minivit train ... SIGINT saves the state; --resume goes on from it.",
    )
    parser.add_argument("data", metavar="DATA", help="folder of class folders (cat/1.jpg), or a tar of one")
    parser.add_argument("-o", "--out", required=True, metavar="OUT", help="folder for the checkpoint and the metrics")
    parser.add_argument("--resume", action="store_true", help="go on from OUT/checkpoint.pt, bit for bit")
    parser.add_argument("--val", metavar="DATA", help="pictures to evaluate the final weights on")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that read pictures ahead")
    parser.add_argument("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps")

    model = parser.add_argument_group("the model", "from --init, from --preset, or from the sizes that follow")
    model.add_argument("--init", metavar="MODEL", help="start from these weights, with a new head for DATA's classes")
    model.add_argument("--preset", metavar="SIZE", help="a named size such as Ti/16")
    for name, (default, text) in SIZES.items():
        flag = f"--{name.replace('_', '-')}"
        model.add_argument(flag, type=positive, metavar="N", help=f"{text} ({default or '4 x width'})")
    for name in ("mean", "std"):
        model.add_argument(
            f"--{name}", type=float, nargs=3, metavar="X", help=f"{name} of the pictures, R G B in 0..1 (0.5)"
        )

    group = parser.add_argument_group("the recipe")
    for entry in _options():
        flag, text, kind = f"--{entry.name.replace('_', '-')}", entry.metadata["help"], type(entry.default)
        if kind is bool:
            group.add_argument(flag, action="store_true", help=text)
        else:
            text = f"{text} ({entry.default})"
            group.add_argument(flag, type=kind, default=entry.default, metavar=kind.__name__.upper(), help=text)
    add_hub_options(parser)
    parser.set_defaults(run=run)


# Sizes of a model from scratch: ViTConfig field -> (default, explanation).
SIZES = {
    "image_size": (32, "sides of the square picture, in pixels"),
    "patch_size": (4, "sides of a patch, in pixels"),
    "width": (192, "size of a token"),
    "depth": (6, "blocks"),
    "heads": (3, "attention heads"),
    "mlp_width": (None, "hidden size of the MLP"),
}


def _options() -> list[Field]:
    """The fields of the recipe and of its augmentation, each one option of the command."""
    return [entry for entry in fields(Recipe) if entry.name != "augmentation"] + list(fields(Augmentation))


def run(args: argparse.Namespace) -> int:
    import torch
    import torch.distributed as dist

    from minivit.training.dataset import find_photos
    from minivit.training.evaluate import evaluate
    from minivit.training.train import train
    from minivit.viz import line_chart
    from minivit.viz import save as save_chart
    from minivit.viz.style import require_matplotlib
    from minivit.weights import save

    if args.offline:
        go_offline()
    photos = find_photos(args.data)
    held_out = find_photos(args.val) if args.val else None
    names = {kind: {entry.name for entry in fields(kind)} for kind in (Recipe, Augmentation)}
    given = {kind: {name: getattr(args, name) for name in names[kind] if hasattr(args, name)} for kind in names}
    recipe = Recipe(augmentation=Augmentation(**given[Augmentation]), **given[Recipe])
    device = pick_device(args.device)

    # torchrun tells each process its place by these variables.
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        # DistributedDataParallel imports this, and what is imported once the process group exists keeps it for good as
        # default arguments: its threads would then outlive Python, and one of them can abort the process at the end.
        import torch._dynamo

        if device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    first = not processes > 1 or dist.get_rank() == 0
    try:
        require_matplotlib()
        drawn = True
    except UsageError as error:  # no reason to lose a training run
        drawn = False
        if first:
            say(f"curve.svg will not be drawn: {error}")

    torch.manual_seed(recipe.seed)
    model = new_model(args, photos).to(device)
    with tempfile.TemporaryDirectory() as scratch:
        save(model, scratch)  # what cannot be written is refused now, not after hours
    interrupted: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupted.append(number))
    bar = progress(args, len(photos) // recipe.batch_size * recipe.epochs) if first else (lambda metrics: None)
    out = Path(args.out)
    try:
        trained = train(
            model,
            photos,
            recipe,
            out,
            resume=args.resume,
            workers=args.workers,
            report=bar,
            stop=lambda: bool(interrupted),
        )
        if not first:
            return 0
        save(trained, out)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        if drawn:
            chart = line_chart("training", "epoch", curves(lines), y_label="loss (nats), accuracy (fraction)")
            save_chart(chart, out / "curve.svg")
        facts = {"data": photos.source.name, "recipe": asdict(recipe), "last_step": lines[-1]}
        if held_out:
            trained.name = args.out
            result = evaluate(trained, held_out, batch_size=recipe.batch_size, workers=args.workers)
            facts["evaluation"] = {"data": held_out.source.name, **asdict(result)}
            say(
                f"top-1 {result.top1:.4f}, top-5 {result.top5:.4f} on the {result.images} pictures of {held_out.source}"
            )
        (out / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
        print(out)
    except KeyboardInterrupt:
        say(f"interrupted; go on with: minivit train ... -o {args.out} --resume")
        return 130
    finally:
        signal.signal(signal.SIGINT, before)
        if processes > 1:
            dist.destroy_process_group()
            gc.collect()  # DistributedDataParallel is a cycle that holds the group; without it the threads end here
    return 0


def new_model(args: argparse.Namespace, photos: Photos) -> ViT:
    """The model to train, with a head and labels for the classes of `photos`.

    Raises:
        UsageError: options that exclude each other.
    """
    from minivit.images.spec import ImageSpec
    from minivit.model.attention import attend_reference
    from minivit.model.config import ViTConfig
    from minivit.model.vit import ViT
    from minivit.training.train import with_new_head
    from minivit.weights import load

    # On a CPU the backward pass of PyTorch's fused attention is several times slower than the plain one.
    attend = attend_reference if pick_device(args.device) == "cpu" else None
    sizes = {name: getattr(args, name) for name in SIZES if getattr(args, name) is not None}
    if args.init:
        if sizes or args.preset or args.mean or args.std:
            raise UsageError(
                "--init brings its own sizes and preprocessing; leave out --preset, sizes, --mean and --std"
            )
        given = load(args.init, attend=attend, revision=args.revision, family=args.family)
        return with_new_head(plain_vit(given), photos.classes)
    if args.preset:
        side = sizes.pop("image_size", 224)
        if sizes:
            raise UsageError(f"--preset {args.preset} sets the sizes; of them only --image-size can be given too")
        config = ViTConfig.preset(args.preset, image_size=(side, side), classes=len(photos.classes))
    else:
        sizes = {**{name: default for name, (default, _) in SIZES.items()}, **sizes}
        side = sizes.pop("image_size")
        sizes["mlp_width"] = sizes["mlp_width"] or 4 * sizes["width"]
        config = ViTConfig(image_size=(side, side), classes=len(photos.classes), **sizes)
    model = ViT(config, **({"attend": attend} if attend else {}))
    half = (0.5, 0.5, 0.5)
    mean, std = tuple(args.mean or half), tuple(args.std or half)
    model.image_spec = ImageSpec(resize=(side, side), resample="bicubic", mean=mean, std=std)
    model.labels = dict(enumerate(photos.classes))
    return model


def progress(args: argparse.Namespace, steps: int) -> Callable[[dict], None]:
    """A line that is written over on a terminal, and one line an epoch elsewhere."""
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
            filled = 20 * done // steps
            print(f"\r[{'#' * filled}{'.' * (20 - filled)}] {text}", end="\n" if done == steps else "", file=sys.stderr)
        elif metrics["epoch"] != epoch or done == steps:
            say(text)
        epoch = metrics["epoch"]

    return show


def curves(lines: list[dict], points: int = 200) -> dict[str, list[tuple[float, float]]]:
    """Loss and accuracy over epochs, averaged to about `points` points."""
    size = max(1, len(lines) // points)
    groups = [lines[i : i + size] for i in range(0, len(lines), size)]
    per_epoch = len(lines) / (lines[-1]["epoch"] + 1)
    return {
        name: [(group[-1]["step"] / per_epoch, sum(line[name] for line in group) / len(group)) for group in groups]
        for name in ("loss", "accuracy")
    }
