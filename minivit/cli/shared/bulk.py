"""What classify and embed share: the options of a long run, its progress, its records and how it ends."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from minivit.cli.shared.console import positive, say
from minivit.cli.shared.inputs import Found, count_inputs, find_inputs
from minivit.errors import UsageError, WriteError

if TYPE_CHECKING:
    from minivit.inference.jsonl import Known
    from minivit.inference.prefetch import Item
    from minivit.model.capabilities import ImageModel


def add_bulk_options(parser: argparse.ArgumentParser) -> None:
    """-b, --readers, --no-fast, --resume, --no-progress."""
    parser.add_argument(
        "-b", "--batch-size", type=positive, metavar="B", help="pictures at once (1 on a CPU, 32 on a GPU)"
    )
    parser.add_argument(
        "--readers", type=positive, metavar="N", help="threads that decode ahead of the model (one for two cores)"
    )
    parser.add_argument(
        "--no-fast", action="store_true", help="run the readable model even where packing its weights first pays"
    )
    parser.add_argument(
        "--engine",
        default="local",
        choices=("local", "ray"),
        help="ray spreads the pictures over a Ray cluster and writes -o FOLDER of Parquet shards",
    )
    parser.add_argument("--address", metavar="ADDRESS", help="of the Ray cluster: auto, or HOST:PORT; else a new one")
    parser.add_argument("--workers", type=positive, metavar="N", help="models on the Ray cluster (one for each node)")
    parser.add_argument("--resume", action="store_true", help="continue the interrupted run that wrote -o FILE")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar, even on a terminal")


class Sink(Protocol):
    """Where records go, in order."""

    def known(self) -> Iterator[Known]:
        """What is there from an earlier run."""

    def put(self, index: int, item: dict[str, Any]) -> None:
        """Take record `index`."""

    def finish(self, total: int) -> None:
        """Nothing comes after `total` records."""

    def close(self) -> None:
        """Let go of what is open; what was taken stays."""


def batch_size(args: argparse.Namespace, model: ImageModel) -> int:
    """-b, or what suits the device."""
    return args.batch_size or (1 if model.patch_embed.weight.device.type == "cpu" else 32)


def choose_path(args: argparse.Namespace, model: ImageModel) -> tuple[Iterator[Found], bool]:
    """The inputs, and whether there are enough of them for the fast path; a list that cannot be counted is long.

    It depends on the inputs alone, so that a resumed run takes the path of the first one.
    """
    from minivit.inference.optimize import TOKENS_THAT_PAY, pays

    found = find_inputs(args)
    if args.from_file == "-" or any("://" in name for name in args.images):
        return found, not args.no_fast and pays(model, TOKENS_THAT_PAY)
    first = list(islice(found, TOKENS_THAT_PAY // model.config.layout.count + 1))
    return chain(first, found), not args.no_fast and pays(model, len(first))


def check_engine(args: argparse.Namespace) -> None:
    """Refuse options that the engine cannot honour."""
    if args.engine == "local" and (args.address or args.workers):
        raise UsageError("--address and --workers are of --engine ray")
    if args.engine == "ray":
        if getattr(args, "labels", None) or getattr(args, "labels_file", None):
            raise UsageError("--engine ray answers with the checkpoint's own classes; --labels is for --engine local")
        if not args.out or args.resume:
            raise UsageError(
                "--engine ray writes a new folder of Parquet shards, which is not resumed: name it with -o FOLDER"
            )
        if "://" in args.out:
            raise UsageError(f"-o {args.out}: the shards are counted when all is done; name a folder all nodes share")
        if Path(args.out).exists():
            raise UsageError(f"-o {args.out}: is there already; the Ray engine writes a new folder")
        if "-" in args.images:
            raise UsageError("--engine ray reads files; a picture on standard input is for one machine")


def answer_on_ray(args: argparse.Namespace, found: Iterator[Found], constant: dict[str, Any], **answer: Any) -> int:
    """Every picture found through the Ray engine into the folder -o; returns the exit code.

    Inputs with a scheme, such as s3://bucket/photos, are listed and read by Ray: what has a picture's suffix.

    Args:
        answer: what the workers answer with: top_k, or pool, layer and norm.
    """
    from minivit.inference import ray_engine as distributed

    remote = [name for name in args.images if "://" in name]
    if remote and len(remote) < len(args.images):
        raise UsageError("--engine ray reads local pictures or addresses such as s3://..., not both in one run")
    ray = distributed.start(args.address, quiet=args.no_progress or not sys.stderr.isatty())
    if remote:
        dataset = distributed.read(remote)
    else:
        names = (name for name, _ in found)
        dataset = ray.data.from_items(list(distributed.chunks(names, constant["run"]["batch_size"])))
    job = {
        "model": args.model if args.model != "auto" else constant["model"],
        "revision": constant["revision"] or args.revision,
        "family": args.family,
        "dtype": args.dtype,
        "folder": str(Path.cwd()),
        "batch_size": constant["run"]["batch_size"],
        "readers": args.readers,
        "constant": constant,
        **answer,
    }
    counted = distributed.run(dataset, args.out, job, workers=args.workers)
    say(f"{args.out}: {counted['records']} records, {counted['failed']} of them errors")
    return 3 if counted["failed"] else 0


def answer_inputs(
    args: argparse.Namespace,
    model: ImageModel,
    found: Iterator[Found],
    answer: Callable,
    constant: dict[str, Any],
    sink: Sink,
) -> int:
    """Every picture found through `answer` into `sink`, in order; returns the exit code.

    What `sink` has already is kept where path and content are the same. Another path in its place is refused:
    the inputs are others, and nothing of what is there is thrown away.
    """
    from minivit.inference.jsonl import Known, utf8
    from minivit.inference.predict import image_spec_of
    from minivit.inference.prefetch import Item, answer_all
    from minivit.inference.records import record

    given: deque[tuple[str, Known | None]] = deque()  # names of what is on its way: drawn in a thread, used here

    def items() -> Iterator[Item]:
        known = sink.known()
        for number, (name, picture) in enumerate(found, start=1):
            before = next(known, None)
            if before is not None and before.path != utf8(name):
                raise UsageError(
                    f"{args.out}: of other inputs: its record {number} is {before.path}, input {number} is {name}"
                )
            given.append((name, before))
            yield Item(picture, before.sha256 if before else None)

    results = answer_all(
        items(),
        answer,
        image_spec_of(model),
        like=model.patch_embed.weight,
        batch_size=batch_size(args, model),
        readers=args.readers,
        hashing="run" in constant,
    )
    total = failed = 0
    try:
        with closing(results), progress(args) as step:
            for total, result in enumerate(results, start=1):
                name, before = given.popleft()
                if result.kept and before is not None:
                    failed += before.error is not None
                else:
                    item = record(name, result, constant)
                    failed += "error" in item
                    if before != Known.of(item):  # what could not be read then and cannot now has no hash to go by
                        sink.put(total - 1, item)
                step()
        sink.finish(total)
    except KeyboardInterrupt:
        if args.out and "run" in constant:
            say(f"{args.out}: {total} pictures so far; --resume continues")
        raise
    finally:
        sink.close()
    return 3 if failed else 0


@contextmanager
def progress(args: argparse.Namespace) -> Iterator[Callable[[], object]]:
    """A bar with rate and time left on stderr, where that is a terminal; yields what counts one picture.

    There is none where the records themselves go to a terminal.

    How many there are is counted in a thread, beside the work; until then, and for a list on standard input,
    the bar has no end.
    """
    if args.no_progress or not sys.stderr.isatty() or (sys.stdout.isatty() and not args.out):
        yield lambda: None
        return
    from tqdm import tqdm

    with tqdm(unit=" pictures", dynamic_ncols=True, smoothing=0.1) as bar:

        def count() -> None:
            bar.total = count_inputs(args)
            bar.refresh()

        threading.Thread(target=count, daemon=True).start()
        yield bar.update


class Stdout:
    """Standard output, or -o FILE of a form that is not continued, as something records are written to."""

    def __init__(self, path: str | None = None):
        from minivit.inference.jsonl import Appender

        if path is not None and Path(path).is_file() and Path(path).stat().st_size:
            raise UsageError(f"-o {path}: is there already; remove it, or name another file")
        self.file = None if path is None else Appender(path)

    def write(self, text: str) -> None:
        """Pass on `text` as a whole, at once.

        Raises:
            WriteError: it cannot be written, as on a full disk.
        """
        if self.file is not None:
            self.file.append(text.encode("utf-8", "surrogateescape"))
            return
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            silence_stdout()
            raise WriteError(f"standard output: {error.strerror}; the records before this one are whole") from None

    def close(self) -> None:
        """Close the file, where it is one."""
        if self.file is not None:
            self.file.close()


def silence_stdout() -> None:
    """Let what is still buffered go nowhere: it cannot be written, and the interpreter would try again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def open_closed_streams() -> None:
    """Put something where the shell closed a stream (`>&-`), so that no file of ours gets its number.

    Nothing can be written to standard output then, which is said where it is tried; standard input is empty.
    """
    for name, mode, flags in (("stdin", "r", os.O_RDONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, flags), mode))
