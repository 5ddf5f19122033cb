"""minivit models: list published checkpoints."""

from __future__ import annotations

import argparse
import json

from minivit.cli.shared.command import command, option
from minivit.cli.shared.console import show_text, table


@command(
    "models",
    help="list published checkpoints",
    description="Families, sizes, ids, licences, image sizes and published top-1 accuracies on ImageNet-1k, with "
    "their sources. Any other checkpoint of these families loads, too.",
    options=[option("--json", action="store_true", help="write one JSON array")],
)
def run(args: argparse.Namespace) -> int:
    from minivit.weights.catalog import CATALOG, Published

    if args.json:
        show_text(json.dumps([row._asdict() for row in CATALOG], indent=2))
        return 0
    rows = [[name.replace("_", " ") for name in Published._fields]]
    rows += [["-" if value is None else str(value) for value in row] for row in CATALOG]
    show_text(table(rows, left=len(rows[0])))
    return 0
