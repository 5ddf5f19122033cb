"""minivit bench: is this attention kernel right, how fast is it, and what does it do to the model?"""

from __future__ import annotations

from typing import Any

from minivit.cli.bench import check, compare, model, roofline, run


def add_parser(commands: Any) -> None:
    """bench and its verbs."""
    parser = commands.add_parser(
        "bench",
        help="check and time an attention kernel",
        description="Is this attention kernel right, how fast is it, how far from what the machine can do, and what "
        f"does it do to the model? {check.RIGHTS}",
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for module in (check, run, roofline, model, compare):
        module.add_parsers(verbs)
