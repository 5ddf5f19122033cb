"""minivit bench model: what a kernel does to a whole model."""

from __future__ import annotations

import argparse
import secrets
from contextlib import ExitStack
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from minivit.cli.bench.check import RIGHTS, default_memory
from minivit.cli.bench.roofline import pick_threads, pick_timed_device
from minivit.cli.bench.run import add_common, new_folder, quick_cases, seconds, verify, write_reports
from minivit.cli.shared.console import positive, printable, say
from minivit.cli.shared.inputs import find_pictures
from minivit.cli.shared.models import DTYPES, add_hub_options, add_model_option, load_model
from minivit.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from minivit.model.vit import ViT


def add_parsers(verbs: Any) -> None:
    """The verb model."""
    parser = verbs.add_parser(
        "model",
        help="time a kernel inside a model",
        description="Check a kernel, then run a model with it and with the default attention: images per second, "
        "attention's share, Amdahl's ceiling, the error after each block and of the logits against float64, and "
        "answers that flip. Exit code 0: good; 1: refused, invalid or failed; 2: usage.",
        epilog=RIGHTS,
    )
    parser.add_argument("kernel", metavar="KERNEL", help="my_kernel.py, my_kernel.py:name, or a baseline")
    add_model_option(parser)
    parser.add_argument("--images", metavar="FOLDER", help="pictures (without: normal noise)")
    parser.add_argument("--most", type=positive, default=48, metavar="N", help="pictures to look at (48)")
    parser.add_argument("-b", "--batch-size", type=positive, default=8, metavar="B", help="pictures at once (8)")
    parser.add_argument("--threads", default=None, metavar="N", help="(all cores)")
    parser.add_argument("--dtype", default="float32", choices=DTYPES, help="of weights and arithmetic")
    parser.add_argument("--budget", default="1m", type=seconds, metavar="TIME", help="of the timing: 90s, 1m (default)")
    parser.add_argument("--processes", default=2, type=positive, metavar="N", help="that time, one after the other (2)")
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu (default), auto, cuda or cuda:N")
    parser.add_argument("--unverified", action="store_true", help="skip the check, and say so")
    add_hub_options(parser)
    add_common(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The check, the model, the errors, the rounds, the verdict."""
    import torch

    from minivit.bench.kernels import kernel_file
    from minivit.bench.model.blocks import ModelPlan, bench_record, model_row, time_model
    from minivit.bench.report.results import FILE, line
    from minivit.bench.report.tables import model_lines
    from minivit.bench.report.verdicts import fingerprint
    from minivit.bench.sandbox import Limits

    args.device = device = pick_timed_device(args.device)
    threads = pick_threads(args.threads)
    if len(threads) != 1:
        raise UsageError(f"--threads {args.threads}: one number at a time")
    kernel_file(args.kernel)
    limits = Limits(seconds=args.timeout, memory=args.memory << 30 if args.memory else default_memory())
    plan = ModelPlan(
        kernel=args.kernel,
        batch=args.batch_size,
        threads=threads[0],
        processes=args.processes,
        budget=args.budget,
        seed=secrets.randbelow(1 << 32) if args.seed is None else args.seed,
        device=device,
        unverified=args.unverified,
        limits=limits,
    )
    model = load_model(args)
    names, pixels = _pixels(args, model, plan.seed)
    folder = new_folder(args.out)
    records: list[dict[str, Any]] = []
    with ExitStack() as stack:
        out = stack.enter_context((folder / FILE).open("w", encoding="utf-8")) if folder else None

        def emit(record: dict[str, Any]) -> None:
            records.append(record)
            if out:
                print(line(record), file=out, flush=True)

        environment = {name: value for name, value in fingerprint(device).items() if name != "threads"}
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        emit(bench_record(plan, model, names, environment, started=started))
        if not args.unverified:
            cases = quick_cases([getattr(torch, args.dtype)], device, False)
            if not verify([args.kernel], cases, plan.seed, device, limits, emit):
                say("nothing was timed: the kernel is wrong (--unverified times it all the same)")
                return 1
        for record in time_model(plan, model, pixels):
            emit(record)
        row = model_row(records)
        emit(row)
    print("\n".join(printable(text) for text in model_lines(row)))
    if folder:
        write_reports(folder, records)
    return 1 if row["status"] in ("failed", "invalid") else 0


def _pixels(args: argparse.Namespace, model: ViT, seed: int) -> tuple[list[str], Tensor]:
    """Pictures as the model wants them, and their names: (P, C, H, W)."""
    import torch

    from minivit.errors import ImageError
    from minivit.images.preprocess import preprocess
    from minivit.inference.predict import image_spec_of

    weight = model.patch_embed.weight
    if args.images is None:
        say("no --images: the pictures are normal noise, on which agreement tells little")
        shape = (min(args.most, 16), model.config.channels, *model.config.image_size)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        return [f"noise {i}" for i in range(len(noise))], noise.to(weight)
    spec = image_spec_of(model)
    names: list[str] = []
    pixels = []
    for name, picture in find_pictures([args.images], recursive=True):
        if len(names) == args.most:
            break
        try:
            if isinstance(picture, ImageError):
                raise picture
            pixels.append(preprocess(picture, spec))
            names.append(name)
        except ImageError as error:
            say(f"{printable(name)}: left out: {error}")
    if not names:
        raise UsageError(f"--images {args.images}: no picture there can be read")
    return names, torch.stack(pixels).to(weight)
