"""minivit bench compare: did a kernel become slower?"""

from __future__ import annotations

import argparse
import re

from minivit.cli.shared.bench import RECORDS, print_lines, print_record
from minivit.cli.shared.command import command, option
from minivit.cli.shared.console import say


def fraction(text: str) -> float:
    """Return the fraction "3%" or "0.03"; an argparse type."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(%?)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a fraction; write 3% or 0.03")
    return float(match[1]) / (100 if match[2] else 1)


@command(
    "compare",
    help="compare two runs",
    description="Compare two runs of the same machine and software, row by row: Mann and Whitney's test on the medians "
    "of blocks, Hodges and Lehmann's interval, corrected for the number of rows; in units of the baseline if the "
    "machine itself became faster or slower. Exit code 0: nothing became slower; 2: the runs cannot be compared; "
    "3: something became slower by more than --fail-on, or is refused now.",
    options=[
        option("old", metavar="OLD", help="run.jsonl, or its folder"),
        option("new", metavar="NEW", help="the same of the later run"),
        option(
            "--fail-on", type=fraction, default=0.03, metavar="FRACTION", help="slower by more fails: 3%% (default)"
        ),
        RECORDS,
    ],
)
def run(args: argparse.Namespace) -> int:
    """Print every change."""
    from minivit.bench.report.compare import compare

    result = compare(args.old, args.new, fail_on=args.fail_on)
    if args.json:
        for change in result.changes:
            print_record(change.record())
    else:
        print_lines(result.lines())
    if result.regressions:
        say(f"{len(result.regressions)} of {len(result.changes)} rows became slower or wrong")
        return 3
    if not result.comparable:
        say("nothing here can be compared")
        return 2
    return 0
