"""Records and embeddings as Parquet, through pyarrow, which is the extra `parquet`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minivit.errors import UsageError
from minivit.inference.jsonl import utf8


def parquet_schema(shape: tuple[int, ...] | None, dtype: torch.dtype = torch.float32) -> Any:
    """Return the pyarrow schema of records: with an embedding of `shape`, or with a `top` when that is None."""
    pa, _ = import_pyarrow()
    if shape is None:
        value = (
            "top",
            pa.list_(
                pa.struct(
                    [("index", pa.int64()), ("label", pa.string()), ("score", pa.float64()), ("category", pa.string())]
                )
            ),
        )
    else:
        kind = pa.float64() if dtype == torch.float64 else pa.float32()
        for size in reversed(shape):
            kind = pa.list_(kind, size)
        value = ("embedding", kind)
    error = pa.struct([("code", pa.string()), ("message", pa.string())])
    scores = ("scores",) if shape is None else ()
    text = [(name, pa.string()) for name in ("sha256", "model", "revision", "device", *scores, "run")]
    columns = [("schema", pa.int32()), ("path", pa.string()), value, ("error", error), *text]
    return pa.schema([*columns, ("warnings", pa.list_(pa.string()))])


def parquet_table(records: list[dict[str, Any]], vectors: np.ndarray | None, schema: Any) -> Any:
    """Return records as a pyarrow Table; `vectors` (rows, *shape) are their embeddings, NaN for an error.

    NaN and not null: pyarrow before 26 cannot read a Parquet file with a null among lists of a fixed size.
    """
    pa, _ = import_pyarrow()
    rows = [{**item, "run": json.dumps(item["run"]), "path": utf8(item["path"])} for item in records]
    for row in rows:
        if "error" in row:
            row["error"] = {**row["error"], "message": utf8(row["error"]["message"])}
    columns = []
    for column in schema:
        if column.name == "embedding" and vectors is not None:
            columns.append(_fixed_size_lists(vectors, column.type))
        else:
            columns.append(pa.array([row.get(column.name) for row in rows], column.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _fixed_size_lists(vectors: np.ndarray, kind: Any) -> Any:
    """Return an array (rows, *shape) as a pyarrow array of nested lists of a fixed size."""
    pa, _ = import_pyarrow()
    kinds = []
    while hasattr(kind, "list_size"):
        kinds.append(kind)
        kind = kind.value_type
    values = pa.array(vectors.reshape(-1), kind)
    for outer in reversed(kinds):
        values = pa.FixedSizeListArray.from_arrays(values, type=outer)
    return values


def parquet_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a Parquet file, or of a folder of shards, without their embeddings."""
    _, pq = import_pyarrow()
    for file in _shards(path):
        columns = [name for name in pq.read_schema(file).names if name != "embedding"]
        for batch in pq.ParquetFile(file).iter_batches(batch_size=1024, columns=columns):
            yield from map(_record_of, batch.to_pylist())


def parquet_pieces(path: Path) -> Iterator[tuple[list[dict[str, Any]], Tensor]]:
    """Yield records and their embeddings (rows, ...) from a Parquet file or from a folder of shards."""
    _, pq = import_pyarrow()
    for file in _shards(path):
        for batch in pq.ParquetFile(file).iter_batches(batch_size=1024):
            if not batch.num_rows:
                continue
            values, shape = batch.column("embedding"), [batch.num_rows]
            while hasattr(values.type, "list_size"):
                shape.append(values.type.list_size)
                values = values.flatten()
            vectors = torch.from_numpy(values.to_numpy().copy()).view(*shape)
            yield [_record_of(row) for row in batch.drop_columns(["embedding"]).to_pylist()], vectors


def _shards(path: Path) -> list[Path]:
    return sorted(path.rglob("*.parquet")) if path.is_dir() else [path]


def _record_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return the record that a row of a Parquet file was made of."""
    optional = ("error", "warnings", "top", "index")
    record = {key: value for key, value in row.items() if value is not None or key not in optional}
    for entry in record.get("top", ()):
        if entry["category"] is None:
            del entry["category"]
    return {**record, "run": json.loads(record["run"])}


def import_pyarrow() -> tuple[Any, Any]:
    """Return pyarrow and pyarrow.parquet.

    Raises:
        UsageError: not installed; the message names the extra.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError(".parquet needs pyarrow: pip install 'minivit[parquet]'") from None
    return pyarrow, pyarrow.parquet
