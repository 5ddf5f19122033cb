"""Match the tensors of a checkpoint with the parameters of a model by its family's table, and build the model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import partial
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor

from minivit.errors import CheckpointError, UsageError
from minivit.model.attention import Attend, attend_sdpa
from minivit.model.capabilities import ImageModel, Model, image_model
from minivit.model.clip import CLIP
from minivit.model.config import CLIPConfig, SwinConfig, TextConfig, ViTConfig
from minivit.model.swin import Swin
from minivit.model.tokenizer import Tokenizer
from minivit.model.vit import ViT
from minivit.weights.adapters import Adapter
from minivit.weights.configs import listed, read_config, read_labels
from minivit.weights.families.base import Config, Family, Kind, Row, Spelling, spelling_of
from minivit.weights.families.labels import TAGS, read_class_names
from minivit.weights.families.registry import family_of
from minivit.weights.files import Source, find_beside
from minivit.weights.operations import OPERATIONS
from minivit.weights.preprocessing import find_preprocessor, read_image_spec
from minivit.weights.shards import SHORT_DTYPE, Shards, first_line

MODELS: dict[type[Config], Callable[..., Model]] = {ViTConfig: ViT, CLIPConfig: CLIP, SwinConfig: Swin}


class Assembly(NamedTuple):
    """How one parameter is read from the file: parts, each in its layout, concatenated along the first axis."""

    parts: tuple[str | None, ...]  # names in the file; None: zeros
    layout: str  # a name of OPERATIONS
    rows: tuple[int, ...]  # of every part in the first axis


@dataclass(kw_only=True)
class Checkpoint:
    """A checkpoint as its configuration and the headers of its files describe it, before any weight is read."""

    family: Family
    model: Model  # on the meta device: shapes without memory
    plan: dict[str, Assembly] = field(default_factory=dict)  # parameter -> where it comes from
    missing: list[str] = field(default_factory=list)  # names in the family's table that are in no file
    unexpected: list[str] = field(default_factory=list)  # names that are in no row of the table
    mismatched: list[str] = field(default_factory=list)  # one line each: name, what it is, what was expected
    adapter: Adapter | None = None  # that is merged
    changes: dict[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)  # name in a file -> the adapter's

    @property
    def faults(self) -> str:
        """All faults on one line; empty if the tensors make up the model."""
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "mismatched": self.mismatched}
        return "; ".join(f"{len(names)} {kind}: {listed(names)}" for kind, names in kinds.items() if names)


def match(source: Source, shards: Shards, attend: Attend = attend_sdpa, family: str | None = None) -> Checkpoint:
    """Return a checkpoint that makes up one model, from config.json and the headers of the weight files.

    Raises:
        CheckpointError: config.json, preprocessor_config.json and tensors do not make up one model.
    """
    checkpoint = examine(source, shards, attend, family)
    if checkpoint.faults:
        where = (
            "config.json" if (source.shards[0].parent / "config.json").is_file() or source.revision else "the family"
        )
        hint = "" if source.prefix else _prefix_that_helps(checkpoint, source, shards, family)
        raise CheckpointError(f"{source.name}: the tensors do not fit {where}. {checkpoint.faults}{hint}")
    return checkpoint


def _prefix_that_helps(checkpoint: Checkpoint, source: Source, shards: Shards, family: str | None) -> str:
    """Return a sentence about the prefix with which the tensors would make up the model; "" if there is none."""
    for first in dict.fromkeys(name.partition(".")[0] for name in checkpoint.unexpected):
        with suppress(CheckpointError):
            if not examine(replace(source, prefix=f"{first}."), shards, family=family).faults:
                return (
                    f". They begin with '{first}.', as Lightning writes them: prefix '{first}.' takes them (--prefix)"
                )
    return ""


def examine(source: Source, shards: Shards, attend: Attend = attend_sdpa, family: str | None = None) -> Checkpoint:
    """Return the same as `match`, with missing, unexpected and mismatched tensors listed in the result.

    Raises:
        CheckpointError: config.json or preprocessor_config.json holds a value that is not supported.
    """
    table = family_of(source.name, source.config, family)
    # "layernorm.weight" -> "vit.layernorm.weight", the name in the file
    names: dict[str, str] = {}
    ours = [name for name in shards.shapes if 0 not in shards.shapes[name]]  # no registers: a tensor without numbers
    notes = [*source.notes, *shards.notes]
    if source.prefix:
        # The first part of a prefix may be the key of a dictionary in the file, which is gone already.
        inner = source.prefix.partition(".")[2] if shards.wrapper == source.prefix.partition(".")[0] else source.prefix
        total, ours = len(ours), [name for name in ours if name.startswith(inner)]
        if not ours:
            raise CheckpointError(f"{source.name}: no tensor's name begins with the prefix {inner!r}")
        if total > len(ours):
            notes.append(f"takes the {len(ours)} of {total} tensors that begin with {inner!r}")
    else:
        inner = ""
    for name in ours:
        short = _without_prefix(_unwrapped(name.removeprefix(inner)), table)
        names.setdefault(table.rename(short) if table.rename else short, name)
    if len(names) < len(ours):
        twice = sorted(set(ours) - set(names.values()))
        wrapped = [part for part in WRAPPED if any(name.startswith(part) for name in ours)]
        prefixes = " or ".join(map(repr, (*table.prefixes, *wrapped)))
        raise CheckpointError(f"{source.name}: tensors with and without {prefixes}: {listed(twice)}")
    added = sorted({part for name in ours for part in WRAPPED if name.removeprefix(inner).startswith(part)})
    if added and not table.by_file:
        notes.append(f"left out before the names of the tensors: {', '.join(added)}")
    if table.by_file:
        said = {"weights_file": source.shards[0].name, "wrapper": shards.wrapper, "heads": source.heads}
        source = replace(source, config={**source.config, **said})
    elif source.heads:
        raise UsageError(f"heads is {source.heads}; the files of family {table.name} state theirs")
    config, kind = read_config(source, table, {short: shards.shapes[name] for short, name in names.items()})
    try:
        with torch.device("meta"):
            model: Model = MODELS[type(config)](config, attend)
    except (RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{source.name}: config.json makes no {table.makes}: {first_line(error)}") from None
    images = image_model(model)
    images.name, images.revision, images.notes = source.name, source.revision, notes
    images.labels = read_labels(source, table, images.config.classes)
    if images.labels is None and table.name.startswith("timm") and images.config.classes:
        _read_tags(source, images)
    preprocessor, where = find_preprocessor(source, table, images.config.image_size)
    try:
        images.image_spec = read_image_spec(preprocessor, source.name, table.processor, where) if preprocessor else None
    except CheckpointError as error:
        if images.config.channels == 3:
            raise
        # Images are prepared as RGB: of another number of channels, pixels are given.
        notes.append(f"takes {images.config.channels} channels, so its preprocessing is left out ({error})")
    checkpoint = Checkpoint(family=table, model=model, adapter=Adapter(source.adapter) if source.adapter else None)
    _plan(checkpoint, kind, names, shards)
    return checkpoint


def _read_tags(source: Source, images: ImageModel) -> None:
    """Take the names of the classes of a tagger, whose outputs are judged each on its own, from its list of tags."""
    path = find_beside(source, TAGS)
    if path is None:
        return
    try:
        images.labels, images.categories = read_class_names(path, images.config.classes)
    except UsageError as error:
        raise CheckpointError(str(error)) from None
    images.config = replace(images.config, score="sigmoid")
    images.notes.append(f"{TAGS} names the classes, so it is a tagger: its scores are sigmoids")


def build(
    source: Source,
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    attend: Attend = attend_sdpa,
    family: str | None = None,
) -> Model:
    """Return a model with the weights of a checkpoint, on `device`, in `dtype`.

    The model is made on the meta device and takes over the memory-mapped tensors: nothing is initialised, and no
    tensor is held twice.

    Raises:
        CheckpointError: as `match`; or a tensor holds NaN or infinity.
    """
    state: dict[str, Tensor] = {}
    with Shards(source) as shards:
        checkpoint = match(source, shards, attend, family)
        shapes = {name: parameter.shape for name, parameter in checkpoint.model.named_parameters()}
        for target, assembly in checkpoint.plan.items():
            stored = _assemble(assembly, shapes[target], shards, checkpoint.changes)
            state[target] = stored.to(device=device, dtype=dtype)
            if not _is_finite(state[target]):
                name = f"{source.name}: tensor {' + '.join(part for part in assembly.parts if part)}"
                if _is_finite(stored):
                    raise CheckpointError(f"{name} is too large for {dtype}; load it as float32 or bfloat16")
                raise CheckpointError(f"{name} holds NaN or infinity; the file is damaged")
    if checkpoint.adapter and checkpoint.adapter.left:
        unused = listed(sorted(checkpoint.adapter.left))
        raise CheckpointError(
            f"{checkpoint.adapter.folder}: the adapter has tensors for no part of the model: {unused}"
        )
    model = checkpoint.model
    model.load_state_dict(state, strict=True, assign=True)
    if model.has_text:
        model.tokenizer = _tokenizer(source, model.config.text)
    return model.eval()


def _tokenizer(source: Source, config: TextConfig) -> Tokenizer | None:
    """Return the checkpoint's tokenizer, not loaded yet; None if it has none."""
    path = find_beside(source, "tokenizer.json")
    if path is None:
        return None
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        find_beside(source, name)
    text = source.config.get("text_cfg") or {}
    canonical = (text.get("tokenizer_kwargs") or {}).get("clean") == "canonicalize"
    padded = config.pooling == "last"  # SigLIP
    return Tokenizer(
        path, context=config.context, vocabulary=config.vocabulary, pad_to_context=padded, canonical=canonical
    )


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.stack(tensor.aminmax()).isfinite().all())


def _adapt(
    checkpoint: Checkpoint,
    adapter: Adapter,
    known: list[Spelling],
    assembly: Assembly,
    prefixes: tuple[str, ...],
    names: dict[str, str],
) -> None:
    """Enter what the adapter does to the parts of a parameter; it may name them as any spelling of the table does."""
    for spelling in known:
        if len(spelling.parts) != len(assembly.parts):
            continue
        for ours, theirs in zip(assembly.parts, spelling.parts, strict=True):
            found = [name for name in (theirs and p + theirs for p in ("", *prefixes)) if name and adapter.has(name)]
            if ours and ours in names and found:
                checkpoint.changes[names[ours]] = partial(adapter.apply, found[0])


# What DDP and torch.compile put before names, in the order in which timm removes them.
WRAPPED = ("_orig_mod.", "module.")


def _unwrapped(name: str) -> str:
    for part in (*WRAPPED, WRAPPED[0]):
        name = name.removeprefix(part)
    return name


def _without_prefix(name: str, family: Family) -> str:
    return next((name.removeprefix(prefix) for prefix in family.prefixes if name.startswith(prefix)), name)


def rows_for(family: Family, kind: Kind, config: object) -> dict[str, Row]:
    """Return the rows of a table for one configuration: with its variants, and the name of its classifier."""
    rows = dict(family.rows)
    for (name, value), variant in family.variants.items():
        if attrgetter(name)(config) == value:
            rows.update(variant)
    if kind.head:
        rows.setdefault("head", (kind.head,))
    return rows


def spellings(rows: dict[str, Row], target: str) -> list[Spelling]:
    """Return all spellings of a parameter in files of the family, with the numbers of its block filled in."""
    numbers = [int(found) for found in re.findall(r"\.(\d+)(?=\.)", target)]
    template = target
    for letter in "ij"[: len(numbers)]:
        template = re.sub(r"\.\d+\.", f".{{{letter}}}.", template, count=1)
    i, j = (*numbers, 0, 0)[:2]
    places = {"{i}": i, "{j}": j, "{i+1}": i + 1, "{2i+1}": 2 * i + 1, "{2i+2}": 2 * i + 2}
    stem, _, suffix = template.rpartition(".")
    row, ending = (rows[template], "") if template in rows else (rows[stem], f".{suffix}")
    return [
        spelling._replace(parts=tuple(part and _numbered(part, places) + ending for part in spelling.parts))
        for spelling in map(spelling_of, row)
    ]


def _numbered(name: str, places: dict[str, int]) -> str:
    """Return a name of a table with its numbers: {i} and what is counted from it."""
    for place, number in places.items():
        name = name.replace(place, str(number))
    return name


def assembly_of(spelling: Spelling, rows: int) -> Assembly:
    """Return a spelling for a parameter with this many rows in its first axis."""
    shares = spelling.shares or (1,) * len(spelling.parts)
    return Assembly(spelling.parts, spelling.layout, tuple(rows * share // sum(shares) for share in shares))


def _plan(checkpoint: Checkpoint, kind: Kind, names: dict[str, str], shards: Shards) -> None:
    """Fill in the plan of every parameter. Each tensor is used once; tensors that do not fit are listed."""
    table, config = checkpoint.family, checkpoint.model.config
    rows = rows_for(table, kind, config)
    # The number of heads, an axis of its own in the layouts of JAX; only plain ViTs have such files.
    heads = config.heads if isinstance(config, ViTConfig) else 1
    classes = config.classes if isinstance(config, ViTConfig) else 0
    left = set(names)
    used: Counter[int] = Counter()
    for target, parameter in checkpoint.model.named_parameters():
        known = spellings(rows, target)
        present = [i for i, spelling in enumerate(known) if any(part in left for part in spelling.parts)]
        # A parameter without any tensor is listed as missing in the spelling of its neighbours.
        usual = min(used.most_common(1)[0][0] if used else 0, len(known) - 1)
        chosen = present[0] if present else usual
        used[chosen] += len(known) > 1
        assembly = assembly_of(known[chosen], parameter.shape[0])
        if checkpoint.adapter:
            _adapt(checkpoint, checkpoint.adapter, known, assembly, table.prefixes, names)
        parts = [part for part in assembly.parts if part]
        absent = [part for part in parts if part not in left]
        left.difference_update(parts)
        if absent:
            checkpoint.missing += absent
            continue
        checkpoint.plan[target] = assembly._replace(parts=tuple(part and names[part] for part in assembly.parts))
        for part, share in zip(checkpoint.plan[target].parts, assembly.rows, strict=True):
            expected = OPERATIONS[assembly.layout].file_shape((share, *parameter.shape[1:]), heads)
            if part and shards.shapes[part] != expected:
                checkpoint.mismatched.append(f"{part} is {list(shards.shapes[part])}, expected {list(expected)}")
            elif part and shards.dtypes[part] not in SHORT_DTYPE.values():
                floats = "/".join(SHORT_DTYPE.values())
                checkpoint.mismatched.append(f"{part} is {shards.dtypes[part]}, expected {floats}")
    dropped = [*table.dropped, *([f"{table.pooler}.*"] if table.pooler and classes else [])]
    checkpoint.unexpected = sorted(
        names[name] for name in left if not any(fnmatchcase(name, pattern) for pattern in dropped)
    )


def _assemble(
    assembly: Assembly, shape: torch.Size, shards: Shards, changes: Mapping[str, Callable[[Tensor], Tensor]]
) -> Tensor:
    """Return the tensors of the file as one parameter."""
    load = OPERATIONS[assembly.layout].load

    def read(part: str) -> Tensor:
        return load(changes[part](shards[part]) if part in changes else shards[part])

    tensors = [read(part) if part else None for part in assembly.parts]
    like = next(tensor for tensor in tensors if tensor is not None)
    filled = [
        like.new_zeros(rows, *shape[1:]) if tensor is None else tensor
        for tensor, rows in zip(tensors, assembly.rows, strict=True)
    ]
    whole = filled[0] if len(filled) == 1 else torch.cat(filled)
    # Adds the leading axes of 1, which the flat layout leaves out.
    return whole.reshape(shape).contiguous()
