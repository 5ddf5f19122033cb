"""All checkpoint families by name, collected from the files of this folder, and the choice of one for a checkpoint."""

from __future__ import annotations

import pkgutil
from collections import Counter
from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from operator import itemgetter
from typing import Any

from minivit.errors import CheckpointError, UsageError
from minivit.model.config import SwinConfig
from minivit.weights import families
from minivit.weights.families.base import Family


def collect() -> dict[str, Family]:
    """Return the families in the tuples `REGISTER` of all files below this folder, sorted by name.

    Raises:
        ValueError: two families have the same name.
    """
    names = [module.name for module in pkgutil.walk_packages(families.__path__, f"{families.__name__}.")]
    found = [family for name in names for family in getattr(import_module(name), "REGISTER", ())]
    twice = sorted(name for name, count in Counter(family.name for family in found).items() if count > 1)
    if twice:
        raise ValueError(f"two checkpoint families have the same name: {', '.join(twice)}")
    return {family.name: family for family in sorted(found, key=lambda family: family.name)}


FAMILIES = collect()
BY_MODEL_TYPE = {family.name: family for family in FAMILIES.values() if family.by_model_type}
# Classes whose files have the model_type of another family.
BY_CLASS = {(family.shares, kind): family for family in FAMILIES.values() if family.shares for kind in family.kinds}
BY_ARCHITECTURE = {name: family for family in FAMILIES.values() for name in family.architectures}

# What `save` writes, in the order in which it tries them.
LAYOUTS = tuple(family.name for family in FAMILIES.values() if family.saved)


def _steps(swin: bool) -> dict[str, Mapping[str, str]]:
    """Return the steps of all ViTs or of all Swins in other libraries: {library or model of it: {step: place}}."""
    families = [family for family in FAMILIES.values() if (family.config is SwinConfig) is swin]
    return dict(sorted((item for family in families for item in family.steps.items()), key=itemgetter(0)))


STEPS = _steps(swin=False)
SWIN_STEPS = _steps(swin=True)


def wrappers_of(config: dict[str, Any], family: str | None) -> tuple[str, ...]:
    """Return the keys of training files in the order in which the family's own library takes them; () if none does."""
    try:
        return family_of("", config, family).wrappers
    except (CheckpointError, UsageError):
        return ()


def family_of(name: str, config: dict[str, Any], family: str | None = None) -> Family:
    """Return the family of a checkpoint: the one asked for, else the one of config.json.

    Args:
        name: of the checkpoint, for messages.
        config: the contents of config.json.
        family: a name of FAMILIES, alone or in front of a model's name ("torchvision/vit_b_16").

    Raises:
        UsageError: no such family.
        CheckpointError: config.json names a model type without a family.
    """
    if family is not None:
        asked, _, model = family.partition("/")
        if asked not in FAMILIES:
            raise UsageError(f"no family {asked!r}; known are {', '.join(FAMILIES)}")
        by_name = FAMILIES[asked].by_name
        named = by_name(model) if model and by_name else None
        # A name that stands for a config.json: its contents are in `config`, and say more than the library's name.
        if not (named and named.config):
            return FAMILIES[asked]
    model_type = config.get("model_type")
    if model_type in (None, "timm_wrapper") and "architecture" in config:
        return BY_ARCHITECTURE.get(str(config["architecture"]), FAMILIES["timm"])
    classes = config.get("architectures")
    for name_of_class in classes if isinstance(classes, list) else ():
        if family_there := BY_CLASS.get((str(model_type), str(name_of_class))):
            return family_there
    if isinstance(model_type, str) and model_type in BY_MODEL_TYPE:
        return BY_MODEL_TYPE[model_type]
    near = get_close_matches(str(model_type), BY_MODEL_TYPE, 1)
    nearest = f"; the nearest is {near[0]}, which family {near[0]!r} tries" if near else ""
    raise CheckpointError(
        f"{name}: config.json has model_type {model_type!r}; known are {', '.join(BY_MODEL_TYPE)}, "
        f"and timm's architecture{nearest}"
    )
