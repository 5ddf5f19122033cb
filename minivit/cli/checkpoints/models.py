"""minivit models: list published checkpoints."""

from __future__ import annotations

import argparse
import json
from typing import Any


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "models",
        help="list published checkpoints",
        description="Families, sizes, ids, licences, image sizes and published top-1 accuracies on ImageNet-1k, with "
        "their sources. Any other checkpoint of these families loads, too.",
    )
    parser.add_argument("--json", action="store_true", help="write one JSON array")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from minivit.weights.catalog import CATALOG, Published

    if args.json:
        print(json.dumps([row._asdict() for row in CATALOG], indent=2))
        return 0
    rows = [tuple(name.replace("_", " ") for name in Published._fields)]
    rows += [tuple("-" if value is None else str(value) for value in row) for row in CATALOG]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)).rstrip())
    return 0
