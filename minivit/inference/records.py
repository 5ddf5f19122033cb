"""An answer as the record that is written down: the same fields from one machine or many, and of which run they are."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

import torch

from minivit.images.spec import ImageSpec
from minivit.inference.prefetch import Answer
from minivit.model.capabilities import ImageModel

SCHEMA = 1  # of the records; a field is only ever added under the same number


def record(path: str, answer: Answer, constant: dict[str, Any]) -> dict[str, Any]:
    """One picture as a record of SCHEMA, scores unrounded; JSON-ready but for an embedding, which stays a tensor.

    Args:
        path: what stands for the picture.
        answer: its value is a list of Prediction, or one embedding.
        constant: the fields every record of a run shares, as `constants` gives them.
    """
    if answer.error:
        message = str(answer.error.named(path))
        outcome: dict[str, Any] = {"error": {"code": answer.error.code, "message": message}}
    elif isinstance(answer.value, torch.Tensor):
        outcome = {"embedding": answer.value}
    else:
        outcome = {"top": [{"index": p.index, "label": p.label, "score": p.score} for p in answer.value]}
    sha256 = {"sha256": answer.sha256} if "run" in constant else {}
    warnings = {"warnings": answer.warnings} if answer.warnings else {}
    return {"schema": SCHEMA, "path": path, **outcome, **sha256, **constant, **warnings}


def constants(model: ImageModel, **run: Any) -> dict[str, Any]:
    """The fields every record of a run shares: model, revision, device and, where any is given, the settings `run`."""
    device = str(model.patch_embed.weight.device)
    shared: dict[str, Any] = {"model": model.name, "revision": model.revision, "device": device}
    return {**shared, "run": {**run, "weights": fingerprint(model)}} if run else shared


def preprocessing(spec: ImageSpec) -> dict[str, Any]:
    """An ImageSpec as JSON-ready data."""
    return {key: value for key, value in json.loads(json.dumps(asdict(spec))).items() if key != "source"}


def fingerprint(model: ImageModel) -> str:
    """16 hexadecimal digits for weights, architecture and preprocessing: a retrained model in its old folder differs.

    Of every parameter the shape, the dtype and the first 64 numbers are read, which costs no time.
    """
    digest = hashlib.sha256(f"{model.config} {model.image_spec!r}".encode())
    for name, parameter in model.named_parameters():
        head = parameter.detach().flatten()[:64].double().tolist()
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype} {head}".encode())
    return digest.hexdigest()[:16]
