"""ICC profiles written by hand (ICC.1:2001-04): a matrix and one gamma, or grey and one gamma."""

from __future__ import annotations

import struct

# Columns red, green, blue of the matrix to XYZ, adapted to D50.
SRGB = ((0.43607, 0.38515, 0.14307), (0.22249, 0.71687, 0.06061), (0.01392, 0.09708, 0.71410))
DISPLAY_P3 = ((0.51512, 0.29198, 0.15710), (0.24120, 0.69225, 0.06657), (-0.00105, 0.04189, 0.78407))


def _fixed(*values: float) -> bytes:
    return b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def profile(name: str, gamma: float, matrix: tuple[tuple[float, ...], ...] | None = None) -> bytes:
    """Return a display profile: of RGB with a matrix, else of grey."""
    white = (0.9642, 1.0, 0.8249)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"
    text = name.encode() + b"\0"
    described = b"desc\0\0\0\0" + struct.pack(">I", len(text)) + text + b"\0" * 78
    tags = {b"desc": described, b"wtpt": b"XYZ \0\0\0\0" + _fixed(*white), b"cprt": b"text\0\0\0\0none\0"}
    if matrix:
        for i, letter in enumerate((b"r", b"g", b"b")):
            tags[letter + b"XYZ"] = b"XYZ \0\0\0\0" + _fixed(*(row[i] for row in matrix))
            tags[letter + b"TRC"] = curve
    else:
        tags[b"kTRC"] = curve
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, data in tags.items():
        data += b"\0" * (-len(data) % 4)
        table += tag + struct.pack(">II", start + len(body), len(data))
        body += data
    size = start + len(body)
    kind = b"RGB " if matrix else b"GRAY"
    header = struct.pack(">I4sI4s4s4s", size, b"lcms", 0x02400000, b"mntr", kind, b"XYZ ") + b"\0" * 12
    header += b"acsp" + b"\0" * 28 + _fixed(*white)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def inverse(matrix: tuple[tuple[float, ...], ...]) -> list[list[float]]:
    """Return the inverse of a matrix of 3 x 3, by cofactors."""
    (a, b, c), (d, e, f), (g, h, i) = matrix
    whole = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    rows = ((e * i - f * h, c * h - b * i, b * f - c * e), (f * g - d * i, a * i - c * g, c * d - a * f),
            (d * h - e * g, b * g - a * h, a * e - b * d))  # fmt: skip
    return [[value / whole for value in row] for row in rows]


def to_srgb(colour: tuple[int, ...], gamma: float, matrix: tuple[tuple[float, ...], ...]) -> tuple[int, ...]:
    """Return the sRGB levels of a colour of a profile, by IEC 61966-2-1, clipped to the gamut."""
    linear = [(level / 255) ** gamma for level in colour]
    xyz = [sum(a * b for a, b in zip(row, linear, strict=True)) for row in matrix]
    light = [min(1.0, max(0.0, sum(a * b for a, b in zip(row, xyz, strict=True)))) for row in inverse(SRGB)]
    return tuple(round(255 * (12.92 * x if x <= 0.0031308 else 1.055 * x ** (1 / 2.4) - 0.055)) for x in light)
