"""The model to train: from scratch by its sizes, from a preset, or a loaded checkpoint with a new head."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from minivit.images.spec import ImageSpec
from minivit.model.attention import Attend, attend_reference, attend_sdpa
from minivit.model.config import ViTConfig
from minivit.model.vit import ViT


def attend_for(device: str) -> Attend:
    """Return the attention with the faster backward pass: on a CPU the reference is several times as fast as SDPA."""
    return attend_reference if torch.device(device).type == "cpu" else attend_sdpa


def new_model(
    classes: list[str],
    *,
    preset: str | None = None,
    image_size: int = 32,
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5),
    std: tuple[float, float, float] = (0.5, 0.5, 0.5),
    attend: Attend = attend_sdpa,
    **sizes: Any,
) -> ViT:
    """Return a ViT with random weights, with one output per class, and with preprocessing to square images.

    Args:
        classes: the labels.
        preset: a named size such as "Ti/16"; else `sizes` are fields of ViTConfig.
        image_size: sides of the image, in pixels.
        mean, std: of the images, R G B in 0..1.

    Raises:
        UsageError: sizes that do not fit together.
    """
    side = (image_size, image_size)
    shape: Any = {"image_size": side, "classes": len(classes)}
    config = ViTConfig.preset(preset, **shape) if preset else ViTConfig(**shape, **sizes)
    model = ViT(config, attend=attend)
    model.image_spec = ImageSpec(resize=side, resample="bicubic", mean=mean, std=std)
    model.labels = dict(enumerate(classes))
    return model


def with_new_head(model: ViT, classes: list[str]) -> ViT:
    """Return a copy of a loaded model with a new head for other classes, without pooler and projection.

    The head is zero, as in section 3.2 of arXiv:2010.11929.
    """
    pooling = "cls" if model.config.pooling == "cls&dist" else model.config.pooling
    config = replace(model.config, classes=len(classes), pooling=pooling, pooler=False, projection=0)
    copy = ViT(config, attend=model.attend)
    left = ("head.", "head_dist.", "pooler.", "proj.")
    kept = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(left)}
    head = {name: torch.zeros_like(tensor) for name, tensor in copy.head.state_dict(prefix="head.").items()}
    copy.load_state_dict({**kept, **head})
    copy.image_spec, copy.labels = model.image_spec, dict(enumerate(classes))
    return copy.to(model.patch_embed.weight)
