"""What a command is, and the options that several commands share, each declared once.

A command file fills in one `command`:

    @command("lens", help="...", description="...", options=[ONE_IMAGE, JSON, output(".png", help="..."), *RUN])
    def run(args: argparse.Namespace) -> int:
        ...call one function, print or save its result...
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from minivit.cli.shared.console import positive, printable
from minivit.cli.shared.models import (
    add_hub_options,
    add_label_options,
    add_model_option,
    add_run_options,
    add_threads_option,
    threads_limited,
)
from minivit.cli.shared.outputs import CHARTS, Outputs
from minivit.cli.shared.sizes import image_size

Options = Callable[[argparse.ArgumentParser], object]  # adds one option, or several that belong together


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of `minivit`, or of a group such as `minivit bench`."""

    name: str  # as it is typed
    help: str  # its line in the list of commands
    description: str  # the first paragraph of its own help
    options: Sequence[Options]  # in the order of its own help
    function: Callable[[argparse.Namespace], int]  # runs it and returns the exit code
    epilog: str | None = None  # the last paragraph of its own help
    usage: str | None = None  # instead of the one that argparse writes

    def add_parser(self, commands: Any) -> None:
        """Add this command to the subparsers of argparse."""
        texts = {"help": self.help, "description": self.description, "epilog": self.epilog, "usage": self.usage}
        parser = commands.add_parser(self.name, **texts)
        for add in self.options:
            add(parser)
        parser.set_defaults(run=self, parser=parser)

    def __call__(self, args: argparse.Namespace) -> int:
        """Check the output files before anything else is loaded; run the command and return its exit code.

        Raises:
            UsageError: as `Outputs.check`.
        """
        outputs: Outputs | None = getattr(args, "outputs", None)
        if outputs is not None:
            outputs.check(args)
        if not getattr(args, "limits_threads", False):
            return self.function(args)
        with threads_limited(args.threads):
            return self.function(args)


class Parser(argparse.ArgumentParser):
    """A parser whose error names the nearest option or command, and the usage of the command that was typed."""

    def error(self, message: str) -> NoReturn:
        """Print the usage of this command, the error and what was probably meant; exit with code 2."""
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: error: {printable(message)}\n")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As of argparse, but an unknown option is an error of the command it was given to."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser = getattr(found, "parser", self)
            wrong = [f"no option {word}" + parser.nearest(word) for word in unknown if word.startswith("-")]
            parser.error("; ".join(wrong) or f"more arguments than it takes: {' '.join(unknown)}")
        return found

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As of argparse; a misspelt command names the nearest one."""
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            close = difflib.get_close_matches(str(value), list(action.choices), n=1)
            hint = f"; did you mean {close[0]}?" if close else "."
            raise argparse.ArgumentError(None, f"invalid choice: {value!r}{hint} There are {', '.join(action.choices)}")
        super()._check_value(action, value)

    def nearest(self, word: str) -> str:
        """Return the option that was probably meant, as the end of a message; empty where none is near."""
        name = word.partition("=")[0]
        close = difflib.get_close_matches(name, list(self._option_string_actions), n=1)
        return f"; did you mean {close[0]}?" if name.startswith("-") and close else ""


def command(name: str, **fields: Any) -> Callable[[Callable[[argparse.Namespace], int]], Command]:
    """Return a decorator that makes a function of the parsed arguments a Command of this name."""
    return lambda function: Command(name=name, function=function, **fields)


def group(name: str, help: str, description: str, commands: Sequence[Command]) -> Command:
    """Return a command that only holds others, such as `minivit bench`."""

    def add_commands(parser: argparse.ArgumentParser) -> None:
        verbs = parser.add_subparsers(metavar="VERB")
        for one in commands:
            one.add_parser(verbs)

    return Command(name=name, help=help, description=description, options=[add_commands], function=list_verbs)


def list_verbs(args: argparse.Namespace) -> int:
    """Print the help of a group that was typed without one of its commands; return the exit code of wrong usage."""
    args.parser.print_help(sys.stderr)
    return 2


def option(*names: str, **settings: Any) -> Options:
    """Return one option: the arguments of argparse's add_argument."""
    return lambda parser: parser.add_argument(*names, **settings)


def output(*suffixes: str, help: str, charts: bool = False, **settings: Any) -> Options:
    """Return -o FILE and --overwrite; what `Outputs` checks is checked before the command runs.

    Args:
        suffixes: that FILE may have; none: any.
        charts: whether .png, .svg and .pdf are charts, which matplotlib draws.
        settings: of argparse, for -o.
    """

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("-o", "--out", metavar="FILE", help=help, **settings)
        parser.add_argument("--overwrite", action="store_true", help="replace FILE, if it exists")
        parser.set_defaults(outputs=Outputs(suffixes=suffixes, charts=charts))

    return add


def chart_output(*more: str, help: str, **settings: Any) -> Options:
    """Return -o FILE of a chart: PNG, SVG or PDF, or a suffix of `more`."""
    return output(*more, *CHARTS, help=help, charts=True, **settings)


def folder_output(*files: str, help: str, **settings: Any) -> Options:
    """Return -o FOLDER and --overwrite, for these files in it."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("-o", "--out", metavar="FOLDER", help=help, **settings)
        parser.add_argument("--overwrite", action="store_true", help="replace files of the same names in FOLDER")
        parser.set_defaults(outputs=Outputs(files=files))

    return add


def checked_output(**fields: Any) -> Options:
    """Return what adds no option, but the check of an output whose argument the command adds itself."""
    return lambda parser: parser.set_defaults(outputs=Outputs(**fields))


ICC = option(
    "--icc",
    default="ignore",
    choices=("ignore", "convert"),
    help="a colour profile that is not sRGB is ignored, and said (default), or converted to sRGB",
)


def ONE_IMAGE(parser: argparse.ArgumentParser) -> None:  # noqa: N802 (options are named as constants)
    """Add IMAGE and --icc."""
    parser.add_argument("image", metavar="IMAGE", help="an image file, or - for standard input")
    ICC(parser)


IMAGE_FOLDERS: tuple[Options, ...] = (
    option("images", nargs="+", metavar="FOLDER", help="folder, file, pattern, or - for standard input"),
    option("-r", "--recursive", action="store_true", help="look into folders of folders"),
)
JSON = option("--json", action="store_true", help="write one JSON object")
A_CLASS = option("--class", metavar="NAME|INDEX", help="the class to follow (default: the most likely one)")
LABELS: Options = add_label_options
IMAGE_SIZE = option(
    "--image-size",
    type=image_size,
    metavar="HEIGHTxWIDTH",
    help="run the model on images of another size, its positions resampled (224x224, or 224)",
)
MODEL_ARGUMENT = option("model", metavar="MODEL", help="hub id, folder or weights file")
HUB: Options = add_hub_options  # --revision, --family, --offline
LOAD: tuple[Options, ...] = (add_model_option, add_hub_options)  # --model and what belongs to it
THREADS: Options = add_threads_option
RUN: tuple[Options, ...] = (*LOAD, add_run_options)  # and --device and --dtype


def batch_size(default: int) -> Options:
    """Return -b B, the images that are run together."""
    return option("-b", "--batch-size", type=positive, default=default, metavar="B", help=f"batch size ({default})")
