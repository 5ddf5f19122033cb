"""Embeddings on disk: .npy, .safetensors and .parquet, written as they come, and read back a piece at a time."""

from __future__ import annotations

import ctypes
import json
import math
import os
import shutil
import struct
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minivit.errors import UsageError, WriteError
from minivit.inference.jsonl import Appender, Journal, Known, check_run, utf8
from minivit.weights.shards import read_npy_header

SUFFIXES = (".npy", ".safetensors", ".parquet")
_SHARED = ("schema", "model", "revision", "device", "run")  # fields that every record of a run has in common
_DTYPES = {torch.float32: ("<f4", "F32"), torch.float64: ("<f8", "F64")}
_NPY_HEADER = 256  # bytes; the number of rows in it grows in place
_PIECE = 2**24  # bytes of vectors held at once on the way into and out of a finished file


class StoreWriter:
    """One vector and one record for every input, in their order; flat in memory whatever their number.

    While it grows, a store is the folder PATH.partial: `records.jsonl`, a Journal, and `vectors.npy`, whose row i
    is that of line i and is written before it. Both are valid at any moment, so a kill loses nothing. `finish`
    makes of them, in one pass, the file that was asked for, and puts it in its place in one step; only then the
    folder goes. A picture that could not be read has a row of NaN.

    | file | vectors | records |
    |---|---|---|
    | `x.npy` | the file itself | `x.npy.jsonl`: line i for row i |
    | `x.safetensors` | tensor `embeddings` | tensor `records`: the same lines as bytes; metadata has what they share |
    | `x.parquet` | column `embedding` | the other columns; metadata has what they share, too |

    Args:
        path: the finished file; its suffix is one of SUFFIXES.
        constant: the fields that every record shares.
        shape: of one vector.
        dtype: float32 or float64.
        resume: continue what PATH.partial has; of a finished store, find out whether it still holds.

    Raises:
        UsageError, WriteError: as Journal; pyarrow is not there.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        constant: dict[str, Any],
        shape: tuple[int, ...],
        dtype: torch.dtype = torch.float32,
        *,
        resume: bool = False,
    ):
        self.path, self.constant, self.shape, self.dtype = Path(path), constant, shape, dtype
        self.partial = Path(f"{path}.partial")
        self.row = math.prod(shape) * dtype.itemsize  # bytes
        if self.path.suffix == ".parquet":
            import_pyarrow()
        self.journal: Journal | None = None
        if self.path.exists() and resume:
            return  # finished, though a kill may have left a part of the folder it grew in
        if self.partial.exists() and not resume:
            raise UsageError(f"{self.partial}: another run began it; --resume continues it, or remove it")
        beside = [Path(f"{path}.jsonl")] if self.path.suffix == ".npy" else []
        for there in (self.path, *beside):
            if there.exists() and not self.partial.exists():
                raise UsageError(f"{there}: is there already; remove it, or name another file")
        try:
            self.partial.mkdir(exist_ok=True)
        except OSError as error:
            raise UsageError(f"{path}: cannot be written ({error.strerror})") from None
        self.journal = Journal(self.partial / "records.jsonl", constant, resume=resume)
        self.vectors = Appender(self.partial / "vectors.npy")
        try:
            next(self.journal.known(), None)  # of another run, nothing is cut off
            count, end = self.journal.count, _NPY_HEADER + self.journal.count * self.row
            if count and self.vectors.size < end:
                raise UsageError(f"{self.partial}: has fewer vectors than records; remove it and start again")
            self.vectors.put(npy_header((count, *shape), dtype), 0)
            self.vectors.truncate(end)
        except BaseException:
            self.close()
            raise

    def known(self) -> Iterator[Known]:
        """What is there already, as Journal.known."""
        if self.journal is not None:
            yield from self.journal.known()
            return
        store = open_store(self.path)
        check_run(self.path, store.constant, self.constant)
        for records, _ in store.pieces:
            yield from map(Known.of, records)

    def put(self, index: int, item: dict[str, Any]) -> None:
        """Write record `index` with its "embedding", a tensor of `shape`, or without, as an error has none."""
        if self.journal is None:
            raise UsageError(f"{self.path}: is finished, and {item['path']} is not as it was; remove it to start again")
        vector = item.pop("embedding", None)
        if vector is None:
            vector = torch.full(self.shape, math.nan, dtype=self.dtype)
        data = vector_bytes(vector.to(self.dtype))
        if index < self.journal.count:
            self.vectors.put(data, _NPY_HEADER + index * self.row)
        else:
            self.vectors.append(data)
            self.vectors.put(npy_header((index + 1, *self.shape), self.dtype), 0)
        self.journal.put(index, item)

    def finish(self, total: int) -> None:
        """Make the file that was asked for out of `total` rows, and remove the folder it grew in."""
        if self.journal is None:
            held = sum(len(records) for records, _ in open_store(self.path).pieces)
            if held > total:
                raise UsageError(f"{self.path}: has {held} records, but there are only {total} inputs")
            shutil.rmtree(self.partial, ignore_errors=True)
            return
        self.journal.finish(total)
        temporary = self.partial / f"finished{self.path.suffix}"
        try:
            if self.path.suffix == ".npy":
                shutil.copyfile(self.partial / "records.jsonl", self.partial / "finished.jsonl")
                (self.partial / "finished.jsonl").replace(f"{self.path}.jsonl")
                temporary = self.partial / "vectors.npy"
            elif self.path.suffix == ".safetensors":
                self._write_safetensors(temporary, total)
            else:
                self._write_parquet(temporary, total)
            temporary.replace(self.path)
        except OSError as error:
            raise WriteError(
                f"{self.path}: {error.strerror or error}; {self.partial} has all of it, --resume tries again"
            ) from None
        shutil.rmtree(self.partial)

    def close(self) -> None:
        """Close the files, finished or not."""
        if self.journal is not None:
            self.journal.close()
            self.vectors.close()

    def _lines(self) -> Iterator[dict[str, Any]]:
        with (self.partial / "records.jsonl").open("rb") as file:
            yield from map(json.loads, file)

    def _write_safetensors(self, path: Path, total: int) -> None:
        """The format as https://huggingface.co/docs/safetensors describes it; the library shuffles the metadata."""
        lines = self.partial / "finished.jsonl"
        with lines.open("wb") as file:
            for item in self._lines():
                file.write(json.dumps({k: v for k, v in item.items() if k not in _SHARED}).encode() + b"\n")
        middle, end = total * self.row, total * self.row + lines.stat().st_size
        header = {
            "__metadata__": metadata(self.constant),
            "embeddings": {"dtype": _DTYPES[self.dtype][1], "shape": [total, *self.shape], "data_offsets": [0, middle]},
            "records": {"dtype": "U8", "shape": [end - middle], "data_offsets": [middle, end]},
        }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with path.open("wb") as file, (self.partial / "vectors.npy").open("rb") as vectors, lines.open("rb") as records:
            file.write(struct.pack("<Q", len(text)) + text)
            vectors.seek(_NPY_HEADER)
            shutil.copyfileobj(vectors, file, 2**20)
            shutil.copyfileobj(records, file, 2**20)

    def _write_parquet(self, path: Path, total: int) -> None:
        _, pq = import_pyarrow()
        schema = parquet_schema(self.shape, self.dtype).with_metadata(metadata(self.constant))
        lines, many = self._lines(), max(1, _PIECE // self.row)
        with (self.partial / "vectors.npy").open("rb") as vectors, pq.ParquetWriter(path, schema) as writer:
            vectors.seek(_NPY_HEADER)
            while records := list(islice(lines, many)):
                piece = vectors.read(len(records) * self.row)
                writer.write_table(parquet_table(records, piece, schema))


def npy_header(shape: tuple[int, ...], dtype: torch.dtype) -> bytes:
    """The header of an .npy file of floats, version 1.0 (NumPy's numpy/lib/format.py), padded to a fixed length."""
    text = f"{{'descr': '{_DTYPES[dtype][0]}', 'fortran_order': False, 'shape': {shape}, }}"
    text = text.ljust(_NPY_HEADER - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def metadata(constant: dict[str, Any]) -> dict[str, str]:
    """What all records share as the metadata of a file: flat for people, and whole, as JSON, under "minivit"."""
    flat = {**{key: value for key, value in constant.items() if key != "run"}, **constant.get("run", {})}
    text = {key: value if isinstance(value, str) else json.dumps(value) for key, value in flat.items()}
    return {**text, "minivit": json.dumps(constant)}


class Store(NamedTuple):
    """A file of embeddings, opened."""

    constant: dict[str, Any]  # what its records share: model, revision, device, run
    pieces: Iterator[tuple[list[dict[str, Any]], Tensor]]  # records and their vectors (rows, ...), a few MB at once


def open_store(path: str | os.PathLike[str]) -> Store:
    """A file `minivit embed` wrote, or a folder of the Parquet shards of its Ray engine.

    Raises:
        UsageError: no such file, or not of minivit; pyarrow is not there.
    """
    path = Path(path)
    readers = {".npy": _read_npy, ".safetensors": _read_safetensors, ".parquet": _read_parquet, ".jsonl": _read_jsonl}
    if path.is_dir():
        suffix = ".parquet"
    elif path.is_file():
        suffix = path.suffix
    else:
        raise UsageError(f"{path}: no such store of embeddings")
    if suffix not in readers:
        raise UsageError(f"{path}: embeddings lie in {', '.join(readers)}, or a folder of .parquet")
    try:
        pieces = readers[suffix](path)
        first = next(pieces, None)
        if first is None:
            raise UsageError(f"{path}: is empty")
        constant = {key: first[0][0][key] for key in _SHARED[1:]}
    except (ValueError, KeyError, TypeError, SyntaxError, OSError, struct.error) as error:
        raise UsageError(f"{path}: not embeddings of minivit, or damaged ({error!r})") from None
    return Store(constant, _chain(first, pieces))


def _chain(first: Any, others: Iterator[Any]) -> Iterator[Any]:
    yield first
    yield from others


def _read_npy(path: Path) -> Iterator[tuple[list[dict[str, Any]], Tensor]]:
    with path.open("rb") as file, Path(f"{path}.jsonl").open("rb") as lines:
        shape, dtype = read_npy_header(file)
        yield from _mapped(path, file.tell(), shape, dtype, map(json.loads, lines))


def _read_safetensors(path: Path) -> Iterator[tuple[list[dict[str, Any]], Tensor]]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length)) if length < 2**20 else {}
        constant = json.loads(header["__metadata__"]["minivit"])
        about = header["embeddings"]
        dtype = next(dtype for dtype, (_, name) in _DTYPES.items() if name == about["dtype"])
        file.seek(8 + length + header["records"]["data_offsets"][0])
        records = ({**json.loads(line), **constant} for line in file)
        yield from _mapped(path, 8 + length, about["shape"], dtype, records)


def _mapped(
    path: Path, offset: int, shape: Iterable[int], dtype: torch.dtype, records: Iterator[dict[str, Any]]
) -> Iterator[tuple[list[dict[str, Any]], Tensor]]:
    """Pieces of an array that lies in a file; the pages are the file's own, and are given back piece by piece."""
    rows, *vector = shape
    row = math.prod(vector) * dtype.itemsize
    many = max(1, _PIECE // row)
    with path.open("rb") as file:
        for start in range(0, rows, many):
            count = min(many, rows - start)
            file.seek(offset + start * row)
            data = bytearray(file.read(count * row))
            if len(data) < count * row:
                raise ValueError(f"cut off after {start + len(data) // row} of {rows} vectors")
            piece = list(islice(records, count))
            if len(piece) < count:
                raise ValueError(f"{start + len(piece)} records for {rows} vectors")
            yield piece, torch.frombuffer(data, dtype=dtype).view(count, *vector)


def _read_jsonl(path: Path) -> Iterator[tuple[list[dict[str, Any]], Tensor]]:
    with path.open("rb") as file:
        lines = map(json.loads, file)
        while piece := list(islice(lines, 256)):
            yield _with_vectors(piece, torch.float64 if piece[0]["run"]["dtype"] == "float64" else torch.float32)


def _with_vectors(records: list[dict[str, Any]], dtype: torch.dtype) -> tuple[list[dict[str, Any]], Tensor]:
    vectors = [item.pop("embedding", None) for item in records]
    like = next((torch.tensor(vector, dtype=dtype) for vector in vectors if vector), torch.empty(0, dtype=dtype))
    nothing = torch.full_like(like, math.nan)
    return records, torch.stack([nothing if not v else torch.tensor(v, dtype=dtype) for v in vectors])


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a Parquet file or of a folder of shards, as far as they are no vectors."""
    _, pq = import_pyarrow()
    for file in _shards(path):
        columns = [name for name in pq.read_schema(file).names if name != "embedding"]
        for batch in pq.ParquetFile(file).iter_batches(batch_size=1024, columns=columns):
            yield from map(_from_columns, batch.to_pylist())


def _shards(path: Path) -> list[Path]:
    return sorted(path.rglob("*.parquet")) if path.is_dir() else [path]


def _read_parquet(path: Path) -> Iterator[tuple[list[dict[str, Any]], Tensor]]:
    _, pq = import_pyarrow()
    for file in _shards(path):
        for batch in pq.ParquetFile(file).iter_batches(batch_size=1024):
            if not batch.num_rows:
                continue
            column = batch.column("embedding")
            shape: list[int] = []
            kind, values = column.type, column
            while hasattr(kind, "list_size"):
                shape.append(kind.list_size)
                start = values.offset * kind.list_size
                values = values.values.slice(start, len(values) * kind.list_size)
                kind = kind.value_type
            dtype = torch.float64 if str(kind) == "double" else torch.float32
            data = memoryview(values.buffers()[1])[values.offset * dtype.itemsize :]
            vectors = torch.frombuffer(bytearray(data), dtype=dtype, count=len(values)).view(len(column), *shape)
            yield [_from_columns(row) for row in batch.drop_columns(["embedding"]).to_pylist()], vectors


def parquet_schema(shape: tuple[int, ...] | None, dtype: torch.dtype = torch.float32) -> Any:
    """The columns of a Parquet file of records: with an embedding of `shape`, or with a `top` where there is none."""
    pa, _ = import_pyarrow()
    if shape is None:
        value = ("top", pa.list_(pa.struct([("index", pa.int64()), ("label", pa.string()), ("score", pa.float64())])))
    else:
        kind = pa.float64() if dtype == torch.float64 else pa.float32()
        for size in reversed(shape):
            kind = pa.list_(kind, size)
        value = ("embedding", kind)
    error = pa.struct([("code", pa.string()), ("message", pa.string())])
    text = [(name, pa.string()) for name in ("sha256", "model", "revision", "device", "run")]
    columns = [("schema", pa.int32()), ("path", pa.string()), value, ("error", error), *text]
    return pa.schema([*columns, ("warnings", pa.list_(pa.string()))])


def parquet_table(records: list[dict[str, Any]], vectors: bytes | None, schema: Any) -> Any:
    """Records as a pyarrow Table; their embeddings are the bytes of (rows, *shape), NaN where there is an error.

    Not null: pyarrow before 26 cannot read a Parquet file that has a null among lists of a fixed size.
    """
    pa, _ = import_pyarrow()
    rows = [{**item, "run": json.dumps(item["run"]), "path": utf8(item["path"])} for item in records]
    for row in rows:
        if "error" in row:
            row["error"] = {**row["error"], "message": utf8(row["error"]["message"])}
    columns = []
    for column in schema:
        if column.name == "embedding" and vectors is not None:
            columns.append(_fixed(vectors, column.type))
        else:
            columns.append(pa.array([row.get(column.name) for row in rows], column.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _fixed(data: bytes, kind: Any) -> Any:
    """Numbers as a fixed-size list of (fixed-size lists of) them."""
    pa, _ = import_pyarrow()
    kinds = []
    while hasattr(kind, "list_size"):
        kinds.append(kind)
        kind = kind.value_type
    values = pa.Array.from_buffers(kind, len(data) * 8 // kind.bit_width, [None, pa.py_buffer(data)])
    for outer in reversed(kinds):
        values = pa.FixedSizeListArray.from_arrays(values, type=outer)
    return values


def _from_columns(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a Parquet file as the record it was made of."""
    optional = ("error", "warnings", "top", "index")
    record = {key: value for key, value in row.items() if value is not None or key not in optional}
    return {**record, "run": json.loads(record["run"])}


def import_pyarrow() -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet, an extra.

    Raises:
        UsageError: not installed; the message names the extra.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UsageError(".parquet needs pyarrow: pip install 'minivit[parquet]'") from None
    return pyarrow, pyarrow.parquet


def vector_bytes(vectors: Tensor) -> bytes:
    """The numbers of a tensor as they lie in memory (NumPy, which does this elsewhere, is not needed)."""
    vectors = vectors.detach().cpu().contiguous()
    return ctypes.string_at(vectors.data_ptr(), vectors.nbytes)


def nearest(query: Tensor, store: Store, k: int) -> list[tuple[float, dict[str, Any]]]:
    """The k records whose vectors point most the same way: (cosine, record), best first, equal ones in their order.

    Args:
        query: (D,), of any length but 0.
        store: of vectors (D,); rows of NaN, of pictures that could not be read, are passed over.

    Raises:
        UsageError: the sizes differ.
    """
    best: list[tuple[float, int, dict[str, Any]]] = []
    query, start = torch.nn.functional.normalize(query.double().flatten(), dim=0), 0
    for records, vectors in store.pieces:
        if vectors.shape[1:] != query.shape:
            raise UsageError(f"the query is a vector of {tuple(query.shape)}, the store has {tuple(vectors.shape[1:])}")
        cosines = torch.nn.functional.normalize(vectors.double(), dim=-1) @ query
        cosines = cosines.nan_to_num(nan=-math.inf)
        scores, rows = cosines.sort(descending=True, stable=True)
        found = zip(scores[:k].tolist(), rows[:k].tolist(), strict=True)
        best += [(score, start + row, records[row]) for score, row in found if score > -math.inf]
        best = sorted(best, key=lambda one: (-one[0], one[1]))[:k]
        start += len(records)
    return [(score, record) for score, _, record in best]
