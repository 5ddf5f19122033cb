"""The options that the verbs of `minivit bench` share, and what they mean."""

from __future__ import annotations

import argparse
import os
import re
import secrets
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minivit.cli.shared.command import option
from minivit.cli.shared.console import positive, printable, say
from minivit.cli.shared.models import DTYPES, pick_device
from minivit.errors import UsageError

if TYPE_CHECKING:
    import torch

    from minivit.bench.sandbox import Limits

RIGHTS = "A kernel file is code: it is imported and run with your rights. Read an unknown file before you check it."


def seconds(text: str) -> float:
    """Return the seconds of "90s", "2m", "1h" or "90"; an argparse type."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)?", text)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; write 90s, 2m or 1h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, None: 1}[match[2]]


def budget(default: str) -> Any:
    """--budget with a default."""
    help = f"time for the timed rounds: 90s, {default} (default)"
    return option("--budget", default=default, type=seconds, metavar="TIME", help=help)


def processes(default: int) -> Any:
    """--processes with a default."""
    help = f"timing processes, one after the other ({default})"
    return option("--processes", default=default, type=positive, metavar="N", help=help)


KERNEL_HELP = "my_kernel.py, my_kernel.py:name, or a baseline"
KERNELS = option("kernels", nargs="+", metavar="KERNEL", help=KERNEL_HELP)
DEVICE = option("--device", default="cpu", metavar="DEVICE", help="cpu (default), auto, cuda or cuda:N")
ALL_DTYPES = option("--dtypes", default=",".join(DTYPES), metavar="LIST", help="separated by commas (all four)")
THREADS = option("--threads", default=None, metavar="LIST", help="numbers of threads, separated by commas (all cores)")
SEED = option("--seed", type=int, metavar="N", help="seed of the random numbers (drawn, and shown)")
LIMITS = (
    option("--timeout", type=positive, default=60, metavar="S", help="seconds for one case or block (60)"),
    option("--memory", type=positive, metavar="GIB", help="limit of the kernel (8, at most half of the machine)"),
)
UNVERIFIED = option("--unverified", action="store_true", help="skip the check; the result says UNVERIFIED")
RUN_FOLDER = option("-o", "--out", metavar="FOLDER", help="write run.jsonl, report.md and report.html there")
RECORDS = option("--json", action="store_true", help="write one JSON record a line instead of a table")


def limits_of(args: argparse.Namespace) -> Limits:
    """Return the limits of the child process."""
    from minivit.bench.sandbox import Limits, default_memory

    return Limits(seconds=args.timeout, memory=args.memory << 30 if args.memory else default_memory())


def seed_of(args: argparse.Namespace) -> int:
    """Return --seed, or a drawn one."""
    return secrets.randbelow(1 << 32) if args.seed is None else args.seed


def roof_cache() -> Path:
    """Return the file that keeps the measured limits of the machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minivit" / "roofline.json"


def pick_dtypes(text: str) -> list[torch.dtype]:
    """Return the dtypes of --dtypes.

    Raises:
        UsageError: an unknown one.
    """
    import torch

    names = text.split(",")
    if unknown := sorted(set(names) - set(DTYPES)):
        raise UsageError(f"--dtypes {text}: no {', '.join(unknown)}; choose from {', '.join(DTYPES)}")
    return [getattr(torch, name) for name in dict.fromkeys(names)]


def pick_threads(text: str | None) -> list[int]:
    """Return the numbers of --threads, by default the number of cores.

    Raises:
        UsageError: not a number, or more than there are cores.
    """
    from minivit.bench.timing.machine import allowed_cores

    cores = len(allowed_cores())
    try:
        wanted = [positive(part) for part in text.split(",")] if text else [cores]
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--threads {text}: {error}") from None
    if max(wanted) > cores:
        raise UsageError(f"--threads {text}: this process may use {cores} cores; more threads would only wait")
    return list(dict.fromkeys(wanted))


def pick_timed_device(name: str) -> str:
    """Return the device of --device.

    Raises:
        UsageError: mps, on which kernels cannot be timed.
    """
    device = pick_device(name)
    if device == "mps":
        raise UsageError("--device mps: kernels are timed on cpu and cuda only")
    return device


def print_lines(lines: Iterable[str], *, to: Any = None, end: str = "\n") -> None:
    """Print lines of text, with control characters escaped."""
    print("\n".join(printable(line) for line in lines), end=end, file=to, flush=True)


def print_record(record: dict[str, Any]) -> None:
    """Print a record of a run as one line of JSON."""
    from minivit.bench.report.results import line

    print(line(record), flush=True)


def print_verdict(record: dict[str, Any]) -> None:
    """Say on stderr what the check of a kernel found, if this is the record of a verdict."""
    if record["kind"] == "verdict":
        counts = ", ".join(f"{count} {status}" for status, count in record["counts"].items() if count)
        say(f"{printable(record['kernel'])}: the check says {'right' if record['right'] else 'wrong'} ({counts})")


def print_refused(checks: Sequence[Any]) -> None:
    """Print the tables of the kernels that failed the check on stderr."""
    for check in checks:
        if not check.right:
            print_lines([*check.lines(), ""], to=sys.stderr)
    say("nothing was timed: a kernel is wrong (--unverified times it all the same)")
