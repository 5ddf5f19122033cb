"""minivit bench run: check kernels, then time them against others."""

from __future__ import annotations

import argparse
import re
import secrets
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minivit.cli.bench.check import RIGHTS, check_kernel, default_memory, print_table
from minivit.cli.bench.roofline import pick_dtypes, pick_threads, pick_timed_device, roof_for
from minivit.cli.shared.console import positive, printable, say
from minivit.errors import UsageError

if TYPE_CHECKING:
    from minivit.bench.checks.cases import Case, Cell
    from minivit.bench.sandbox import Limits

Record = dict[str, Any]


def add_parsers(verbs: Any) -> None:
    """The verb run."""
    parser = verbs.add_parser(
        "run",
        help="time kernels against others",
        description="Check kernels (as `bench check --quick` does) and time those that are right against others: in "
        "blocks of random order, in several processes, the baseline twice. Exit code 0: timed; 1: a kernel was "
        "refused, or a row is invalid or failed; 2: usage.",
        epilog=RIGHTS,
    )
    parser.add_argument("kernels", nargs="+", metavar="KERNEL", help="my_kernel.py, my_kernel.py:name, or a baseline")
    parser.add_argument(
        "--against",
        default="sdpa,eager",
        metavar="LIST",
        help="names and files; the first is the baseline (sdpa,eager)",
    )
    parser.add_argument(
        "--shapes", nargs="+", default=["vit-b"], metavar="SHAPE", help="vit-ti, -s, -b (default), -l, -h or B,A,N,K"
    )
    parser.add_argument("--dtypes", default="float32", metavar="LIST", help="with commas between (float32)")
    parser.add_argument("--threads", default=None, metavar="LIST", help="with commas between (all cores)")
    parser.add_argument("--direction", default="fwd", choices=("fwd", "bwd", "both"), help="fwd (default), bwd or both")
    parser.add_argument(
        "--mode", default="hot", choices=("hot", "cold"), help="inputs in the cache (default), or not; never mixed"
    )
    parser.add_argument(
        "--layout", default="packed", metavar="NAME", help="how q, k and v lie; packed (default) as in the model"
    )
    parser.add_argument("--budget", default="2m", type=seconds, metavar="TIME", help="of the timing: 90s, 2m (default)")
    parser.add_argument("--processes", default=3, type=positive, metavar="N", help="that time, one after the other (3)")
    parser.add_argument("--graph", action="store_true", help="replay CUDA graphs: without the host's share")
    parser.add_argument("--device", default="cpu", metavar="DEVICE", help="cpu (default), auto, cuda or cuda:N")
    parser.add_argument("--unverified", action="store_true", help="skip the check; every row is then UNVERIFIED")
    add_common(parser)
    parser.add_argument("--json", action="store_true", help="write the records to standard output instead of a table")
    parser.set_defaults(run=run)

    report = verbs.add_parser(
        "report",
        help="write the reports of a run again",
        description="Sum up the records of a run, raw samples and all, again: table, Markdown and HTML.",
    )
    report.add_argument("file", metavar="RUN", help="run.jsonl, or the folder it lies in")
    report.add_argument("-o", "--out", metavar="FOLDER", help="write report.md and report.html there")
    report.set_defaults(run=run_report)


def add_common(parser: Any) -> None:
    """What run and model share."""
    parser.add_argument("--seed", type=int, metavar="N", help="of the random numbers (drawn, and written down)")
    parser.add_argument("--timeout", type=positive, default=60, metavar="S", help="seconds for one case or block (60)")
    parser.add_argument("--memory", type=positive, metavar="GIB", help="of the kernel (8, at most half of the machine)")
    parser.add_argument("-o", "--out", metavar="FOLDER", help="write run.jsonl, report.md and report.html there")


def seconds(text: str) -> float:
    """An argparse type: "90s", "2m", "1h" or plain seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)?", text)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is no time; write 90s, 2m or 1h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, None: 1}[match[2]]


def run(args: argparse.Namespace) -> int:
    """The check, the roofs, the rounds, the rows."""
    from minivit.bench.kernels import kernel_file
    from minivit.bench.report.results import FILE, line
    from minivit.bench.report.tables import cell_lines, cells
    from minivit.bench.report.verdicts import fingerprint
    from minivit.bench.sandbox import Limits
    from minivit.bench.timing.run import Plan, bench_record, open_child, roof_record, time_cells
    from minivit.bench.timing.summary import doubtful, rows

    device = pick_timed_device(args.device)
    dtypes = pick_dtypes(args.dtypes)
    limits = Limits(seconds=args.timeout, memory=args.memory << 30 if args.memory else default_memory())
    plan = Plan(
        kernels=tuple(dict.fromkeys(args.kernels)),
        against=tuple(dict.fromkeys(args.against.split(","))),
        cells=tuple(pick_cells(args, dtypes, device)),
        threads=tuple(pick_threads(args.threads)),
        processes=args.processes,
        budget=args.budget,
        seed=secrets.randbelow(1 << 32) if args.seed is None else args.seed,
        device=device,
        graph=args.graph,
        unverified=args.unverified,
        limits=limits,
    )
    files = [name for name in (*plan.kernels, *plan.against) if kernel_file(name) or name.startswith("mutant:")]
    folder = new_folder(args.out)
    records: list[Record] = []
    with ExitStack() as stack:
        out = stack.enter_context((folder / FILE).open("w", encoding="utf-8")) if folder else None

        def emit(record: Record) -> None:
            records.append(record)
            if out:
                print(line(record), file=out, flush=True)
            if args.json:
                print(line(record), flush=True)

        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        environment = {name: value for name, value in fingerprint(device).items() if name != "threads"}
        emit(bench_record(plan, environment, started=started))
        grads = any(cell.direction == "bwd" for cell in plan.cells)
        if not args.unverified and not verify(
            files, quick_cases(dtypes, device, grads), plan.seed, device, limits, emit
        ):
            say("nothing was timed: a kernel is wrong (--unverified times it all the same)")
            return 1
        for threads in plan.threads:
            roof, age = roof_for(threads, dtypes, device=device, limits=limits)
            emit(roof_record(roof, threads, device=device, age_seconds=age))
        for record in time_cells(plan, open_child=open_child(plan)):
            emit(record)
            progress(records, plan)
        found = rows(records)
        for threads in sorted(doubtful(found)):  # measured while the machine was busy, perhaps
            roof, age = roof_for(threads, dtypes, device=device, limits=limits, again=True)
            emit(roof_record(roof, threads, device=device, age_seconds=age))
            found = rows(records)
        for row in found:
            emit(row)
    if not args.json:
        for cell in cells(found):
            print("\n".join(printable(text) for text in cell_lines(cell)), end="\n\n", flush=True)
    if folder:
        write_reports(folder, records)
    return 1 if any(row["status"] in ("failed", "invalid") for row in found) else 0


def pick_cells(args: argparse.Namespace, dtypes: Sequence[Any], device: str) -> list[Cell]:
    """Every shape in every dtype and direction."""
    from minivit.bench.checks.cases import DIRECTIONS, LAYOUTS, Cell, Spec, parse_shape

    if args.layout not in LAYOUTS:
        raise UsageError(f"--layout {args.layout}: choose from {', '.join(LAYOUTS)}")
    found = []
    for direction in DIRECTIONS if args.direction == "both" else (args.direction,):
        for dtype in dtypes:
            for batch, heads, tokens, head_dim in (shape for text in args.shapes for shape in parse_shape(text)):
                spec = Spec(
                    batch=batch,
                    heads=heads,
                    tokens=tokens,
                    head_dim=head_dim,
                    dtype=dtype,
                    layout=args.layout,
                    device=device,
                    grads=direction == "bwd",
                )
                found.append(Cell(spec=spec, direction=direction, mode=args.mode))
    return list(dict.fromkeys(found))


def quick_cases(dtypes: Sequence[Any], device: str, grads: bool) -> list[Case]:
    """The plan of `bench check --quick` in these dtypes; gradients only where they will be timed."""
    from minivit.bench.checks.cases import EFFORTS, plan
    from minivit.bench.checks.numerics import CHECKS

    checks = [check for check in CHECKS if grads or not check.startswith("backward/")]
    return plan(checks, EFFORTS["quick"], device=device, dtypes=dtypes)


def verify(
    kernels: Sequence[str],
    cases: Sequence[Case],
    seed: int,
    device: str,
    limits: Limits,
    emit: Callable[[Record], None],
) -> bool:
    """The check before the timing. Baselines of PyTorch are left out: their timed answers are held to the same rule."""
    right = True
    for kernel in kernels:
        rows, verdict = check_kernel(kernel, cases, seed, device, limits, emit)
        right &= verdict["right"]
        counts = ", ".join(f"{count} {status}" for status, count in verdict["counts"].items() if count)
        say(f"{printable(kernel)}: the check says {'right' if verdict['right'] else 'wrong'} ({counts})")
        if not verdict["right"]:
            print_table(kernel, rows, verdict, seed, device, to=sys.stderr)
    return right


def progress(records: Sequence[Record], plan: Any) -> None:
    """Blocks so far, on a terminal only."""
    if sys.stderr.isatty() and records[-1]["kind"] == "block":
        last = records[-1]
        where = f"process {last['process'] + 1} of {plan.processes}, {last['tokens']} tokens, {last['arm']}"
        print(f"\r\033[K{where}\r", end="", file=sys.stderr, flush=True)


def new_folder(out: str | None) -> Path | None:
    """The folder for a run, made where it is missing.

    Raises:
        UsageError: it holds a run, or cannot be made.
    """
    from minivit.bench.report.results import FILE

    if out is None:
        return None
    folder = Path(out)
    if (folder / FILE).exists():
        raise UsageError(f"{folder / FILE}: is there already, and is left alone; choose another folder")
    return make(folder)


def make(folder: Path) -> Path:
    """The folder, made where it is missing.

    Raises:
        UsageError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made: {error.strerror}") from None
    return folder


def write_reports(folder: Path, records: Sequence[Record]) -> None:
    """report.md and report.html of a run of `bench run` or `bench model`."""
    from minivit.bench.report.html import model_page, page
    from minivit.bench.report.results import of_kind
    from minivit.bench.report.tables import markdown, model_markdown

    whole = bool(of_kind(records, "model"))
    (folder / "report.md").write_text(model_markdown(records) if whole else markdown(records), encoding="utf-8")
    (folder / "report.html").write_text(model_page(records) if whole else page(records), encoding="utf-8")
    say(f"wrote {folder}/report.md and {folder}/report.html")


def run_report(args: argparse.Namespace) -> int:
    """What is told anew from the blocks, and the reports from that."""
    from minivit.bench.model.blocks import model_row
    from minivit.bench.report.results import of_kind, read
    from minivit.bench.report.tables import cell_lines, cells, model_lines
    from minivit.bench.timing.summary import rows

    records = [record for record in read(args.file) if record["kind"] not in ("row", "model")]
    if of_kind(records, "model-block"):
        found = [model_row(records)]
        told = [model_lines(found[0])]
    elif of_kind(records, "block"):
        found = rows(records)
        told = [cell_lines(cell) for cell in cells(found)]
    else:
        raise UsageError(f"{args.file}: nothing was timed in it")
    for lines in told:
        print("\n".join(printable(text) for text in lines), end="\n\n")
    if args.out:
        write_reports(make(Path(args.out)), [*records, *found])
    return 0
