"""What a checkpoint family is: one frozen dataclass of names, readers and step names, and helpers to fill it in.

A row of names gives a canonical name and the names of the same tensor in files. The first spelling is the one that
`save` writes. A name without `.weight` or `.bias` stands for both; `{i}` is the number of a block. In a Swin, `{i}` is
the number of a stage and `{j}` the number of a block in it; files may count stages differently, as in `{i+1}`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from minivit.model.config import CLIPConfig, SwinConfig, TextConfig, ViTConfig

Shapes = Mapping[str, tuple[int, ...]]  # name in the file, without prefix -> shape
Config = ViTConfig | TextConfig | CLIPConfig | SwinConfig
Given = dict[str, Any]  # the contents of a config.json or preprocessor_config.json

B = "blocks.{i}."


class Spelling(NamedTuple):
    """How one parameter is stored in a file."""

    parts: tuple[str | None, ...]  # names, concatenated along the first axis; None: zeros, not in the file
    layout: str = "same"  # of every part, a name of operations.OPERATIONS
    shares: tuple[int, ...] = ()  # relative sizes of the parts in the first axis; equal when empty


Row = tuple[str | tuple[str, ...] | Spelling, ...]
Rows = dict[str, Row]
Fields = dict[str, tuple[str, object]]


class Kind(NamedTuple):
    """What a class named in config.json's `architectures` adds to the backbone."""

    head: str | None = None  # source name of its classifier
    values: Mapping[str, object] = {}  # ViTConfig values it implies


class Named(NamedTuple):
    """The files that a model known by its name alone would have."""

    config: Given  # config.json
    preprocessor: Given | None = None  # preprocessor_config.json
    file: str | None = None  # the file with its weights on the library's server


class Reference(NamedTuple):
    """The same model in a reference library; in transformers its class is the one in config.json's architectures."""

    library: str  # one of parity.libraries.LIBRARIES
    steps: str  # which step names it uses, a key of the `steps` of a family
    trunk: str = ""  # prefix of the step names that are inside the trunk
    module: str = ""  # attribute of the model with a head that holds the trunk


@dataclass(frozen=True, kw_only=True)
class Family:
    """One checkpoint family: the words of its config.json, the names of its tensors, its steps and its reference."""

    name: str  # the value of `family=`; of a tower, its model_type
    by_model_type: bool = True  # whether config.json's model_type is `name`
    shares: str | None = None  # the model_type of its files, where another family has this name
    architectures: Mapping[str, Given] = field(default_factory=dict)  # known values of timm's `architecture`
    by_name: Callable[[str], Named | None] | None = None  # the part of family= after "/" -> what its files would say
    config: type[Config] = ViTConfig  # what config.json is read as; of two towers, what is made of both
    makes: str = "ViT"  # what error messages call the model
    towers: Mapping[str, Family] = field(default_factory=dict)  # of two towers: field of CLIPConfig -> its family
    section: str | None = None  # the part of config.json that describes this tower, where there are two towers
    kinds: Mapping[str, Kind]  # values of config.json's architectures; without one, the first whose head is in the file
    wrappers: tuple[str, ...] = ()  # keys of training files that hold weights, in the order its library takes them
    rename: Callable[[str], str] | None = None  # a name without prefix -> the same name in the table
    by_file: bool = False  # its `read` also wants the name of the weights file, and what the user said of it
    prefixes: tuple[str, ...] = ()  # optional prefixes of names; with a classifier, `save` writes the first
    fields: Fields = field(default_factory=dict)  # ViTConfig field -> (config.json key, default)
    constants: Mapping[str, Any] = field(default_factory=dict)  # ViTConfig values of the whole family
    read: Callable[[Given, Shapes], Given] | None = None  # ViTConfig values that are computed or come from the tensors
    write: Callable[[Any], Given] | None = None  # the inverse of `read`: config.json keys of a configuration
    fixed: Mapping[str, object] = field(default_factory=dict)  # config.json keys of which one value is supported
    activations: Mapping[str, str] = field(default_factory=dict)  # config.json's name -> ours
    rows: Rows  # canonical name -> spellings
    variants: Mapping[tuple[str, object], Rows] = field(default_factory=dict)  # (field, value) -> rows instead
    pooler: str | None = None  # source name of the tanh pooler
    dropped: tuple[str, ...] = ()  # patterns of known names that inference does not use
    processor: str = "ViTImageProcessor"  # where preprocessor_config.json names none
    # config.json, height and width -> contents of a preprocessor_config.json that is in no file, where they are from
    preprocessor: Callable[[Given, tuple[int, int]], tuple[Given | None, str]] | None = None
    labels: Callable[[Given, int], dict[int, str] | None] | None = None  # class names where there is no id2label
    saved: bool = False  # whether `save` writes this layout
    steps: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # library -> {step: place in its modules}
    reference: Reference | None = None  # the library that `minivit diff` compares with


def under(ours: str, theirs: str, rows: Rows) -> Rows:
    """Return rows of a part of a model: each name with a prefix for the model and one for the file."""

    def prefixed(given: str | tuple[str, ...] | Spelling) -> Spelling:
        spelling = spelling_of(given)
        return spelling._replace(parts=tuple(part and theirs + part for part in spelling.parts))

    return {ours + name: tuple(prefixed(given) for given in row) for name, row in rows.items()}


def spelling_of(given: str | tuple[str, ...] | Spelling) -> Spelling:
    """Return an entry of a row as a Spelling."""
    return given if isinstance(given, Spelling) else Spelling((given,) if isinstance(given, str) else given)


def each(prefix: str, *parts: str) -> tuple[str, ...]:
    """Return every part with the same prefix."""
    return tuple(prefix + part for part in parts)


def has_module(shapes: Shapes, module: str | None) -> bool:
    """Return whether any tensor of this module is in the file."""
    return module is not None and any(name.startswith((f"{module}.", f"{module}/")) for name in shapes)


def depth_of(shapes: Shapes, pattern: str) -> int:
    """Return the number of blocks: one more than the largest number that `pattern` finds in the names."""
    return 1 + max((int(match[1]) for name in shapes if (match := re.match(pattern, name))), default=-1)


def swin_rows(block: str, merge: str, **names: str) -> Rows:
    """Return the rows of a Swin whose queries, keys and values are one tensor; `names` replaces names in a block."""
    known = {"norm1": "norm1", "proj": "attn.proj", "norm2": "norm2", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    known |= {"qkv": "attn.qkv", "table": "attn.relative_position_bias_table", **names}
    ours = "stages.{i}.blocks.{j}."
    return {
        ours + "norm1": (block + known["norm1"],),
        ours + "attn.qkv": (block + known["qkv"],),
        ours + "attn.bias_table": (block + known["table"],),
        ours + "attn.proj": (block + known["proj"],),
        ours + "norm2": (block + known["norm2"],),
        ours + "mlp.fc1": (block + known["fc1"],),
        ours + "mlp.fc2": (block + known["fc2"],),
        "stages.{i}.merge.norm": (merge + "norm",),
        "stages.{i}.merge.reduction": (merge + "reduction",),
        "norm": ("norm",),
    }


def _place(rows: Rows, name: str, spelling: int) -> tuple[str, ...]:
    """Return the modules of a parameter in one of its spellings."""
    row = rows[name] if name in rows else rows[f"{name}.weight"]
    parts = spelling_of(row[spelling]).parts
    return tuple(part.removesuffix(".weight") for part in parts if part)


def vit_steps(
    rows: Rows,
    trunk: str = "",
    tokens: str = "",
    head: str | None = None,
    elsewhere: Mapping[str, str] | None = None,
    spelling: int = -1,
) -> dict[str, str]:
    """Return where a library has the steps of a ViT whose parameters it calls as these rows do: {step: place}.

    A place is a module whose output the step is, or with ".input" the module that reads it.

    Args:
        trunk: prefix of the modules inside the trunk.
        tokens: the module in the trunk whose output is the input of the first block.
        head: the module of the classifier.
        elsewhere: step -> its place where the rows do not say it; "" where the library has no such place.
        spelling: which of the names in a row the library's modules have.
    """
    norm1, norm2, proj, fc1, fc2 = (
        _place(rows, B + name, spelling)[0] for name in ("norm1", "norm2", "attn.proj", "mlp.fc1", "mlp.fc2")
    )
    layer = norm1[: norm1.index("{i}") + len("{i}")]
    inside = {
        "embed.patches": re.sub(r"\.proj(ection)?$", "", _place(rows, "patch_embed", spelling)[0]),
        "embed.tokens": tokens,
        B + "norm1": norm1,
        **{B + part: place for part, place in zip("qkv", _place(rows, B + "attn.qkv", spelling), strict=False)},
        B + "attn.mix": f"{proj}.input",
        B + "attn.out": proj,
        B + "resid_mid": f"{norm2}.input",
        B + "norm2": norm2,
        B + "mlp.pre": fc1,
        B + "mlp.act": f"{fc2}.input",
        B + "mlp.out": f"{layer}.mlp",
        B + "resid_post": layer,
        "norm": _place(rows, "norm", spelling)[0],
    }
    outside = {"pooled": f"{head}.input", "logits": head} if head else {}
    steps = {name: trunk + place for name, place in inside.items()} | outside | dict(elsewhere or {})
    return {name: place for name, place in steps.items() if place}


def swin_places(rows: Rows, head: str) -> dict[str, str]:
    """Return where a library has the steps of a Swin, as `vit_steps`.

    In a place, `{i}` is a block counted through the stages, `{s}` its stage and `{j}` its number in the stage.
    """

    def place(name: str) -> str:
        return re.sub(r"\{(\d*)i", r"{\1s", _place(rows, name, -1)[0])

    norm1, norm2, fc1, fc2 = (
        place("stages.{i}.blocks.{j}." + name) for name in ("norm1", "norm2", "mlp.fc1", "mlp.fc2")
    )
    block = norm1[: norm1.index("{j}") + len("{j}")]
    return {
        "embed.tokens": place("norm_embed"),
        B + "norm1": norm1,
        B + "resid_mid": f"{norm2}.input",
        B + "norm2": norm2,
        B + "mlp.pre": fc1,
        B + "mlp.act": f"{fc2}.input",
        B + "mlp.out": f"{block}.mlp",
        B + "resid_post": block,
        "stages.{s}.merge": place("stages.{i}.merge.norm").removesuffix(".norm"),
        "norm": place("norm"),
        "pooled": f"{head}.input",
        "logits": head,
    }
