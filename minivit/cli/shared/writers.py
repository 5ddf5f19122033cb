"""Writers of records to standard output or to a file: text, JSON lines, one JSON array, CSV."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minivit.cli.shared.console import printable, say
from minivit.errors import UsageError, WriteError

if TYPE_CHECKING:
    from minivit.inference.jsonl import Known


class Output:
    """Standard output, or a new file whose writer cannot resume.

    A file is UTF-8. A byte of a file name that is not UTF-8 is escaped, as JSON lines have it: \\udcff.
    """

    def __init__(self, path: str | None = None):
        from minivit.inference.jsonl import Appender

        if path is not None and Path(path).is_file() and Path(path).stat().st_size:
            raise UsageError(f"-o {path}: already exists; remove it, or name another file")
        self.file = None if path is None else Appender(path)
        self.terminal = self.file is None and sys.stdout.isatty()

    def write(self, text: str, *, encoded: bool = False) -> None:
        """Write `text` as a whole, at once; `encoded`: in UTF-8 whatever the locale, but on a terminal.

        Raises:
            WriteError: it cannot be written, as on a full disk.
        """
        if self.file is not None:
            self.file.append(text.encode("utf-8", "backslashreplace"))
            return
        try:
            if encoded and not self.terminal and hasattr(sys.stdout, "buffer"):
                sys.stdout.flush()
                sys.stdout.buffer.write(text.encode("utf-8", "backslashreplace"))
            else:
                sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            silence_stdout()
            raise WriteError(f"standard output: {error.strerror}; the records before this one are whole") from None

    def close(self) -> None:
        """Close the file, if it is one."""
        if self.file is not None:
            self.file.close()


class TextWriter:
    """Text for people; errors go to stderr. Also the base of the other writers, none of which can resume."""

    def __init__(self, out: Output):
        self.out = out

    def known(self) -> Iterator[Known]:
        """Yield nothing."""
        yield from ()

    def write(self, index: int, item: dict[str, Any]) -> None:
        """Write one record."""
        if "error" in item:
            say(printable(item["error"]["message"]))
            return
        notes = f"  ({printable('; '.join(item['warnings']))})" if "warnings" in item else ""
        lines = [printable(item["path"]) + notes]
        group = None
        for p in grouped(item["top"]):
            if p.get("category") != group:
                group = p["category"]
                lines.append(f"  {printable(group)}:")
            label = f"class {p['index']}" if p["label"] is None else f"{printable(p['label'])} ({p['index']})"
            lines.append(f"  {p['score']:.3f}  {label}")
        self.out.write("\n".join(lines) + "\n")

    def finish(self, total: int) -> None:
        """Do nothing: every record is written."""

    def close(self) -> None:
        """Close the output."""
        self.out.close()


def grouped(top: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return predictions with those of one category side by side, categories in the order of their best score."""
    first = {p.get("category"): i for i, p in reversed(list(enumerate(top)))}
    return sorted(top, key=lambda p: first[p.get("category")])


class JsonLinesWriter(TextWriter):
    """One JSON record per line."""

    def write(self, index: int, item: dict[str, Any]) -> None:
        """Write one record."""
        from minivit.inference.jsonl import encode

        self.out.write(encode(item))


class JsonWriter(TextWriter):
    """One JSON array, which an interruption closes, so that it stays valid."""

    separator = "["

    def write(self, index: int, item: dict[str, Any]) -> None:
        """Write one record."""
        self.out.write(self.separator + json.dumps(item))
        self.separator = ",\n "

    def close(self) -> None:
        """End the array."""
        self.out.write("[]\n" if self.separator == "[" else "]\n")
        super().close()


class CsvWriter(TextWriter):
    """One row per label, one for an error; UTF-8."""

    def __init__(self, out: Output):
        super().__init__(out)
        self._row("path", "rank", "index", "label", "score", "error", "message")

    def write(self, index: int, item: dict[str, Any]) -> None:
        """Write one record."""
        if "error" in item:
            self._row(item["path"], "", "", "", "", item["error"]["code"], item["error"]["message"])
        for rank, p in enumerate(item.get("top", []), start=1):
            self._row(item["path"], rank, p["index"], p["label"], repr(p["score"]), "", "")

    def _row(self, *values: Any) -> None:
        text = io.StringIO()
        shown = [printable(value) if self.out.terminal and isinstance(value, str) else value for value in values]
        csv.writer(text, lineterminator="\n").writerow(shown)
        self.out.write(text.getvalue(), encoded=True)


def form_of(path: str | None, asked: str | None) -> str:
    """Return the form of the records for -o PATH: the one that was asked for, else the one of the suffix.

    Raises:
        UsageError: a suffix that names another form, or a kind of file that is not written.
    """
    suffix = Path(path).suffix.lower() if path else ""
    named = suffix[1:] if suffix[1:] in WRITERS else "text" if suffix in ("", ".txt") else None
    if asked and (named in (None, "text", asked) and suffix not in NOT_TEXT):
        return asked
    if asked or named is None:
        raise UsageError(f"-o {path}: labels are written as .jsonl, .json, .csv or .txt, by the suffix of FILE")
    return named


NOT_TEXT = (".txt", ".npy", ".npz", ".safetensors", ".parquet")
WRITERS = {"text": TextWriter, "json": JsonWriter, "jsonl": JsonLinesWriter, "csv": CsvWriter}


def escape_what_streams_lack() -> None:
    """Have standard output and error escape characters that their encoding lacks, as in a Latin-1 locale."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def silence_stdout() -> None:
    """Discard what is still buffered: it cannot be written, and the interpreter would try again when it ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def open_closed_streams() -> None:
    """Open /dev/null for every stream that the shell closed (`>&-`), so that no file gets its number.

    Writing to standard output then fails with an error; standard input is empty.
    """
    for name, mode, flags in (("stdin", "r", os.O_RDONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, flags), mode))
