"""Line charts and confusion matrices as SVG text: a picture any browser opens, without a plotting library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")  # Okabe and Ito 2008: told apart by all eyes
STYLE = "text{font:12px sans-serif;fill:#222}.h{font-weight:bold;font-size:14px}.a{stroke:#999}.g{stroke:#ddd}"


def line_chart(title: str, x_label: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """Named series of (x, y) points on common axes, y from 0, as one SVG document."""
    width, height, left, top, right, bottom = 640, 360, 56, 36, 16, 44
    points = [point for line in series.values() for point in line] or [(0.0, 0.0)]
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_high = round_up(max(y for _, y in points))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / ((x_high - x_low) or 1)
        return left + across * (width - left - right), height - bottom - y / y_high * (height - top - bottom)

    body = []
    for i in range(5):
        y = y_high * i / 4
        (x0, y0), (x1, _) = place(x_low, y), place(x_high, y)
        body.append(f'<line class="g" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y0:.1f}"/>')
        body.append(f'<text x="{left - 6}" y="{y0 + 4:.1f}" text-anchor="end">{y:g}</text>')
        x = x_low + (x_high - x_low) * i / 4
        body.append(f'<text x="{place(x, 0)[0]:.1f}" y="{height - bottom + 16}" text-anchor="middle">{x:g}</text>')
    body.append(f'<text x="{(left + width) / 2}" y="{height - 8}" text-anchor="middle">{escape(x_label)}</text>')
    for i, (name, line) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in line))
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        body.append(f'<text x="{left + 12 + 150 * i}" y="{top + 4}" style="fill:{colour}">{escape(name)}</text>')
    return _document(width, height, title, body)


def confusion_chart(title: str, classes: Sequence[str], confusion: Sequence[Sequence[int]]) -> str:
    """Rows of true classes, columns of predicted ones, shaded by the share of the row, as one SVG document."""
    longest = 7 * max((len(name) for name in classes), default=0)  # pixels of 12-pixel letters, rather more than less
    cell, left, top = 44, max(110, longest + 16), max(128, longest + 40)
    body = []
    for i, (name, row) in enumerate(zip(classes, confusion, strict=True)):
        y = top + cell * i
        body.append(f'<text x="{left - 8}" y="{y + cell / 2 + 4}" text-anchor="end">{escape(name)}</text>')
        column = left + cell * i + cell / 2
        body.append(f'<text transform="translate({column + 4} {top - 8}) rotate(-60)">{escape(name)}</text>')
        for j, count in enumerate(row):
            share = count / (sum(row) or 1)
            x = left + cell * j
            body.append(
                f'<rect x="{x}" y="{y}" width="{cell}" height="{cell}" fill="#0072b2" fill-opacity="{share:.3f}"/>'
                f'<text x="{x + cell / 2}" y="{y + cell / 2 + 4}" text-anchor="middle"'
                f' style="fill:{"#fff" if share > 0.5 else "#222"}">{count}</text>'
            )
    return _document(left + cell * len(classes) + 16, top + cell * len(classes) + 16, title, body)


def round_up(value: float) -> float:
    """The next round number above a positive value, for the end of an axis."""
    if value <= 0:
        return 1.0
    unit = 1.0
    while unit > value:
        unit /= 10
    while unit * 10 <= value:
        unit *= 10
    return next(unit * step for step in (1, 1.5, 2, 3, 4, 5, 8, 10) if unit * step >= value)


def _document(width: float, height: float, title: str, body: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        f' role="img"><title>{escape(title)}</title><style>{STYLE}</style>'
        f'<rect width="{width}" height="{height}" fill="#fff"/><text class="h" x="16" y="20">{escape(title)}</text>'
        + "\n".join(body)
        + "</svg>\n"
    )
