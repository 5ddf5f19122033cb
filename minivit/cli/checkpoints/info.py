"""minivit info: describe a model from its files alone."""

from __future__ import annotations

import argparse
import json
from typing import Any

from minivit.cli.shared.command import HUB, JSON, MODEL_ARGUMENT, command
from minivit.cli.shared.console import printable, show_text
from minivit.cli.shared.models import checkpoint_of, go_offline
from minivit.model.config import POOLING_WORDS, SCORE_WORDS


@command(
    "info",
    help="describe a model without running it",
    description="Architecture, parameters, tokens, labels, preprocessing and bytes of a model, read from "
    "config.json and the headers of its weight files; nothing is run.",
    options=[MODEL_ARGUMENT, JSON, HUB],
)
def run(args: argparse.Namespace) -> int:
    from minivit.weights import describe

    if args.offline:
        go_offline()
    facts = describe(args.model, **checkpoint_of(args))
    show_text(json.dumps(facts, indent=2) if args.json else text(facts))
    return 0


GATED = {"plain": "", "swiglu": "gated, "}


def text(facts: dict[str, Any]) -> str:
    """Return the facts as a table."""
    if "windowing" in facts["config"]:
        return swin_text(facts)
    both = facts["config"] if "image" in facts["config"] else None
    c, tokens, labels = facts["config"], facts["tokens"], facts["labels"]
    c = both["image"] if both else c
    named = f"{len(labels)}: {labels[0]} ... {labels[-1]}" if labels else "none named"
    pooled = POOLING_WORDS[c["pooling"]] + (", tanh pooler" if c["pooler"] else "")
    other = f"projection to {c['projection']}" if c["projection"] else "none"
    head = f"{c['classes']} classes" if c["classes"] else other
    rows = {
        "architecture": blocks(c),
        "image": f"{c['image_size'][0]} x {c['image_size'][1]} pixels in patches of {c['patch_size']}"
        + (", variable input size" if c["any_size"] else ""),
        "tokens": f"{tokens['count']} = {tokens['prefix']} prefix + {tokens['grid'][0]} x {tokens['grid'][1]} patches",
        "head": f"{head}, on the {pooled}",
        **({"text tower": text_tower(both)} if both else {}),
        "labels": named if c["classes"] else "texts, as given" if both else "no head",
    }
    return facts_table(facts, rows)


def facts_table(facts: dict[str, Any], rows: dict[str, str]) -> str:
    """Return the rows about an architecture, and those of every model."""
    weights = facts["weights"]
    rows = {
        **rows,
        **({"scores": SCORE_WORDS[facts["scores"]]} if facts["scores"] else {}),
        **{f"note {i}": note for i, note in enumerate(facts["notes"], start=1)},
        "parameters": f"{facts['parameters']:,}",
        "weights": f"{weights['bytes'] / 1e6:,.1f} MB, {', '.join(weights['dtypes'])}, in {weights['files']} file(s)",
        "revision": facts["revision"] or "local files",
        "preprocessing": facts["preprocessing"] or "not stated (no preprocessor_config.json)",
    }
    return "\n".join([facts["model"], *(f"  {name:<14} {printable(value)}" for name, value in rows.items())])


def swin_text(facts: dict[str, Any]) -> str:
    """Return the facts of a Swin as a table."""
    c, labels, tokens = facts["config"], facts["labels"], facts["tokens"]
    named = f"{len(labels)}: {labels[0]} ... {labels[-1]}" if labels else "none named"

    def each(values: Any) -> str:
        return " / ".join(map(str, values))

    return facts_table(
        facts,
        {
            "architecture": f"Swin, stages of {each(c['depths'])} blocks, width {c['width']} doubling, "
            f"{each(c['heads'])} heads, MLP x {c['mlp_ratio']:g} ({c['activation']}), LayerNorm eps {c['eps']:g}",
            "windows": f"{each(c['window'])} patches along each side, shifted by half in every other block",
            "image": f"{c['image_size'][0]} x {c['image_size'][1]} pixels in patches of {c['patch_size']}"
            + (", variable input size" if c["any_size"] else ""),
            "tokens": f"{tokens['count']} = {tokens['grid'][0]} x {tokens['grid'][1]} in the last stage",
            "head": f"{c['classes']} classes, on the mean of the tokens" if c["classes"] else "none",
            "labels": named if c["classes"] else "no head",
        },
    )


def blocks(c: dict[str, Any]) -> str:
    """Return the blocks of a tower in a line."""
    return (
        f"{c['depth']} blocks of width {c['width']}, {c['heads']} heads of {c['width'] // c['heads']}, "
        f"MLP {c['mlp_width']} ({GATED[c.get('mlp', 'plain')]}{c['activation']}), LayerNorm eps {c['eps']:g}"
    )


def text_tower(both: dict[str, Any]) -> str:
    """Return the text tower in a line, and the space it shares with the image tower."""
    c = both["text"]
    attention = "causal" if c["causal"] else "every token attends to all"
    return (
        f"{blocks(c)}; {c['vocabulary']:,} ids, {c['context']} tokens, {attention}; "
        f"joined with images in {c['projection']} numbers, {both['score']}"
    )
