"""Pictures in, answers out: the whole way from file to labels, or to an embedding."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from minivit.clip import CLIP
from minivit.config import ImageSpec
from minivit.errors import CheckpointError, ImageError, UsageError
from minivit.labels import Prediction
from minivit.labels import top_k as best
from minivit.model import ViT
from minivit.preprocess import Picture, open_image, pixels_from_image, preprocess, resize_and_crop
from minivit.weights import load

POOLS = ("cls", "mean", "pooler", "projection", "tokens")


@dataclass(kw_only=True)
class Classified:
    """What became of one picture: `top`, or the `error` that stands in its place."""

    picture: Picture  # as it was given
    top: list[Prediction] = field(default_factory=list)
    error: ImageError | None = None
    warnings: list[str] = field(default_factory=list)  # liberties taken on the way to RGB


def iter_classify(
    pictures: Iterable[Picture], *, model: ViT | CLIP | str | os.PathLike[str], top_k: int = 5, batch_size: int = 1
) -> Iterator[Classified]:
    """Classify a stream of pictures, in order; a bad picture becomes a result with an error, the rest go on.

    Args:
        pictures: paths, binary files or PIL images; read as the results are asked for.
        model: a loaded ViT with a head, or what `minivit.load` takes.
        top_k: how many classes to return.
        batch_size: how many pictures run through the model at once.

    Raises:
        CheckpointError: the model has no head or no preprocessing.
    """
    model = _loaded(model)
    spec = image_spec_of(model)
    if not model.config.classes:
        raise CheckpointError(
            f"{model.name}: has no classifier, so it cannot name what it sees; "
            "use embed, or zero_shot where it has a text tower"
        )
    pictures = iter(pictures)
    while batch := list(islice(pictures, batch_size)):
        results = [Classified(picture=picture) for picture in batch]
        pixels = [_read(result, spec) for result in results]
        good = [(result, p) for result, p in zip(results, pixels, strict=True) if p is not None]
        if good:
            with torch.inference_mode():
                logits_BL = model(_batch([p for _, p in good], model))
            for (result, _), predictions in zip(
                good, best(logits_BL, model.labels, top_k, model.config.score), strict=True
            ):
                result.top = predictions
        yield from results


def classify(
    images: Picture | Iterable[Picture], *, model: ViT | CLIP | str | os.PathLike[str], top_k: int = 5
) -> list[list[Prediction]]:
    """The `top_k` most likely classes of every picture.

    Raises:
        ImageError: the first picture that cannot be read; `iter_classify` goes on instead.
        CheckpointError: the model has no head or no preprocessing.
    """
    results = list(iter_classify(_several(images), model=model, top_k=top_k))
    for result in results:
        if result.error:
            raise result.error
    return [result.top for result in results]


def embed(
    images: Picture | Iterable[Picture],
    *,
    model: ViT | CLIP | str | os.PathLike[str],
    pool: str = "cls",
    batch_size: int = 1,
) -> Tensor:
    """What the model makes of every picture, before the head.

    Args:
        pool: "cls" (the class token after the final norm), "mean" (of the patches), "pooler" (the tanh
            layer or the attention pool, where the checkpoint has one): (B, D); "projection" (into the space
            pictures share with texts, where it has one): (B, projection); or "tokens": (B, N, D).

    Raises:
        UsageError: a pool the checkpoint does not have.
        ImageError: the first picture that cannot be read.
    """
    model = _loaded(model)
    spec = image_spec_of(model)
    if pool not in POOLS:
        raise UsageError(f"pool is {pool!r}; it must be one of {', '.join(POOLS)}")
    absent = {
        "cls": not model.config.cls_token,
        "pooler": model.pooler is None and model.attn_pool is None,
        "projection": not model.config.projection,
    }
    if absent.get(pool):
        there = ", ".join(name for name in POOLS if not absent.get(name))
        raise UsageError(f"{model.name}: has no {pool} in its checkpoint; use pool {there}")
    pictures = iter(_several(images))
    pools: dict[str, Callable[[Tensor], Tensor]] = {
        "cls": lambda tokens_BND: model.pool(tokens_BND, "cls"),
        "mean": lambda tokens_BND: model.pool(tokens_BND, "mean"),
        "pooler": model.pool,
        "projection": lambda tokens_BND: model.proj(model.pool(tokens_BND)),
        "tokens": lambda tokens_BND: tokens_BND,
    }
    rows = []
    while batch := list(islice(pictures, batch_size)):
        pixels_BCHW = _batch([preprocess(picture, spec) for picture in batch], model)
        with torch.inference_mode():
            rows.append(pools[pool](model.features(pixels_BCHW)))
    return torch.cat(rows)


def _several(images: Picture | Iterable[Picture]) -> Iterable[Picture]:
    """One picture or many, as many. A string is a path, a file object and a PIL image are one picture."""
    one = isinstance(images, (str, os.PathLike)) or hasattr(images, "read") or hasattr(images, "getexif")
    return [images] if one else images  # type: ignore[list-item, return-value]


def _loaded(model: ViT | CLIP | str | os.PathLike[str]) -> ViT:
    """The model that reads the pictures: of two towers, the image tower."""
    given = load(model) if isinstance(model, (str, os.PathLike)) else model
    return given.image if isinstance(given, CLIP) else given


def image_spec_of(model: ViT) -> ImageSpec:
    """The model's preprocessing; refuses before the first picture what would fail, or mislead, at every one."""
    if model.image_spec is None:
        raise CheckpointError(
            f"{model.name}: has no preprocessor_config.json, so nothing says how its pictures are prepared; "
            "put the one of the model it was made from beside config.json"
        )
    size = model.image_spec.size
    if size != model.config.image_size and not (size and model.config.any_size):
        wanted = "{} x {}".format(*model.config.image_size)
        raise CheckpointError(f"{model.name}: reads pictures of {wanted}, its preprocessing makes: {model.image_spec}")
    if model.config.channels != 3:
        raise CheckpointError(f"{model.name}: reads {model.config.channels} channels; pictures are prepared as RGB")
    return model.image_spec


def _read(result: Classified, spec: ImageSpec) -> Tensor | None:
    """pixels_CHW of one picture, or None with the reason put into the result."""
    try:
        image = resize_and_crop(open_image(result.picture, warn=result.warnings.append), spec)
    except ImageError as error:
        result.error = error
        return None
    return pixels_from_image(image, spec)


def _batch(pixels: list[Tensor], model: ViT) -> Tensor:
    """Pictures as one pixels_BCHW, where and in the dtype the model wants them."""
    return torch.stack(pixels).to(model.patch_embed.weight)
