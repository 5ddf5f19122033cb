"""minivit bench report: the reports of a run, from its records."""

from __future__ import annotations

import argparse

from minivit.cli.shared.bench import print_lines
from minivit.cli.shared.command import command, option
from minivit.cli.shared.console import say


@command(
    "report",
    help="write the reports of a run again",
    description="Compute the rows of a run again from its raw samples; print the table, write Markdown and HTML.",
    options=[
        option("file", metavar="RUN", help="run.jsonl, or its folder"),
        option("-o", "--out", metavar="FOLDER", help="write report.md and report.html there"),
    ],
)
def run(args: argparse.Namespace) -> int:
    """Print the tables, and write the reports where -o asks for them."""
    from minivit.bench.report.runs import summarize, write_reports

    result = summarize(args.file)
    for lines in result.parts():
        print_lines(lines, end="\n\n")
    if args.out:
        write_reports(args.out, result.records)
        say(f"wrote {args.out}/report.md and {args.out}/report.html")
    return 0
