"""Rows as text: tables for the terminal, reports in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import groupby

from minivit.bench.report.results import Record, of_kind
from minivit.bench.timing.summary import key_of

MANY_FAULTS = 100  # page faults of 4 KiB a call: about 10 to 50 us
HEAD = ("kernel", "time", "95%", "speed-up", "95%", "GFLOP/s", "of roof", "peak MiB", "load", "first call", "status")


def cells(rows: Iterable[Record]) -> list[list[Record]]:
    """Return the rows of each cell."""
    return [list(group) for _, group in groupby(rows, key_of)]


def title(row: Record) -> str:
    """Return the name of a cell: shape, dtype, direction, mode, layout, threads."""
    shape = "{batch}x{heads}x{tokens}x{head_dim}".format(**row)
    return f"{shape} {row['dtype']} {row['direction']}, {row['mode']}, {row['layout']}, {threads_text(row)}"


def threads_text(row: Record) -> str:
    """Return "1 thread" or "2 threads"."""
    return f"{row['threads']} thread{'s' * (row['threads'] > 1)}"


def note(rows: Sequence[Record]) -> str:
    """Return the line under the title: the roof, and the smallest difference that is not noise."""
    row = next((row for row in rows if row["bound_us"]), None)
    roof = f"the {row['binds']} roof allows {duration(row['bound_us'])}; " if row else ""
    resolution = rows[0]["resolution"]
    seen = "nothing can be told apart" if resolution is None else f"differences below {resolution:.1%} are noise here"
    return f"{roof}{seen}"


def cell_lines(rows: Sequence[Record]) -> list[str]:
    """Return the table of one cell for a terminal."""
    lines = columns([HEAD, *(texts(row) for row in rows)])
    return [title(rows[0]), f"  {note(rows)}", *(f"  {line}" for line in lines), *(f"  {one}" for one in remarks(rows))]


def remarks(rows: Sequence[Record]) -> list[str]:
    """Return why a row is not verified, and what explains a surprising time."""
    said = [f"{row['arm']}: {row['status'].upper()}: {row['detail']}" for row in rows if row["detail"]]
    for row in rows:
        faults = row["minor_faults"] / max(1, row["calls"])
        if faults >= MANY_FAULTS and row["role"] != "again":
            said.append(f"{row['arm']}: {faults:,.0f} page faults a call: its memory is taken from the system anew")
    return said


def markdown(records: Sequence[Record]) -> str:
    """Return the report of `bench run` in Markdown."""
    (head,) = of_kind(records, "bench")
    rows = of_kind(records, "row")
    baseline = head["against"][0]["kernel"]
    lines = [f"# {', '.join(one['kernel'] for one in head['kernels'])} against {baseline}", "", *about(head), ""]
    for cell in cells(rows):
        lines += [f"## {title(cell[0])}", "", f"{note(cell)[:1].upper()}{note(cell)[1:]}.", ""]
        lines += [_row(HEAD), _row("---" for _ in HEAD), *(_row(texts(row)) for row in cell), ""]
        lines += [*(f"- {one}" for one in remarks(cell)), ""] if remarks(cell) else []
    return "\n".join(lines).rstrip() + "\n"


def about(head: Record) -> list[str]:
    """Return what was run and where, one fact a line."""
    facts = [
        *_where(head),
        "- time: median of the medians of blocks; intervals: 95%, resampled by process and block; speed-up: paired, "
        "round by round",
    ]
    if head["unverified"]:
        facts.append("- UNVERIFIED: the check was skipped")
    return facts


def model_about(head: Record) -> list[str]:
    """Return the same for a run of `bench model`."""
    what = f"- {head['dtype']}, batches of {head['batch']}, {head['tokens']} tokens, {head['threads']} threads"
    return [*_where(head), what]


def _where(head: Record) -> list[str]:
    environment = head["environment"]
    device = environment.get("gpu") or f"{environment['cpu']}, {environment['cpu_capability']}"
    return [
        f"- {device}; torch {environment['torch']}, Python {environment['python']}, minivit {environment['minivit']}",
        f"- started {head['started']}, {head['processes']} processes, {head['budget_seconds']:g} s of rounds, "
        f"seed {head['seed']}",
    ]


def texts(row: Record) -> list[str]:
    """Return the cells of a row, under HEAD."""

    def when(name: str, form: Callable[[float], str]) -> str:
        return "-" if row[name] is None else form(row[name])

    def between(low: str, high: str, form: Callable[[float], str]) -> str:
        return "-" if row[low] is None else f"{form(row[low])} .. {form(row[high])}"

    return [
        row["arm"],
        when("median_us", duration),
        between("low_us", "high_us", duration),
        when("speedup", "{:.3f}".format),
        between("speedup_low", "speedup_high", "{:.3f}".format),
        when("gflops", "{:.1f}".format),
        when("of_roof", "{:.0%}".format),
        when("peak_bytes", lambda size: f"{size / 2**20:.1f}"),
        when("load_seconds", lambda seconds: duration(seconds * 1e6)),
        when("first_call_seconds", lambda seconds: duration(seconds * 1e6)),
        row["status"] if row["status"] == "verified" else row["status"].upper(),
    ]


def columns(table: Sequence[Sequence[str]], *, words: Collection[int] = (0, -1)) -> list[str]:
    """Return aligned lines; the columns of `words` (by default the first and the last) are flush left."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    left = {i % len(widths) for i in words}
    return [
        "  ".join(
            text.ljust(width) if i in left else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def _row(texts: Iterable[str]) -> str:
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |"


def duration(microseconds: float) -> str:
    """Return a time with its unit, to three digits."""
    for unit, size in (("us", 1.0), ("ms", 1e3), ("s", 1e6)):
        if microseconds < 1000 * size or unit == "s":
            value = microseconds / size
            return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f} {unit}"
    raise AssertionError


def model_markdown(records: Sequence[Record]) -> str:
    """Return the report of `bench model` in Markdown."""
    (head,), (row,) = of_kind(records, "model-bench"), of_kind(records, "model")
    lines = [f"# {row['kernel']} in {row['model']}", "", *model_about(head), "", "```", *model_lines(row), "```"]
    return "\n".join(lines) + "\n"


def model_lines(row: Record) -> list[str]:
    """Return the text of a row of `bench model`."""
    rate, default = row["images_per_second"], row["default_images_per_second"]
    logits = row["logits"]["numbers"]
    lines = [
        f"{row['kernel']} in {row['model']}: {row['status'].upper()}{': ' * bool(row['detail'])}{row['detail']}",
        f"  images/s           {rate[1]:.2f} [{rate[0]:.2f} .. {rate[2]:.2f}]; the default attention "
        f"{default[1]:.2f} [{default[0]:.2f} .. {default[2]:.2f}]",
        f"  gain               {row['gain']:.3f} [{row['gain_low']:.3f} .. {row['gain_high']:.3f}]; differences below "
        f"{row['resolution']:.1%} are noise here",
        f"  attention          {row['attention_share']:.1%} of the default forward; the kernel is "
        f"{row['attention_speedup']:.2f} x as fast inside the model, which predicts a gain of "
        f"{row['predicted_gain']:.3f}",
        f"  Amdahl's ceiling   {row['ceiling']:.3f}, were attention free; reached {row['reached']:.0%} of it",
    ]
    if all(logits.get(name) is not None for name in ("largest_error", "x_eager", "of_limit")):
        lines.append(
            f"  logits             largest error {logits['largest_error']:.2e} against float64, "
            f"{logits['x_eager']:.2f} x plain attention, {logits['of_limit']:.2f} of what is allowed"
        )
    lines += [
        f"  top-1, top-5       {row['top1_agreement']:.1%}, {row['top5_agreement']:.1%} agree with the default on "
        f"{row['pictures']} pictures",
    ]
    for flip in row["flips"]:
        word = "explained by rounding" if flip["explained"] else "NOT explained by rounding"
        lines.append(
            f"    {flip['picture']}: {flip['default']} became {flip['kernel']}; margin {flip['margin']:.2e}, {word}"
        )
    blocks = row["blocks"]
    texts = [["  after block", *(str(i) for i in range(len(blocks["kernel"])))]]
    texts += [[f"  {way}", *(f"{error:.1e}" for error in blocks[way])] for way in ("eager", "sdpa", "kernel")]
    return [*lines, "  relative L2 error of the tokens", *(f"  {line}" for line in columns(texts, words=(0,)))]
