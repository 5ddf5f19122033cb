"""The images that a command reads: files, folders, patterns, lists and standard input, as a stream."""

from __future__ import annotations

import argparse
import codecs
import glob
import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

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
            for number, line in enumerate(_lines(file, b"\0" if args.null else b"\n")):
                if number == 0:
                    line = _without_mark(line, args.from_file)
                path = os.fsdecode(line if args.null else line.removesuffix(b"\r"))
                if path:
                    yield path, path


def count_inputs(args: argparse.Namespace) -> int | None:
    """Return the number of images, by a second walk; None when they come from standard input."""
    return None if args.from_file == "-" else sum(1 for _ in find_inputs(args, quiet=True))


def find_images(arguments: Iterable[str], *, recursive: bool, quiet: bool = False) -> Iterator[Found]:
    """Yield (name, image) for every image that the arguments name, in order; folders in natural order (2 before 10).

    A file that is named is tried whatever its suffix; of a folder, those with an image's suffix. What a folder has
    beside them (images that are not read, hidden ones, links to folders) is said once, at its end. A pattern is
    expanded to files when no file has that very name. A name that matches nothing is passed on and becomes an error
    record, and so does a folder that cannot be listed. "-" is one image on standard input. Only the names of one
    folder are in memory.
    """
    for argument in arguments:
        if argument == "-":
            yield "-", BytesIO(b"" if quiet else b"".join(_blocks(_standard_input())))
        elif os.path.isdir(argument):
            found, passed = 0, _Passed()
            for found, path in enumerate(_walk(argument, recursive, passed), start=1):  # noqa: B007
                yield path
            if not quiet:
                if not found:
                    hint = "" if recursive else "; --recursive looks into its folders"
                    say(f"{printable(argument)}: no images in this folder{hint}")
                for line in passed.lines():
                    say(f"{printable(argument)}: {line}")
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


@dataclass
class _Passed:
    """What a walk passes over that may be an image, counted."""

    hidden: int = 0  # files whose name begins with a dot: AppleDouble files, thumbnails
    hidden_folders: int = 0
    links: int = 0  # to folders
    unread: dict[str, list[Any]] = field(default_factory=dict)  # suffix -> [number, name of the first]

    def lines(self) -> Iterator[str]:
        """Yield what was passed over, in words."""
        from minivit.images.formats import UNREAD_SUFFIXES

        for suffix, (number, first) in sorted(self.unread.items()):
            files = f"{number} {suffix} {'file' if number == 1 else 'files'} not read, such as {printable(first)}"
            yield f"{files}: {UNREAD_SUFFIXES[suffix]}"
        counts = (
            (self.hidden, "hidden image file"),
            (self.hidden_folders, "hidden folder"),
            (self.links, "link to a folder"),
        )
        some = [f"{number} {what if number == 1 else _plural(what)}" for number, what in counts if number]
        if some:
            yield f"skipped {', '.join(some)}"


def _plural(what: str) -> str:
    return what.replace("link ", "links ").replace("a folder", "folders") if "link" in what else f"{what}s"


def _walk(folder: str, recursive: bool, passed: _Passed) -> Iterator[Found]:
    """The images of a folder, then those of its folders; hidden names and links to folders are passed over."""
    from minivit.images.formats import IMAGE_SUFFIXES, UNREAD_SUFFIXES

    files, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                suffix, hidden = os.path.splitext(entry.name)[1].lower(), entry.name.startswith(".")
                if _is_folder(entry):
                    passed.hidden_folders += recursive and hidden
                    passed.links += recursive and not hidden and entry.is_symlink()
                    if recursive and not hidden and not entry.is_symlink():
                        folders.append(entry.name)
                elif hidden:
                    passed.hidden += suffix in IMAGE_SUFFIXES or suffix in UNREAD_SUFFIXES
                elif suffix in IMAGE_SUFFIXES:
                    files.append(entry.name)
                elif suffix in UNREAD_SUFFIXES:
                    passed.unread.setdefault(suffix, [0, entry.name])[0] += 1
    except OSError as error:
        code = "no_permission" if isinstance(error, PermissionError) else "unreadable"
        yield folder, ImageError(code, f"{folder}: the folder cannot be listed ({error.strerror})")
        return
    files.sort(key=natural)
    yield from ((path, path) for path in (os.path.join(folder, name) for name in files))
    del files
    for name in sorted(folders, key=natural):
        yield from _walk(os.path.join(folder, name), recursive, passed)


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


def _without_mark(line: bytes, name: str) -> bytes:
    """Return the first line of a list without the byte order mark of UTF-8; raises UsageError for UTF-16."""
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UsageError(f"--from-file {name}: written in UTF-16; save it as UTF-8")
    return line.removeprefix(codecs.BOM_UTF8)


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
