"""What classify and embed share: the options of a long run, its progress bar, and the run here or on Ray."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minivit.cli.shared.command import ICC, Options, option
from minivit.cli.shared.console import positive, printable, say, say_failed, seconds
from minivit.cli.shared.inputs import Found, count_inputs, find_inputs
from minivit.cli.shared.models import family_only
from minivit.errors import UsageError

if TYPE_CHECKING:
    from minivit.inference.bulk import RecordWriter
    from minivit.model.capabilities import ImageModel

BULK: tuple[Options, ...] = (
    option("-b", "--batch-size", type=positive, metavar="B", help="batch size (1 on a CPU, 32 on a GPU)"),
    option("--readers", type=positive, metavar="N", help="threads that decode images ahead (one per two cores)"),
    ICC,
    option("--image-timeout", type=seconds, metavar="S", help="give up an image after S seconds (default: never)"),
    option("--no-fast", action="store_true", help="run the reference model even where the fast path saves time"),
    option(
        "--engine",
        default="local",
        choices=("local", "ray"),
        help="ray runs on a Ray cluster and writes -o FOLDER of Parquet shards",
    ),
    option("--address", metavar="ADDRESS", help="the Ray cluster: auto, or HOST:PORT (default: a new one)"),
    option(
        "--ray-timeout",
        type=positive,
        metavar="S",
        help="seconds until a Ray address that does not answer is given up (30)",
    ),
    option("--workers", type=positive, metavar="N", help="models on the Ray cluster (one per node)"),
    option("--resume", action="store_true", help="continue the interrupted run that wrote -o FILE"),
    option("--no-progress", action="store_true", help="no progress bar, even on a terminal"),
)


def check_engine(args: argparse.Namespace) -> None:
    """Refuse options that the engine cannot honour.

    Raises:
        UsageError: the reason.
    """
    if args.engine == "local" and (args.address or args.workers or args.ray_timeout):
        raise UsageError("--address, --workers and --ray-timeout are of --engine ray")
    if args.engine == "ray":
        family_only(args, "--engine ray")
        if getattr(args, "labels", None) or getattr(args, "labels_file", None):
            raise UsageError("--engine ray predicts the checkpoint's own classes; --labels is for --engine local")
        if not args.out or args.resume:
            raise UsageError(
                "--engine ray writes a new folder of Parquet shards, which is not resumed: name it with -o FOLDER"
            )
        if "://" in args.out:
            raise UsageError(f"-o {args.out}: the shards are counted at the end; name a folder all nodes share")
        if Path(args.out).exists():
            raise UsageError(f"-o {args.out}: already exists; the Ray engine writes a new folder")
        if "-" in args.images:
            raise UsageError("--engine ray reads files; an image on standard input is for --engine local")


def batch_size(args: argparse.Namespace, model: ImageModel) -> int:
    """Return -b, or what suits the device."""
    from minivit.inference.bulk import default_batch_size

    return args.batch_size or default_batch_size(model)


def icc_setting(args: argparse.Namespace) -> dict[str, Any]:
    """Return --icc as a setting of a run that changes its records; the default is not recorded."""
    return {} if args.icc == "ignore" else {"icc": args.icc}


def choose_path(args: argparse.Namespace, model: ImageModel) -> tuple[Iterator[Found], bool]:
    """Return the inputs, and whether there are enough of them for the fast path; an uncounted list has enough.

    This depends on the inputs alone, so that a resumed run takes the path of the first run.
    """
    from minivit.inference.optimize import TOKENS_THAT_PAY, pays

    found = find_inputs(args)
    if args.from_file == "-" or any("://" in name for name in args.images):
        return found, not args.no_fast and pays(model, TOKENS_THAT_PAY)
    first = list(islice(found, TOKENS_THAT_PAY // model.config.layout.count + 1))
    return chain(first, found), not args.no_fast and pays(model, len(first))


def run_local(
    args: argparse.Namespace,
    model: ImageModel,
    found: Iterator[Found],
    predict: Callable,
    constant: dict[str, Any],
    writer: RecordWriter,
) -> int:
    """Write a record of every image that was found; return the exit code."""
    from minivit.inference.bulk import write_predictions

    total = 0
    try:
        with progress(args) as step:

            def report(done: int) -> None:
                nonlocal total
                total = done
                step()

            summary = write_predictions(
                *(found, model, predict, writer, constant),
                batch_size=batch_size(args, model),
                readers=args.readers,
                icc=args.icc,
                image_timeout=args.image_timeout,
                report=report,
            )
    except KeyboardInterrupt:
        if args.out and "run" in constant:
            say(f"{args.out}: {total} images so far; --resume continues")
        raise
    if args.out:
        say(f"wrote {printable(args.out)}")
    return say_failed(summary.failed, summary.records)


def run_on_ray(args: argparse.Namespace, found: Iterator[Found], constant: dict[str, Any], **task: Any) -> int:
    """Write a record of every image that was found into the folder -o, by the Ray engine; return the exit code.

    Inputs with a scheme, such as s3://bucket/photos, are listed and read by Ray: files with the suffix of an image.

    Args:
        task: the fields of ray_engine.Job that say what to predict: top_k, or pool, layer and norm.
    """
    from minivit.inference import ray_engine

    remote = [name for name in args.images if "://" in name]
    if remote and len(remote) < len(args.images):
        raise UsageError("--engine ray reads local images or addresses such as s3://..., not both in one run")
    if not remote:
        first = next(found, None)
        if first is None:
            Path(args.out).mkdir(parents=True, exist_ok=True)
            return 0  # what has no images was said
        found = chain([first], found)
    quiet = args.no_progress or not sys.stderr.isatty()
    ray = ray_engine.start(args.address, quiet=quiet, timeout=args.ray_timeout or 30)
    if remote:
        dataset = ray_engine.read(remote)
    else:
        names = (name for name, _ in found)
        dataset = ray.data.from_items(list(ray_engine.chunks(names, constant["run"]["batch_size"])))
    job = ray_engine.Job(
        model=args.model if args.model != "auto" else constant["model"],
        revision=constant["revision"] or args.revision,
        family=args.family,
        dtype=args.dtype,
        folder=str(Path.cwd()),
        readers=args.readers,
        icc=args.icc,
        image_timeout=args.image_timeout,
        constant=constant,
        **task,
    )
    summary = ray_engine.run(dataset, args.out, job, workers=args.workers)
    code = say_failed(summary.failed, summary.records)
    say(f"{args.out}: {summary.records} records, {summary.failed} of them errors")
    return code


@contextmanager
def progress(args: argparse.Namespace) -> Iterator[Callable[[], object]]:
    """Show a bar with rate and time left on stderr, if that is a terminal; yield a function that counts one image.

    There is no bar when the records themselves go to a terminal. The inputs are counted in a thread; until that
    ends, and for a list on standard input, the bar has no end.
    """
    if args.no_progress or not sys.stderr.isatty() or (sys.stdout.isatty() and not args.out):
        yield lambda: None
        return
    from tqdm import tqdm

    with tqdm(unit=" images", dynamic_ncols=True, smoothing=0.1) as bar:

        def count() -> None:
            bar.total = count_inputs(args)
            bar.refresh()

        threading.Thread(target=count, daemon=True).start()
        yield bar.update
