"""minivit bench model: what a kernel does to a whole model."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from minivit.cli.shared.bench import (
    DEVICE,
    KERNEL_HELP,
    LIMITS,
    RIGHTS,
    RUN_FOLDER,
    SEED,
    UNVERIFIED,
    budget,
    limits_of,
    pick_threads,
    pick_timed_device,
    print_lines,
    print_refused,
    print_verdict,
    processes,
    seed_of,
)
from minivit.cli.shared.command import batch_size, command, option
from minivit.cli.shared.console import positive, printable, say
from minivit.cli.shared.inputs import find_images
from minivit.cli.shared.models import DTYPES, add_hub_options, add_model_option, load_model
from minivit.errors import ImageError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from minivit.model.vit import ViT


@command(
    "model",
    help="time a kernel inside a model",
    description="Check a kernel, then run a model with it and with the default attention: images per second, the "
    "fraction of time in attention, Amdahl's ceiling, the error after each block and of the logits compared with "
    "float64, and classes that change. Exit code 0: good; 1: refused, invalid or failed; 2: usage.",
    epilog=RIGHTS,
    options=[
        option("kernel", metavar="KERNEL", help=KERNEL_HELP),
        add_model_option,
        option("--images", metavar="FOLDER", help="images (without it: normal noise)"),
        option("--most", type=positive, default=48, metavar="N", help="maximum number of images (48)"),
        batch_size(8),
        option("--threads", default=None, metavar="N", help="number of threads (all cores)"),
        option("--dtype", default="float32", choices=DTYPES, help="of weights and arithmetic"),
        budget("1m"),
        processes(2),
        DEVICE,
        UNVERIFIED,
        add_hub_options,
        SEED,
        *LIMITS,
        RUN_FOLDER,
    ],
)
def run(args: argparse.Namespace) -> int:
    """Check the kernel, time the model, print what changed."""
    from minivit.bench.kernels import kernel_file
    from minivit.bench.model.run import ModelPlan, run_model

    args.device = pick_timed_device(args.device)
    threads = pick_threads(args.threads)
    if len(threads) != 1:
        raise UsageError(f"--threads {args.threads}: give one number")
    kernel_file(args.kernel)  # refuses an unknown name before the model is loaded
    plan = ModelPlan(
        kernel=args.kernel,
        batch=args.batch_size,
        threads=threads[0],
        processes=args.processes,
        budget=args.budget,
        seed=seed_of(args),
        device=args.device,
        unverified=args.unverified,
        limits=limits_of(args),
    )
    model = load_model(args)
    names, pixels = read_pixels(args, model, plan.seed)
    result = run_model(plan, model, pixels, names, out=args.out, on_record=print_verdict)
    if result.refused:
        print_refused(result.checks)
        return 1
    for lines in result.parts():
        print_lines(lines)
    if args.out:
        say(f"wrote {args.out}/report.md and {args.out}/report.html")
    return 0 if result.good else 1


def read_pixels(args: argparse.Namespace, model: ViT, seed: int) -> tuple[list[str], Tensor]:
    """Return the names of the images, and their pixels as the model expects them: (B, C, H, W)."""
    import torch

    from minivit.images.preprocess import preprocess
    from minivit.inference.predict import image_spec_of

    weight = model.patch_embed.weight
    if args.images is None:
        say("no --images: the images are normal noise, on which agreement means little")
        shape = (min(args.most, 16), model.config.channels, *model.config.image_size)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return [f"noise {i}" for i in range(len(noise))], noise.to(weight)
    spec = image_spec_of(model)
    names: list[str] = []
    pixels = []
    for name, image in find_images([args.images], recursive=True):
        if len(names) == args.most:
            break
        try:
            if isinstance(image, ImageError):
                raise image
            pixels.append(preprocess(image, spec))
            names.append(name)
        except ImageError as error:
            say(f"{printable(name)}: left out: {error}")
    if not names:
        raise UsageError(f"--images {args.images}: no image there can be read")
    return names, torch.stack(pixels).to(weight)
