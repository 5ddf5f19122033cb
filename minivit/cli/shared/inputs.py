"""The images that a command reads: files, folders, patterns, lists and standard input, as a stream."""

from __future__ import annotations

import argparse
import glob
import os
import re
import sys
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING

from minivit.cli.shared.console import printable, say
from minivit.errors import ImageError, UsageError

if TYPE_CHECKING:
    from minivit.images.decode import Picture

Found = tuple[str, "Picture | ImageError"]


def add_input_options(parser: argparse.ArgumentParser) -> None:
    """IMAGE..., --recursive, --from-file and -0."""
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="file, folder, pattern, or - for standard input")
    parser.add_argument("-r", "--recursive", action="store_true", help="look into folders of folders")
    parser.add_argument("--from-file", metavar="LIST", help="read paths from LIST, one a line; - is standard input")
    parser.add_argument("-0", "--null", action="store_true", help="paths in LIST end with a NUL, as find -print0 does")
    parser.set_defaults(usage_error=parser.error)


def check_inputs(args: argparse.Namespace) -> None:
    """Refuse, before a model is loaded, arguments that name no image, or standard input twice."""
    if not args.images and args.from_file is None:
        args.usage_error("the following arguments are required: IMAGE or --from-file LIST")
    if args.null and args.from_file is None:
        args.usage_error("-0 says how the paths of --from-file LIST end; there is no LIST")
    uses = args.images.count("-") + (args.from_file == "-")
    if uses > 1:
        raise UsageError("- is standard input, which can be read only once")
    if uses and sys.stdin.isatty():
        what = "a list of paths" if args.from_file == "-" else "one image"
        raise UsageError(f"- reads {what} from standard input: pipe it in, and name it once")
    if args.from_file not in (None, "-") and not os.path.exists(args.from_file):
        raise UsageError(f"--from-file {args.from_file}: no such file")


def find_inputs(args: argparse.Namespace, *, quiet: bool = False) -> Iterator[Found]:
    """Yield (name, image) for every image that the options name: the arguments in their order, then the list."""
    yield from find_images(args.images, recursive=args.recursive, quiet=quiet)
    if args.from_file is not None:
        with _open_list(args.from_file) as file:
            for line in _lines(file, b"\0" if args.null else b"\n"):
                path = os.fsdecode(line if args.null else line.removesuffix(b"\r"))
                if path:
                    yield path, path


def count_inputs(args: argparse.Namespace) -> int | None:
    """Return the number of images, by a second walk; None when they come from standard input."""
    return None if args.from_file == "-" else sum(1 for _ in find_inputs(args, quiet=True))


def find_images(arguments: Iterable[str], *, recursive: bool, quiet: bool = False) -> Iterator[Found]:
    """Yield (name, image) for every image that the arguments name, in order; folders in natural order (2 before 10).

    A file that is named is tried whatever its suffix; of a folder, those with an image's suffix. A pattern is expanded
    to files when no file has that very name. A name that matches nothing is passed on and becomes an error record, and
    so does a folder that cannot be listed. "-" is one image on standard input. Only the names of one folder are in
    memory.
    """
    from minivit.images.decode import IMAGE_SUFFIXES

    for argument in arguments:
        if argument == "-":
            yield "-", BytesIO(b"" if quiet else b"".join(_blocks(_standard_input())))
        elif os.path.isdir(argument):
            found = 0
            for found, path in enumerate(_walk(argument, recursive, IMAGE_SUFFIXES), start=1):  # noqa: B007
                yield path
            if not found and not quiet:
                hint = "" if recursive else "; --recursive looks into its folders"
                say(f"{printable(argument)}: no images in this folder{hint}")
        elif not os.path.exists(argument) and glob.has_magic(argument):
            files = (path for path in _expand(argument) if not os.path.isdir(path))
            yield from ((path, path) for path in sorted(files, key=natural) or [argument])
        else:
            yield argument, argument


def _expand(pattern: str) -> Iterator[str]:
    """What a pattern matches; as in _walk, `**` follows no links to folders, where glob would walk every loop."""
    parts = pattern.split("/")
    if "**" not in parts:
        yield from glob.iglob(pattern)
        return
    first = parts.index("**")
    below = "/".join([*parts[first:], *(["*"] if parts[-1] == "**" else [])])
    for folder in glob.iglob("/".join(parts[:first]) or ("/" if first else ".")):
        for path in Path(folder).glob(below):
            if not any(part.startswith(".") for part in path.relative_to(folder).parts):
                yield str(path)


def natural(name: str) -> tuple[str, str]:
    """Return a sort key of natural order: img2 before img10. A number is preceded by its length."""

    def number(match: re.Match[str]) -> str:
        digits = match[0].lstrip("0") or "0"
        return chr(ord("0") + len(digits) - 1) + digits

    return re.sub("[0-9]+", number, name), name


def _walk(folder: str, recursive: bool, suffixes: frozenset[str]) -> Iterator[Found]:
    """The images of a folder, then those of its folders; links to folders are not followed."""
    files, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if _is_folder(entry):
                    if recursive and not entry.is_symlink():
                        folders.append(entry.name)
                elif os.path.splitext(entry.name)[1].lower() in suffixes:
                    files.append(entry.name)
    except OSError as error:
        code = "no_permission" if isinstance(error, PermissionError) else "unreadable"
        yield folder, ImageError(code, f"{folder}: the folder cannot be listed ({error.strerror})")
        return
    files.sort(key=natural)
    yield from ((path, path) for path in (os.path.join(folder, name) for name in files))
    del files
    for name in sorted(folders, key=natural):
        yield from _walk(os.path.join(folder, name), recursive, suffixes)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself; reading it fails with a message
        return False


def _open_list(name: str) -> IO[bytes]:
    if name == "-":
        return _standard_input()
    try:
        return open(name, "rb", buffering=0)
    except OSError as error:
        raise UsageError(f"--from-file {name}: cannot be read ({error.strerror})") from None


def _standard_input() -> IO[bytes]:
    """Standard input without a buffer: data is passed on at once, and Ctrl-C finds no lock held."""
    return open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(2**16):
        yield block


def _lines(file: IO[bytes], end: bytes) -> Iterator[bytes]:
    rest = b""
    for block in _blocks(file):
        *lines, rest = (rest + block).split(end)
        yield from lines
    if rest:
        yield rest
