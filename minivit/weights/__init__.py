"""The only door to checkpoint files and the hub."""

from __future__ import annotations

import os
from typing import Any

import torch

from minivit.model.attention import Attend, attend_sdpa
from minivit.model.capabilities import Model
from minivit.weights import convert, report
from minivit.weights.files import BUNDLED, find
from minivit.weights.shards import read_dtype
from minivit.weights.writer import save

__all__ = ["BUNDLED", "describe", "find", "load", "save", "verify"]


def load(
    id_or_path: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    attend: Attend | None = None,
    revision: str | None = None,
    family: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    heads: int | None = None,
    prefix: str | None = None,
) -> Model:
    """Return a published or saved checkpoint as a model, with its labels and its preprocessing.

    The model_type in config.json decides its class: a `ViT`, a `Swin`, or for "clip" and "siglip", which have two
    towers, a `CLIP`. family="clip_vision_model" or "siglip_vision_model" loads their image tower alone, a ViT.

    Args:
        id_or_path: hub id ("google/vit-base-patch16-224", "timm/vit_base_patch16_224.augreg_in21k_ft_in1k"),
            "torchvision/vit_b_16", folder, weights file, or "minivit/cifar10-vit", the bundled model.
        dtype: of the weights: float32, float64, bfloat16 or float16, whatever the dtype of the file; as
            torch.bfloat16 or "bfloat16".
        device: of the weights.
        attend: the attention callable (minivit.model.attention.Attend); PyTorch's SDPA when None.
        revision: branch, tag or commit of a hub model.
        family: a name of weights.families.registry.FAMILIES, instead of the one in config.json; a weights file
            without config.json needs it: "facebook", "jax", "torchvision/vit_b_16", "timm/vit_base_patch16_224".
        adapter: folder of a LoRA adapter of PEFT, merged into the weights; one beside the weights always is.
        heads: attention heads per block, for family "facebook", whose shapes do not state them.
        prefix: what stands before the names of the model's tensors, such as "model." in files of Lightning, or
            the key of their dictionary in a training file, such as "model_ema.".

    Returns:
        The model in eval mode, with .config, .image_spec, .name and .revision; a ViT with .labels.

    Raises:
        ModelUnavailableError: no such path, not on the hub, gated, or offline and not cached.
        CheckpointError: the files are damaged, or do not make up one model.
        UsageError: an argument that is not supported.
    """
    dtype = read_dtype(dtype)
    source = find(id_or_path, revision, family, adapter=adapter, heads=heads, prefix=prefix)
    return convert.build(source, dtype=dtype, device=device, attend=attend or attend_sdpa, family=family)


def describe(
    id_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    family: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    heads: int | None = None,
    prefix: str | None = None,
) -> dict[str, Any]:
    """Return architecture, parameters, tokens, labels, preprocessing and bytes of a checkpoint, as JSON-ready facts.

    Only config.json, preprocessor_config.json and the headers of the weight files are read.

    Raises:
        As `load`.
    """
    return report.describe(find(id_or_path, revision, family, adapter=adapter, heads=heads, prefix=prefix), family)


def verify(
    id_or_path: str | os.PathLike[str],
    *,
    revision: str | None = None,
    family: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    heads: int | None = None,
    prefix: str | None = None,
) -> dict[str, Any]:
    """Return whether a checkpoint makes up one model ("good"), and its faults, as JSON-ready facts.

    Only config.json, preprocessor_config.json and the headers of the weight files are read.

    Raises:
        ModelUnavailableError, UsageError: as `load`; a faulty checkpoint is no error here.
    """
    return report.verify(find(id_or_path, revision, family, adapter=adapter, heads=heads, prefix=prefix), family)
