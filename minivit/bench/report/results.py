"""The records of a run: JSON objects of schema 1, raw samples included, one a line in run.jsonl.

kind            one record for each
bench           `bench run`: kernels with their sha256, seed, environment
case, verdict   the check, as `bench check --json` writes it
roof            number of threads: the measured limits of the machine
process         timing process, with the threads and cores that it reports
start           kernel, cell and process: load, first call, peak memory, verdict on the first output
block           block: samples in microseconds of one call, counters of the process, verdict on one timed output
row             arm and cell: what the table shows
model-bench, model-errors, model-start, model-block, model    the same for `bench model`

"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TextIO

from minivit.errors import UsageError

SCHEMA = 1  # under the same number, fields are only ever added
FILE = "run.jsonl"
Record = dict[str, Any]


def record(kind: str, **fields: Any) -> Record:
    """Return a record of this kind."""
    return {"schema": SCHEMA, "kind": kind, **fields}


class Recorder:
    """Collects the records of a run. As a context manager, it also writes them to FOLDER/run.jsonl.

    Raises:
        UsageError: the folder holds a run already, or cannot be created.
    """

    def __init__(self, folder: str | Path | None = None, on_record: Callable[[Record], object] | None = None):
        self.records: list[Record] = []
        self.folder = None if folder is None else new_folder(Path(folder))
        self.on_record = on_record
        self.out: TextIO | None = None

    def __enter__(self) -> Recorder:
        if self.folder:
            self.out = (self.folder / FILE).open("w", encoding="utf-8")
        return self

    def __exit__(self, *_: object) -> None:
        if self.out:
            self.out.close()

    def add(self, one: Record) -> None:
        """Keep a record, write it at once, and pass it to `on_record`."""
        self.records.append(one)
        if self.out:
            self.out.write(line(one) + "\n")
            self.out.flush()
        if self.on_record:
            self.on_record(one)


def new_folder(folder: Path) -> Path:
    """Return the folder for a run, created if missing.

    Raises:
        UsageError: it holds a run already, or cannot be created.
    """
    if (folder / FILE).exists():
        raise UsageError(f"{folder / FILE}: exists already and is left alone; choose another folder")
    return make_folder(folder)


def make_folder(folder: Path) -> Path:
    """Return the folder, created if missing.

    Raises:
        UsageError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made: {error.strerror}") from None
    return folder


def line(record: Record) -> str:
    """Return a record as one line of JSON. A number that is not finite becomes null."""
    return json.dumps(_finite(record), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, (list, tuple)) else value


def read(path: str | Path) -> list[Record]:
    """Return the records of a file, or of the run.jsonl in a folder. An incomplete last line is ignored.

    Raises:
        UsageError: the file is missing, not a run, or of another schema.
    """
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{file}: is not text, so not a run of minivit bench") from None
    records: list[Record] = []
    for number, text in enumerate(lines, start=1):
        try:
            one = json.loads(text)
            schema = one["schema"]
        except (ValueError, TypeError, KeyError):
            if number == len(lines) and records:
                break
            raise UsageError(f"{file}: line {number} is not a record of minivit bench") from None
        if schema != SCHEMA:
            raise UsageError(f"{file}: line {number} has schema {schema}; this minivit reads schema {SCHEMA}")
        records.append(one)
    if not any(one.get("kind") in ("bench", "model-bench") for one in records):
        raise UsageError(f"{file}: holds no run of minivit bench")
    return records


def of_kind(records: Iterable[Record], kind: str) -> list[Record]:
    """Return the records of one kind."""
    return [one for one in records if one["kind"] == kind]
