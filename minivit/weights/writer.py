"""Write a model in a layout that transformers loads: the tables of `load`, read backwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minivit.errors import CheckpointError, ShapeError, UsageError
from minivit.images.spec import RESAMPLES, ImageSpec
from minivit.model.capabilities import Model
from minivit.model.config import CLIPConfig, SwinConfig, TextConfig, ViTConfig
from minivit.model.swin import windows_of
from minivit.weights.convert import assembly_of, rows_for, spellings
from minivit.weights.families.configs import DERIVED, Config, read_config, read_image_spec
from minivit.weights.families.tables import FAMILIES, Kind, Table
from minivit.weights.files import Source
from minivit.weights.operations import OPERATIONS
from minivit.weights.tensorfile import save_file

# Of FAMILIES, those that are written.
LAYOUTS = (
    "vit",
    "deit",
    "dinov2",
    "dinov2_with_registers",
    "clip",
    "clip_vision_model",
    "siglip",
    "siglip_vision_model",
    "swin",
)


def save(model: Model, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write config.json, preprocessor_config.json and model.safetensors as transformers' ViT, DeiT, DINOv2, CLIP,
    SigLIP, the image tower of either, or Swin; of two towers the files of the tokenizer, too.

    The layout is the first that has a place for every part of the model.

    Args:
        folder: made when it does not exist; the files of these names in it are replaced.
        dtype: of the stored tensors; the model's own when None.

    Raises:
        UsageError: no layout has a place for every part of the model, of its preprocessing or of its tokenizer.
    """
    if not isinstance(model, Model):
        raise UsageError(f"a minivit ViT, CLIP or Swin is written, not a {type(model).__name__}")
    state, config = dict(model.state_dict()), model.config
    if isinstance(config, ViTConfig) and config.positions == "learned_patches":
        # A token without a position row is one whose row is zero, which is how the layouts write it.
        special = int(config.cls_token) + int(config.dist_token)
        pos_embed = state["pos_embed"]
        state["pos_embed"] = torch.cat([pos_embed.new_zeros(1, special, config.width), pos_embed], dim=1)
        config = replace(config, positions="learned")
    table, kind, given = _layout(config, model)
    # The trunk under its own name beside a head; a tower as in the files of both.
    prefix = table.prefixes[0] if kind.head or table.section else ""
    rows = rows_for(table, kind, config)
    outside = [name for target in ("head", "head_dist", "proj") if target in rows for name in rows[target]]
    tensors: dict[str, Tensor] = {}
    for target, tensor in state.items():
        names, layout, sizes = assembly_of(spellings(rows, target)[0], tensor.shape[0])
        for name, part in zip(names, tensor.split(sizes), strict=True):
            assert name is not None, "no layout that is written leaves tensors out"
            full = name if name.rpartition(".")[0] in outside else prefix + name
            # No layout that is written keeps the heads as an axis.
            tensors[full] = OPERATIONS[layout].save(part, 1).detach().to(dtype=dtype)
    preprocessor = preprocessor_json(model.image_spec, table) if model.image_spec else None
    texts = _tokenizer_files(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # transformers refuses a file without this entry.
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    stored = next(iter(tensors.values())).dtype
    _write_json(folder / "config.json", {**given, "dtype": str(stored).removeprefix("torch.")})
    if preprocessor:
        _write_json(folder / "preprocessor_config.json", preprocessor)
    for name, content in texts.items():
        (folder / name).write_bytes(content)


def _layout(config: ViTConfig | CLIPConfig | SwinConfig, model: Model) -> tuple[Table, Kind, dict]:
    """The first layout whose config.json, read back, is this configuration."""
    classes = 0 if isinstance(config, CLIPConfig) else config.classes
    pairs = {architecture for table in FAMILIES.values() if table.towers for architecture in table.kinds}
    wanted = _comparable(config)
    for name in LAYOUTS:
        table = FAMILIES[name]
        if table.config is not type(config):
            continue
        # Kinds that imply something before those that leave it open.
        for architecture, kind in sorted(table.kinds.items(), key=lambda item: not item[1].values):
            if bool(kind.head) is not bool(classes) or (architecture in pairs and not table.towers):
                continue
            given = config_json(config, model, name, architecture)
            # What is optional by presence is told by the tensors that will be there.
            shapes: dict[str, tuple[int, ...]] = dict.fromkeys(model.state_dict(), ())
            shapes |= {f"{table.pooler}.weight": ()} if getattr(config, "pooler", False) else {}
            source = Source(name=name, revision=None, config=given, preprocessor=None, shards=())
            try:
                read, _ = read_config(source, table, shapes)
            except CheckpointError:
                continue
            if _comparable(read) == wanted:
                return table, kind, given
    raise UsageError(
        f"none of transformers' layouts {', '.join(LAYOUTS)} has a place for every part of this model: {config}"
    )


def _comparable(config: Config) -> Config:
    """A configuration without what is no part of the files: how pictures of other sizes would be read."""
    if isinstance(config, CLIPConfig):
        image, text = _comparable(config.image), config.text
        assert isinstance(image, ViTConfig)
        # Only the pooling "end" asks for the id.
        return replace(config, image=image, text=text if text.pooling == "end" else replace(text, end=0))
    if isinstance(config, ViTConfig):
        rest = any(side % config.patch_size for side in config.image_size)
        return replace(config, position_resampling="hf", any_size=False, drop_rest=rest)
    if isinstance(config, SwinConfig):
        return replace(config, windowing="hf" if _windows_as_transformers(config) else config.windowing, any_size=False)
    return config


def _windows_as_transformers(config: SwinConfig) -> bool:
    """Whether the windows of a Swin's own picture size are cut, padded and rolled as transformers does."""
    theirs = replace(config, windowing="hf")
    for stage in range(len(config.depths)):
        grid = config.grid(stage=stage)
        try:
            ours, other = (windows_of(each, stage, grid, shifted=True) for each in (config, theirs))
        except ShapeError:
            return False
        if ours.shift != other.shift or (ours.padded != grid and ours.pad_first != other.pad_first):
            return False
    return True


def _tokenizer_files(model: Model) -> dict[str, bytes]:
    """The files of a CLIP's tokenizer, as they were loaded."""
    tokenizer = model.tokenizer if model.has_text else None
    if tokenizer is None:
        return {}
    if tokenizer.bare:
        raise UsageError(
            f"{tokenizer.path}: does not say that punctuation and capitals are taken away first, as open_clip does, so "
            "transformers would read texts otherwise; set model.tokenizer = None to write the model without it"
        )
    beside = tokenizer.path.parent / "tokenizer_config.json"
    return {path.name: path.read_bytes() for path in (tokenizer.path, beside) if path.is_file()}


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def config_json(
    config: ViTConfig | CLIPConfig | SwinConfig, model: Model, family: str, architecture: str
) -> dict[str, Any]:
    """config.json of transformers for this model in one of LAYOUTS."""
    table = FAMILIES[family]
    result: dict[str, Any] = {"architectures": [architecture], "model_type": family}
    if isinstance(config, CLIPConfig):
        for name, tower in table.towers.items():
            given = _fields(getattr(config, name), tower)
            result[str(tower.section)] = {"model_type": f"{family}_{PARTS[name]}_model", **given}
        return result if config.score == "sigmoid" else {**result, "projection_dim": config.text.projection}
    result |= _fields(config, table)
    if config.classes:
        assert not model.has_text, "its classes are texts"
        labels = model.labels or {index: f"LABEL_{index}" for index in range(config.classes)}
        result["id2label"] = {str(index): name for index, name in labels.items()}
        result["label2id"] = {name: index for index, name in labels.items()}
    return result


PARTS = {"image": "vision", "text": "text"}  # what transformers calls the towers


def _fields(config: ViTConfig | TextConfig | SwinConfig, table: Table) -> dict[str, Any]:
    """A configuration in the words of one table, the inverse of `read_config`."""
    given: dict[str, Any] = {key: getattr(config, name) for name, (key, _) in table.fields.items()}
    if not isinstance(config, TextConfig):
        height, width = config.image_size
        given["image_size"] = height if height == width else [height, width]
    theirs = {ours: name for name, ours in reversed(table.activations.items())}
    given["hidden_act"] = theirs[config.activation]
    return given | (INVERSES[table.derived](config) if table.derived in INVERSES else {})


def _dinov2(config: ViTConfig) -> dict[str, Any]:
    swiglu = config.mlp == "swiglu"
    return {"use_swiglu_ffn": swiglu, "mlp_ratio": _dinov2_ratio(config), "use_mask_token": False}


def _clip_text(config: TextConfig) -> dict[str, Any]:
    return {"eos_token_id": 2} if config.pooling == "argmax" else {}


def _siglip_text(config: TextConfig) -> dict[str, Any]:
    return {"projection_size": config.projection}


def _swin(config: SwinConfig) -> dict[str, Any]:
    return {"depths": list(config.depths), "num_heads": list(config.heads), "window_size": config.window[0]}


# Of configs.DERIVED, by the same names.
INVERSES: dict[str | None, Callable[[Any], dict[str, Any]]] = {
    "dinov2": _dinov2,
    "clip_text": _clip_text,
    "siglip_text": _siglip_text,
    "swin": _swin,
}


def _dinov2_ratio(config: ViTConfig) -> int:
    """The mlp_ratio, for transformers a whole number, that makes this MLP; 0, which makes none, where none does."""
    for ratio in range(1, 17):
        sizes = {"hidden_size": config.width, "mlp_ratio": ratio, "use_swiglu_ffn": config.mlp == "swiglu"}
        if DERIVED["dinov2"](sizes, {})["mlp_width"] == config.mlp_width:
            return ratio
    return 0


def preprocessor_json(spec: ImageSpec, table: Table) -> dict:
    """preprocessor_config.json of the first of transformers' image processors that does what this spec says.

    Of a tower the family's own comes first: what joins it to a tokenizer in transformers asks for that.

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
    for kind in (table.processor, *kinds) if table.towers or table.section else kinds:
        result = {"image_processor_type": kind, **values}
        if read_image_spec(result, kind) == replace(spec, crop_rounding="down"):
            return result
    raise UsageError(f"none of transformers' processors does: {spec}")
