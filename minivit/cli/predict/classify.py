"""minivit classify: the most likely labels of pictures."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minivit.cli.shared.bulk import (
    Stdout,
    add_bulk_options,
    answer_inputs,
    answer_on_ray,
    batch_size,
    check_engine,
    choose_path,
)
from minivit.cli.shared.console import positive, printable, say
from minivit.cli.shared.inputs import add_input_options, check_inputs
from minivit.cli.shared.models import (
    add_hub_options,
    add_label_options,
    add_model_option,
    add_run_options,
    load_image_model,
)
from minivit.errors import UsageError

if TYPE_CHECKING:
    from minivit.inference.jsonl import Known


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "classify",
        help="print the most likely labels of pictures",
        description="Print the most likely labels of pictures, in the order given. A picture that cannot be read "
        "becomes an error, the others go on, and the exit code is 3.",
    )
    add_input_options(parser)
    parser.add_argument("-k", "--top-k", type=positive, default=5, metavar="K", help="labels for each picture (5)")
    form = parser.add_mutually_exclusive_group()
    for name, text in (
        ("json", "one JSON array"),
        ("jsonl", "one JSON record a line"),
        ("csv", "a row for each label"),
    ):
        form.add_argument(f"--{name}", dest="form", action="store_const", const=name, help=f"write {text}")
    add_label_options(parser)
    parser.add_argument("-o", "--out", metavar="FILE", help="write there; .jsonl, .json and .csv choose the form, too")
    add_bulk_options(parser)
    add_model_option(parser)
    add_hub_options(parser)
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from minivit.inference.jsonl import Journal
    from minivit.inference.optimize import optimize
    from minivit.inference.predict import classifier
    from minivit.inference.records import constants

    check_inputs(args)
    check_engine(args)
    suffix = Path(args.out).suffix[1:] if args.out else ""
    form = args.form or (suffix if suffix in WRITERS else "text")
    if args.resume and not (args.out and form == "jsonl"):
        raise UsageError("--resume continues a file of JSON lines: name it with -o FILE.jsonl")
    model = load_image_model(args)
    if model.config.classes and not model.labels:
        say(f"{model.name} names no classes; the numbers are the outputs of its head")
    found, fast = choose_path(args, model)
    settings = {"dtype": args.dtype, "batch_size": batch_size(args, model), "fast": fast, "top_k": args.top_k}
    journalled = args.engine == "ray" or (bool(args.out) and form == "jsonl")
    constant = constants(model, **settings) if journalled else constants(model)
    if args.engine == "ray":
        return answer_on_ray(args, found, constant, top_k=args.top_k)
    model = optimize(model) if fast else model
    answer = classifier(model, args.top_k)
    sink = Journal(args.out, constant, resume=args.resume) if journalled else WRITERS[form](Stdout(args.out))
    return answer_inputs(args, model, found, answer, constant, sink)


# A writer passes each record on as soon as it is ready, and as a whole.


class TextWriter:
    """For people; errors go to stderr."""

    def __init__(self, out: Stdout):
        self.out = out

    def known(self) -> Iterator[Known]:
        """Nothing: only JSON lines are continued."""
        yield from ()

    def put(self, index: int, item: dict[str, Any]) -> None:
        """Write one record."""
        if "error" in item:
            say(printable(item["error"]["message"]))
            return
        notes = f"  ({'; '.join(item['warnings'])})" if "warnings" in item else ""
        lines = [printable(item["path"]) + notes]
        for p in item["top"]:
            label = f"class {p['index']}" if p["label"] is None else f"{printable(p['label'])} ({p['index']})"
            lines.append(f"  {p['score']:.3f}  {label}")
        self.out.write("\n".join(lines) + "\n")

    def finish(self, total: int) -> None:
        """All records have come."""

    def close(self) -> None:
        """No more come."""
        self.out.close()


class JsonLinesWriter(TextWriter):
    """A record a line."""

    def put(self, index: int, item: dict[str, Any]) -> None:
        """Write one record."""
        from minivit.inference.jsonl import encode

        self.out.write(encode(item))


class JsonWriter(TextWriter):
    """One array, which an interruption closes, so that it stays valid."""

    separator = "["

    def put(self, index: int, item: dict[str, Any]) -> None:
        """Write one record."""
        self.out.write(self.separator + json.dumps(item))
        self.separator = ",\n "

    def close(self) -> None:
        """End the array."""
        self.out.write("[]\n" if self.separator == "[" else "]\n")
        super().close()


class CsvWriter(TextWriter):
    """A row for each label, one for an error."""

    def __init__(self, out: Stdout):
        super().__init__(out)
        self._row("path", "rank", "index", "label", "score", "error", "message")

    def put(self, index: int, item: dict[str, Any]) -> None:
        """Write one record."""
        if "error" in item:
            self._row(item["path"], "", "", "", "", item["error"]["code"], item["error"]["message"])
        for rank, p in enumerate(item.get("top", []), start=1):
            self._row(item["path"], rank, p["index"], p["label"], repr(p["score"]), "", "")

    def _row(self, *values: Any) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(values)
        self.out.write(text.getvalue())


WRITERS = {"text": TextWriter, "json": JsonWriter, "jsonl": JsonLinesWriter, "csv": CsvWriter}
