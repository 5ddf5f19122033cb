"""From images to labels or embeddings: classify, iter_classify, embed, and the functions that they run per batch."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minivit.errors import CheckpointError, ImageError, UsageError
from minivit.images.decode import ImageInput
from minivit.images.spec import ImageSpec
from minivit.inference.predictions import Prediction
from minivit.inference.predictions import top_k as best
from minivit.inference.prefetch import Input, Result, run_batches
from minivit.model.capabilities import ImageModel, Model, image_model
from minivit.model.config import SwinConfig
from minivit.weights import load

POOLS = ("cls", "mean", "cls+mean", "pooler", "projection", "tokens")


@dataclass(frozen=True, kw_only=True)
class Classified:
    """The outcome for one image: `top`, or the `error` that replaces it."""

    image: ImageInput  # as it was given
    top: list[Prediction] = field(default_factory=list)
    error: ImageError | None = None
    warnings: list[str] = field(default_factory=list)  # what was done to convert the image to RGB

    @property
    def picture(self) -> ImageInput:
        """The former name of `image`."""
        return self.image


def iter_classify(
    images: Iterable[ImageInput],
    *,
    model: Model | str | os.PathLike[str],
    top_k: int = 5,
    threshold: float | None = None,
    batch_size: int = 1,
    readers: int | None = None,
    icc: str = "ignore",
    image_timeout: float | None = None,
) -> Iterator[Classified]:
    """Yield the outcome of every image, in order; an unreadable image yields an error, the others continue.

    Args:
        images: paths, binary files or PIL images; drawn and read in threads, at most two batches ahead.
        model: a loaded model with a head, or what `minivit.load` accepts.
        top_k: how many classes to return.
        threshold: return all classes with this score or a higher one instead.
        batch_size: images per forward pass.
        readers: threads that read ahead; `prefetch.default_readers()` when None.
        icc: what is done with a colour profile that is not sRGB: "ignore" or "convert", as in `open_image`.
        image_timeout: seconds after which an image that is still being read becomes an error; no limit when None.

    Raises:
        CheckpointError: the model has no head or no preprocessing.
    """
    loaded = loaded_image_model(model)
    given, predict = map(Input, images), classifier(loaded, top_k, threshold=threshold)
    for one in _results(given, loaded, predict, batch_size, readers=readers, icc=icc, image_timeout=image_timeout):
        top = [] if one.error else one.value
        yield Classified(image=one.image, top=top, error=one.error, warnings=one.warnings)  # type: ignore[arg-type]


def classify(
    images: ImageInput | Iterable[ImageInput],
    *,
    model: Model | str | os.PathLike[str],
    top_k: int = 5,
    threshold: float | None = None,
    icc: str = "ignore",
) -> list[list[Prediction]]:
    """Return the `top_k` best classes of every image, or all with a score of `threshold` or more.

    The model's config.score says what the scores are: "softmax", "sigmoid" (each class on its own) or "none" (logits).

    Args:
        icc: as in `iter_classify`.

    Raises:
        ImageError: the first image that cannot be read; `iter_classify` continues instead.
        CheckpointError: the model has no head or no preprocessing.
    """
    found = iter_classify(_several(images), model=model, top_k=top_k, threshold=threshold, icc=icc)
    results = list(found)
    for result in results:
        if result.error:
            raise result.error
    return [result.top for result in results]


def embed(
    images: ImageInput | Iterable[ImageInput],
    *,
    model: Model | str | os.PathLike[str],
    pool: str = "cls",
    layer: int | None = None,
    norm: str | None = None,
    batch_size: int = 1,
    icc: str = "ignore",
) -> Tensor:
    """Return one embedding per image, (images, ...), in the dtype of the model.

    Args:
        pool, layer, norm: as in `embedder`.
        icc: as in `iter_classify`.

    Raises:
        UsageError: a pool or layer that the checkpoint does not have.
        ImageError: the first image that cannot be read.
    """
    loaded = loaded_image_model(model)
    rows = []
    predict = embedder(loaded, pool, layer=layer, norm=norm)
    for one in _results(map(Input, _several(images)), loaded, predict, batch_size, icc=icc):
        if one.error:
            raise one.error
        rows.append(one.value)
    return torch.stack(rows)


def classifier(
    model: ImageModel, top_k: int, *, threshold: float | None = None
) -> Callable[[Tensor], list[list[Prediction]]]:
    """Return a function: pixels_BCHW -> the `top_k` best Predictions of each image, or all from `threshold` on.

    Raises:
        CheckpointError: the model has no head.
        UsageError: a threshold that no score, or every score, of this model reaches.
    """
    if not model.config.classes:
        raise CheckpointError(
            f"{model.name}: has no classifier, so it cannot name what it sees; use embed, or where it has a text tower "
            "--labels (CLIP.zero_shot)"
        )

    if threshold is not None and not (model.config.score == "none" or 0 <= threshold <= 1):
        raise UsageError(f"threshold is {threshold}; {model.config.score} scores lie between 0 and 1")
    if threshold is not None and not math.isfinite(threshold):
        raise UsageError(f"threshold is {threshold}; it must be a finite number")
    categories = model.categories

    @torch.inference_mode()
    def predict(pixels_BCHW: Tensor) -> list[list[Prediction]]:
        logits_BL, score = model(pixels_BCHW), model.config.score
        return best(logits_BL, model.labels, top_k, score, threshold=threshold, categories=categories)

    return predict


def embedder(
    model: ImageModel, pool: str = "cls", *, layer: int | None = None, norm: str | None = None
) -> Callable[[Tensor], Tensor]:
    """Return a function: pixels_BCHW -> one embedding of each image.

    Args:
        pool: "cls" (the class token after the final norm), "mean" (of the patches), "cls+mean" (both, concatenated:
            2 D), "pooler" (the tanh layer or the attention pool, if the checkpoint has one): (B, D);
            "projection" (into the space that images share with texts, if it has one): (B, projection); or
            "tokens": (B, N, D).
        layer: take the tokens after this block, before any final norm (`blocks.{layer}.resid_post` of a trace):
            0 is the first, -1 the last; later blocks do not run. None: after the final norm.
        norm: "l2" divides every vector by its L2 norm; a zero vector stays zero.

    Raises:
        UsageError: a pool, layer or norm that does not exist.
    """
    if pool not in POOLS:
        raise UsageError(f"pool is {pool!r}; it must be one of {', '.join(POOLS)}")
    if norm not in (None, "l2"):
        raise UsageError(f"norm is {norm!r}; it must be l2 or None")
    if model.windowed and (layer is not None or pool not in ("mean", "tokens")):
        raise UsageError(
            f"{model.name}: a Swin keeps the tokens of its last stage only; use pool mean or tokens, without a layer"
        )
    depth = len(model.blocks)
    if layer is not None and not -depth <= layer < depth:
        raise UsageError(
            f"{model.name}: has {depth} blocks, so layer must lie from {-depth} to {depth - 1}, not {layer}"
        )
    absent = {
        "cls": not model.config.cls_token,
        "cls+mean": not model.config.cls_token,
        "pooler": model.windowed or (model.pooler is None and model.attn_pool is None) or layer is not None,
        "projection": not model.config.projection or layer is not None,
    }
    if absent.get(pool):
        where = "in its checkpoint" if layer is None else f"at layer {layer}"
        there = ", ".join(name for name in POOLS if not absent.get(name))
        raise UsageError(f"{model.name}: has no {pool} {where}; use pool {there}")

    def tokens_after(pixels_BCHW: Tensor) -> Tensor:
        if layer is None or model.windowed:
            return model.features(pixels_BCHW)
        x, rope = model.embed(pixels_BCHW), model.rope(model.layout_of(pixels_BCHW))
        for block in model.blocks[: layer % depth + 1]:
            x = block(x, rope)
        return x

    def pooled(tokens_BND: Tensor) -> Tensor:
        if pool == "tokens":
            return tokens_BND
        if pool in ("pooler", "projection") and not model.windowed:
            pooled_BD = model.pool(tokens_BND)
            return model.proj(pooled_BD) if pool == "projection" else pooled_BD
        if layer is None:
            return model.pool(tokens_BND, pool)
        parts = {"cls": tokens_BND[:, 0], "mean": tokens_BND[:, model.config.layout.prefix :].mean(dim=1)}
        return torch.cat([parts[part] for part in pool.split("+")], dim=-1)

    @torch.inference_mode()
    def predict(pixels_BCHW: Tensor) -> Tensor:
        embeddings = pooled(tokens_after(pixels_BCHW))
        return F.normalize(embeddings, dim=-1) if norm else embeddings

    return predict


def embedding_shape(model: ImageModel, pool: str) -> tuple[int, ...]:
    """Return the shape of one embedding of `pool`, for images of the model's preprocessing."""
    config = model.config
    size = image_spec_of(model).size
    assert size is not None  # image_spec_of refuses a spec without a fixed size
    width = config.stages[-1].width if isinstance(config, SwinConfig) else config.width
    sizes = {"cls+mean": (2 * width,), "projection": (config.projection,)}
    return (config.layout_for(size).count, width) if pool == "tokens" else sizes.get(pool, (width,))


def _results(
    inputs: Iterable[Input], model: ImageModel, predict: Callable, batch_size: int, **options: Any
) -> Iterator[Result]:
    like = model.patch_embed.weight
    return run_batches(inputs, predict, image_spec_of(model), like=like, batch_size=batch_size, **options)


def _several(images: ImageInput | Iterable[ImageInput]) -> Iterable[ImageInput]:
    """Return one image or many as many. A string is a path; a file object and a PIL image are one image."""
    one = isinstance(images, (str, os.PathLike)) or hasattr(images, "read") or hasattr(images, "getexif")
    return [images] if one else images  # type: ignore[list-item, return-value]


def loaded_image_model(model: Model | str | os.PathLike[str]) -> ImageModel:
    """Return the model that takes images, loaded if necessary: the image tower of a CLIP, else the model itself."""
    return image_model(load(model) if isinstance(model, (str, os.PathLike)) else model)


def image_spec_of(model: ImageModel) -> ImageSpec:
    """Return the model's preprocessing.

    Raises:
        CheckpointError: it has none, or one whose images the model does not accept.
    """
    if model.image_spec is None:
        raise CheckpointError(
            f"{model.name}: has no preprocessor_config.json, so its image preprocessing is unknown; "
            "copy the one of its original model beside config.json"
        )
    size = model.image_spec.size
    if size != model.config.image_size and not (size and model.config.any_size):
        wanted = "{} x {}".format(*model.config.image_size)
        raise CheckpointError(f"{model.name}: takes images of {wanted}, its preprocessing makes: {model.image_spec}")
    if model.config.channels != 3:
        raise CheckpointError(f"{model.name}: takes {model.config.channels} channels; images are prepared as RGB")
    return model.image_spec
