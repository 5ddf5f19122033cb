"""minivit bench roofline: the measured limits of this machine."""

from __future__ import annotations

import argparse

from minivit.cli.shared.bench import (
    ALL_DTYPES,
    DEVICE,
    RECORDS,
    THREADS,
    pick_dtypes,
    pick_threads,
    pick_timed_device,
    print_lines,
    print_record,
    roof_cache,
)
from minivit.cli.shared.command import command, option
from minivit.cli.shared.console import say


@command(
    "roofline",
    help="measure the limits of this machine",
    description="Measure GEMM in every dtype, memory bandwidth and exp, with so many threads. The result is kept for a "
    "week, together with the environment, for `bench run`.",
    options=[
        ALL_DTYPES,
        THREADS,
        DEVICE,
        option("--again", action="store_true", help="measure again, even if a fresh result is kept"),
        RECORDS,
    ],
)
def run(args: argparse.Namespace) -> int:
    """Print the limits for each number of threads."""
    from minivit.bench.timing.roofs import roofline

    device, dtypes = pick_timed_device(args.device), pick_dtypes(args.dtypes)
    for threads in pick_threads(args.threads):
        found = roofline(threads, dtypes, device=device, cache=roof_cache(), again=args.again, on_message=say)
        if args.json:
            print_record(found.record())
        else:
            print_lines(found.lines(args.dtypes.split(",")))
    return 0
