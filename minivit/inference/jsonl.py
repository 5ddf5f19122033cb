"""Records on their way to disk: JSON lines that are whole at any moment, and can be continued."""

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
_HELD = 2**26  # bytes of changed lines held before the journal is written anew


class Known(NamedTuple):
    """What of a record says whether it still holds; texts as `utf8` has them, because not every file holds others."""

    path: str
    sha256: str | None
    error: str | None  # its message

    @classmethod
    def of(cls, item: dict[str, Any]) -> Known:
        """That of a record, just made or read back."""
        message = item["error"]["message"] if "error" in item else None
        return cls(utf8(item["path"]), item.get("sha256"), message and utf8(message))


class Appender:
    """A file that grows by whole pieces: one that does not fit is taken back. Unbuffered: a kill loses nothing.

    Raises:
        UsageError: it cannot be opened for writing, or another process has it open for that.
        WriteError: a piece cannot be written, or the file is no longer where it was; the pieces before it stay.
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
        """Write one piece behind the others, or nothing of it."""
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

    def put(self, piece: bytes, offset: int) -> None:
        """Write over bytes that are there already."""
        try:
            self._write(piece, offset)
        except OSError as error:
            raise WriteError(f"{self.path}: {error.strerror}") from None

    def _write(self, piece: bytes, offset: int) -> None:
        written = 0
        while written < len(piece):  # a disk that is nearly full takes a part
            rest = piece[written:]
            written += os.pwrite(self.fd, rest, offset + written) if self.regular else os.write(self.fd, rest)

    def truncate(self, size: int) -> None:
        """Cut the file off."""
        if self.regular:
            os.ftruncate(self.fd, size)
        self.size = size

    def close(self) -> None:
        """Close it; a second time does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Journal:
    """JSON records, one a line, in the order of the inputs: a valid prefix of the whole at any moment.

    Args:
        path: where it lies. What is there already is refused, or continued when `resume` is set: a torn last
            line, as a kill can leave it, is cut off.
        constant: the fields that every record shares; a journal of another run is not continued.

    Raises:
        UsageError: there already, of another run, damaged, or not to be written.
        WriteError: as Appender.
    """

    def __init__(self, path: str | os.PathLike[str], constant: dict[str, Any], *, resume: bool = False):
        self.path, self.constant = Path(path), constant
        if self.path.is_file() and self.path.stat().st_size and not resume:
            raise UsageError(f"{path}: is there already; --resume continues it, or name another file")
        self.file = Appender(path)
        try:
            self.count = self._repair() if self.file.regular and self.file.size else 0
        except UsageError:
            self.file.close()
            raise
        # Lines that differ from what stands there, until they are written: at the end, or when they become many.
        self.changed: dict[int, bytes] = {}
        self.held = 0  # bytes of them

    def known(self) -> Iterator[Known]:
        """What is there already, in order, read as it is asked for; raises UsageError where it is of another run."""
        if not self.count:
            return
        with self.path.open("rb") as file:
            for number, line in zip(range(1, self.count + 1), file, strict=False):
                item = _parse(line)
                if item is None:
                    raise UsageError(f"{self.path}: line {number} is no record of minivit")
                check_run(self.path, item, self.constant)
                yield Known.of(item)

    def put(self, index: int, item: dict[str, Any]) -> None:
        """Write record `index`: behind the last one, or in the place of one whose picture has changed."""
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
        """End after `total` records; raises UsageError when there are more, from inputs that are gone."""
        if self.count > total:
            raise UsageError(f"{self.path}: has {self.count} records, but there are only {total} inputs")
        self._replace_changed()

    def close(self) -> None:
        """Close the file."""
        self.file.close()

    def _replace_changed(self) -> None:
        """Write the journal anew with the changed lines in it; the old one stands until the new one is whole."""
        if not self.changed:
            return
        temporary = self.path.with_name(self.path.name + ".new")
        temporary.unlink(missing_ok=True)
        new = Appender(temporary)
        try:
            with self.path.open("rb") as old:
                for index, line in enumerate(old):
                    new.append(self.changed.get(index, line))
            temporary.replace(self.path)
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
        """Cut off a last line that is not whole; returns how many lines there are."""
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
        if count and _parse(last) is None:  # as a machine that lost its power can leave it
            count, end = count - 1, end - len(last)
        self.file.truncate(end)
        return count


def encode(item: dict[str, Any]) -> str:
    """A record as its line; a tensor in it as nested lists, float32 exactly."""
    return json.dumps(item, default=lambda tensor: tensor.tolist()) + "\n"


def _parse(line: bytes) -> dict[str, Any] | None:
    """A line as the record it is, or None."""
    try:
        item = json.loads(line)
    except ValueError:
        return None
    return item if isinstance(item, dict) and isinstance(item.get("path"), str) else None


def check_run(path: Path, there: dict[str, Any], constant: dict[str, Any]) -> None:
    """Refuse what is of another run: UsageError names the first field, or setting of `run`, that differs."""
    for key, now in constant.items():
        before = there.get(key)
        if before == now:
            continue
        if isinstance(before, dict) and isinstance(now, dict):
            key = next(name for name in {**now, **before} if before.get(name) != now.get(name))
            before, now = before.get(key), now.get(key)
        raise UsageError(f"{path}: of another run, with {key} {before}; this one has {key} {now}")


def utf8(text: str) -> str:
    """A file name as text that every file can hold: bytes that are no UTF-8 are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()
