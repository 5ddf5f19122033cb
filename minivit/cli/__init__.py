"""The command line: the only place that prints. One file per command, torch imported only when one runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from minivit import __version__
from minivit.cli import bench
from minivit.cli.checkpoints import convert, diff, info, models, verify
from minivit.cli.look import ablate, attention, attribute, explore, faithfulness, heads, lens, preprocess, trace
from minivit.cli.predict import classify, embed, similar
from minivit.cli.shared.command import Command, Parser, list_verbs
from minivit.cli.shared.console import say
from minivit.cli.shared.writers import escape_what_streams_lack, open_closed_streams, silence_stdout
from minivit.cli.training import evaluate, train
from minivit.errors import MinivitError

COMMANDS: tuple[Command, ...] = (
    *(classify.run, embed.run, similar.run),
    *(attention.run, explore.run, trace.run, preprocess.run),
    *(lens.run, attribute.run, ablate.run, heads.run, faithfulness.run),
    *(info.run, models.run, verify.run, diff.run, convert.run),
    *(train.run, evaluate.run, bench.COMMAND),
)

EXIT_CODES = """exit codes:
  0 good   1 unexpected failure or a failed check   2 usage   3 some inputs failed, the others were written
    (bench compare: something became slower)
  4 model unavailable   5 bad checkpoint   130 interrupted, what was written is valid"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    open_closed_streams()
    escape_what_streams_lack()
    parser = Parser(
        prog="minivit",
        description="A Vision Transformer written by hand that loads the published weights exactly.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"minivit {__version__}")
    parser.set_defaults(run=list_verbs, parser=parser)  # without a command, the list of commands
    commands = parser.add_subparsers(metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    args = parser.parse_args(argv)
    try:
        code = args.run(args)
        sys.stdout.flush()  # a closed pipe shows here, not at interpreter exit
        return code
    except MinivitError as error:
        say(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        say("interrupted; what was written is valid")
        return 130
    except BrokenPipeError:
        # The reader has closed the pipe, as `| head` does: there is nobody to write to.
        silence_stdout()
        return 0
    except Exception as error:
        if sys.flags.dev_mode:
            raise
        try:
            sys.stdout.flush()
        except OSError:  # as on a full disk: the flush at exit would fail again
            silence_stdout()
        say(f"unexpected failure: {type(error).__name__}: {error} (python -X dev -m minivit ... shows where)")
        return 1
