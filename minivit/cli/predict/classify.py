"""minivit classify: the most likely labels of images."""

from __future__ import annotations

import argparse

from minivit.cli.shared.bulk import BULK, batch_size, check_engine, choose_path, run_local, run_on_ray
from minivit.cli.shared.command import LABELS, RUN, command, option
from minivit.cli.shared.console import positive, say
from minivit.cli.shared.inputs import add_input_options, check_inputs
from minivit.cli.shared.models import load_image_model
from minivit.cli.shared.writers import WRITERS, Output, form_of
from minivit.errors import UsageError


def add_forms(parser: argparse.ArgumentParser) -> None:
    """Add --json, --jsonl and --csv, of which one can be given."""
    form = parser.add_mutually_exclusive_group()
    for name, text in (("json", "one JSON array"), ("jsonl", "one JSON record per line"), ("csv", "one row per label")):
        form.add_argument(f"--{name}", dest="form", action="store_const", const=name, help=f"write {text}")


@command(
    "classify",
    help="print the most likely labels of images",
    description="Print the most likely labels of images, in the order given. An image that cannot be read becomes an "
    "error, the others continue, and the exit code is 3.",
    options=[
        add_input_options,
        option("-k", "--top-k", type=positive, default=5, metavar="K", help="labels per image (5)"),
        add_forms,
        LABELS,
        option("-o", "--out", metavar="FILE", help="write a new file; .jsonl, .json, .csv or .txt choose the form"),
        *BULK,
        *RUN,
    ],
)
def run(args: argparse.Namespace) -> int:
    from minivit.inference.jsonl import JsonlLog
    from minivit.inference.optimize import optimize
    from minivit.inference.predict import classifier
    from minivit.inference.records import constants

    check_inputs(args)
    check_engine(args)
    form = form_of(args.out, args.form) if args.engine == "local" else "parquet"
    if args.resume and not (args.out and form == "jsonl"):
        raise UsageError("--resume continues a file of JSON lines: name it with -o FILE.jsonl")
    model = load_image_model(args)
    if model.config.classes and not model.labels:
        say(f"{model.name} names no classes; the numbers are the outputs of its head")
    found, fast = choose_path(args, model)
    settings = {"dtype": args.dtype, "batch_size": batch_size(args, model), "fast": fast, "top_k": args.top_k}
    resumable = args.engine == "ray" or (bool(args.out) and form == "jsonl")
    constant = constants(model, **settings) if resumable else constants(model)
    if args.engine == "ray":
        return run_on_ray(args, found, constant, top_k=args.top_k)
    model = optimize(model) if fast else model
    predict = classifier(model, args.top_k)
    writer = JsonlLog(args.out, constant, resume=args.resume) if resumable else WRITERS[form](Output(args.out))
    return run_local(args, model, found, predict, constant, writer)
