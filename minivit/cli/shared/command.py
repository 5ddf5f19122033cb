"""What a command is, and the options that several commands share, each declared once.

A command file fills in one `command`:

    @command("lens", help="...", description="...", options=[ONE_IMAGE, JSON, output(".png", help="..."), *RUN])
    def run(args: argparse.Namespace) -> int:
        ...call one function, print or save its result...
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from minivit.cli.shared.console import positive
from minivit.cli.shared.models import add_hub_options, add_label_options, add_model_option, add_run_options
from minivit.cli.shared.outputs import CHARTS, Outputs

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
        parser.set_defaults(run=self)

    def __call__(self, args: argparse.Namespace) -> int:
        """Check the output files before anything else is loaded; run the command and return its exit code.

        Raises:
            UsageError: as `Outputs.check`.
        """
        outputs: Outputs | None = getattr(args, "outputs", None)
        if outputs is not None:
            outputs.check(args)
        return self.function(args)


def command(name: str, **fields: Any) -> Callable[[Callable[[argparse.Namespace], int]], Command]:
    """Return a decorator that makes a function of the parsed arguments a Command of this name."""
    return lambda function: Command(name=name, function=function, **fields)


def group(name: str, help: str, description: str, commands: Sequence[Command]) -> Command:
    """Return a command that only holds others, such as `minivit bench`."""

    def add_commands(parser: argparse.ArgumentParser) -> None:
        verbs = parser.add_subparsers(metavar="VERB", required=True)
        for one in commands:
            one.add_parser(verbs)

    return Command(name=name, help=help, description=description, options=[add_commands], function=lambda args: 2)


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


ONE_IMAGE = option("image", metavar="IMAGE", help="an image file, or - for standard input")
IMAGE_FOLDERS: tuple[Options, ...] = (
    option("images", nargs="+", metavar="FOLDER", help="folder, file, pattern, or - for standard input"),
    option("-r", "--recursive", action="store_true", help="look into folders of folders"),
)
JSON = option("--json", action="store_true", help="write one JSON object")
A_CLASS = option("--class", metavar="NAME|INDEX", help="the class to follow (default: the most likely one)")
LABELS: Options = add_label_options
MODEL_ARGUMENT = option("model", metavar="MODEL", help="hub id, folder or weights file")
HUB: Options = add_hub_options  # --revision, --family, --offline
LOAD: tuple[Options, ...] = (add_model_option, add_hub_options)  # --model and what belongs to it
RUN: tuple[Options, ...] = (*LOAD, add_run_options)  # and --device and --dtype


def batch_size(default: int) -> Options:
    """Return -b B, the images that are run together."""
    return option("-b", "--batch-size", type=positive, default=default, metavar="B", help=f"batch size ({default})")
