"""A JSONL log of records: every line is whole at any moment, and an interrupted run can be resumed."""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from minivit.errors import UsageError, WriteError

HEAD = b'{"schema": 1, "path": "'  # how every line begins
_HELD = 2**26  # bytes of changed lines held in memory before the log is rewritten


class Known(NamedTuple):
    """The fields of a record that tell whether it is still valid; texts are escaped by `utf8`, as files hold them."""

    path: str
    sha256: str | None
    error: str | None  # its message

    @classmethod
    def of(cls, item: dict[str, Any]) -> Known:
        """Return the fields of a record, new or read back."""
        message = item["error"]["message"] if "error" in item else None
        return cls(utf8(item["path"]), item.get("sha256"), message and utf8(message))


class Appender:
    """A file that grows by whole pieces; an incomplete piece is removed. Unbuffered, so a kill loses nothing.

    Raises:
        UsageError: it cannot be opened for writing, or another process is writing it.
        WriteError: a piece cannot be written, or the file was moved; the pieces before it stay.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = str(path)
        self.fd = -1
        try:
            self.fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            self.regular = stat.S_ISREG(os.fstat(self.fd).st_mode)
            self.size = os.lseek(self.fd, 0, os.SEEK_END) if self.regular else 0
            if self.regular:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self.fd)
            raise UsageError(f"{self.path}: another run is writing it") from None
        except OSError as error:
            raise UsageError(f"{self.path}: cannot be written ({error.strerror})") from None

    def append(self, piece: bytes) -> None:
        """Write one piece at the end, or nothing of it."""
        try:
            if self.regular and not os.path.samestat(Path(self.path).stat(), os.fstat(self.fd)):
                raise WriteError(f"{self.path}: another file is in its place; what was written so far went with it")
            self._write(piece, self.size)
        except FileNotFoundError:
            raise WriteError(f"{self.path}: is gone, or its folder is; what was written so far went with it") from None
        except OSError as error:
            if self.regular:
                os.ftruncate(self.fd, self.size)
            raise WriteError(f"{self.path}: {error.strerror}; the records before this one are whole") from None
        self.size += len(piece)

    def overwrite(self, piece: bytes, offset: int) -> None:
        """Overwrite existing bytes."""
        try:
            self._write(piece, offset)
        except OSError as error:
            raise WriteError(f"{self.path}: {error.strerror}") from None

    def _write(self, piece: bytes, offset: int) -> None:
        written = 0
        while written < len(piece):  # a nearly full disk accepts a part
            rest = piece[written:]
            written += os.pwrite(self.fd, rest, offset + written) if self.regular else os.write(self.fd, rest)

    def truncate(self, size: int) -> None:
        """Set the size of the file."""
        if self.regular:
            os.ftruncate(self.fd, size)
        self.size = size

    def close(self) -> None:
        """Close it; a second time does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class JsonlLog:
    """A RecordWriter: one JSON record per line, in the order of the inputs; always a valid prefix of the whole.

    Args:
        path: the file. An existing one is refused, or continued when `resume` is set: an incomplete last line, as
            a kill can leave it, is removed.
        constant: the fields that every record shares; a log of another run is not continued.

    Raises:
        UsageError: the file exists, is of another run, is damaged, or cannot be written.
        WriteError: as Appender.
    """

    def __init__(self, path: str | os.PathLike[str], constant: dict[str, Any], *, resume: bool = False):
        self.path, self.constant = Path(path), constant
        if self.path.is_file() and self.path.stat().st_size and not resume:
            raise UsageError(f"{path}: already exists; --resume continues it, or name another file")
        self.file = Appender(path)
        try:
            self.count = self._repair() if self.file.regular and self.file.size else 0
        except UsageError:
            self.file.close()
            raise
        self.changed: dict[int, bytes] = {}  # line number -> new line, until the log is rewritten
        self.held = 0  # bytes in `changed`

    def known(self) -> Iterator[Known]:
        """Yield the existing records in order, read lazily; raises UsageError when they are of another run."""
        if not self.count:
            return
        with self.path.open("rb") as file:
            for number, line in zip(range(1, self.count + 1), file, strict=False):
                item = _parse(line)
                if item is None:
                    raise UsageError(f"{self.path}: line {number} is not a record of minivit")
                check_run(self.path, item, self.constant)
                yield Known.of(item)

    def write(self, index: int, item: dict[str, Any]) -> None:
        """Write record `index`: at the end, or in place of a record whose image has changed."""
        line = encode(item).encode()
        if index < self.count:
            self.changed[index] = line
            self.held += len(line)
            if self.held > _HELD:
                self._replace_changed()
        else:
            self._replace_changed()
            self.file.append(line)
            self.count += 1

    def finish(self, total: int) -> None:
        """Finish after `total` records; raises UsageError when the log has more, of inputs that no longer exist."""
        if self.count > total:
            raise UsageError(f"{self.path}: has {self.count} records, but there are only {total} inputs")
        self._replace_changed()

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def _replace_changed(self) -> None:
        """Rewrite the log with the changed lines; the old file stays until the new one is whole."""
        if not self.changed:
            return
        target = Path(os.path.realpath(self.path))  # a link stays
        temporary = target.with_name(target.name + ".new")
        temporary.unlink(missing_ok=True)
        new = Appender(temporary)
        try:
            with self.path.open("rb") as old:
                for index, line in enumerate(old):
                    new.append(self.changed.get(index, line))
            os.fchmod(new.fd, stat.S_IMODE(target.stat().st_mode))
            temporary.replace(target)
        except BaseException:
            new.close()
            temporary.unlink(missing_ok=True)
            raise
        self.changed.clear()
        self.held = 0
        self.file.close()
        new.path = self.file.path
        self.file = new

    def _repair(self) -> int:
        """Remove an incomplete last line; return the number of lines."""
        count = end = 0
        last = b""
        with self.path.open("rb") as file:
            for line in file:
                torn = not line.endswith(b"\n")
                if (torn or not count) and line[: len(HEAD)] != HEAD[: len(line)]:
                    raise UsageError(f"{self.path}: was not written by minivit, so it is left as it is")
                if torn:
                    break
                count, end, last = count + 1, end + len(line), line
        if count and _parse(last) is None:  # as a power failure can leave it
            count, end = count - 1, end - len(last)
        self.file.truncate(end)
        return count


def encode(item: dict[str, Any]) -> str:
    """Return a record as its line of JSON; a tensor becomes nested lists, float32 exactly."""
    return json.dumps(item, default=lambda tensor: tensor.tolist()) + "\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    """Return the record of a line, or None."""
    try:
        item = json.loads(line)
    except ValueError:
        return None
    return item if isinstance(item, dict) and isinstance(item.get("path"), str) else None


def check_run(path: Path, there: dict[str, Any], constant: dict[str, Any]) -> None:
    """Raise UsageError, naming the first field or setting of `run` that differs, when records are of another run."""
    for key, now in constant.items():
        before = there.get(key)
        if before == now:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            key = next(name for name in {**now, **before} if before.get(name) != now.get(name))
            before, now = before.get(key), now.get(key)
        raise UsageError(f"{path}: of another run, with {key} {before}; this one has {key} {now}")


def utf8(text: str) -> str:
    """Return a file name as text that every format can hold: bytes that are not UTF-8 are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()
