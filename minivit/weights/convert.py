"""The engine: walks a family's table and turns the tensors of a checkpoint into a ViT."""

from __future__ import annotations

import json
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minivit.attention import Attend, attend_sdpa
from minivit.config import RESAMPLES, ImageSpec, ViTConfig
from minivit.errors import CheckpointError, UsageError
from minivit.model import ViT
from minivit.weights.files import Source
from minivit.weights.tables import FAMILIES, PROCESSORS, Table


def table_for(source: Source, family: str | None = None) -> Table:
    """The family's table: the one asked for, else the one of config.json's model_type.

    Raises:
        UsageError: no such family.
        CheckpointError: config.json names a model type without a table.
    """
    if family is not None:
        if family not in FAMILIES:
            raise UsageError(f"no family {family!r}; known are {', '.join(FAMILIES)}")
        return FAMILIES[family]
    model_type = source.config.get("model_type")
    for table in FAMILIES.values():
        if model_type in table.model_types:
            return table
    known = ", ".join(model_type for table in FAMILIES.values() for model_type in table.model_types)
    raise CheckpointError(f"{source.name}: config.json has model_type {model_type!r}; known are {known}")


# As safetensors names them in its header.
SHORT_DTYPE = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class Shards:
    """The tensors of a checkpoint by name, memory-mapped; a context manager over its open files."""

    def __init__(self, source: Source):
        self.name = source.name
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self._read: dict[str, Callable[[], Tensor]] = {}
        self._stack = ExitStack()
        for shard in source.shards:
            for name, shape, dtype, read in self._open(shard):
                if name in self.shapes:
                    raise CheckpointError(f"{shard}: tensor {name} is in another shard too")
                self.shapes[name], self.dtypes[name], self._read[name] = shape, dtype, read

    def __enter__(self) -> Shards:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> Tensor:
        return self._read[name]()

    def _open(self, shard: Path) -> Iterator[tuple[str, tuple[int, ...], str, Callable[[], Tensor]]]:
        if not shard.is_file():
            raise CheckpointError(f"{shard}: missing, though the index lists it")
        if shard.suffix != ".safetensors":
            for name, tensor in load_pickle(shard).items():
                dtype = SHORT_DTYPE.get(tensor.dtype, str(tensor.dtype))
                yield name, tuple(tensor.shape), dtype, tensor.detach
            return
        from safetensors import SafetensorError, safe_open

        try:
            file = self._stack.enter_context(safe_open(shard, framework="pt"))
            names = file.keys()
        except PermissionError:
            raise CheckpointError(f"{shard}: no permission to read it") from None
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(f"{shard}: not a whole safetensors file ({error}); download it again") from None
        for name in names:
            view = file.get_slice(name)
            yield name, tuple(view.get_shape()), view.get_dtype(), partial(file.get_tensor, name)


def load_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch .bin or .pth file, read with weights_only=True.

    Refused below torch 2.10, where weights_only can be circumvented (CVE-2025-32434 before 2.6,
    CVE-2026-24747 before 2.10).
    """
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < (2, 10):
        raise CheckpointError(
            f"{path}: a pickle is not safe to read with torch {torch.__version__}; "
            "update to torch 2.10 or use a model.safetensors file"
        )
    try:
        # Files from before torch 1.6 are no zip archives, and cannot be mapped into memory.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # unpickling damaged bytes raises nearly any type
        # torch's own words would advise to run what is in the file.
        unsafe = isinstance(error, pickle.UnpicklingError)
        reason = "damaged, or more than tensors, which is never run" if unsafe else _first_line(error)
        raise CheckpointError(f"{path}: not a whole PyTorch file of plain tensors ({reason})") from None
    plain = isinstance(state, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout is torch.strided
        for name, tensor in state.items()
    )
    if not plain:
        raise CheckpointError(f"{path}: holds no plain dictionary of tensors")
    return state


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint proven to make up one model, before any weight is read."""

    model: ViT  # on the meta device: shapes without memory
    plan: dict[str, tuple[str, ...]]  # parameter -> the tensors of the file that make it up


def match(source: Source, shards: Shards, attend: Attend = attend_sdpa, family: str | None = None) -> Checkpoint:
    """Match config.json with the headers of the weight files.

    Raises:
        CheckpointError: config.json, preprocessor_config.json and tensors do not make up one model.
    """
    table = table_for(source, family)
    # "vit.layernorm.weight" -> "layernorm.weight", remembering what the file says
    names = {name.removeprefix(table.prefix): name for name in shards.shapes}
    if len(names) < len(shards.shapes):
        twice = sorted(set(shards.shapes) - set(names.values()))
        raise CheckpointError(f"{source.name}: tensors stand with and without {table.prefix!r}: {_listed(twice)}")
    config = read_config(source, table, {short: shards.shapes[name] for short, name in names.items()})
    try:
        with torch.device("meta"):
            model = ViT(config, attend)
    except (RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{source.name}: config.json makes no ViT: {_first_line(error)}") from None
    model.name, model.revision = source.name, source.revision
    model.labels = read_labels(source, config.classes)
    model.image_spec = read_image_spec(source.preprocessor, source.name) if source.preprocessor else None
    return Checkpoint(model=model, plan=_plan(model, table, names, shards, source.name))


def build(
    source: Source,
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    attend: Attend = attend_sdpa,
    family: str | None = None,
) -> ViT:
    """A ViT with the weights of a checkpoint, on `device`, in `dtype`.

    The model is made on the meta device and takes over the memory-mapped tensors, so nothing is
    initialised and nothing is held twice.

    Raises:
        CheckpointError: as `match`; or a tensor holds NaN or infinity.
    """
    state = {}
    with Shards(source) as shards:
        checkpoint = match(source, shards, attend, family)
        for target, parts in checkpoint.plan.items():
            tensors = [shards[part] for part in parts]
            stored = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
            state[target] = stored.to(device=device, dtype=dtype)
            if not _is_finite(state[target]):
                name = f"{source.name}: tensor {' + '.join(parts)}"
                if _is_finite(stored):
                    raise CheckpointError(f"{name} is too large for {dtype}; load it as float32 or bfloat16")
                raise CheckpointError(f"{name} holds NaN or infinity; the file is damaged")
    checkpoint.model.load_state_dict(state, strict=True, assign=True)
    return checkpoint.model.eval()


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.stack(tensor.aminmax()).isfinite().all())


def describe(source: Source) -> dict[str, Any]:
    """What `minivit info` prints, as JSON-ready facts; only headers are read."""
    with Shards(source) as shards:
        model = match(source, shards).model
        dtypes = sorted(set(shards.dtypes.values()))
    layout = model.config.layout
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
        "labels": list(model.labels.values()) if model.labels else None,
        "preprocessing": str(model.image_spec) if model.image_spec else None,
    }


@dataclass
class _Faults:
    missing: list[str]
    unexpected: list[str]
    mismatched: list[str]


def _plan(model: ViT, table: Table, names: dict[str, str], shards: Shards, source: str) -> dict[str, tuple[str, ...]]:
    """For every parameter, the tensors of the file that make it up; each tensor is used once.

    Raises:
        CheckpointError: naming every missing, unexpected and mismatched tensor at once.
    """
    plan: dict[str, tuple[str, ...]] = {}
    faults = _Faults([], [], [])
    left = set(names)
    for target, parameter in model.named_parameters():
        spellings = source_names(table, target)
        parts = next((parts for parts in spellings if any(part in left for part in parts)), spellings[0])
        absent = [part for part in parts if part not in left]
        left.difference_update(parts)
        if absent:
            faults.missing += absent
            continue
        plan[target] = tuple(names[part] for part in parts)
        share = parameter.shape[0] // len(parts)
        expected = (share, *parameter.shape[1:])
        for name in plan[target]:
            if shards.shapes[name] != expected:
                faults.mismatched.append(f"{name} is {list(shards.shapes[name])}, expected {list(expected)}")
            elif shards.dtypes[name] not in SHORT_DTYPE.values():
                floats = "/".join(SHORT_DTYPE.values())
                faults.mismatched.append(f"{name} is {shards.dtypes[name]}, expected {floats}")
    dropped = table.dropped if not model.config.classes else table.dropped | set(_both(table.pooler))
    faults.unexpected = sorted(names[name] for name in left - dropped)
    kinds = {kind: listed for kind, listed in vars(faults).items() if listed}
    if kinds:
        text = "; ".join(f"{len(listed)} {kind}: {_listed(listed)}" for kind, listed in kinds.items())
        raise CheckpointError(f"{source}: the tensors do not fit config.json. {text}")
    return plan


def source_names(table: Table, target: str) -> list[tuple[str, ...]]:
    """All spellings of a parameter in files of the family, each as its parts: the table's row, made concrete."""
    number = re.search(r"\.(\d+)\.", target)
    i = number[1] if number else ""
    template = re.sub(r"\.\d+\.", ".{i}.", target, count=1)
    stem, _, suffix = template.rpartition(".")
    row, ending = (table.rows[template], "") if template in table.rows else (table.rows[stem], f".{suffix}")
    spellings = [(spelling,) if isinstance(spelling, str) else spelling for spelling in row]
    return [tuple(part.replace("{i}", i) + ending for part in parts) for parts in spellings]


def _both(module: str) -> tuple[str, str]:
    return f"{module}.weight", f"{module}.bias"


def _listed(names: list[str], most: int = 12) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def read_config(source: Source, table: Table, shapes: dict[str, tuple[int, ...]]) -> ViTConfig:
    """config.json as a ViTConfig; `shapes` (short source name -> shape) tells which optional parts the file has.

    Raises:
        CheckpointError: a value this model cannot honour.
    """
    given = source.config

    def refuse(key: str, why: str) -> CheckpointError:
        return CheckpointError(f"{source.name}: config.json has {key} = {given.get(key)!r}; {why}")

    values: dict[str, Any] = {}
    for name, (key, default) in table.fields.items():
        value = given.get(key, default)
        if name in ("image_size", "patch_size"):
            sides = tuple(value) if isinstance(value, list) else (value, value)
            if len(sides) != 2 or not all(_is_like(side, 1) for side in sides):
                raise refuse(key, "expected pixels, one number or height and width")
            value = sides
        elif not _is_like(value, default):
            raise refuse(key, f"expected a value like {json.dumps(default)}")
        values[name] = value
    height, values["patch_size"] = values["patch_size"]
    if height != values["patch_size"]:
        raise refuse(table.fields["patch_size"][0], "patches must be square")
    if values["activation"] not in table.activations:
        raise refuse(table.fields["activation"][0], f"known are {', '.join(table.activations)}")
    values["activation"] = table.activations[values["activation"]]
    if values["depth"] > len(shapes):
        raise refuse(table.fields["depth"][0], f"the weights have only {len(shapes)} tensors")

    architectures = given.get("architectures") or [None]
    if not isinstance(architectures, list) or architectures[0] not in (None, *table.architectures):
        raise refuse("architectures", f"known are {', '.join(table.architectures)}")
    architecture = architectures[0]
    head = table.architectures[architecture] if architecture else f"{table.head}.weight" in shapes
    values["classes"] = _classes(source, table, shapes) if head else 0
    # A pooler beside a head is not used by the reference either; without a head it is the output.
    values["pooler"] = not head and f"{table.pooler}.weight" in shapes
    if values["pooler"] and given.get("pooler_act", "tanh") != "tanh":
        raise refuse("pooler_act", "only tanh is known")
    try:
        return ViTConfig(**values)
    except UsageError as error:
        raise CheckpointError(f"{source.name}: config.json makes no ViT: {error}") from None


def _is_like(value: object, default: object) -> bool:
    """Whether a value of config.json is of the default's type; an int may stand for a float, a bool for nothing."""
    if isinstance(default, float):
        return _is_number(value)
    return type(value) is type(default)


def _classes(source: Source, table: Table, shapes: dict[str, tuple[int, ...]]) -> int:
    """How many outputs the head has: what config.json says, else what the file holds."""
    given = source.config
    if isinstance(given.get("id2label"), dict):
        return len(given["id2label"])
    if isinstance(given.get("num_labels"), int):
        return given["num_labels"]
    return shapes.get(f"{table.head}.weight", (0,))[0]


def read_labels(source: Source, classes: int) -> dict[int, str] | None:
    """{index: name} of config.json's id2label, or None where it has none or only LABEL_0, LABEL_1, ...

    Raises:
        CheckpointError: the keys are not 0 to classes - 1.
    """
    given = source.config.get("id2label")
    if not classes or not given:
        return None
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given.values()):
        raise CheckpointError(f"{source.name}: config.json has an id2label that does not map numbers to names")
    try:
        labels = {int(key): name for key, name in given.items()}
    except ValueError:
        wrong = next(key for key in given if not key.isdecimal())
        raise CheckpointError(f"{source.name}: config.json has the id2label key {wrong!r}, expected numbers") from None
    if sorted(labels) != list(range(classes)):
        gaps = sorted(set(range(classes)) - set(labels))
        raise CheckpointError(
            f"{source.name}: config.json has {len(given)} id2label keys that are not 0 to {classes - 1}; "
            f"missing: {_listed([str(index) for index in gaps])}"
        )
    if all(name == f"LABEL_{index}" for index, name in labels.items()):
        return None
    return dict(sorted(labels.items()))


def read_image_spec(given: dict, name: str) -> ImageSpec:
    """preprocessor_config.json, in its old and its new form, as an ImageSpec that remembers the keys it came from.

    Raises:
        CheckpointError: a processor or a value that cannot be honoured.
    """
    kind = str(given.get("image_processor_type") or given.get("feature_extractor_type") or "ViTImageProcessor")
    short = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", kind)
    if short not in PROCESSORS:
        raise CheckpointError(f"{name}: preprocessor_config.json is for {kind}; known are {', '.join(PROCESSORS)}")
    values = {"do_pad": False, **PROCESSORS[short], **given}

    def fail(key: str) -> CheckpointError:
        return CheckpointError(
            f"{name}: preprocessor_config.json has {key} = {values[key]!r}, which minivit cannot honour"
        )

    def switch(key: str) -> bool:
        if values[key] not in (True, False, None):  # null is off, as in the reference
            raise fail(key)
        return bool(values[key])

    def size(key: str, square: bool) -> tuple[int, int] | int:
        value = values[key]
        if isinstance(value, dict):
            value = {edge: side for edge, side in value.items() if side is not None}
        found: tuple[int, int] | int
        match value:
            case int(side):
                found = (side, side) if square else side
            case {"height": int(height), "width": int(width)} | [int(height), int(width)] if len(value) == 2:
                found = height, width
            case {"shortest_edge": int(side)} if len(value) == 1:
                found = side
            case _:
                raise fail(key)
        if min(found if isinstance(found, tuple) else (found,)) < 1:
            raise fail(key)
        return found

    def channels(key: str) -> tuple[float, ...]:
        value = values[key]
        numbers = tuple(value) if isinstance(value, list) else (value,) * 3
        if len(numbers) != 3 or not all(_is_number(number) for number in numbers):
            raise fail(key)
        return numbers

    def code(key: str) -> str:
        if type(values[key]) is not int or values[key] not in range(len(RESAMPLES)):
            raise fail(key)
        return RESAMPLES[values[key]]

    def factor(key: str) -> float:
        if not _is_number(values[key]):
            raise fail(key)
        return values[key]

    if switch("do_pad"):
        raise fail("do_pad")
    spec: dict[str, Any] = {"resize": None, "rescale": 1.0, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    if switch("do_resize"):
        spec |= {"resize": size("size", square=values["square"]), "resample": code("resample")}
    if switch("do_center_crop"):
        spec["crop"] = size("crop_size", square=True)
        if isinstance(spec["crop"], int):
            raise fail("crop_size")
    if switch("do_rescale"):
        spec["rescale"] = factor("rescale_factor")
    if switch("do_normalize"):
        spec |= {"mean": channels("image_mean"), "std": channels("image_std")}
        if 0 in spec["std"]:
            raise fail("image_std")

    def origin(step: str, key: str) -> str:
        """Where a value was read: its key, or the switch that made it meaningless."""
        key = key if switch(step) else step
        return f"{'preprocessor_config.json' if key in given else f'default of {short}ImageProcessor'}: {key}"

    source = {
        "resize": origin("do_resize", "size"),
        "resample": origin("do_resize", "resample"),
        "crop": origin("do_center_crop", "crop_size"),
        "rescale": origin("do_rescale", "rescale_factor"),
        "mean": origin("do_normalize", "image_mean"),
        "std": origin("do_normalize", "image_std"),
    }
    return ImageSpec(**spec, source=source)


def _is_number(value: object) -> bool:
    """A finite number of JSON, which Python reads NaN and Infinity from too; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
