"""How a file is written: beside its target, then renamed onto it, so that no file is lost to a failure."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from minivit.errors import UsageError, WriteError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, None)  # None: of a library that tells no number


@contextmanager
def replacing(path: str | os.PathLike[str], *, name: str | None = None) -> Iterator[Path]:
    """Yield a new path to write; at the end the file is renamed onto `path`, after an error it is removed.

    A link is followed: its target is replaced, with the permissions that it has, and the link stays. A device or a
    pipe is written directly.

    Args:
        name: of the file in an error message; `path` when None.

    Raises:
        UsageError: nothing can be written there.
        WriteError: the disk is full; the file that was there is unchanged.
    """
    target = Path(os.path.realpath(path))
    direct = target.exists() and not target.is_file()
    # With the suffix, by which some writers choose the format. Hidden, so that no folder lists it as an image.
    new = target if direct else target.with_name(f".{secrets.token_hex(6)}.partial{target.suffix}")
    try:
        try:
            yield new
            if not direct:
                if target.exists():
                    shutil.copymode(target, new)
                new.replace(target)
        except OSError as error:
            raise write_error(error, name or os.fspath(path), str(new)) from None
    finally:
        if not direct:
            new.unlink(missing_ok=True)


@contextmanager
def replacing_files(folder: str | os.PathLike[str], names: list[str]) -> Iterator[list[Path]]:
    """Yield new paths for several files of a folder, which is created; as `replacing`, when all are written."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(error, os.fspath(folder)) from None
    with ExitStack() as stack:
        yield [stack.enter_context(replacing(Path(folder) / name)) for name in names]


def write_error(error: OSError, name: str, written: str = "") -> UsageError | WriteError:
    """Return the error for a file that cannot be written: WriteError for a full disk, else UsageError."""
    reason = error.strerror or str(error).removeprefix(f"{written}: ")
    if error.errno in FULL:
        return WriteError(f"{name}: {reason}; what was there before is unchanged")
    return UsageError(f"{name}: cannot be written ({reason})")
