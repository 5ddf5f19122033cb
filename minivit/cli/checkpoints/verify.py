"""minivit verify: compare a checkpoint with the table of its family, without reading a weight."""

from __future__ import annotations

import argparse
import json
from typing import Any

from minivit.cli.shared.command import HUB, JSON, MODEL_ARGUMENT, command
from minivit.cli.shared.console import printable, say, show_text
from minivit.cli.shared.models import checkpoint_of, go_offline
from minivit.errors import CheckpointError


@command(
    "verify",
    help="compare a checkpoint with the table of its family",
    description="Compare a checkpoint with the table of its family, from config.json and the headers of its weight "
    "files alone: every tensor used once or known to be unused, every parameter filled, every shape equal. "
    "The exit code is 1 if one is not.",
    options=[MODEL_ARGUMENT, JSON, HUB],
)
def run(args: argparse.Namespace) -> int:
    from minivit.weights import verify

    if args.offline:
        go_offline()
    try:
        facts = verify(args.model, **checkpoint_of(args))
    except CheckpointError as error:  # not a checkpoint at all
        facts = {"model": args.model, "revision": None, "good": False, "error": str(error)}
    if args.json:
        show_text(json.dumps(facts, indent=2))
    elif facts["error"]:
        say(printable(facts["error"]))
    else:
        show_text(text(facts))
    return 0 if facts["good"] else 1


def text(facts: dict[str, Any]) -> str:
    """Return the facts as a table, each fault on its own line."""
    tensors, head, preprocessing = facts["tensors"], facts["head"], facts["preprocessing"]
    unused = f", {tensors['dropped']} unused at inference" if tensors["dropped"] else ""
    named = f"all {head['labels']} named" if head["labels"] else "none named"
    rows = {
        "family": facts["family"],
        "parameters": f"{facts['parameters']:,}",
        "tensors": f"{tensors['used']} of {tensors['in file']} used{unused}; {', '.join(facts['dtypes'])}",
        "head": f"{head['outputs']} outputs, {named}" if head["outputs"] else "none",
        "preprocessing": " ".join(filter(None, [preprocessing["from"] + ":", preprocessing["steps"]])).rstrip(":"),
        **{kind: "none" for kind in ("missing", "unexpected", "mismatched") if not facts[kind]},
    }
    lines = [f"{facts['model']}: {'good' if facts['good'] else 'faulty'}"]
    lines += [f"  {name:<14} {printable(value)}" for name, value in rows.items()]
    for kind in ("missing", "unexpected", "mismatched"):
        lines += [f"  {kind:<14} {printable(fault)}" for fault in facts[kind]]
    return "\n".join(lines)
