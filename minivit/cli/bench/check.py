"""minivit bench check: is an attention kernel right?"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from minivit.cli.shared.bench import (
    ALL_DTYPES,
    DEVICE,
    KERNELS,
    LIMITS,
    RECORDS,
    RIGHTS,
    SEED,
    limits_of,
    pick_dtypes,
    print_lines,
    print_record,
    seed_of,
)
from minivit.cli.shared.command import command, option
from minivit.cli.shared.models import pick_device
from minivit.errors import UsageError


def effort(parser: argparse.ArgumentParser) -> None:
    """--quick or --full."""
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--quick", dest="effort", action="store_const", const="quick", help="under a minute")
    either.add_argument("--full", dest="effort", action="store_const", const="full", help="up to 256 x 1025 tokens")
    parser.set_defaults(effort="default")


@command(
    "check",
    help="check a kernel file",
    description="Run attention(q, k, v) on a plan of shapes, dtypes, layouts and inputs, with gradients and tests of "
    "side effects, in a child process, and compare it with float64. Exit code 0: right, 1: wrong, 2: usage.",
    epilog=RIGHTS,
    options=[
        KERNELS,
        effort,
        DEVICE,
        ALL_DTYPES,
        SEED,
        option("--case", metavar="CASE", help="only this case, named as in the output"),
        *LIMITS,
        RECORDS,
    ],
)
def run(args: argparse.Namespace) -> int:
    """Check the kernels one after the other; print a table or records for each."""
    from minivit.bench.checks.cases import EFFORTS, Case, plan
    from minivit.bench.checks.check import check
    from minivit.bench.checks.numerics import CHECKS
    from minivit.bench.report.verdicts import run_record

    device = pick_device(args.device)
    if device == "mps":
        raise UsageError("--device mps: float64, which the check needs, is unavailable there; use cpu or cuda")
    limits, seed, dtypes = limits_of(args), seed_of(args), pick_dtypes(args.dtypes)
    if args.case:
        cases = [Case.parse(args.case, device=device)]
        if cases[0].check not in CHECKS:
            raise UsageError(f"--case {args.case}: no check {cases[0].check}; there are {', '.join(CHECKS)}")
    else:
        cases = plan(list(CHECKS), EFFORTS[args.effort], device=device, dtypes=dtypes)
    if args.json:
        print_record(run_record(args.kernels, seed=seed, effort=args.effort, device=device, limits=limits))
    all_right = True
    for kernel in args.kernels:
        done = 0

        def on_record(record: dict[str, Any]) -> None:
            nonlocal done
            done += 1
            show_progress(done, len(cases))
            if args.json:
                print_record(record)

        result = check(kernel, cases=cases, seed=seed, device=device, limits=limits, on_record=on_record)
        if not args.json:
            print_lines([*result.lines(), ""])
        all_right &= result.right
    return 0 if all_right else 1


def show_progress(done: int, total: int) -> None:
    """Show the number of cases done, on a terminal only."""
    if done <= total and sys.stderr.isatty():
        print(f"\r{done}/{total} ", end="" if done < total else "\r", file=sys.stderr, flush=True)
