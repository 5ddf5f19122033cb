"""Write a ViT in a layout that transformers loads: the tables of `load`, read backwards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from minivit.config import RESAMPLES, ImageSpec, ViTConfig
from minivit.errors import CheckpointError, UsageError
from minivit.model import ViT
from minivit.tensorfile import save_file
from minivit.weights.configs import DERIVED, read_config, read_image_spec
from minivit.weights.convert import assembly_of, rows_for, spellings
from minivit.weights.files import Source
from minivit.weights.operations import OPERATIONS
from minivit.weights.tables import FAMILIES, Kind, Table

LAYOUTS = ("vit", "deit", "dinov2", "dinov2_with_registers")  # of FAMILIES, those that are written


def save(model: ViT, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write config.json, preprocessor_config.json and model.safetensors as transformers' ViT, DeiT or DINOv2.

    The layout is the first that has a place for every part of the model.

    Args:
        folder: made when it does not exist; the three files in it are replaced.
        dtype: of the stored tensors; the model's own when None.

    Raises:
        UsageError: no layout has a place for every part of the model, or of its preprocessing.
    """
    if not isinstance(model, ViT):
        kind = type(model).__name__
        raise UsageError(
            f"none of transformers' layouts {', '.join(LAYOUTS)}, which are written, has a place for a {kind}"
        )
    state = dict(model.state_dict())
    config = model.config
    if config.positions == "learned_patches":
        # A token without a position row is one whose row is zero, which is how the layouts write it.
        special = int(config.cls_token) + int(config.dist_token)
        pos_embed = state["pos_embed"]
        state["pos_embed"] = torch.cat([pos_embed.new_zeros(1, special, config.width), pos_embed], dim=1)
        config = replace(config, positions="learned")
    table, kind, given = _layout(config, model)
    prefix = table.prefixes[0] if config.classes else ""
    rows = rows_for(table, kind, config)
    heads = [name for target in ("head", "head_dist") if target in rows for name in rows[target]]
    tensors: dict[str, Tensor] = {}
    for target, tensor in state.items():
        names, layout, sizes = assembly_of(spellings(rows, target)[0], tensor.shape[0])
        for name, part in zip(names, tensor.split(sizes), strict=True):
            assert name is not None, "no layout that is written leaves tensors out"
            full = name if name.rpartition(".")[0] in heads else prefix + name
            tensors[full] = OPERATIONS[layout].save(part, config.heads).detach().to(dtype=dtype)
    preprocessor = preprocessor_json(model.image_spec) if model.image_spec else None
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # transformers refuses a file without this entry.
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    stored = next(iter(tensors.values())).dtype
    _write_json(folder / "config.json", {**given, "dtype": str(stored).removeprefix("torch.")})
    if preprocessor:
        _write_json(folder / "preprocessor_config.json", preprocessor)


def _layout(config: ViTConfig, model: ViT) -> tuple[Table, Kind, dict]:
    """The first layout whose config.json, read back, is this configuration."""
    # How positions would be stretched to other sizes is no part of the files.
    wanted = replace(config, position_resampling="hf", any_size=False)
    for name in LAYOUTS:
        table = FAMILIES[name]
        for architecture, kind in table.kinds.items():
            if bool(kind.head) is not bool(config.classes):
                continue
            given = config_json(config, model, name, architecture)
            # What is optional by presence is told by the tensors that will be there.
            shapes: dict[str, tuple[int, ...]] = dict.fromkeys(model.state_dict(), ())
            shapes |= {f"{table.pooler}.weight": ()} if config.pooler else {}
            source = Source(name=name, revision=None, config=given, preprocessor=None, shards=())
            try:
                read, _ = read_config(source, table, shapes)
            except CheckpointError:
                continue
            assert isinstance(read, ViTConfig), "LAYOUTS are of plain ViTs"
            if replace(read, position_resampling="hf", any_size=False) == wanted:
                return table, kind, given
    raise UsageError(
        f"none of transformers' layouts {', '.join(LAYOUTS)} has a place for every part of this model: {config}"
    )


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def config_json(config: ViTConfig, model: ViT, family: str, architecture: str) -> dict:
    """config.json of transformers for this model in one of LAYOUTS."""
    table = FAMILIES[family]
    given = {key: getattr(config, name) for name, (key, _) in table.fields.items()}
    height, width = config.image_size
    given["image_size"] = height if height == width else [height, width]
    theirs = {ours: name for name, ours in reversed(table.activations.items())}
    given["hidden_act"] = theirs[config.activation]
    if table.derived == "dinov2":
        given["use_swiglu_ffn"] = config.mlp == "swiglu"
        given["mlp_ratio"] = _dinov2_ratio(config)
        given["use_mask_token"] = False
    result = {"architectures": [architecture], "model_type": family, **given}
    if config.classes:
        labels = model.labels or {index: f"LABEL_{index}" for index in range(config.classes)}
        result["id2label"] = {str(index): name for index, name in labels.items()}
        result["label2id"] = {name: index for index, name in labels.items()}
    return result


def _dinov2_ratio(config: ViTConfig) -> int:
    """The mlp_ratio, for transformers a whole number, that makes this MLP; 0, which makes none, where none does."""
    for ratio in range(1, 17):
        sizes = {"hidden_size": config.width, "mlp_ratio": ratio, "use_swiglu_ffn": config.mlp == "swiglu"}
        if DERIVED["dinov2"](sizes, {})["mlp_width"] == config.mlp_width:
            return ratio
    return 0


def preprocessor_json(spec: ImageSpec) -> dict:
    """preprocessor_config.json of the first of transformers' image processors that does what this spec says.

    Raises:
        UsageError: the spec has a step none of them has.
    """
    size: dict[str, int] | None = None
    if isinstance(spec.resize, int):
        size = {"shortest_edge": spec.resize}
    elif spec.resize:
        size = {"height": spec.resize[0], "width": spec.resize[1]}
    values = {
        "do_resize": spec.resize is not None,
        **({"size": size} if size else {}),
        "resample": RESAMPLES.index(spec.resample),
        "do_center_crop": spec.crop is not None,
        **({"crop_size": {"height": spec.crop[0], "width": spec.crop[1]}} if spec.crop else {}),
        "do_rescale": spec.rescale != 1,
        "rescale_factor": spec.rescale,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    }
    # transformers' ViTImageProcessor crops too, when told, but its class documents no crop.
    kinds = ("BitImageProcessor",) if spec.crop else ("ViTImageProcessor", "DINOv3ViTImageProcessor")
    for kind in kinds:
        result = {"image_processor_type": kind, **values}
        if read_image_spec(result, kind) == replace(spec, crop_rounding="down"):
            return result
    raise UsageError(f"none of transformers' processors does: {spec}")
