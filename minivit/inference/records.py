"""Results as records: the same fields from one machine or from many, and the run that they belong to."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

import torch

from minivit.images.spec import ImageSpec
from minivit.inference.predictions import Prediction
from minivit.inference.prefetch import Result
from minivit.model.capabilities import ImageModel

SCHEMA = 1  # of the records; a field is only ever added under the same number


def record(path: str, result: Result, constant: dict[str, Any]) -> dict[str, Any]:
    """Return one result as a record of SCHEMA, scores unrounded; all JSON-ready except an embedding, a tensor.

    Args:
        path: the name of the image.
        result: its value is a list of Prediction, or one embedding.
        constant: the fields that every record of a run shares, from `constants`.
    """
    if result.error:
        message = str(result.error.named(path))
        outcome: dict[str, Any] = {"error": {"code": result.error.code, "message": message}}
    elif isinstance(result.value, torch.Tensor):
        outcome = {"embedding": result.value}
    else:
        outcome = {"top": [_entry(prediction) for prediction in result.value]}
    sha256 = {"sha256": result.sha256} if "run" in constant else {}
    warnings = {"warnings": result.warnings} if result.warnings else {}
    return {"schema": SCHEMA, "path": path, **outcome, **sha256, **constant, **warnings}


def _entry(p: Prediction) -> dict[str, Any]:
    """Return one prediction; the field `category` is there where the model groups its classes."""
    category = {} if p.category is None else {"category": p.category}
    return {"index": p.index, "label": p.label, "score": p.score, **category}


def constants(model: ImageModel, *, scores: str | None = None, **run: Any) -> dict[str, Any]:
    """Return the fields that all records of a run share: model, revision, device and, if given, the settings `run`.

    Args:
        scores: of a run that classifies, what its scores are: "softmax", "sigmoid" or "none" (the logits).
    """
    device = str(model.patch_embed.weight.device)
    shared: dict[str, Any] = {"model": model.name, "revision": model.revision, "device": device}
    shared |= {"scores": scores} if scores else {}
    return {**shared, "run": {**run, "weights": fingerprint(model)}} if run else shared


def preprocessing(spec: ImageSpec) -> dict[str, Any]:
    """Return an ImageSpec as JSON-ready data."""
    return {key: value for key, value in json.loads(json.dumps(asdict(spec))).items() if key != "source"}


def fingerprint(model: ImageModel) -> str:
    """Return 16 hexadecimal digits for weights, architecture and preprocessing; a retrained model has others.

    Of every parameter the shape, the dtype and the first 64 numbers count, which takes no time.
    """
    digest = hashlib.sha256(f"{model.config} {model.image_spec!r}".encode())
    for name, parameter in model.named_parameters():
        head = parameter.detach().flatten()[:64].double().tolist()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} {head}".encode())
    return digest.hexdigest()[:16]
