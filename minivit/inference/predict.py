"""Pictures in, answers out: the whole way from file to labels, or to an embedding."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from minivit.errors import CheckpointError, ImageError, UsageError
from minivit.images.decode import Picture
from minivit.images.spec import ImageSpec
from minivit.inference.predictions import Prediction
from minivit.inference.predictions import top_k as best
from minivit.inference.prefetch import Answer, Item, answer_all
from minivit.model.capabilities import ImageModel, Model, image_model
from minivit.model.config import SwinConfig
from minivit.weights import load

POOLS = ("cls", "mean", "cls+mean", "pooler", "projection", "tokens")


@dataclass(kw_only=True)
class Classified:
    """What became of one picture: `top`, or the `error` that stands in its place."""

    picture: Picture  # as it was given
    top: list[Prediction] = field(default_factory=list)
    error: ImageError | None = None
    warnings: list[str] = field(default_factory=list)  # liberties taken on the way to RGB


def iter_classify(
    pictures: Iterable[Picture],
    *,
    model: Model | str | os.PathLike[str],
    top_k: int = 5,
    batch_size: int = 1,
    readers: int | None = None,
) -> Iterator[Classified]:
    """Classify a stream of pictures, in order; a bad picture becomes a result with an error, the rest go on.

    Args:
        pictures: paths, binary files or PIL images; drawn and read in threads, at most two batches ahead.
        model: a loaded ViT or Swin with a head, or what `minivit.load` takes.
        top_k: how many classes to return.
        batch_size: how many pictures run through the model at once.
        readers: how many threads read ahead; `bulk.default_readers()` when None.

    Raises:
        CheckpointError: the model has no head or no preprocessing.
    """
    model = picture_model(model)
    for one in _answers(pictures, model, classifier(model, top_k), batch_size, readers):
        top = [] if one.error else one.value
        yield Classified(picture=one.picture, top=top, error=one.error, warnings=one.warnings)  # type: ignore[arg-type]


def classify(
    images: Picture | Iterable[Picture], *, model: Model | str | os.PathLike[str], top_k: int = 5
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
    model: Model | str | os.PathLike[str],
    pool: str = "cls",
    layer: int | None = None,
    norm: str | None = None,
    batch_size: int = 1,
) -> Tensor:
    """What the model makes of every picture, before the head; pool, layer and norm as in `embedder`.

    Returns:
        (pictures, ...), as `embedder` gives it for each, in the dtype of the model.

    Raises:
        UsageError: a pool or layer the checkpoint does not have.
        ImageError: the first picture that cannot be read.
    """
    model = picture_model(model)
    rows = []
    for one in _answers(_several(images), model, embedder(model, pool, layer=layer, norm=norm), batch_size, None):
        if one.error:
            raise one.error
        rows.append(one.value)
    return torch.stack(rows)


def classifier(model: ImageModel, top_k: int) -> Callable[[Tensor], list[list[Prediction]]]:
    """pixels_BCHW -> the `top_k` best Predictions of each picture.

    Raises:
        CheckpointError: the model has no head.
    """
    if not model.config.classes:
        raise CheckpointError(
            f"{model.name}: has no classifier, so it cannot name what it sees; use embed, or where it has a text tower "
            "--labels (CLIP.zero_shot)"
        )

    @torch.inference_mode()
    def answer(pixels_BCHW: Tensor) -> list[list[Prediction]]:
        return best(model(pixels_BCHW), model.labels, top_k, model.config.score)

    return answer


def embedder(
    model: ImageModel, pool: str = "cls", *, layer: int | None = None, norm: str | None = None
) -> Callable[[Tensor], Tensor]:
    """pixels_BCHW -> one embedding of each picture.

    Args:
        pool: "cls" (the class token after the final norm), "mean" (of the patches), "cls+mean" (both, one behind
            the other: 2 D), "pooler" (the tanh layer or the attention pool, where the checkpoint has one): (B, D);
            "projection" (into the space pictures share with texts, where it has one): (B, projection); or
            "tokens": (B, N, D).
        layer: take the tokens after this block, before any final norm (`blocks.{layer}.resid_post` of a trace):
            0 is the first, -1 the last; the blocks behind it are not run. None: after the final norm.
        norm: "l2" scales every vector to length 1; a vector of zeros stays.

    Raises:
        UsageError: a pool, layer or norm that is not there.
    """
    if pool not in POOLS:
        raise UsageError(f"pool is {pool!r}; it must be one of {', '.join(POOLS)}")
    if norm not in (None, "l2"):
        raise UsageError(f"norm is {norm!r}; it must be l2, or none at all")
    if model.windowed and (layer is not None or pool not in ("mean", "tokens")):
        raise UsageError(f"{model.name}: of a Swin the tokens of the last stage are left, as pool mean or tokens")
    depth = len(model.blocks)
    if layer is not None and not -depth <= layer < depth:
        raise UsageError(
            f"{model.name}: has {depth} blocks, so layer must lie from {-depth} to {depth - 1}, not {layer}"
        )
    absent = {
        "cls": not model.config.cls_token,
        "cls+mean": not model.config.cls_token,
        "pooler": model.windowed or (model.pooler is model.attn_pool is None) or layer is not None,
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
    def answer(pixels_BCHW: Tensor) -> Tensor:
        embeddings = pooled(tokens_after(pixels_BCHW))
        return F.normalize(embeddings, dim=-1) if norm else embeddings

    return answer


def embedding_shape(model: ImageModel, pool: str) -> tuple[int, ...]:
    """The shape of one embedding of a pool the model has, for pictures of its preprocessing."""
    config = model.config
    size = image_spec_of(model).size
    assert size is not None  # image_spec_of refuses what has no size of its own
    width = config.stages[-1].width if isinstance(config, SwinConfig) else config.width
    sizes = {"cls+mean": (2 * width,), "projection": (config.projection,)}
    return (config.layout_for(size).count, width) if pool == "tokens" else sizes.get(pool, (width,))


def _answers(
    pictures: Iterable[Picture], model: ImageModel, answer: Callable, batch_size: int, readers: int | None
) -> Iterator[Answer]:
    like = model.patch_embed.weight
    items = (Item(picture) for picture in pictures)
    return answer_all(items, answer, image_spec_of(model), like=like, batch_size=batch_size, readers=readers)


def _several(images: Picture | Iterable[Picture]) -> Iterable[Picture]:
    """One picture or many, as many. A string is a path, a file object and a PIL image are one picture."""
    one = isinstance(images, (str, os.PathLike)) or hasattr(images, "read") or hasattr(images, "getexif")
    return [images] if one else images  # type: ignore[list-item, return-value]


def picture_model(model: Model | str | os.PathLike[str]) -> ImageModel:
    """The model that reads the pictures: of two towers, the image tower."""
    given = load(model) if isinstance(model, (str, os.PathLike)) else model
    return image_model(given)


def image_spec_of(model: ImageModel) -> ImageSpec:
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
