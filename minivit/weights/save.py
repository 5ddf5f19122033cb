"""Write a ViT in the layout of its family, so that transformers loads it: the tables of `load`, read backwards."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from minivit.config import RESAMPLES, ImageSpec
from minivit.errors import UsageError
from minivit.model import ViT
from minivit.weights.convert import source_names
from minivit.weights.tables import HF_VIT


def save(model: ViT, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write config.json, preprocessor_config.json and model.safetensors in the HF ViT layout.

    Args:
        folder: made when it does not exist; the three files in it are replaced.
        dtype: of the stored tensors; the model's own when None.

    Raises:
        UsageError: the model has a part that transformers' ViT has no place for.
    """
    from safetensors.torch import save_file

    if model.config.pooling != "cls" or (model.config.pooler and model.config.classes):
        raise UsageError("transformers' ViT has no place for mean pooling, nor for a pooler before a head")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    prefix = HF_VIT.prefix if model.config.classes else ""
    tensors: dict[str, Tensor] = {}
    for target, tensor in model.state_dict().items():
        parts = source_names(HF_VIT, target)[0]
        for name, part in zip(parts, tensor.chunk(len(parts)), strict=True):
            full = name if name.startswith(HF_VIT.head) else prefix + name
            tensors[full] = part.detach().to("cpu", dtype).clone()
    # transformers refuses a file without this entry.
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    stored = next(iter(tensors.values())).dtype
    _write_json(folder / "config.json", config_json(model, stored))
    if model.image_spec:
        _write_json(folder / "preprocessor_config.json", preprocessor_json(model.image_spec))


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def config_json(model: ViT, dtype: torch.dtype) -> dict:
    """config.json of transformers' ViT for this model."""
    config = model.config
    given = {key: getattr(config, name) for name, (key, _) in HF_VIT.fields.items()}
    height, width = config.image_size
    given["image_size"] = height if height == width else [height, width]
    given["hidden_act"] = next(theirs for theirs, ours in HF_VIT.activations.items() if ours == config.activation)
    architecture = next(name for name, head in HF_VIT.architectures.items() if head is bool(config.classes))
    result = {"architectures": [architecture], "model_type": "vit", **given, "dtype": str(dtype).removeprefix("torch.")}
    if config.classes:
        labels = model.labels or {index: f"LABEL_{index}" for index in range(config.classes)}
        result["id2label"] = {str(index): name for index, name in labels.items()}
        result["label2id"] = {name: index for index, name in labels.items()}
    return result


def preprocessor_json(spec: ImageSpec) -> dict:
    """preprocessor_config.json of transformers' ViTImageProcessor for this spec.

    Raises:
        UsageError: the spec has a step this processor has not.
    """
    if spec.crop or isinstance(spec.resize, int):
        raise UsageError(f"transformers' ViT processor only resizes; it cannot do: {spec}")
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": spec.resize is not None,
        **({"size": {"height": spec.resize[0], "width": spec.resize[1]}} if spec.resize else {}),
        "resample": RESAMPLES.index(spec.resample),
        "do_rescale": spec.rescale != 1,
        "rescale_factor": spec.rescale,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    }
