"""minivit bench run: check kernels, then time them against others."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from minivit.cli.shared.bench import (
    DEVICE,
    KERNELS,
    LIMITS,
    RECORDS,
    RIGHTS,
    RUN_FOLDER,
    SEED,
    THREADS,
    UNVERIFIED,
    budget,
    limits_of,
    pick_dtypes,
    pick_threads,
    pick_timed_device,
    print_lines,
    print_record,
    print_refused,
    print_verdict,
    processes,
    roof_cache,
    seed_of,
)
from minivit.cli.shared.command import command, option
from minivit.cli.shared.console import say

AGAINST_HELP = "names and files, separated by commas; the first is the baseline (sdpa,eager)"
SHAPES_HELP = "vit-ti, -s, -b (default), -l, -h or B,A,N,K"
DIRECTIONS = {"fwd": ("fwd",), "bwd": ("bwd",), "both": ("fwd", "bwd")}


@command(
    "run",
    help="time kernels against others",
    description="Check kernels (as `bench check --quick` does) and time those that are right against others: in "
    "blocks of random order, in several processes, the baseline twice. Exit code 0: timed; 1: a kernel was "
    "refused, or a row is invalid or failed; 2: usage.",
    epilog=RIGHTS,
    options=[
        KERNELS,
        option("--against", default="sdpa,eager", metavar="LIST", help=AGAINST_HELP),
        option("--shapes", nargs="+", default=["vit-b"], metavar="SHAPE", help=SHAPES_HELP),
        option("--dtypes", default="float32", metavar="LIST", help="separated by commas (float32)"),
        THREADS,
        option("--direction", default="fwd", choices=tuple(DIRECTIONS), help="fwd (default), bwd or both"),
        option("--mode", default="hot", choices=("hot", "cold"), help="inputs in the cache (default), or not"),
        option("--layout", default="packed", metavar="NAME", help="layout of q, k and v (packed, as in a model)"),
        budget("2m"),
        processes(3),
        option("--graph", action="store_true", help="replay CUDA graphs: without the time of the host"),
        DEVICE,
        UNVERIFIED,
        SEED,
        *LIMITS,
        RUN_FOLDER,
        RECORDS,
    ],
)
def run(args: argparse.Namespace) -> int:
    """Check, time, and print a table for each cell."""
    from minivit.bench.timing.cells import cells_of
    from minivit.bench.timing.run import Plan, run

    device, dtypes = pick_timed_device(args.device), pick_dtypes(args.dtypes)
    directions = DIRECTIONS[args.direction]
    plan = Plan(
        kernels=tuple(dict.fromkeys(args.kernels)),
        against=tuple(dict.fromkeys(args.against.split(","))),
        cells=cells_of(args.shapes, dtypes, directions=directions, mode=args.mode, layout=args.layout, device=device),
        threads=tuple(pick_threads(args.threads)),
        processes=args.processes,
        budget=args.budget,
        seed=seed_of(args),
        device=device,
        graph=args.graph,
        unverified=args.unverified,
        limits=limits_of(args),
    )

    def on_record(record: dict[str, Any]) -> None:
        if args.json:
            print_record(record)
        print_verdict(record)
        show_progress(record, plan.processes)

    result = run(plan, out=args.out, roof_cache=roof_cache(), on_record=on_record, on_message=say)
    if result.refused:
        print_refused(result.checks)
        return 1
    if not args.json:
        for lines in result.parts():
            print_lines(lines, end="\n\n")
    if args.out:
        say(f"wrote {args.out}/report.md and {args.out}/report.html")
    return 0 if result.good else 1


def show_progress(record: dict[str, Any], processes: int) -> None:
    """Show the block that was timed last, on a terminal only."""
    if record["kind"] == "block" and sys.stderr.isatty():
        where = f"process {record['process'] + 1} of {processes}, {record['tokens']} tokens, {record['arm']}"
        print(f"\r\033[K{where}\r", end="", file=sys.stderr, flush=True)
