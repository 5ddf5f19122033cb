"""minivit classify: the most likely labels of images."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from minivit.cli.shared.bulk import BULK, batch_size, check_engine, choose_path, icc_setting, run_local, run_on_ray
from minivit.cli.shared.command import LABELS, RUN, command, option
from minivit.cli.shared.console import positive, say
from minivit.cli.shared.inputs import add_input_options, check_inputs
from minivit.cli.shared.models import load_image_model
from minivit.cli.shared.writers import WRITERS, Output, form_of
from minivit.errors import UsageError
from minivit.model.config import SCORES

if TYPE_CHECKING:
    from minivit.model.capabilities import ImageModel


def add_forms(parser: argparse.ArgumentParser) -> None:
    """Add --json, --jsonl and --csv, of which one can be given."""
    form = parser.add_mutually_exclusive_group()
    for name, text in (("json", "one JSON array"), ("jsonl", "one JSON record per line"), ("csv", "one row per label")):
        form.add_argument(f"--{name}", dest="form", action="store_const", const=name, help=f"write {text}")


def add_choice(parser: argparse.ArgumentParser) -> None:
    """Add -k and --threshold, of which one can be given, and the options about scores and names."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("-k", "--top-k", type=positive, default=5, metavar="K", help="labels per image (5)")
    choice.add_argument(
        "--threshold",
        type=float,
        metavar="SCORE",
        help="all labels with this score or more, not the K best",
    )
    parser.add_argument(
        "--scores",
        choices=SCORES,
        help="how logits become scores: softmax over all classes, sigmoid of each class, or none: the logits "
        "(default: as the checkpoint says)",
    )
    parser.add_argument(
        "--class-names",
        metavar="FILE",
        help="names of the outputs: one a line, .json (list or {index: name}) or .csv (columns name, category)",
    )


def adapt(model: ImageModel, args: argparse.Namespace) -> None:
    """Give the model the scores and the class names of the options."""
    from minivit.weights.families.labels import read_class_names

    if args.scores:
        model.config = replace(model.config, score=args.scores)
    if args.class_names:
        if getattr(args, "labels", None) or getattr(args, "labels_file", None):
            raise UsageError("--class-names names the outputs of a head, --labels makes outputs of texts: give one")
        model.labels, model.categories = read_class_names(args.class_names, model.config.classes)


@command(
    "classify",
    help="print the most likely labels of images",
    description="Print the most likely labels of images, in the order given. An image that cannot be read becomes an "
    "error, the others continue, and the exit code is 3.",
    options=[
        add_input_options,
        add_choice,
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
    adapt(model, args)
    if model.config.classes and not model.labels:
        say(f"{model.name} names no classes; the numbers are the outputs of its head")
    found, fast = choose_path(args, model)
    settings = {"dtype": args.dtype, "batch_size": batch_size(args, model), "fast": fast, "top_k": args.top_k}
    settings |= icc_setting(args)
    if args.threshold is not None:
        settings = {**settings, "top_k": None, "threshold": args.threshold}
    scores = model.config.score
    resumable = args.engine == "ray" or (bool(args.out) and form == "jsonl")
    constant = constants(model, scores=scores, **(settings if resumable else {}))
    if args.engine == "ray":
        named = {"labels": model.labels, "categories": model.categories} if args.class_names else {}
        task = {"top_k": args.top_k, "threshold": args.threshold, "scores": args.scores, **named}
        classifier(model, args.top_k, threshold=args.threshold)  # refuses now what a worker would refuse later
        return run_on_ray(args, found, constant, **task)
    model = optimize(model) if fast else model
    predict = classifier(model, args.top_k, threshold=args.threshold)
    writer = JsonlLog(args.out, constant, resume=args.resume) if resumable else WRITERS[form](Output(args.out))
    return run_local(args, model, found, predict, constant, writer)
