"""What the commands print: messages and progress on stderr, tables of text, and how numbers are typed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


def say(message: str) -> None:
    """Print one line on stderr, whatever names and messages of libraries it has."""
    print(f"minivit: {printable(message)}", file=sys.stderr, flush=True)


def say_failed(failed: int, total: int) -> int:
    """Return the exit code of a run; where some of its images failed, say how many."""
    if failed:
        say(f"{failed} of {total} image{'s' * (total > 1)} failed")
    return 3 if failed else 0


def show_text(text: str) -> None:
    """Print lines of text on standard output, their control characters escaped."""
    print("\n".join(map(printable, text.split("\n"))))


def printable(text: str) -> str:
    """Return a file name or label in one line, with its control characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def table(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return rows of cells as aligned text: the first `left` columns flush left, the others flush right."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) if i < left else cell.rjust(width)
                 for i, (cell, width) in enumerate(zip(row, widths, strict=True))]  # fmt: skip
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def progress(items: Iterable[T], unit: str, total: int | None = None) -> Iterator[T]:
    """Yield the items, counted on stderr where that is a terminal."""
    if not sys.stderr.isatty():
        yield from items
        return
    from tqdm import tqdm

    yield from tqdm(items, unit=f" {unit}", total=total, dynamic_ncols=True, leave=False)


def counter(unit: str) -> Callable[[int, int], None] | None:
    """Return what shows `done` of `total` on stderr; None where that is no terminal."""
    if not sys.stderr.isatty():
        return None

    def report(done: int, total: int) -> None:
        print(f"\r{done}/{total} {unit}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return report


@contextmanager
def passes(model: Any) -> Iterator[None]:
    """Count the forward passes of a model, and of copies made meanwhile, on stderr where that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from tqdm import tqdm

    with tqdm(unit=" passes", dynamic_ncols=True, leave=False, delay=1) as bar:
        handle = model.patch_embed.register_forward_hook(lambda module, args, output: bar.update() and None)
        try:
            yield
        finally:
            handle.remove()


def positive(text: str) -> int:
    """An argparse type: a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def whole(text: str) -> int:
    """An argparse type: a whole number of at least 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 0")
    return int(text)


def seconds(text: str) -> float:
    """An argparse type: a number of seconds above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def fraction(text: str) -> float:
    """An argparse type: a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value
