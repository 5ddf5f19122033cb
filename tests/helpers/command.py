"""The command line, run in this process."""

from __future__ import annotations

import signal

import pytest

from minivit.cli import main


def run(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[int, str, str]:
    """Return exit code, standard output and standard error of `minivit ARGUMENTS`."""
    try:
        code = main([*arguments])
    except SystemExit as stop:  # how argparse ends
        assert isinstance(stop.code, int)
        code = stop.code
    out, err = capsys.readouterr()
    return code, out, err


def own_signals() -> None:
    """preexec_fn of a process that a test interrupts: a parent that ignores SIGINT, as a shell's background job does,
    would have it ignored there, too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
