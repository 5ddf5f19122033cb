"""Every step of the forward pass by name: its module, its axes, and its names in other libraries."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from minivit.errors import UsageError
from minivit.model.vit import ViT
from minivit.weights.families.registry import STEPS as STEPS_ELSEWHERE


class Step(NamedTuple):
    """One named tensor of the forward pass; `{i}` is the number of a block."""

    name: str
    place: str | None  # the module whose output it is, or with ".input" whose input; None: an argument of attend
    axes: str  # letters of the legend; F is the input of mlp.fc2, G the output of mlp.fc1, X the input of the head


B = "blocks.{i}."

# In the order of the forward pass.
STEPS = (
    Step("embed.patches", "patch_embed", "BPD"),
    Step("embed.tokens", "blocks.0.input", "BND"),
    Step(B + "norm1", B + "norm1", "BND"),
    Step(B + "q", None, "BANK"),
    Step(B + "k", None, "BANK"),
    Step(B + "v", None, "BANK"),
    Step(B + "attn.scores", None, "BANM"),
    Step(B + "attn.probs", None, "BANM"),
    Step(B + "attn.mix", B + "attn.proj.input", "BANK"),
    Step(B + "attn.out", B + "attn", "BND"),
    Step(B + "resid_mid", B + "norm2.input", "BND"),
    Step(B + "norm2", B + "norm2", "BND"),
    Step(B + "mlp.pre", B + "mlp.fc1", "BNG"),
    Step(B + "mlp.act", B + "mlp.fc2.input", "BNF"),
    Step(B + "mlp.out", B + "mlp", "BND"),
    Step(B + "resid_post", "blocks.{i}", "BND"),
    Step("norm", "norm", "BND"),
    Step("pooled", "head.input", "BX"),
    Step("logits", "", "BL"),
)
BY_NAME = {step.name: step for step in STEPS}

# What other libraries call the same tensors, collected from the checkpoint families: {library: {step: place}}. A place
# is in the notation of Step.place; attentions[{i}] is a field of transformers' output. A step is missing where a
# library has no place that holds it alone. transformers and timm keep q, k, v and attn.mix unsplit, as (B, N, D), or
# with heads; TransformerLens as (B, N, A, K).
ALIASES: dict[str, Mapping[str, str]] = {
    **STEPS_ELSEWHERE,
    "transformerlens": {  # hook points of TransformerLens, and of ViT-Prisma's HookedViT
        "embed.patches": "hook_embed",
        "embed.tokens": "blocks.0.hook_resid_pre",
        B + "norm1": B + "ln1.hook_normalized",
        B + "q": B + "attn.hook_q",
        B + "k": B + "attn.hook_k",
        B + "v": B + "attn.hook_v",
        B + "attn.scores": B + "attn.hook_attn_scores",
        B + "attn.probs": B + "attn.hook_pattern",
        B + "attn.mix": B + "attn.hook_z",
        B + "attn.out": B + "hook_attn_out",
        B + "resid_mid": B + "hook_resid_mid",
        B + "norm2": B + "ln2.hook_normalized",
        B + "mlp.pre": B + "mlp.hook_pre",
        B + "mlp.act": B + "mlp.hook_post",
        B + "mlp.out": B + "hook_mlp_out",
        B + "resid_post": B + "hook_resid_post",
        "norm": "ln_final.hook_normalized",
    },
}


def step_names(model: ViT) -> list[str]:
    """Return all names of one model in the order of its forward pass; `logits` only where there is a head."""
    first = [step.name for step in STEPS if step.name.startswith("embed.")]
    inside = [step.name for step in STEPS if step.name.startswith(B)]
    last = [step.name for step in STEPS if not step.name.startswith(("embed.", B))]
    blocks = [name.replace("{i}", str(i)) for i in range(model.config.depth) for name in inside]
    return [name for name in first + blocks + last if name != "logits" or model.config.classes]


def step_of(name: str) -> tuple[Step, str]:
    """Return the step of a name without selector, and the number of its block ("" outside the blocks)."""
    number = re.match(r"blocks\.(\d+)\.", name)
    template = re.sub(r"^blocks\.\d+\.", B, name)
    if template not in BY_NAME:
        raise UsageError(f"no step is called {name!r}; the steps are {', '.join(BY_NAME)}")
    return BY_NAME[template], number[1] if number else ""


def to_alias(name: str, library: str) -> str:
    """Return another library's name of a step: ("blocks.3.norm2", "transformerlens") -> "blocks.3.ln2.hook_normalized".

    A selector such as "[cls]" is carried over. A name ending in ".input" stands for the input of
    that module, any other for its output.

    Raises:
        UsageError: no such step or library, or a step the library has no name for.
    """
    base, bracket, selector = name.partition("[")
    step, i = step_of(base)
    theirs = _aliases(library).get(step.name)
    if theirs is None:
        raise UsageError(f"{library} has no place that holds {base} alone")
    return theirs.replace("{i}", i) + bracket + selector


def from_alias(name: str, library: str) -> str:
    """Return a step by another library's name: ("blocks.3.attn.hook_pattern", "transformerlens") -> its name here.

    Raises:
        UsageError: no such library, or no step of that name in it.
    """
    for ours, theirs in _aliases(library).items():
        pattern = re.escape(theirs).replace(r"\{i\}", r"(\d+)") + r"(\[[^\]]*\])?"
        if found := re.fullmatch(pattern, name):
            *number, selector = found.groups()
            return ours.replace("{i}", number[0] if number else "") + (selector or "")
    raise UsageError(f"{library} has no step called {name!r}, or minivit has none for it")


def _aliases(library: str) -> Mapping[str, str]:
    if library not in ALIASES:
        raise UsageError(f"no aliases for {library!r}; known are {', '.join(ALIASES)}")
    return ALIASES[library]
