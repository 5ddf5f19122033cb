"""minivit bench check, list, new and selftest: is this attention kernel right?"""

from __future__ import annotations

import argparse
import json
import secrets
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from minivit.cli.shared.console import positive, printable, say
from minivit.cli.shared.models import DTYPES, pick_device
from minivit.errors import UsageError

if TYPE_CHECKING:
    from minivit.bench.checks.cases import Case
    from minivit.bench.checks.findings import Finding
    from minivit.bench.sandbox import Limits, Row

RIGHTS = "A kernel file is code: it is imported and run with your rights. Read a stranger's before you check it."


def add_parsers(verbs: Any) -> None:
    """The four verbs about rightness."""
    _add_check(verbs)

    known = verbs.add_parser("list", help="the baselines that PyTorch brings, and the wrong kernels of the self-test")
    known.set_defaults(run=run_list)

    new = verbs.add_parser(
        "new", help="write a commented kernel file to start from", description="Write a kernel file to start from."
    )
    new.add_argument("form", choices=("python", "cpp", "triton"), help="what the kernel is written in")
    new.add_argument("name", metavar="NAME", help="the file becomes NAME.py; cpp writes NAME.cpp beside it")
    new.set_defaults(run=run_new)

    selftest = verbs.add_parser(
        "selftest",
        help="run the wrong kernels through the check",
        description="Run attentions that are wrong on purpose, and honest ones, through the check, and print its "
        "power: each wrong one must be refused for the right reason, each honest one accepted.",
    )
    selftest.add_argument("--seed", type=int, metavar="N", help="of the random numbers (drawn, and printed)")
    selftest.set_defaults(run=run_selftest)


def _add_check(verbs: Any) -> None:
    check = verbs.add_parser(
        "check",
        help="check a kernel file",
        description="Run attention(q, k, v) through a plan of shapes, dtypes, layouts, inputs, gradients and manners, "
        "in a process of its own, against float64. Exit code 0: right, 1: wrong, 2: usage.",
        epilog=RIGHTS,
    )
    check.add_argument("kernels", nargs="+", metavar="KERNEL", help="my_kernel.py, my_kernel.py:name, or a baseline")
    effort = check.add_mutually_exclusive_group()
    effort.add_argument("--quick", dest="effort", action="store_const", const="quick", help="under a minute")
    effort.add_argument("--full", dest="effort", action="store_const", const="full", help="up to 256 x 1025 tokens")
    check.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu (default), auto, cuda or cuda:N")
    check.add_argument("--dtypes", default=",".join(DTYPES), metavar="LIST", help="with commas between (all four)")
    check.add_argument("--seed", type=int, metavar="N", help="of the random numbers (drawn, and printed)")
    check.add_argument("--case", metavar="CASE", help="only this case, as the output names it")
    check.add_argument("--timeout", type=positive, default=60, metavar="S", help="seconds for one case (60)")
    check.add_argument("--memory", type=positive, metavar="GIB", help="of the kernel (8, at most half of the machine)")
    check.add_argument("--json", action="store_true", help="write one JSON record a line instead of a table")
    check.set_defaults(run=run_check, effort="default")


def run_check(args: argparse.Namespace) -> int:
    """The plan, the kernels one after the other, and a verdict on each."""
    import torch

    from minivit.bench.checks.cases import EFFORTS, Case, plan
    from minivit.bench.checks.numerics import CHECKS
    from minivit.bench.report.verdicts import run_record
    from minivit.bench.sandbox import Limits

    device = pick_device(args.device)
    if device == "mps":
        raise UsageError(
            "--device mps: float64, which the check compares with, is not to be had there; use cpu or cuda"
        )
    limits = Limits(seconds=args.timeout, memory=args.memory << 30 if args.memory else default_memory())
    seed = secrets.randbelow(1 << 32) if args.seed is None else args.seed
    dtypes = args.dtypes.split(",")
    if unknown := sorted(set(dtypes) - set(DTYPES)):
        raise UsageError(f"--dtypes {args.dtypes}: no {', '.join(unknown)}; choose from {', '.join(DTYPES)}")
    if args.case:
        cases = [Case.parse(args.case, device=device)]
        if cases[0].check not in CHECKS:
            raise UsageError(f"--case {args.case}: no check {cases[0].check}; there are {', '.join(CHECKS)}")
    else:
        wanted = [getattr(torch, name) for name in dtypes]
        cases = plan(list(CHECKS), EFFORTS[args.effort], device=device, dtypes=wanted)

    emit(args, run_record(args.kernels, seed=seed, effort=args.effort, device=device, limits=limits))
    all_right = True
    for kernel in args.kernels:
        rows, verdict = check_kernel(kernel, cases, seed, device, limits, lambda record: emit(args, record))
        if not args.json:
            print_table(kernel, rows, verdict, seed, args.device)
        all_right &= verdict["right"]
    return 0 if all_right else 1


def check_kernel(
    kernel: str, cases: Sequence[Case], seed: int, device: str, limits: Limits, emit: Callable[[dict[str, Any]], None]
) -> tuple[list[Row], dict[str, Any]]:
    """One kernel through the cases: the rows and the verdict, each emitted as a record as soon as it is there."""
    from minivit.bench.report.verdicts import case_record, verdict_record
    from minivit.bench.sandbox import check

    rows = []
    for row in check(kernel, cases, seed=seed, device=device, limits=limits):
        rows.append(row)
        progress(len(rows), len(cases))
        emit(case_record(row, seed=seed, command=command(row, seed, device)))
    verdict = verdict_record(kernel, rows)
    emit(verdict)
    return rows, verdict


def default_memory() -> int:
    """Half of the machine's memory, 8 GiB at most."""
    import os

    return min(8 << 30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2)


def emit(args: argparse.Namespace, record: dict[str, Any]) -> None:
    """A record on a line of standard output, where --json asks for it."""
    if args.json:
        print(json.dumps(record, allow_nan=False), flush=True)


def progress(done: int, of: int) -> None:
    """Cases done, on a terminal only."""
    if sys.stderr.isatty():
        print(f"\r{done}/{of} ", end="" if done < of else "\r", file=sys.stderr, flush=True)


def command(row: Row, seed: int, device: str) -> str:
    """What runs this row again."""
    words = ["minivit", "bench", "check", row.kernel, "--seed", str(seed)]
    words += [] if device == "cpu" else ["--device", device]
    return shlex.join([*words, "--case", str(row.case)] if row.case else words)


def print_table(
    kernel: str, rows: Sequence[Row], verdict: dict[str, Any], seed: int, device: str, to: TextIO | None = None
) -> None:
    """The table of a kernel, its verdict, and for each check that failed the worst case and how to see it again."""
    from minivit.bench.kernels import sha256
    from minivit.bench.report.verdicts import table, worst_first

    digest = sha256(kernel)
    print(printable(kernel) + (f"  sha256 {digest[:16]}" if digest else ""), file=to)
    print("\n".join(printable(line) for line in table(rows)), file=to)
    told = ", ".join(f"{count} {status}" for status, count in verdict["counts"].items() if count)
    word = "right" if verdict["right"] else "wrong" if verdict["counts"]["fail"] else "nothing was checked"
    print(f"{word}: {told} (seed {seed})", file=to)
    failed: dict[str | None, Row] = {}
    for row in sorted(rows, key=worst_first):
        if row.finding.status == "fail":
            failed[row.case.check if row.case else None] = row
    for row in failed.values():
        print(f"  {printable(row.finding.detail)}\n    {printable(command(row, seed, device))}", file=to)
    print(file=to, flush=True)


def run_list(args: argparse.Namespace) -> int:
    """Baselines, whether they run here, and mutants."""
    import torch

    from minivit.bench.checks.cases import Spec
    from minivit.bench.checks.mutants import MUTANTS
    from minivit.bench.kernels import BASELINES

    device = "cuda" if torch.cuda.is_available() else "cpu"
    spec = Spec(batch=1, heads=3, tokens=197, head_dim=64, dtype=torch.float16, layout="packed", device=device)
    print(f"baselines, on {device}")
    for name, baseline in BASELINES.items():
        there = baseline.supports(spec)
        print(f"  {name:<16}{baseline.about}" + ("" if there is True else f"  (not here: {there})"))
    print("\nwrong on purpose, and what must refuse them")
    for name, mutant in MUTANTS.items():
        print(f"  mutant:{name:<25}{', '.join(mutant.refused_by)}")
    return 0


def run_selftest(args: argparse.Namespace) -> int:
    """A line for each kernel of known rightness, and the power of the check."""
    import torch

    from minivit.bench.checks.cases import EFFORTS, plan
    from minivit.bench.checks.numerics import CHECKS
    from minivit.bench.checks.selftest import HONEST, selftest
    from minivit.bench.sandbox import Child, Limits, serve

    seed = secrets.randbelow(1 << 32) if args.seed is None else args.seed
    cases = plan(list(CHECKS), EFFORTS["small"], device="cpu", dtypes=[torch.float32, torch.bfloat16])
    limits = Limits(memory=default_memory())
    trials = []
    print(f"{'kernel':<34}{'refused in':>11}  by the checks that must (of their cases)")
    with Child(serve, limits, "cpu") as child:

        def ask(kernel: str, case: Case) -> Finding:
            return child.request("ask", kernel, case, seed, seconds=limits.seconds)

        for trial in selftest(cases, ask):
            by = ", ".join(f"{check} {caught}/{asked}" for check, (caught, asked) in trial.caught_by.items())
            wrong = "" if trial.good else "  <- NOT AS IT MUST BE"
            print(f"{trial.kernel:<34}{f'{trial.refused}/{trial.asked}':>11}  {by}{wrong}", flush=True)
            trials.append(trial)
    mutants, honest = trials[: -len(HONEST)], trials[-len(HONEST) :]
    caught, accepted = sum(trial.good for trial in mutants), sum(trial.good for trial in honest)
    print(
        f"power: {caught} of {len(mutants)} wrong kernels refused for the right reason, "
        f"{accepted} of {len(honest)} honest ones accepted (seed {seed})"
    )
    return 0 if caught + accepted == len(trials) else 1


def run_new(args: argparse.Namespace) -> int:
    """Write the files of a template, none over another."""
    from importlib.resources import files
    from pathlib import Path

    name = args.name.removesuffix(".py")
    templates = files("minivit.bench") / "templates"
    targets = {Path(f"{name}.py"): templates / f"{args.form}.py.txt"}
    if args.form == "cpp":
        targets[Path(f"{name}.cpp")] = templates / "cpp.cpp"
    for target in targets:
        if target.exists():
            raise UsageError(f"{target}: is there already, and is left alone; choose another name")
        if not target.parent.is_dir():
            raise UsageError(f"{target}: no folder {target.parent}; make it first")
    for target, template in targets.items():
        try:
            target.write_text(template.read_text())
        except OSError as error:
            raise UsageError(f"{target}: cannot be written: {error.strerror}") from None
        print(target)
    say(f"check it with: minivit bench check {name}.py --quick")
    return 0
