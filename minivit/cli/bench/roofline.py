"""minivit bench roofline: what this machine can do, which `bench run` holds kernels against."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minivit.cli.shared.console import positive, say
from minivit.cli.shared.models import DTYPES, pick_device
from minivit.errors import UsageError

if TYPE_CHECKING:
    import torch

    from minivit.bench.timing.roofline import Roof

FRESH = 7 * 24 * 3600  # seconds for which roofs are used again


def add_parsers(verbs: Any) -> None:
    """The verb roofline."""
    parser = verbs.add_parser(
        "roofline",
        help="measure what this machine can do",
        description="Products of matrices per dtype, memory bandwidth and exp, measured here with so many threads; "
        "kept for a week, with what they were measured on, for `bench run`.",
    )
    parser.add_argument("--dtypes", default=",".join(DTYPES), metavar="LIST", help="with commas between (all four)")
    parser.add_argument("--threads", default=None, metavar="LIST", help="with commas between (all cores)")
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu (default), auto, cuda or cuda:N")
    parser.add_argument("--again", action="store_true", help="measure anew what was kept")
    parser.add_argument("--json", action="store_true", help="write one JSON record a line instead of a table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from minivit.bench.report.results import line
    from minivit.bench.sandbox import Limits
    from minivit.bench.timing.run import roof_record

    device = pick_timed_device(args.device)
    dtypes = pick_dtypes(args.dtypes)
    for threads in pick_threads(args.threads):
        roof, age = roof_for(threads, dtypes, device=device, limits=Limits(), again=args.again)
        if args.json:
            print(line(roof_record(roof, threads, device=device, age_seconds=age)), flush=True)
            continue
        print(f"{device}, {threads} thread{'s' * (threads > 1)}, measured {age_text(age)}")
        for name in (name for name in roof.gemm if name in args.dtypes.split(",")):
            print(f"  {name + ' products':<22}{roof.gemm[name] / 1e9:>9.1f} GFLOP/s")
        print(f"  {'memory':<22}{roof.memory / 1e9:>9.1f} GB/s")
        print(f"  {'cache of a core':<22}{roof.cache / 1e9:>9.1f} GB/s")
        print(f"  {'exp':<22}{roof.exp / 1e9:>9.2f} G/s")
        print(f"  {'last-level cache':<22}{roof.cache_bytes / 2**20:>9.0f} MiB", flush=True)
    return 0


def roof_for(
    threads: int, dtypes: list[torch.dtype], *, device: str, limits: Any, again: bool = False
) -> tuple[Roof, float]:
    """The roofs of so many threads and their age in seconds: kept ones, or measured now and kept."""
    import time

    from minivit.bench.report.verdicts import fingerprint
    from minivit.bench.timing import roofline
    from minivit.bench.timing.run import measure_roof

    file = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minivit" / "roofline.json"
    environment = fingerprint(device) | {"threads": threads}
    kept = None if again else roofline.kept(file, environment, dtypes, now=time.time())
    if kept and kept[1] < FRESH:
        return kept
    say(f"measuring the roofs of {device} with {threads} thread{'s' * (threads > 1)} (about ten seconds)")
    roof = measure_roof(threads, dtypes, device=device, limits=limits)
    try:
        roofline.keep(file, roof, environment, now=time.time())
    except OSError as error:
        say(f"{file}: the roofs could not be kept, and will be measured again: {error}")
    return roof, 0.0


def age_text(seconds: float) -> str:
    """How long ago, in words."""
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return "just now" if seconds < 1 else f"{seconds:.0f} s ago"


def pick_dtypes(text: str) -> list[torch.dtype]:
    """--dtypes as torch has them.

    Raises:
        UsageError: an unknown one.
    """
    import torch

    names = text.split(",")
    if unknown := sorted(set(names) - set(DTYPES)):
        raise UsageError(f"--dtypes {text}: no {', '.join(unknown)}; choose from {', '.join(DTYPES)}")
    return [getattr(torch, name) for name in dict.fromkeys(names)]


def pick_threads(text: str | None) -> list[int]:
    """--threads: numbers of threads, by default as many as there are cores to run on.

    Raises:
        UsageError: no number, or more than there are cores.
    """
    from minivit.bench.timing.machine import allowed_cores

    cores = len(allowed_cores())
    try:
        wanted = [positive(part) for part in text.split(",")] if text else [cores]
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--threads {text}: {error}") from None
    if max(wanted) > cores:
        raise UsageError(
            f"--threads {text}: this process may use {cores} cores; more threads would wait for each other"
        )
    return list(dict.fromkeys(wanted))


def pick_timed_device(name: str) -> str:
    """--device of what is timed.

    Raises:
        UsageError: mps, whose clock is not written here.
    """
    device = pick_device(name)
    if device == "mps":
        raise UsageError("--device mps: kernels are timed on cpu and cuda only")
    return device
