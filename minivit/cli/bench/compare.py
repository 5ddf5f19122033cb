"""minivit bench compare: did it become slower?"""

from __future__ import annotations

import argparse
import re
from typing import Any

from minivit.cli.shared.console import printable, say


def add_parsers(verbs: Any) -> None:
    """The verb compare."""
    parser = verbs.add_parser(
        "compare",
        help="compare two runs",
        description="Hold two runs of the same machine and software against each other, row by row: Mann and "
        "Whitney's test on the medians of blocks, Hodges and Lehmann's interval, corrected for how many rows there "
        "are; in units of the baseline where the machine itself moved. Exit code 0: nothing became slower; 2: the "
        "runs cannot be compared; 3: something became slower by more than --fail-on, or is refused now.",
    )
    parser.add_argument("old", metavar="OLD", help="run.jsonl, or the folder it lies in")
    parser.add_argument("new", metavar="NEW", help="the same of the later run")
    parser.add_argument(
        "--fail-on", type=share, default=0.03, metavar="SHARE", help="slower by more than this fails: 3%% (default)"
    )
    parser.add_argument("--json", action="store_true", help="write one JSON record a line instead of a table")
    parser.set_defaults(run=run)


def share(text: str) -> float:
    """An argparse type: "3%" or 0.03."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no share; write 3% or 0.03")
    return float(match[1]) / (100 if match[2] else 1)


def run(args: argparse.Namespace) -> int:
    from minivit.bench.report.results import line, read
    from minivit.bench.report.tables import columns, title
    from minivit.bench.timing.compare import compare
    from minivit.bench.timing.summary import KEY

    changes = compare(read(args.old), read(args.new), fail_on=args.fail_on)
    table = [("kernel", "new / old", "95%", "q", "")]
    for change in changes:
        if args.json:
            facts = {name: value for name, value in vars(change).items() if name != "row"}
            where = {name: change.row[name] for name in ("kernel", *KEY)}
            print(line({"schema": 1, "kind": "change", **where, **facts}))
            continue
        ratio = "-" if change.ratio is None else f"{change.ratio:.3f}"
        between = "-" if change.low is None else f"{change.low:.3f} .. {change.high:.3f}"
        words = change.word.upper() if change.regression else change.word
        words += " (in units of the baseline)" * change.normalised + (f": {change.detail}" if change.detail else "")
        q = "-" if change.q is None else f"{change.q:.2g}"
        table.append((printable(f"{change.row['kernel']}: {title(change.row)}"), ratio, between, q, printable(words)))
    if not args.json:
        print("\n".join(columns(table)))
    slower = [change for change in changes if change.regression]
    if slower:
        say(f"{len(slower)} of {len(changes)} rows became slower or wrong")
        return 3
    if all(change.word == "incomparable" for change in changes):
        say("nothing here can be compared")
        return 2
    return 0
