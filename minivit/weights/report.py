"""Describe and verify a checkpoint from config.json and the headers of its files, without reading a weight."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from minivit.errors import CheckpointError
from minivit.model.capabilities import image_model
from minivit.weights.convert import examine, match
from minivit.weights.files import Source
from minivit.weights.shards import Shards


def describe(source: Source, family: str | None = None) -> dict[str, Any]:
    """Return what `minivit info` prints, as JSON-ready facts; arguments and errors as `weights.describe`."""
    with Shards(source) as shards:
        model = match(source, shards, family=family).model
        dtypes = sorted(set(shards.dtypes.values()))
    images = image_model(model)
    layout = images.config.layout
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
        "labels": list(images.labels.values()) if images.labels else None,
        "scores": model.config.score if images.config.classes or model.has_text else None,
        "notes": images.notes,
        "preprocessing": str(model.image_spec) if model.image_spec else None,
    }


def verify(source: Source, family: str | None = None) -> dict[str, Any]:
    """Return what `minivit verify` prints, as JSON-ready facts: the checkpoint compared with its family's table.

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
    images = image_model(model)
    used = sum(part is not None for assembly in checkpoint.plan.values() for part in assembly.parts)
    found = "found" if source.preprocessor or "pretrained_cfg" in source.config else "assumed"
    return {
        **facts,
        "good": not checkpoint.faults,
        "family": checkpoint.family.name,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tensors": {"in file": tensors, "used": used, "dropped": tensors - used - len(checkpoint.unexpected)},
        "bytes": bytes_held,
        "dtypes": dtypes,
        "missing": checkpoint.missing,
        "unexpected": checkpoint.unexpected,
        "mismatched": checkpoint.mismatched,
        "head": {"outputs": images.config.classes, "labels": len(images.labels) if images.labels else 0},
        "preprocessing": {"from": found if model.image_spec else "none", "steps": str(model.image_spec or "")},
    }
