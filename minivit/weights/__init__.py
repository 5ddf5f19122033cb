"""The only door to checkpoint files and the hub."""

from __future__ import annotations

import os
from typing import Any

import torch

from minivit.model.attention import Attend, attend_sdpa
from minivit.model.capabilities import Model
from minivit.weights import convert
from minivit.weights.files import BUNDLED, find
from minivit.weights.writer import save

__all__ = ["BUNDLED", "describe", "find", "load", "save", "verify"]


def load(
    id_or_path: str | os.PathLike[str],
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    attend: Attend | None = None,
    revision: str | None = None,
    family: str | None = None,
) -> Model:
    """A published or saved checkpoint as a model, with its labels and its preprocessing.

    What it is says config.json's model_type: a `ViT`, or of "clip" and "siglip", which have two towers, a `CLIP`.
    With family="clip_vision_model" or "siglip_vision_model" their image tower alone, a ViT; the texts are not read.

    Args:
        id_or_path: hub id ("google/vit-base-patch16-224", "timm/vit_base_patch16_224.augreg_in21k_ft_in1k"),
            "torchvision/vit_b_16", folder, weights file, or "minivit/cifar10-vit", the model in the box.
        dtype: of the weights: float32, float64, bfloat16 or float16, whatever the file holds.
        device: where they are put.
        attend: the attention callable (minivit.model.attention.Attend); PyTorch's SDPA when None.
        revision: branch, tag or commit of a hub model.
        family: a name of weights.tables.FAMILIES, instead of the one config.json implies; a weights file
            without config.json needs it: "facebook", "jax", "torchvision/vit_b_16", "timm/vit_base_patch16_224".

    Returns:
        The model in eval mode, with .config, .image_spec, .name and .revision; a ViT with .labels.

    Raises:
        ModelUnavailableError: no such path, not on the hub, gated, or offline and not cached.
        CheckpointError: the files are damaged, or do not make up one model; nothing is guessed.
        UsageError: an argument that cannot be honoured.
    """
    source = find(id_or_path, revision, family)
    return convert.build(source, dtype=dtype, device=device, attend=attend or attend_sdpa, family=family)


def describe(
    id_or_path: str | os.PathLike[str], *, revision: str | None = None, family: str | None = None
) -> dict[str, Any]:
    """Architecture, parameters, tokens, labels, preprocessing and bytes of a checkpoint, as JSON-ready facts.

    Only config.json, preprocessor_config.json and the headers of the weight files are read.

    Raises:
        As `load`.
    """
    return convert.describe(find(id_or_path, revision, family), family)


def verify(
    id_or_path: str | os.PathLike[str], *, revision: str | None = None, family: str | None = None
) -> dict[str, Any]:
    """Whether a checkpoint makes up one model, and what stands against it, as JSON-ready facts under "good" and others.

    Only config.json, preprocessor_config.json and the headers of the weight files are read.

    Raises:
        ModelUnavailableError, UsageError: as `load`; a checkpoint that falls short is no error here.
    """
    return convert.verify(find(id_or_path, revision, family), family)
