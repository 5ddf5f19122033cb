"""minivit classify: the most likely labels of pictures."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from minivit.cli.console import (
    add_hub_options,
    add_model_option,
    add_run_options,
    find_pictures,
    load_picture_model,
    positive,
    printable,
    say,
)
from minivit.cli.texts import add_label_options, load_zero_shot

if TYPE_CHECKING:
    from minivit.predict import Classified

SCHEMA = 1  # of the JSON records; a field is only ever added under the same number


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "classify",
        help="print the most likely labels of pictures",
        description="Print the most likely labels of pictures, in the order given. A picture that cannot be read "
        "becomes an error, the others go on, and the exit code is 3.",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="file, folder, pattern, or - for standard input")
    parser.add_argument("-k", "--top-k", type=positive, default=5, metavar="K", help="labels for each picture (5)")
    parser.add_argument("-b", "--batch-size", type=positive, default=1, metavar="B", help="pictures at once (1)")
    parser.add_argument("-r", "--recursive", action="store_true", help="look into folders of folders")
    form = parser.add_mutually_exclusive_group()
    for name, text in (
        ("json", "one JSON array"),
        ("jsonl", "one JSON record a line"),
        ("csv", "a row for each label"),
    ):
        form.add_argument(f"--{name}", dest="form", action="store_const", const=name, help=f"write {text}")
    add_label_options(parser)
    add_model_option(parser)
    add_hub_options(parser)
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from minivit.predict import iter_classify

    if args.images.count("-") > 1 or ("-" in args.images and sys.stdin.isatty()):
        say("- reads one picture from standard input: pipe it in, and name it once")
        return 2
    model = load_zero_shot(args) or load_picture_model(args)
    if model.config.classes and not model.labels:
        say(f"{model.name} names no classes; the numbers are the outputs of its head")
    constant = {"model": model.name, "revision": model.revision, "device": str(model.patch_embed.weight.device)}
    names: list[str] = []

    def pictures() -> Iterator[Any]:
        for name, picture in find_pictures(args.images, recursive=args.recursive):
            names.append(name)
            yield picture

    results = iter_classify(pictures(), model=model, top_k=args.top_k, batch_size=args.batch_size)
    records = (record(names[i], result, constant) for i, result in enumerate(results))
    failed = 0
    for item in WRITERS[args.form](records):
        failed += "error" in item
    return 3 if failed else 0


def record(path: str, result: Classified, constant: dict[str, Any]) -> dict[str, Any]:
    """One picture as a JSON record of SCHEMA, scores unrounded."""
    if result.error:
        # The message names the file it was given, which for standard input is no name.
        message = str(result.error).replace("the picture:", f"{path}:", 1)
        outcome: dict[str, Any] = {"error": {"code": result.error.code, "message": message}}
    else:
        outcome = {"top": [{"index": p.index, "label": p.label, "score": p.score} for p in result.top]}
    warnings = {"warnings": result.warnings} if result.warnings else {}
    return {"schema": SCHEMA, "path": path, **outcome, **constant, **warnings}


# A writer passes on what it has written, so that failures are counted in one place and each record
# leaves as soon as it is ready.


def write_text(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for item in records:
        if "error" in item:
            say(printable(item["error"]["message"]))
        else:
            notes = f"  ({'; '.join(item['warnings'])})" if "warnings" in item else ""
            print(printable(item["path"]) + notes)
            for p in item["top"]:
                label = f"class {p['index']}" if p["label"] is None else f"{printable(p['label'])} ({p['index']})"
                print(f"  {p['score']:.3f}  {label}", flush=True)
        yield item


def write_jsonl(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for item in records:
        print(json.dumps(item), flush=True)
        yield item


def write_json(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    separator = "["
    try:
        for item in records:
            print(separator + json.dumps(item), end="", flush=True)
            separator = ",\n "
            yield item
    finally:  # an interrupted array is closed and stays valid
        print("[]" if separator == "[" else "]", flush=True)


def write_csv(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["path", "rank", "index", "label", "score", "error", "message"])
    for item in records:
        if "error" in item:
            writer.writerow([item["path"], "", "", "", "", item["error"]["code"], item["error"]["message"]])
        for rank, p in enumerate(item.get("top", []), start=1):
            writer.writerow([item["path"], rank, p["index"], p["label"], repr(p["score"]), "", ""])
        sys.stdout.flush()
        yield item


WRITERS = {None: write_text, "json": write_json, "jsonl": write_jsonl, "csv": write_csv}
