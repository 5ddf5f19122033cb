"""A run as one HTML page with SVG charts: no script, no request, light or dark like the reader's system."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from itertools import groupby

from minivit.bench.checks.findings import STATUSES
from minivit.bench.checks.numerics import CHECKS
from minivit.bench.report.results import Record, of_kind
from minivit.bench.report.tables import (
    HEAD,
    about,
    cells,
    duration,
    model_about,
    model_lines,
    note,
    remarks,
    texts,
    threads_text,
    title,
)
from minivit.bench.timing.roofline import work
from minivit.bench.timing.summary import TRUST, spec_of

# Okabe and Ito 2008: distinguishable for colour-blind readers. The first is the kernel's.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
STYLE = """
:root { color-scheme: light dark; --ground: #fff; --text: #1c2128; --faint: #656d76; --line: #d5dae0; --panel: #f5f7f9;
  --bad: #c62f2f; --good: #1a7f37; --warn: #9a6700; --band: #8884 }
@media (prefers-color-scheme: dark) { :root { --ground: #14181d; --text: #e3e7eb; --faint: #98a1ab; --line: #353c45;
  --panel: #1c2229; --bad: #ff7b72; --good: #4ac26b; --warn: #e0b341; --band: #8886 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 76rem; padding: 2rem 1.25rem 4rem; background: var(--ground); color: var(--text);
  font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.55rem; line-height: 1.25; margin: 0 0 .5rem } h2 { font-size: 1.15rem; margin: 2.5rem 0 .25rem }
h3 { font-size: 1rem; margin: 1.6rem 0 .2rem }
p, ul { margin: .3rem 0 .8rem; color: var(--faint) } ul { padding-left: 1.1rem }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1rem }
figure { margin: 0; max-width: 46rem; padding: .8rem .8rem .4rem; background: var(--panel); border-radius: .5rem }
figcaption { font-weight: 600; font-size: .92rem } svg { display: block; width: 100%; height: auto }
svg text { fill: var(--text); font: 12px system-ui, sans-serif } svg .faint { fill: var(--faint) }
.axis { stroke: var(--faint); stroke-width: 1 } .grid { stroke: var(--line); stroke-width: 1 }
.band { fill: var(--band) } .whisker { stroke-width: 2 } .one { stroke: var(--text); stroke-dasharray: 3 3 }
.roof { stroke: var(--text); stroke-width: 2 }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; margin: .6rem 0 1rem; padding: 0; list-style: none }
.legend i { display: inline-block; width: .8em; height: .8em; border-radius: 50%; margin-right: .4em }
pre { overflow-x: auto; padding: .8rem; background: var(--panel); border-radius: .5rem; font-size: .82rem }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem }
th, td { padding: .28rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line) }
th { color: var(--faint); font-weight: 600 }
:is(th, td):is(:first-child, :last-child) { text-align: left }
.heat :is(td, td:last-child) { min-width: 5rem; text-align: center }
.heat td { border: 2px solid var(--ground); border-radius: 4px }
.heat td:first-child { text-align: left; font-family: ui-monospace, monospace }
.verified { color: var(--good) } .failed, .invalid { color: var(--bad); font-weight: 600 }
.noisy, .unsteady, .unverified { color: var(--warn); font-weight: 600 }
"""
WIDTH, HEIGHT = 560, 330
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 14, 42


def page(records: Sequence[Record]) -> str:
    """Return the report of a run of `bench run`; its rows are among the records."""
    (head,) = of_kind(records, "bench")
    rows = of_kind(records, "row")
    arms = list(dict.fromkeys(row["arm"] for row in rows if row["role"] != "again"))
    colours = {arm: COLOURS[i % len(COLOURS)] for i, arm in enumerate(arms)}
    names = ", ".join(one["kernel"] for one in head["kernels"])
    heading = f"{names} against {head['against'][0]['kernel']}"
    legend = "".join(f'<li><i style="background:{colours[arm]}"></i>{escape(arm)}</li>' for arm in arms)
    body = [
        f"<h1>{escape(heading)}</h1><ul>{_facts(about(head))}</ul>",
        f'<ul class="legend">{legend}</ul>',
        _section("Time over tokens", "Of one image; both axes logarithmic.", _times(rows, colours)),
        _section(
            "Speed-up",
            "Over the baseline, paired round by round, with 95% intervals. Differences inside the grey band are noise.",
            _speedups(rows, colours),
        ),
        _section(
            "Roofline",
            "The speed of each row, under the measured limits of this machine. Every byte is counted once.",
            _rooflines(rows, of_kind(records, "roof"), colours),
        ),
        _heat(of_kind(records, "case")),
        "<h2>Numbers</h2>",
        *(_table(cell) for cell in cells(rows)),
        f"<h2>What the status means</h2><ul>{_glossary()}</ul>",
    ]
    return _document(heading, body)


def model_page(records: Sequence[Record]) -> str:
    """Return the report of a run of `bench model`."""
    (head,), (row,) = of_kind(records, "model-bench"), of_kind(records, "model")
    heading = f"{row['kernel']} in {row['model']}"
    errors = Axes(range(1, len(row["blocks"]["kernel"]) + 1), [e for way in row["blocks"].values() for e in way if e])
    errors.frame("blocks", "relative L2 error", "{:.0e}".format)
    legend = []
    for (way, line), colour in zip(row["blocks"].items(), COLOURS, strict=False):
        legend.append(f'<li><i style="background:{colour}"></i>{escape(way)}</li>')
        errors.line([(i, error, way) for i, error in enumerate(line, start=1) if error], colour)
    numbers = [
        ("gain", row["gain"], row["gain_low"], row["gain_high"], COLOURS[2]),
        ("predicted", *[row["predicted_gain"]] * 3, COLOURS[5]),
        ("Amdahl's ceiling", *[row["ceiling"]] * 3, COLOURS[3]),
    ]
    body = [
        f"<h1>{escape(heading)}</h1><ul>{_facts(model_about(head))}</ul>",
        f"<pre>{escape(chr(10).join(model_lines(row)))}</pre>",
        _section(
            "Gain over the default attention",
            "Images per second, paired round by round, with the 95% interval. Differences in the grey band are noise.",
            [_gains(numbers, row["resolution"])],
        ),
        f'<h2>Error after each block</h2><p>Compared with float64.</p><ul class="legend">{"".join(legend)}</ul>'
        f'<div class="charts">{_figure("all images, all tokens", errors.body)}</div>',
        _heat(of_kind(records, "case")),
    ]
    return _document(heading, body)


def _gains(numbers: Sequence[tuple[str, float, float, float, str]], resolution: float) -> str:
    """Return a chart of gains: dots with whiskers around 1."""
    left, step = 130, 26
    highest = 1.05 * max(high for *_, high, _ in numbers)
    lowest = 0.95 * min(1 - resolution, *(low for _, _, low, _, _ in numbers))

    def place(gain: float) -> float:
        return left + (gain - lowest) / (highest - lowest) * (WIDTH - RIGHT - 40 - left)

    bottom = 10 + step * len(numbers)
    x0, x1 = place(1 - resolution), place(1 + resolution)
    body = [f'<rect x="{x0:.1f}" y="8" width="{max(1, x1 - x0):.1f}" height="{bottom - 8}" class="band"/>']
    body.append(_line(place(1), 8, place(1), bottom, "one"))
    for i, (name, gain, low, high, colour) in enumerate(numbers):
        y = 10 + step * (i + 0.5)
        body.append(_text(left - 10, y + 4, name, "end"))
        body.append(_line(place(low), y, place(high), y, "whisker", colour))
        body.append(_dot(place(gain), y, colour, f"{name}: {gain:.3f}"))
        body.append(_text(place(high) + 8, y + 4, f"{gain:.3f}", kind="faint"))
    body.append(_line(left, bottom, WIDTH - RIGHT, bottom, "axis"))
    body.append(_text(place(1), bottom + 14, "1", "middle", "faint"))
    return _figure("1 is the default", body, bottom + 20)


def _facts(facts: Iterable[str]) -> str:
    return "".join(f"<li>{escape(fact.removeprefix('- '))}</li>" for fact in facts)


def _document(heading: str, body: Iterable[str]) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        # Nothing can be fetched, whatever a kernel's name or message may hold.
        """<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">"""
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(heading)}</title><style>{STYLE}</style></head><body>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _section(name: str, about: str, charts: Sequence[str]) -> str:
    if not charts:
        return ""
    return f'<h2>{name}</h2><p>{about}</p><div class="charts">{"".join(charts)}</div>'


def _glossary() -> str:
    return "".join(f'<li><b class="{word}">{word}</b>: {meaning}</li>' for word, meaning in TRUST.items())


def _table(rows: Sequence[Record]) -> str:
    cells_of = [texts(row) for row in rows]
    lines = "".join(
        "<tr>"
        + "".join(f"<td>{escape(text)}</td>" for text in line[:-1])
        + f'<td class="{row["status"]}">{escape(line[-1])}</td></tr>'
        for row, line in zip(rows, cells_of, strict=True)
    )
    names = "".join(f"<th>{name}</th>" for name in HEAD)
    said = "".join(f"<p>{escape(one)}</p>" for one in remarks(rows))
    return (
        f'<h3>{escape(title(rows[0]))}</h3><p>{escape(note(rows))}</p><div class="scroll"><table><tr>{names}</tr>'
        f"{lines}</table></div>{said}"
    )


# --- drawings


class Axes:
    """A frame with logarithmic axes."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float], *, x_ticks: Sequence[float] | None = None):
        self.x = _span(xs)
        self.y = _span(ys)
        self.x_ticks = x_ticks or _ticks(*self.x)
        self.body: list[str] = []

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Return the position of a point in the drawing."""
        across = math.log(x / self.x[0]) / math.log(self.x[1] / self.x[0])
        up = math.log(y / self.y[0]) / math.log(self.y[1] / self.y[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    def frame(self, x_label: str, y_label: str, y_form: Callable[[float], str]) -> None:
        """Draw grid lines, ticks and labels."""
        bottom = HEIGHT - BOTTOM
        for y in _ticks(*self.y):
            height = self.place(self.x[0], y)[1]
            self.body.append(_line(LEFT, height, WIDTH - RIGHT, height, "grid"))
            self.body.append(_text(LEFT - 6, height + 4, y_form(y), "end", "faint"))
        for x in self.x_ticks:
            across = self.place(x, self.y[0])[0]
            self.body.append(_line(across, bottom, across, bottom + 4, "axis"))
            self.body.append(_text(across, bottom + 17, f"{x:g}", "middle", "faint"))
        self.body.append(_line(LEFT, bottom, WIDTH - RIGHT, bottom, "axis"))
        self.body.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label, "middle", "faint"))
        self.body.append(
            f'<text transform="translate(13 {(TOP + bottom) / 2:.0f}) rotate(-90)" text-anchor="middle" class="faint">'
            f"{escape(y_label)}</text>"
        )

    def line(self, points: Sequence[tuple[float, float, str]], colour: str) -> None:
        """Draw a line through points (x, y, text that the pointer shows)."""
        places = [(*self.place(x, y), text) for x, y, text in points]
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
        self.body.append(f'<polyline points="{corners}" fill="none" stroke="{colour}" stroke-width="2"/>')
        self.body += [_dot(x, y, colour, text) for x, y, text in places]


def _span(values: Sequence[float]) -> tuple[float, float]:
    """Return a range with a margin on both sides."""
    return min(values) / 1.25, max(values) * 1.25


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers between; only powers of ten over a long range."""
    steps = (1, 2, 5) if high / low < 300 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]


def _line(x0: float, y0: float, x1: float, y1: float, kind: str, colour: str = "") -> str:
    style = f' style="stroke:{colour}"' if colour else ""
    return f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" class="{kind}"{style}/>'


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'


def _dot(x: float, y: float, colour: str, about: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{colour}"><title>{escape(about)}</title></circle>'


def _figure(caption: str, body: Iterable[str], height: float = HEIGHT) -> str:
    return (
        f'<figure><figcaption>{escape(caption)}</figcaption><svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        f'aria-label="{escape(caption)}">{"".join(body)}</svg></figure>'
    )


def _group(row: Record) -> tuple:
    return tuple(row[name] for name in ("threads", "dtype", "direction", "mode", "layout", "heads", "head_dim"))


def _caption(row: Record) -> str:
    heads = f"{row['heads']} heads of {row['head_dim']}"
    return f"{row['dtype']} {row['direction']}, {row['mode']}, {heads}, {threads_text(row)}"


def _shown(rows: Sequence[Record]) -> list[Record]:
    """Return the rows of the charts: timed, without the second baseline. Invalid rows are only in the table."""
    return [r for r in rows if r["median_us"] and r["role"] != "again" and r["status"] not in ("invalid", "failed")]


def _times(rows: Sequence[Record], colours: dict[str, str]) -> list[str]:
    charts = []
    for _, group in groupby(sorted(_shown(rows), key=_group), _group):
        mine = list(group)
        tokens = sorted({row["tokens"] for row in mine})
        if len(tokens) < 2:
            continue
        axes = Axes(
            tokens, [row[name] / row["batch"] for row in mine for name in ("low_us", "high_us")], x_ticks=tokens
        )
        axes.frame("tokens", "time of an image", duration)
        for arm in dict.fromkeys(row["arm"] for row in mine):
            line = sorted((row for row in mine if row["arm"] == arm), key=lambda row: row["tokens"])
            times = [(row["tokens"], row["median_us"] / row["batch"]) for row in line]
            axes.line([(n, us, f"{arm}, {n} tokens: {duration(us)} an image") for n, us in times], colours[arm])
        charts.append(_figure(_caption(mine[0]), axes.body))
    return charts


def _speedups(rows: Sequence[Record], colours: dict[str, str]) -> list[str]:
    charts = []
    for _, group in groupby(sorted(_shown(rows), key=_group), _group):
        mine = [row for row in group if row["speedup"] is not None]
        if not mine:
            continue
        most = 1.1 * max(row["speedup_high"] for row in [*mine, {"speedup_high": 1.2}])
        left = 16 + 6.6 * max(len(row["arm"]) for row in mine)
        step, y = 22, 8.0

        def place(speedup: float, left: float = left, most: float = most) -> float:
            return left + speedup / most * (WIDTH - RIGHT - left)

        body: list[str] = []
        for cell in cells(mine):
            y += step
            shape = "{batch} x {heads} x {tokens} x {head_dim}".format(**cell[0])
            body.append(_text(8, y - 6, shape, kind="faint"))
            resolution = cell[0]["resolution"] or 0
            top, height = y, step * len(cell)
            x0, x1 = place(max(0, 1 - resolution)), place(1 + resolution)
            body.append(
                f'<rect x="{x0:.1f}" y="{top:.1f}" width="{max(1, x1 - x0):.1f}" height="{height}" class="band"/>'
            )
            for row in cell:
                middle, colour = y + step / 2, colours[row["arm"]]
                low, high = place(row["speedup_low"]), place(row["speedup_high"])
                body.append(_text(left - 8, middle + 4, row["arm"], "end"))
                body.append(_line(low, middle, high, middle, "whisker", colour))
                body += [_line(end, middle - 4, end, middle + 4, "whisker", colour) for end in (low, high)]
                says = f"{row['arm']}: {row['speedup']:.3f} [{row['speedup_low']:.3f} .. {row['speedup_high']:.3f}]"
                body.append(_dot(place(row["speedup"]), middle, colour, says))
                body.append(_text(min(high + 8, WIDTH - 34), middle + 4, f"{row['speedup']:.2f}", kind="faint"))
                y += step
        bottom = y + 6
        ticks = [t for t in (0, 0.25, 0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16, 32) if t <= most]
        ticks = [t for t in ticks if t in (0, 1) or most <= 3 or t == int(t)]
        body += [_text(place(tick), bottom + 14, f"{tick:g}", "middle", "faint") for tick in ticks]
        body.append(_line(left, bottom, WIDTH - RIGHT, bottom, "axis"))
        body.append(_line(place(1), 8, place(1), bottom, "one"))
        charts.append(_figure(_caption(mine[0]), body, bottom + 22))
    return charts


def _rooflines(rows: Sequence[Record], roofs: Sequence[Record], colours: dict[str, str]) -> list[str]:
    charts = []
    for roof in roofs:
        mine = [row for row in _shown(rows) if row["threads"] == roof["threads"]]
        if not mine:
            continue
        needs = {id(row): work(spec_of(row), row["direction"]) for row in mine}
        places = [(needs[id(row)].flops / needs[id(row)].bytes, row["gflops"]) for row in mine]
        peaks = {name: roof["gemm"][name] / 1e9 for name in dict.fromkeys(row["dtype"] for row in mine)}
        slopes = {"memory": roof["memory"] / 1e9, "cache": roof["cache"] / 1e9}
        ridge = max(peaks.values()) / min(slopes.values())
        xs = [*(x for x, _ in places), ridge, min(peaks.values()) / max(slopes.values()) / 2]
        ys = [*(y for _, y in places), *peaks.values(), min(xs) * min(slopes.values())]
        axes = Axes(xs, ys)
        axes.frame("FLOP per byte that has to move", "GFLOP/s", "{:g}".format)
        top = max(peaks.values())
        for name, slope in slopes.items():
            start, end = max(axes.x[0], axes.y[0] / slope), top / slope
            (x0, y0), (x1, y1) = axes.place(start, start * slope), axes.place(end, top)
            axes.body.append(_line(x0, y0, x1, y1, "roof"))
            axes.body.append(_text((x0 + x1) / 2 + 10, (y0 + y1) / 2 + 6, name, kind="faint"))
        for name, peak in peaks.items():
            (x0, y0), (x1, _) = axes.place(peak / max(slopes.values()), peak), axes.place(axes.x[1], peak)
            axes.body.append(_line(x0, y0, x1, y0, "roof"))
            axes.body.append(_text(x1, y0 - 6, f"{name}, {peak:.0f}", "end", "faint"))
        for row, (x, y) in zip(mine, places, strict=True):
            says = f"{row['arm']}, {title(row)}: {y:.1f} GFLOP/s, {row['of_roof']:.0%} of the {row['binds']} roof"
            axes.body.append(_dot(*axes.place(x, y), colours[row["arm"]], says))
        charts.append(_figure(f"{roof['device']}, {threads_text(roof)}", axes.body))
    return charts


def _heat(cases: Sequence[Record]) -> str:
    """Return a table for each kernel: checks down, dtypes across, the worst case in each cell."""
    asked = [case for case in cases if case["case"]]
    if not asked:
        return ""
    parts = ["<h2>Check</h2><p>The error of the worst case, relative to the limit.</p>"]
    for kernel in dict.fromkeys(case["kernel"] for case in asked):
        mine = [case for case in asked if case["kernel"] == kernel]
        dtypes = list(dict.fromkeys(case["dtype"] for case in mine))
        head = "".join(f"<th>{escape(name)}</th>" for name in ["", *dtypes])
        lines = []
        for check in [check for check in CHECKS if any(case["check"] == check for case in mine)]:
            found = [[c for c in mine if c["check"] == check and c["dtype"] == dtype] for dtype in dtypes]
            lines.append(f"<tr><td>{escape(check)}</td>{''.join(_heat_cell(some) for some in found)}</tr>")
        table = f'<table class="heat"><tr>{head}</tr>{"".join(lines)}</table>'
        parts.append(f'<h3>{escape(kernel)}</h3><div class="scroll">{table}</div>')
    return "".join(parts)


def _heat_cell(cases: Sequence[Record]) -> str:
    if not cases:
        return "<td></td>"
    errors = [case["numbers"].get("of_limit") for case in cases]
    worst = max(cases, key=lambda case: STATUSES.index(case["status"]))
    known = max((one for one in errors if one is not None), default=None)
    hue = {"fail": "213 94 0", "unsupported": "128 128 128", "inconclusive": "230 159 0"}.get(worst["status"])
    strength = 0.75 if worst["status"] == "fail" else 0.15 if hue else 0.12 + 0.5 * min(1.0, known or 0)
    text = "n/a" if worst["status"] == "unsupported" else worst["status"] if known is None else f"{known:.2f}"
    says = f"{len(cases)} cases, worst: {worst['status']} {worst['detail']}"
    colour = f"rgb({hue or '0 158 115'} / {strength:.2f})"
    return f'<td style="background:{colour}" title="{escape(says)}">{text}</td>'
