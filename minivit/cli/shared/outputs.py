"""What is checked about the output of every command before it runs: no input is overwritten, and nothing unasked."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minivit.errors import UsageError

CHARTS = (".png", ".svg", ".pdf")
# Files of a checkpoint, of which a folder that is an input may have any.
WEIGHTS = (".safetensors", ".bin", ".pth", ".pt", ".npz", ".index.json", "config.json", "tokenizer.json")


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What a command writes, as the parsed arguments name it."""

    argument: str = "out"  # the argument that names it: a path, or several
    suffixes: tuple[str, ...] = ()  # that the name may have; any when empty
    files: tuple[str, ...] = ()  # what is written into it, where it is a folder
    charts: bool = False  # whether .png, .svg and .pdf are charts, which matplotlib draws
    replaces: bool = False  # whether existing files are replaced without --overwrite

    def check(self, args: argparse.Namespace) -> None:
        """Refuse what must not be written, before anything is computed.

        Raises:
            UsageError: a suffix that the command does not write, a folder that does not exist, an output that is one
                of the inputs (the same file, through links, too), or an existing file without --overwrite.
        """
        given = getattr(args, self.argument, None) or []
        named = [given] if isinstance(given, str) else given
        inputs = [name for key, value in vars(args).items() if key != self.argument for name in _names(value)]
        for path in named:
            if self.suffixes:
                check_suffix(path, *self.suffixes)
            if self.charts and Path(path).suffix.lower() in CHARTS:
                from minivit.viz.style import require_matplotlib

                require_matplotlib()
            self._check_existing(path, args, inputs)

    def _check_existing(self, path: str, args: argparse.Namespace, inputs: list[str]) -> None:
        shown = f"{'-o ' if self.argument == 'out' else ''}{path}"
        if self.files and Path(path).exists() and not Path(path).is_dir():
            raise UsageError(f"{shown}: a file; name a folder")
        existing = [file for file in ((Path(path) / name for name in self.files) if self.files else [Path(path)])
                    if file.is_file()]  # fmt: skip
        for file in existing:
            for name in inputs:
                if _holds(name, file, deep=getattr(args, "recursive", False)):
                    at = f"{file.name} in it" if self.files else "the file"
                    raise UsageError(f"{shown}: {at} is also an input ({name}); name another output")
        # Only the first process of torchrun writes, perhaps before another one is here.
        if self.replaces or getattr(args, "resume", False) or os.environ.get("RANK", "0") != "0":
            return
        lost = [file for file in existing if file.stat().st_size]
        if lost and not getattr(args, "overwrite", False):
            which = f"has {lost[0].name} already" if self.files else "already exists"
            resume = "--resume continues that run, " if hasattr(args, "resume") else ""
            overwrite = "--overwrite replaces it, " if hasattr(args, "overwrite") else "remove it, "
            raise UsageError(f"{shown}: {which}; {resume}{overwrite}or name another one")


def _names(value: Any) -> Iterator[str]:
    """The strings of an argument that name something that exists."""
    for name in [value] if isinstance(value, str) else value if isinstance(value, list) else []:
        with suppress(OSError, ValueError):  # a text, longer than a file name may be, or with a NUL
            if isinstance(name, str) and Path(name).exists():
                yield name


def _holds(name: str, file: Path, *, deep: bool) -> bool:
    """Whether an input is this very file, or a folder with it among its images or weights, under any name."""
    wanted = file.stat()
    if not Path(name).is_dir():
        return os.path.samestat(Path(name).stat(), wanted)
    from minivit.images.decode import IMAGE_SUFFIXES

    with suppress(OSError), os.scandir(name) as entries:
        for entry in entries:
            with suppress(OSError):
                if deep and entry.is_dir(follow_symlinks=False):
                    if _holds(entry.path, file, deep=True):
                        return True
                elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES or entry.name.endswith(WEIGHTS):
                    same = entry.is_symlink() or entry.inode() == wanted.st_ino
                    if same and os.path.samestat(Path(entry.path).stat(), wanted):
                        return True
    return False


def check_suffix(path: str, *suffixes: str) -> None:
    """Refuse an output file of a kind that the command does not write, or in a folder that does not exist.

    Raises:
        UsageError: the reason.
    """
    if Path(path).suffix.lower() not in suffixes:
        raise UsageError(f"-o {path}: the name must end in {' or '.join(suffixes)}")
    if not Path(path).parent.is_dir():
        raise UsageError(f"-o {path}: cannot be written (no such folder)")
