"""The records of a run on disk: JSON lines, schema 1, the raw samples among them.

    kind            one for each
    bench           the run: kernels with their sha256, seed, environment; of `bench run`
    case, verdict   the check, as `bench check --json` writes it
    roof            number of threads: what the machine can do
    process         process that timed, with the threads and cores it says it has
    start           kernel, cell and process: load, first call, peak memory, verdict on the first answer
    block           block: samples in microseconds of one call, counters of the process, verdict on one timed answer
    row             arm and cell: what the table shows
    model-bench, model-errors, model-start, model-block, model    the same of `bench model`

Fields are only ever added under the same schema. A number that is not finite is written as null.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minivit.bench.report.verdicts import SCHEMA
from minivit.errors import UsageError

FILE = "run.jsonl"
Record = dict[str, Any]


def line(record: Record) -> str:
    """A record as one line of JSON."""
    return json.dumps(_finite(record), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(one) for name, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, (list, tuple)) else value


def read(path: str | Path) -> list[Record]:
    """The records of a file, or of the run.jsonl in a folder; a line that an interrupted run left half is left out.

    Raises:
        UsageError: no such file, not of this form, or of another schema.
    """
    file = Path(path) / FILE if Path(path).is_dir() else Path(path)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UsageError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{file}: is no text, so no run of minivit bench") from None
    records: list[Record] = []
    for number, text in enumerate(lines, start=1):
        try:
            record = json.loads(text)
            schema = record["schema"]
        except (ValueError, TypeError, KeyError):
            if number == len(lines) and records:
                break
            raise UsageError(f"{file}: line {number} is no record of minivit bench") from None
        if schema != SCHEMA:
            raise UsageError(f"{file}: line {number} is of schema {schema}; this is minivit for schema {SCHEMA}")
        records.append(record)
    if not any(record.get("kind") in ("bench", "model-bench") for record in records):
        raise UsageError(f"{file}: holds no run of minivit bench")
    return records


def of_kind(records: Iterable[Record], kind: str) -> list[Record]:
    """The records of one kind."""
    return [record for record in records if record["kind"] == kind]
