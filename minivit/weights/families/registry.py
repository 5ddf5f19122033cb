"""All checkpoint families by name, collected from the files of this folder, and the choice of one for a checkpoint."""

from __future__ import annotations

import pkgutil
from collections import Counter
from collections.abc import Mapping
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
BY_ARCHITECTURE = {name: family for family in FAMILIES.values() for name in family.architectures}

# What `save` writes, in the order in which it tries them.
LAYOUTS = tuple(family.name for family in FAMILIES.values() if family.saved)


def _steps(swin: bool) -> dict[str, Mapping[str, str]]:
    """Return the steps of all ViTs or of all Swins in other libraries: {library or model of it: {step: place}}."""
    families = [family for family in FAMILIES.values() if (family.config is SwinConfig) is swin]
    return dict(sorted((item for family in families for item in family.steps.items()), key=itemgetter(0)))


STEPS = _steps(swin=False)
SWIN_STEPS = _steps(swin=True)


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
    if model_type is None and "architecture" in config:
        return BY_ARCHITECTURE.get(str(config["architecture"]), FAMILIES["timm"])
    if isinstance(model_type, str) and model_type in BY_MODEL_TYPE:
        return BY_MODEL_TYPE[model_type]
    raise CheckpointError(
        f"{name}: config.json has model_type {model_type!r}; known are {', '.join(BY_MODEL_TYPE)}, "
        "and timm's architecture"
    )
