"""minivit bench selftest: does the check refuse wrong kernels and accept right ones?"""

from __future__ import annotations

import argparse

from minivit.cli.shared.bench import SEED
from minivit.cli.shared.command import command


@command(
    "selftest",
    help="run wrong kernels through the check",
    description="Run attentions that are wrong on purpose, and right ones, through the check. Each wrong one must be "
    "refused for the right reason, each right one accepted. Exit code 0: so it is, 1: not.",
    options=[SEED],
)
def run(args: argparse.Namespace) -> int:
    """Print a line for each kernel, and the power of the check."""
    from minivit.bench.checks.selftest import HEADER, selftest

    print(HEADER)
    result = selftest(seed=args.seed, on_trial=lambda trial: print(trial, flush=True))
    print(result.summary)
    return 0 if result.good else 1
