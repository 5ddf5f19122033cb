"""Embedding files: .npy, .safetensors and .parquet, written record by record and read back in pieces."""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
from collections.abc import Iterator
from io import BytesIO
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minivit.errors import UsageError, WriteError
from minivit.inference.jsonl import Appender, JsonlLog, Known, check_run, utf8
from minivit.inference.parquet import import_pyarrow, parquet_pieces, parquet_schema, parquet_table

SUFFIXES = (".npy", ".safetensors", ".parquet")
_SHARED = ("schema", "model", "revision", "device", "run")  # fields that all records of a run share
_DTYPES = {torch.float32: "<f4", torch.float64: "<f8"}  # how the bytes lie in a file
_PIECE = 2**24  # bytes of vectors held in memory while a finished file is read or written

Piece = tuple[list[dict[str, Any]], Tensor]  # records, and their vectors (rows, ...)


class EmbeddingWriter:
    """A RecordWriter of one vector and one record per input, in order; memory does not grow with their number.

    While it grows, an embedding file is the folder PATH.partial: `records.jsonl`, a JsonlLog, and `vectors.npy`,
    whose row i belongs to line i and is written before it. Both are valid at any moment, so a kill loses nothing.
    `finish` makes the requested file from them in one pass and moves it into place in one step; only then the
    folder is removed. An image that could not be read has a row of NaN.

    | file | vectors | records |
    |---|---|---|
    | `x.npy` | the file itself | `x.npy.jsonl`: line i for row i |
    | `x.safetensors` | tensor `embeddings` | tensor `records`: the same lines as bytes; shared fields are metadata |
    | `x.parquet` | column `embedding` | the other columns; shared fields are metadata, too |

    Args:
        path: the finished file; its suffix is one of SUFFIXES.
        constant: the fields that every record shares.
        shape: of one vector.
        dtype: float32 or float64.
        resume: continue PATH.partial; for a finished file, check that its records are still valid.

    Raises:
        UsageError, WriteError: as JsonlLog; pyarrow is not installed.
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
        # A link stays: what it links to is written.
        self.path = Path(os.path.realpath(path)) if Path(path).is_symlink() else Path(path)
        self.constant, self.shape, self.dtype = constant, shape, dtype
        path = self.path
        self.partial = Path(f"{path}.partial")
        self.row = math.prod(shape) * dtype.itemsize  # bytes
        if self.path.suffix == ".parquet":
            import_pyarrow()
        self.log: JsonlLog | None = None
        if self.path.exists() and resume:
            return  # finished, though a kill may have left a part of its folder
        if self.partial.exists() and not resume:
            raise UsageError(f"{self.partial}: another run began it; --resume continues it, or remove it")
        beside = [Path(f"{path}.jsonl")] if self.path.suffix == ".npy" else []
        for existing in (self.path, *beside):
            if existing.exists() and not self.partial.exists():
                raise UsageError(f"{existing}: already exists; remove it, or name another file")
        try:
            self.partial.mkdir(exist_ok=True)
        except OSError as error:
            raise UsageError(f"{path}: cannot be written ({error.strerror})") from None
        self.log = JsonlLog(self.partial / "records.jsonl", constant, resume=resume)
        self.vectors = Appender(self.partial / "vectors.npy")
        try:
            next(self.log.known(), None)  # refuses another run before anything is removed
            header = self._header(self.log.count)
            end = len(header) + self.log.count * self.row
            if self.log.count and (self.vectors.size < end or self._offset() != len(header)):
                raise UsageError(f"{self.partial}: its vectors do not fit its records; remove it and start again")
            self.vectors.overwrite(header, 0)
            self.vectors.truncate(end)
        except BaseException:
            self.close()
            raise

    def known(self) -> Iterator[Known]:
        """Yield the existing records, as JsonlLog.known."""
        if self.log is not None:
            yield from self.log.known()
            return
        file = open_embeddings(self.path)
        check_run(self.path, file.constant, self.constant)
        for records, _ in file.pieces:
            yield from map(Known.of, records)

    def write(self, index: int, item: dict[str, Any]) -> None:
        """Write record `index`; its "embedding" is a tensor of `shape`, absent from an error."""
        if self.log is None:
            raise UsageError(
                f"{self.path}: is finished, and {item['path']} has changed since; remove it to start again"
            )
        vector = item.pop("embedding", None)
        if vector is None:
            vector = torch.full(self.shape, math.nan)
        data = vector.detach().to("cpu", self.dtype).numpy().astype(_DTYPES[self.dtype]).tobytes()
        if index < self.log.count:
            self.vectors.overwrite(data, len(self._header(0)) + index * self.row)
        else:
            self.vectors.append(data)
            self.vectors.overwrite(self._header(index + 1), 0)
        self.log.write(index, item)

    def finish(self, total: int) -> None:
        """Make the requested file of `total` rows, and remove the folder."""
        if self.log is None:
            held = sum(len(records) for records, _ in open_embeddings(self.path).pieces)
            if held > total:
                raise UsageError(f"{self.path}: has {held} records, but there are only {total} inputs")
            shutil.rmtree(self.partial, ignore_errors=True)
            return
        self.log.finish(total)
        temporary = self.partial / f"finished{self.path.suffix}"
        try:
            if self.path.suffix == ".npy":
                shutil.copyfile(self.partial / "records.jsonl", self.partial / "finished.jsonl")
                (self.partial / "finished.jsonl").replace(f"{self.path}.jsonl")
                temporary = self.partial / "vectors.npy"
            elif self.path.suffix == ".safetensors":
                self._write_safetensors(temporary)
            else:
                self._write_parquet(temporary)
            temporary.replace(self.path)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            message = f"{self.path}: {reason}; {self.partial} has all of it, --resume tries again"
            raise WriteError(message) from None
        shutil.rmtree(self.partial)

    def close(self) -> None:
        """Close the files, finished or not."""
        if self.log is not None:
            self.log.close()
            self.vectors.close()

    def _header(self, count: int) -> bytes:
        """The header of an .npy file of `count` rows; NumPy pads it so that its size does not depend on the count."""
        file = BytesIO()
        fields = {"descr": _DTYPES[self.dtype], "fortran_order": False, "shape": (count, *self.shape)}
        np.lib.format.write_array_header_1_0(file, fields)
        return file.getvalue()

    def _offset(self) -> int:
        """Where the first row of the existing vectors begins, in bytes."""
        with (self.partial / "vectors.npy").open("rb") as file:
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            return file.tell()

    def _lines(self) -> Iterator[dict[str, Any]]:
        with (self.partial / "records.jsonl").open("rb") as file:
            yield from map(json.loads, file)

    def _write_safetensors(self, path: Path) -> None:
        lines = self.partial / "finished.jsonl"
        with lines.open("wb") as file:
            for item in self._lines():
                file.write(json.dumps({k: v for k, v in item.items() if k not in _SHARED}).encode() + b"\n")
        # Mapped, not read: memory stays flat. Copy-on-write, because torch warns of memory that cannot be written.
        vectors = np.load(self.partial / "vectors.npy", mmap_mode="c")
        text = np.memmap(lines, np.uint8, "c") if lines.stat().st_size else np.empty(0, np.uint8)
        tensors = {"embeddings": torch.from_numpy(vectors), "records": torch.from_numpy(text)}
        save_file(tensors, path, metadata(self.constant))
        _sort_metadata(path)

    def _write_parquet(self, path: Path) -> None:
        _, pq = import_pyarrow()
        schema = parquet_schema(self.shape, self.dtype).with_metadata(metadata(self.constant))
        with (self.partial / "vectors.npy").open("rb") as file, pq.ParquetWriter(path, schema) as writer:
            for records, vectors in _npy_pieces(file, self._lines()):
                writer.write_table(parquet_table(records, vectors.numpy(), schema))


def _sort_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file: the library shuffles them, and equal runs must write equal files."""
    with path.open("r+b") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode().ljust(size)
        if len(text) == size:
            file.seek(8)
            file.write(text)


def metadata(constant: dict[str, Any]) -> dict[str, str]:
    """Return the shared fields as the metadata of a file: flat for people, and whole, as JSON, under "minivit"."""
    flat = {**{key: value for key, value in constant.items() if key != "run"}, **constant.get("run", {})}
    text = {key: utf8(value) if isinstance(value, str) else json.dumps(value) for key, value in flat.items()}
    return {**text, "minivit": json.dumps(constant)}


class EmbeddingFile(NamedTuple):
    """An open file of embeddings."""

    constant: dict[str, Any]  # what its records share: model, revision, device, run
    pieces: Iterator[Piece]  # a few MB at a time


def open_embeddings(path: str | os.PathLike[str]) -> EmbeddingFile:
    """Return a file that `minivit embed` wrote, or a folder of Parquet shards of its Ray engine, ready to be read.

    Raises:
        UsageError: no such file, not written by minivit, damaged, or pyarrow is not installed.
    """
    path = Path(path)
    readers = {".npy": _read_npy, ".safetensors": _read_safetensors, ".parquet": parquet_pieces, ".jsonl": _read_jsonl}
    if not path.exists():
        raise UsageError(f"{path}: no such file of embeddings")
    suffix = ".parquet" if path.is_dir() else path.suffix
    labels = f"{path}: labels of `minivit classify`, not embeddings; `minivit embed -o FILE` writes those"
    if suffix == ".csv" or suffix == ".json":
        raise UsageError(labels)
    if suffix not in readers:
        raise UsageError(f"{path}: embedding files are {', '.join(readers)}, or a folder of .parquet")
    try:
        pieces = readers[suffix](path)
        first = next(pieces, None)
        if first is None:
            raise UsageError(f"{path}: is empty")
        constant = {key: first[0][0][key] for key in _SHARED[1:]}
    except _DAMAGE as error:
        raise _damaged(path, error) from None
    if "top" in first[0][0]:
        raise UsageError(labels)
    return EmbeddingFile(constant, chain([first], _whole(path, pieces)))


# What the readers of the formats raise for bytes that are none of theirs.
_DAMAGE = (
    *(ValueError, KeyError, IndexError, TypeError, AttributeError, SyntaxError, RuntimeError, RecursionError),
    *(OSError, EOFError, SafetensorError),
)


def _damaged(path: Path, error: BaseException) -> UsageError:
    reason = " ".join(str(error).split())[:200]
    return UsageError(f"{path}: not embeddings of minivit, or damaged ({type(error).__name__}: {reason})")


def _whole(path: Path, pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Yield the pieces of a file; one that is damaged further on is one error, too."""
    try:
        yield from pieces
    except _DAMAGE as error:
        raise _damaged(path, error) from None


def _read_npy(path: Path) -> Iterator[Piece]:
    beside = Path(f"{path}.jsonl")
    if path.is_symlink() and not beside.exists():
        beside = Path(f"{os.path.realpath(path)}.jsonl")
    with path.open("rb") as file, beside.open("rb") as lines:
        yield from _npy_pieces(file, map(json.loads, lines))


def _npy_pieces(file: Any, records: Iterator[dict[str, Any]]) -> Iterator[Piece]:
    """Read an .npy file piece by piece. Not mapped: the pages of a mapping would count as memory of this process."""
    np.lib.format.read_magic(file)
    (rows, *vector), _, dtype = np.lib.format.read_array_header_1_0(file)
    for count in _counts(rows, math.prod(vector) * dtype.itemsize):
        values = np.fromfile(file, dtype, count * math.prod(vector)).reshape(count, *vector)
        yield _matched(records, torch.from_numpy(values))


def _read_safetensors(path: Path) -> Iterator[Piece]:
    with safe_open(path, framework="pt") as file:
        constant = json.loads(file.metadata()["minivit"])
        vectors, text = file.get_slice("embeddings"), file.get_slice("records")
        records = ({**json.loads(line), **constant} for line in _lines_of(text))
        rows, *vector = vectors.get_shape()
        start = 0
        for count in _counts(rows, math.prod(vector) * int(vectors.get_dtype()[1:]) // 8):
            yield _matched(records, vectors[start : start + count])
            start += count


def _lines_of(text: Any) -> Iterator[bytes]:
    """Yield the lines of a slice of bytes, read a piece at a time."""
    (size,), rest = text.get_shape(), b""
    for start in range(0, size, _PIECE):
        *lines, rest = (rest + text[start : start + _PIECE].numpy().tobytes()).split(b"\n")
        yield from lines


def _counts(rows: int, row_bytes: int) -> Iterator[int]:
    """Yield how many rows each piece has."""
    most = max(1, _PIECE // row_bytes)
    yield from (min(most, rows - start) for start in range(0, rows, most))


def _matched(records: Iterator[dict[str, Any]], vectors: Tensor) -> Piece:
    piece = list(islice(records, len(vectors)))
    if len(piece) < len(vectors):
        raise ValueError(f"{len(vectors) - len(piece)} vectors have no record")
    return piece, vectors


def _read_jsonl(path: Path) -> Iterator[Piece]:
    with path.open("rb") as file:
        lines = (_jsonl_record(number, line) for number, line in enumerate(file, start=1))
        while records := list(islice(lines, 256)):
            dtype = torch.float64 if records[0]["run"]["dtype"] == "float64" else torch.float32
            vectors = [item.pop("embedding", None) for item in records]
            like = next(
                (torch.tensor(vector, dtype=dtype) for vector in vectors if vector), torch.empty(0, dtype=dtype)
            )
            missing = torch.full_like(like, math.nan)
            yield records, torch.stack([torch.tensor(v, dtype=dtype) if v else missing for v in vectors])


def _jsonl_record(number: int, line: bytes) -> dict[str, Any]:
    """Return the record of a line.

    Raises:
        ValueError: it is none.
    """
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {number}: {error}") from None
    if not isinstance(item, dict) or not isinstance(item.get("path"), str) or not isinstance(item.get("run"), dict):
        raise ValueError(f"line {number} is not a record of an embedding")
    return item
