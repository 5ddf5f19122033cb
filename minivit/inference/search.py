"""Search in embedding files: the images most similar to an image or to a text."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minivit.errors import UsageError
from minivit.images.decode import IMAGE_SUFFIXES, ImageInput
from minivit.inference.embeddings import EmbeddingFile, open_embeddings
from minivit.inference.predict import embed
from minivit.inference.records import fingerprint
from minivit.model.capabilities import ImageModel, Model, image_model, require_text
from minivit.weights import load


@dataclass(frozen=True, kw_only=True)
class Match:
    """One image of an embedding file."""

    path: str
    cosine: float  # of the angle to the query, -1 to 1
    record: dict[str, Any]  # all its fields except the embedding


@dataclass(frozen=True, kw_only=True)
class Similar:
    """What `similar` found."""

    matches: list[Match]  # best first; equal ones in their order in the file
    constant: dict[str, Any]  # model, revision, device and settings that the file was written with
    is_text: bool  # whether the query was embedded as a text


def similar(
    query: ImageInput,
    file: str | os.PathLike[str],
    *,
    k: int = 5,
    model: Model | str | os.PathLike[str] | None = None,
    family: str | None = None,
    device: str | torch.device = "cpu",
) -> Similar:
    """Return the k images of an embedding file whose vectors have the largest cosine with that of the query.

    Args:
        query: an image; or a text, if the model has a text tower and the string is no file and no name of an image.
        file: what `minivit embed` wrote.
        model: the model of the file, or where it is now; None: as the file names it. Another model is refused.
        family, device: as in `minivit.load`.

    Raises:
        UsageError: not an embedding file, vectors of other weights, or vectors that the query cannot be compared with.
        ImageError: the query cannot be read.
    """
    opened = open_embeddings(file)
    made = opened.constant["run"]
    if made["pool"] == "tokens":
        raise UsageError(f"{file}: has all tokens of every image, not one vector; embed with another --pool")
    if model is None or isinstance(model, (str, os.PathLike)):
        revision = opened.constant["revision"] if model is None else None
        dtype = getattr(torch, made["dtype"])
        model = load(model or opened.constant["model"], revision=revision, family=family, dtype=dtype, device=device)
    images = image_model(model)
    if fingerprint(images) != made["weights"]:
        raise UsageError(
            f"{file}: was written with {opened.constant['model']}, weights {made['weights']}; {images.name} has other "
            f"weights or preprocessing ({fingerprint(images)}), so its vectors cannot be compared with them"
        )
    is_text = model.has_text and isinstance(query, str) and not names_image(query)
    if is_text:
        pool = shared_pool(images)
        if made["pool"] != pool or made["layer"] is not None:
            raise UsageError(
                f"{file}: was written with --pool {made['pool']}, which texts do not have; embed with --pool {pool}"
            )
        (vector,) = require_text(model).embed_texts([str(query)])
    else:
        (vector,) = embed(query, model=images, pool=made["pool"], layer=made["layer"], norm=made["norm"])
    return Similar(matches=nearest(vector.cpu(), opened, k), constant=opened.constant, is_text=is_text)


def nearest(query: Tensor, file: EmbeddingFile, k: int) -> list[Match]:
    """Return the k records whose vectors have the largest cosine with the query, best first, ties in their order.

    Args:
        query: (D,), not zero.
        file: of vectors (D,); rows of NaN, of images that could not be read, are skipped.

    Raises:
        UsageError: the sizes differ.
    """
    best: list[Match] = []
    query = F.normalize(query.double().flatten(), dim=0)
    for records, vectors in file.pieces:
        if vectors.shape[1:] != query.shape:
            raise UsageError(f"the query is a vector of {tuple(query.shape)}, the file has {tuple(vectors.shape[1:])}")
        cosines = (F.normalize(vectors.double(), dim=-1) @ query).nan_to_num(nan=-math.inf)
        scores, rows = cosines.sort(descending=True, stable=True)
        found = [(score, records[row]) for score, row in zip(scores[:k].tolist(), rows[:k].tolist(), strict=True)]
        best += [Match(path=item["path"], cosine=score, record=item) for score, item in found if score > -math.inf]
        best = sorted(best, key=lambda match: -match.cosine)[:k]  # stable: earlier ones stay in front
    return best


def shared_pool(model: ImageModel) -> str:
    """Return the pool that gives an image's vector in the space shared with texts."""
    return "projection" if model.config.projection else "pooler"


def names_image(query: str) -> bool:
    """Return whether a query is a file, or has the suffix of an image."""
    return Path(query).suffix.lower() in IMAGE_SUFFIXES or Path(query).exists()
