"""The engine: walks a family's table and turns the tensors of a checkpoint into a ViT."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minivit.errors import CheckpointError, UsageError
from minivit.model.attention import Attend, attend_sdpa
from minivit.model.capabilities import Model, image_model
from minivit.model.clip import CLIP
from minivit.model.config import CLIPConfig, SwinConfig, TextConfig, ViTConfig
from minivit.model.swin import Swin
from minivit.model.tokenizer import Tokenizer
from minivit.model.vit import ViT
from minivit.weights.families.architectures import TIMM_SWINS
from minivit.weights.families.configs import find_preprocessor, listed, read_config, read_image_spec, read_labels
from minivit.weights.families.tables import FAMILIES, Kind, Row, Spelling, Table
from minivit.weights.files import Source, find_beside
from minivit.weights.operations import OPERATIONS
from minivit.weights.shards import Shards, first_line, load_pickle
from minivit.weights.tensorfile import SHORT_DTYPE

__all__ = ["Shards", "build", "describe", "examine", "load_pickle", "match", "read_image_spec", "table_for", "verify"]


def table_for(source: Source, family: str | None = None) -> Table:
    """The family's table: the one asked for, else the one of config.json's model_type or timm's architecture.

    Args:
        family: a name of FAMILIES, alone or in front of a model's name ("torchvision/vit_b_16").

    Raises:
        UsageError: no such family.
        CheckpointError: config.json names a model type without a table.
    """
    if family is not None:
        name = family.partition("/")[0]
        if name not in FAMILIES:
            raise UsageError(f"no family {name!r}; known are {', '.join(FAMILIES)}")
        if name in ("torchvision", "timm") and name != family:
            family = None  # a model's name, of which `find` has made a config.json
        else:
            return FAMILIES[name]
    model_type = source.config.get("model_type")
    if model_type is None and "architecture" in source.config:
        return FAMILIES["timm_swin" if source.config["architecture"] in TIMM_SWINS else "timm"]
    for table in FAMILIES.values():
        if model_type in table.model_types:
            return table
    known = ", ".join(model_type for table in FAMILIES.values() for model_type in table.model_types)
    raise CheckpointError(
        f"{source.name}: config.json has model_type {model_type!r}; known are {known}, and timm's architecture"
    )


MODELS: dict[type, Callable[..., Model]] = {ViTConfig: ViT, CLIPConfig: CLIP, SwinConfig: Swin}


class Assembly(NamedTuple):
    """How one parameter comes out of the file: parts, each in its layout, concatenated along the first axis."""

    parts: tuple[str | None, ...]  # names in the file; None: zeros
    layout: str  # a name of OPERATIONS
    rows: tuple[int, ...]  # of every part in the first axis


@dataclass(kw_only=True)
class Checkpoint:
    """What a checkpoint is, from its configuration and the headers of its files, before any weight is read."""

    table: Table
    model: Model  # on the meta device: shapes without memory
    plan: dict[str, Assembly] = field(default_factory=dict)  # parameter -> where it comes from
    missing: list[str] = field(default_factory=list)  # names the family's table asks for and no file has
    unexpected: list[str] = field(default_factory=list)  # names no row of the table asks for
    mismatched: list[str] = field(default_factory=list)  # one line each: name, what it is, what was expected

    @property
    def faults(self) -> str:
        """Everything that is wrong, on one line; empty when the tensors make up the model."""
        kinds = {"missing": self.missing, "unexpected": self.unexpected, "mismatched": self.mismatched}
        return "; ".join(f"{len(names)} {kind}: {listed(names)}" for kind, names in kinds.items() if names)


def match(source: Source, shards: Shards, attend: Attend = attend_sdpa, family: str | None = None) -> Checkpoint:
    """A checkpoint proven to make up one model, from config.json and the headers of the weight files.

    Raises:
        CheckpointError: config.json, preprocessor_config.json and tensors do not make up one model.
    """
    checkpoint = examine(source, shards, attend, family)
    if checkpoint.faults:
        raise CheckpointError(f"{source.name}: the tensors do not fit config.json. {checkpoint.faults}")
    return checkpoint


def examine(source: Source, shards: Shards, attend: Attend = attend_sdpa, family: str | None = None) -> Checkpoint:
    """As `match`, with what is missing, unexpected and mismatched listed in the result.

    Raises:
        CheckpointError: config.json or preprocessor_config.json cannot be honoured.
    """
    table = table_for(source, family)
    # "vit.layernorm.weight" -> "layernorm.weight", remembering what the file says
    names = {_without_prefix(name, table): name for name in shards.shapes}
    if len(names) < len(shards.shapes):
        twice = sorted(set(shards.shapes) - set(names.values()))
        prefixes = " or ".join(map(repr, table.prefixes))
        raise CheckpointError(f"{source.name}: tensors stand with and without {prefixes}: {listed(twice)}")
    config, kind = read_config(source, table, {short: shards.shapes[name] for short, name in names.items()})
    try:
        with torch.device("meta"):
            model: Model = MODELS[type(config)](config, attend)
    except (RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{source.name}: config.json makes no {table.makes}: {first_line(error)}") from None
    seeing = image_model(model)
    seeing.name, seeing.revision = source.name, source.revision
    seeing.labels = read_labels(source, seeing.config.classes)
    preprocessor, where = find_preprocessor(source, table, seeing.config)
    seeing.image_spec = read_image_spec(preprocessor, source.name, table.processor, where) if preprocessor else None
    checkpoint = Checkpoint(table=table, model=model)
    _plan(checkpoint, kind, names, shards)
    return checkpoint


def build(
    source: Source,
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    attend: Attend = attend_sdpa,
    family: str | None = None,
) -> Model:
    """A model with the weights of a checkpoint, on `device`, in `dtype`.

    The model is made on the meta device and takes over the memory-mapped tensors, so nothing is
    initialised and nothing is held twice.

    Raises:
        CheckpointError: as `match`; or a tensor holds NaN or infinity.
    """
    state = {}
    with Shards(source) as shards:
        checkpoint = match(source, shards, attend, family)
        shapes = {name: parameter.shape for name, parameter in checkpoint.model.named_parameters()}
        for target, assembly in checkpoint.plan.items():
            stored = _assemble(assembly, shapes[target], shards)
            state[target] = stored.to(device=device, dtype=dtype)
            if not _is_finite(state[target]):
                name = f"{source.name}: tensor {' + '.join(part for part in assembly.parts if part)}"
                if _is_finite(stored):
                    raise CheckpointError(f"{name} is too large for {dtype}; load it as float32 or bfloat16")
                raise CheckpointError(f"{name} holds NaN or infinity; the file is damaged")
    model = checkpoint.model
    model.load_state_dict(state, strict=True, assign=True)
    if model.has_text:
        model.tokenizer = _tokenizer(source, model.config.text)
    return model.eval()


def _tokenizer(source: Source, config: TextConfig) -> Tokenizer | None:
    """The checkpoint's own tokenizer, unread; None where it has none."""
    path = find_beside(source, "tokenizer.json")
    if path is None:
        return None
    find_beside(source, "tokenizer_config.json")
    text = source.config.get("text_cfg") or {}
    bare = (text.get("tokenizer_kwargs") or {}).get("clean") == "canonicalize"
    whole = config.pooling == "last"
    return Tokenizer(path, context=config.context, vocabulary=config.vocabulary, whole=whole, bare=bare)


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.stack(tensor.aminmax()).isfinite().all())


def describe(source: Source, family: str | None = None) -> dict[str, Any]:
    """What `minivit info` prints, as JSON-ready facts; only headers are read."""
    with Shards(source) as shards:
        model = match(source, shards, family=family).model
        dtypes = sorted(set(shards.dtypes.values()))
    seeing = image_model(model)
    layout = seeing.config.layout
    return {
        "model": source.name,
        "revision": source.revision,
        "config": asdict(model.config),
        "tokens": {"count": layout.count, "prefix": layout.prefix, "grid": layout.grid},
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weights": {
            "bytes": sum(shard.stat().st_size for shard in source.shards),
            "dtypes": dtypes,
            "files": len(source.shards),
        },
        "labels": list(seeing.labels.values()) if seeing.labels else None,
        "preprocessing": str(model.image_spec) if model.image_spec else None,
    }


def verify(source: Source, family: str | None = None) -> dict[str, Any]:
    """What `minivit verify` prints, as JSON-ready facts: the checkpoint against its family's table, by headers alone.

    Raises:
        UsageError: no such family.
    """
    facts: dict[str, Any] = {"model": source.name, "revision": source.revision, "good": False, "error": None}
    try:
        with Shards(source) as shards:
            checkpoint = examine(source, shards, family=family)
            bytes_held = sum(shard.stat().st_size for shard in source.shards)
            dtypes = sorted(set(shards.dtypes.values()))
            tensors = len(shards.shapes)
    except CheckpointError as error:
        return {**facts, "error": str(error)}
    model = checkpoint.model
    seeing = image_model(model)
    used = sum(part is not None for assembly in checkpoint.plan.values() for part in assembly.parts)
    found = "found" if source.preprocessor or "pretrained_cfg" in source.config else "assumed"
    return {
        **facts,
        "good": not checkpoint.faults,
        "family": next(name for name, table in FAMILIES.items() if table is checkpoint.table),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tensors": {"in file": tensors, "used": used, "dropped": tensors - used - len(checkpoint.unexpected)},
        "bytes": bytes_held,
        "dtypes": dtypes,
        "missing": checkpoint.missing,
        "unexpected": checkpoint.unexpected,
        "mismatched": checkpoint.mismatched,
        "head": {"outputs": seeing.config.classes, "labels": len(seeing.labels) if seeing.labels else 0},
        "preprocessing": {"from": found if model.image_spec else "none", "steps": str(model.image_spec or "")},
    }


def _without_prefix(name: str, table: Table) -> str:
    return next((name.removeprefix(prefix) for prefix in table.prefixes if name.startswith(prefix)), name)


def rows_for(table: Table, kind: Kind, config: object) -> dict[str, Row]:
    """The rows of a table that count for one configuration: its variants in place, and its classifier's name."""
    rows = dict(table.rows)
    for (name, value), variant in table.variants.items():
        if getattr(config, name) == value:
            rows.update(variant)
    if kind.head:
        rows.setdefault("head", (kind.head,))
    return rows


def spellings(rows: dict[str, Row], target: str) -> list[Spelling]:
    """All spellings of a parameter in files of the family: the table's row, made concrete."""
    numbers = [int(found) for found in re.findall(r"\.(\d+)(?=\.)", target)]
    template = target
    for letter in "ij"[: len(numbers)]:
        template = re.sub(r"\.\d+\.", f".{{{letter}}}.", template, count=1)
    i, j = (*numbers, 0, 0)[:2]
    places = {"{i}": i, "{j}": j, "{i+1}": i + 1, "{2i+1}": 2 * i + 1, "{2i+2}": 2 * i + 2}
    stem, _, suffix = template.rpartition(".")
    row, ending = (rows[template], "") if template in rows else (rows[stem], f".{suffix}")
    result = []
    for given in row:
        spelling = given if isinstance(given, Spelling) else Spelling((given,) if isinstance(given, str) else given)
        parts = tuple(part and _placed(part, places) + ending for part in spelling.parts)
        result.append(spelling._replace(parts=parts))
    return result


def _placed(name: str, places: dict[str, int]) -> str:
    """A name of a table with its numbers: {i} and what is counted from it."""
    for place, number in places.items():
        name = name.replace(place, str(number))
    return name


def assembly_of(spelling: Spelling, rows: int) -> Assembly:
    """A spelling for a parameter of so many rows: shares become rows."""
    shares = spelling.shares or (1,) * len(spelling.parts)
    return Assembly(spelling.parts, spelling.layout, tuple(rows * share // sum(shares) for share in shares))


def _plan(checkpoint: Checkpoint, kind: Kind, names: dict[str, str], shards: Shards) -> None:
    """Find every parameter's tensors; each tensor is used once, and what does not fit is listed."""
    table, config = checkpoint.table, checkpoint.model.config
    rows = rows_for(table, kind, config)
    # A, which the layouts of JAX keep as an axis; only plain ViTs have such files.
    heads = config.heads if isinstance(config, ViTConfig) else 1
    classes = config.classes if isinstance(config, ViTConfig) else 0
    left = set(names)
    used: Counter[int] = Counter()
    for target, parameter in checkpoint.model.named_parameters():
        known = spellings(rows, target)
        present = [i for i, spelling in enumerate(known) if any(part in left for part in spelling.parts)]
        # A parameter that is not there at all is asked for in the spelling of its neighbours.
        usual = min(used.most_common(1)[0][0] if used else 0, len(known) - 1)
        chosen = present[0] if present else usual
        used[chosen] += len(known) > 1
        assembly = assembly_of(known[chosen], parameter.shape[0])
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


def _assemble(assembly: Assembly, shape: torch.Size, shards: Shards) -> Tensor:
    """The tensors of the file as one parameter."""
    load = OPERATIONS[assembly.layout].load
    tensors = [load(shards[part]) if part else None for part in assembly.parts]
    like = next(tensor for tensor in tensors if tensor is not None)
    filled = [
        like.new_zeros(rows, *shape[1:]) if tensor is None else tensor
        for tensor, rows in zip(tensors, assembly.rows, strict=True)
    ]
    whole = filled[0] if len(filled) == 1 else torch.cat(filled)
    # leading axes of 1, which the flat layout leaves out
    return whole.reshape(shape).contiguous()
