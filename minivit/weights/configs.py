"""Read config.json, in every dialect, as the configuration of a model and the names of its classes."""

from __future__ import annotations

import json
from typing import Any

from minivit.errors import CheckpointError, UsageError
from minivit.model.config import SwinConfig, ViTConfig
from minivit.weights.families.base import Config, Family, Given, Kind, Shapes, has_module
from minivit.weights.files import Source
from minivit.weights.preprocessing import is_number


def read_config(source: Source, family: Family, shapes: Shapes) -> tuple[Config, Kind]:
    """Return the configuration in config.json, and which kind of model of the family it is.

    Args:
        shapes: of the tensors in the files; they say which optional parts the model has.

    Raises:
        CheckpointError: a value that this model does not support.
    """
    kind = _kind(source, family, shapes)
    if family.towers:
        towers: Given = {name: read_config(source, tower, shapes)[0] for name, tower in family.towers.items()}
        try:
            return family.config(**family.constants, **towers), kind
        except UsageError as error:
            raise CheckpointError(f"{source.name}: config.json makes no pair of towers: {error}") from None
    if source.config.get("quantization_config"):
        method = source.config["quantization_config"]
        method = method.get("quant_method", "unknown") if isinstance(method, dict) else method
        raise CheckpointError(
            f"{source.name}: its weights are quantized ({method}), which minivit does not read; write them as numbers "
            "with transformers: model.dequantize().save_pretrained(FOLDER)"
        )
    given = _section(source.config, family)
    values = _read_fields(source.name, given, family, len(shapes))
    try:
        computed = family.read(given, shapes) if family.read else {}
        values = {**family.constants, **values, **computed, **kind.values}
        if family.config in (ViTConfig, SwinConfig):
            values.setdefault("classes", _classes(given, kind, shapes) if kind.head else 0)
            values.setdefault("score", score_of(given, values["classes"]))
        if family.config is ViTConfig:
            # The reference does not use a pooler beside a head either; without a head it is the output.
            values.setdefault("pooler", not values["classes"] and has_module(shapes, family.pooler))
            if values["pooler"] and given.get("pooler_act", "tanh") != "tanh":
                raise ValueError(f"pooler_act is {given['pooler_act']!r}; only 'tanh' is known")
            # A convolution leaves out the pixels behind its last whole patch; torchvision refuses such sizes.
            size, patch = values["image_size"], values["patch_size"]
            if not family.name.startswith("torchvision") and min(size) >= patch > 0:
                values.setdefault("drop_rest", any(side % patch for side in size))
        return family.config(**values), kind
    except CheckpointError:
        raise
    except (UsageError, TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{source.name}: config.json makes no {family.makes}: {error}") from None


def _read_fields(name: str, given: Given, family: Family, tensors: int) -> Given:
    """Return the values of the family's fields, each of the type of its default.

    Raises:
        CheckpointError: a value of another type, or one that is not supported.
    """

    def refuse(key: str, why: str) -> CheckpointError:
        return CheckpointError(f"{name}: config.json has {key} = {given.get(key)!r}; {why}")

    for key, only in family.fixed.items():
        if given.get(key, only) != only:
            raise refuse(key, f"only {only!r} is known")
    values: Given = {}
    for ours, (key, default) in family.fields.items():
        value = given.get(key, default)
        if ours in ("image_size", "patch_size"):
            sides = tuple(value) if isinstance(value, list) else (value, value)
            if len(sides) != 2 or not all(_is_like(side, 1) for side in sides):
                raise refuse(key, "expected pixels, one number or height and width")
            value = sides
        elif not _is_like(value, default):
            raise refuse(key, f"expected a value like {json.dumps(default)}")
        values[ours] = value
    if "patch_size" in values:
        height, values["patch_size"] = values["patch_size"]
        if height != values["patch_size"]:
            raise refuse(family.fields["patch_size"][0], "patches must be square")
    if "activation" in values:
        if values["activation"] not in family.activations:
            raise refuse(family.fields["activation"][0], f"known are {', '.join(family.activations)}")
        values["activation"] = family.activations[values["activation"]]
    if values.get("depth", 0) > tensors:
        raise refuse(family.fields["depth"][0], f"the weights have only {tensors} tensors")
    return values


def _section(given: Given, family: Family) -> Given:
    """Return the part of config.json that describes one of two towers; else all of it."""
    if not family.section:
        return given
    # Old files describe a tower a second time under another name, which takes precedence (transformers' CLIPConfig).
    section = given.get(f"{family.section}_dict") or given.get(family.section)
    if not isinstance(section, dict):
        return given
    # The size of the shared space is outside both towers, nearly everything else is inside each.
    # The last three belong to a classifier on one tower.
    shared = ("projection_dim", "architectures", "embed_dim", "quick_gelu", "num_labels", "id2label", "problem_type")
    return {**section, **{key: given[key] for key in shared if key in given}}


def _is_like(value: object, default: object) -> bool:
    """Return whether a value has the type of the default; an int may stand for a float, a bool for neither."""
    if isinstance(default, float):
        return is_number(value)
    return type(value) is type(default)


def _kind(source: Source, family: Family, shapes: Shapes) -> Kind:
    """Return what follows the backbone: by config.json's architectures, else by the head that is in the file."""
    names = source.config.get("architectures") or [None]
    name = names[0] if isinstance(names, list) else names
    if name is None:
        kinds = list(family.kinds.values())
        return next((kind for kind in kinds if has_module(shapes, kind.head)), kinds[-1])
    if not isinstance(names, list) or name not in tuple(family.kinds):
        known = ", ".join(family.kinds)
        raise CheckpointError(f"{source.name}: config.json has architectures = {names!r}; known are {known}")
    return family.kinds[name]


def _classes(given: Given, kind: Kind, shapes: Shapes) -> int:
    """Return the number of outputs of the head: from config.json, else from the file."""
    if type(given.get("num_labels")) is int:
        return int(given["num_labels"])
    if isinstance(given.get("id2label"), dict):
        return len(given["id2label"])
    return shapes.get(f"{kind.head}.weight", (0,))[0]


PROBLEMS = {
    "regression": "none",
    "multi_label_classification": "sigmoid",
    "single_label_classification": "softmax",
}  # config.json's problem_type -> ViTConfig.score


def score_of(given: Given, classes: int) -> str:
    """Return ViTConfig.score from config.json, as ImageClassificationPipeline of transformers applies it.

    A single output has a sigmoid unless it is a regression. The pipeline reads `function_to_apply` only where neither
    `problem_type` nor the number of outputs decides, so a head never uses it.

    Raises:
        ValueError: a problem_type that transformers does not know.
    """
    problem = given.get("problem_type")
    if problem is not None and problem not in PROBLEMS:
        raise ValueError(f"problem_type is {problem!r}; known are {', '.join(PROBLEMS)}")
    score = PROBLEMS[problem] if problem else "softmax"
    return "sigmoid" if classes == 1 and score == "softmax" else score


def read_labels(source: Source, family: Family, classes: int) -> dict[int, str] | None:
    """Return {index: name} of config.json's id2label, or in the family's own way where there is none.

    None where no file names the classes, or only as LABEL_0, LABEL_1, ...

    Raises:
        CheckpointError: the keys are not 0 to classes - 1.
    """
    given: Any = source.config.get("id2label") or (family.labels and family.labels(source.config, classes))
    if not classes or not given:
        return None
    if not isinstance(given, dict):
        raise CheckpointError(f"{source.name}: config.json has an id2label that does not map numbers to names")
    if len(given) != classes and (source.config.get("num_labels") == classes or "weights" in source.config):
        return None  # transformers replaces it then; of torchvision's names, the head was replaced
    if None in given.values():
        raise CheckpointError(f"{source.name}: config.json has an id2label that does not map numbers to names")
    given = {key: str(name) for key, name in given.items()}
    try:
        labels = {int(key): name for key, name in given.items()}
    except ValueError:
        wrong = next(key for key in given if not str(key).isdecimal())
        raise CheckpointError(f"{source.name}: config.json has the id2label key {wrong!r}, expected numbers") from None
    if sorted(labels) != list(range(classes)):
        gaps = sorted(set(range(classes)) - set(labels))
        raise CheckpointError(
            f"{source.name}: config.json has {len(given)} id2label keys that are not 0 to {classes - 1}; "
            f"missing: {listed([str(index) for index in gaps])}"
        )
    if all(name == f"LABEL_{index}" for index, name in labels.items()):
        return None
    return dict(sorted(labels.items()))


def listed(names: list[str], limit: int = 12) -> str:
    """Return names on one line: the first `limit` of them, and how many more there are."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest
