"""Write a model in a layout that transformers loads: the inverse of `load`, with the same tables."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from minivit.errors import CheckpointError, ShapeError, UsageError
from minivit.model.capabilities import Model, image_model
from minivit.model.config import CLIPConfig, SwinConfig, TextConfig, ViTConfig
from minivit.model.swin import windows_of
from minivit.model.vit import CosineHead
from minivit.weights.configs import PROBLEMS, listed, read_config
from minivit.weights.convert import MODELS, assembly_of, build, rows_for, spellings
from minivit.weights.families.base import Config, Family, Given, Kind
from minivit.weights.families.registry import FAMILIES, LAYOUTS
from minivit.weights.files import Source, find
from minivit.weights.operations import OPERATIONS
from minivit.weights.preprocessing import write_preprocessor
from minivit.weights.replacing import replacing_files
from minivit.weights.shards import SHORT_DTYPE, Shards, read_dtype, save_file


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What `convert_files` wrote."""

    model: str  # its name
    folder: Path
    dtype: torch.dtype  # of the stored tensors
    preprocessing: bool  # whether there is a preprocessor_config.json
    moved_crop: bool  # whether transformers crops images with an odd margin one pixel beside this model


def convert_files(
    id_or_path: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    revision: str | None = None,
    family: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    heads: int | None = None,
    prefix: str | None = None,
) -> Conversion:
    """Write any checkpoint that `load` reads as files of transformers, and return what was written.

    Args:
        id_or_path, revision, family, adapter, heads, prefix: as in `load`.
        folder: for the files; files of the same names in it are replaced.
        dtype: of the stored tensors; that of the checkpoint when None, float32 where it has several.

    Raises:
        UsageError: as `save`; or `folder` is a file, or holds the checkpoint itself.
        Others: as `load`.
    """
    target, given = Path(folder), Path(id_or_path)
    if target.exists() and not target.is_dir():
        raise UsageError(f"{os.fspath(folder)}: a file; DST is a folder")
    if given.exists() and target.resolve() in (given.resolve(), given.resolve().parent):
        raise UsageError(f"{os.fspath(folder)}: holds SRC itself; name another folder")
    source = find(id_or_path, revision, family, adapter=adapter, heads=heads, prefix=prefix)
    if dtype is None:
        with Shards(source) as shards:
            stored = set(shards.dtypes.values())
        dtype = next((long for long, short in SHORT_DTYPE.items() if {short} == stored), torch.float32)
    model = build(source, dtype=dtype, device="cpu", family=family)
    save(model, target)
    spec = model.image_spec
    moved = spec is not None and spec.crop is not None and spec.crop_rounding != "down"
    return Conversion(model=source.name, folder=target, dtype=dtype, preprocessing=spec is not None, moved_crop=moved)


def save(model: Model, folder: str | os.PathLike[str], *, dtype: str | torch.dtype | None = None) -> None:
    """Write config.json, preprocessor_config.json and model.safetensors in the layout of a family of transformers.

    The family is the first of LAYOUTS that has a place for every part of the model: ViT, DeiT, DINOv2, CLIP, SigLIP,
    the image tower of either, or Swin. With two towers, the files of the tokenizer are written too.

    Args:
        folder: created if it does not exist; files of the same names in it are replaced.
        dtype: of the stored tensors, as torch.bfloat16 or "bfloat16"; the model's own when None.

    A new head, `model.head = nn.Linear(width, classes)`, is saved with its classes, because `model.config` follows it.

    Raises:
        UsageError: modules that were changed so that they are no longer those of `model.config`, before a file is
            written.
        UsageError: no layout has a place for every part of the model, of its preprocessing or of its tokenizer; or the
            folder cannot be written.
        WriteError: the disk is full; the files that were there are unchanged.
    """
    if not isinstance(model, Model):
        raise UsageError(f"a minivit ViT, CLIP or Swin is written, not a {type(model).__name__}")
    dtype = None if dtype is None else read_dtype(dtype)
    state, config = dict(model.state_dict()), model.config
    _check_modules(model, state)
    if isinstance(config, ViTConfig) and config.positions == "learned_patches":
        # The layouts have a position for every token: of a token without one, it is zero.
        special = int(config.cls_token) + int(config.dist_token)
        pos_embed = state["pos_embed"]
        state["pos_embed"] = torch.cat([pos_embed.new_zeros(1, special, config.width), pos_embed], dim=1)
        config = replace(config, positions="learned")
    family, kind, given = _layout(config, model)
    # A trunk beside a head has its prefix; a tower has it as in the files of both towers.
    prefix = family.prefixes[0] if kind.head or family.section else ""
    rows = rows_for(family, kind, config)
    outside = [name for target in ("head", "head_dist", "proj") if target in rows for name in rows[target]]
    tensors: dict[str, Tensor] = {}
    for target, tensor in state.items():
        names, layout, sizes = assembly_of(spellings(rows, target)[0], tensor.shape[0])
        for name, part in zip(names, tensor.split(sizes), strict=True):
            assert name is not None, "no layout of LAYOUTS leaves tensors out"
            full = name if name.rpartition(".")[0] in outside else prefix + name
            # No layout of LAYOUTS keeps the heads as an axis.
            tensors[full] = OPERATIONS[layout].save(part, 1).detach().to(dtype=dtype)
    preprocessor = write_preprocessor(model.image_spec, family) if model.image_spec else None
    texts = _tokenizer_files(model)
    stored = next(iter(tensors.values())).dtype
    files = {"config.json": _json({**given, "dtype": str(stored).removeprefix("torch.")}), **texts}
    if preprocessor:
        files["preprocessor_config.json"] = _json(preprocessor)
    with replacing_files(folder, ["model.safetensors", *files]) as (weights, *others):
        # transformers refuses a file without this entry.
        save_file(tensors, weights, metadata={"format": "pt"})
        for path, content in zip(others, files.values(), strict=True):
            path.write_bytes(content)


def _check_modules(model: Model, state: dict[str, Tensor]) -> None:
    """Raise UsageError where the parameters of a model are not those of its config, as after modules were changed."""
    head = getattr(image_model(model), "head", None)
    if not isinstance(head, (nn.Linear, nn.Identity, CosineHead)):
        raise UsageError(
            f"the head is a {type(head).__name__}; a checkpoint holds an nn.Linear with a bias, or no head"
        )
    with torch.device("meta"):
        wanted = MODELS[type(model.config)](model.config).state_dict()
    both = [name for name in wanted if name in state and wanted[name].shape != state[name].shape]
    kinds = {
        "missing": [name for name in wanted if name not in state],
        "unexpected": [name for name in state if name not in wanted],
        "mismatched": [f"{name} is {list(state[name].shape)}, expected {list(wanted[name].shape)}" for name in both],
    }
    if any(kinds.values()):
        faults = "; ".join(f"{len(names)} {kind}: {listed(names)}" for kind, names in kinds.items() if names)
        raise UsageError(f"the modules of the model are not those of model.config, which is saved with them. {faults}")


def _layout(config: Config, model: Model) -> tuple[Family, Kind, Given]:
    """Return the first layout whose config.json, read again, is this configuration."""
    classes = 0 if isinstance(config, (CLIPConfig, TextConfig)) else config.classes
    pairs = {architecture for family in FAMILIES.values() if family.towers for architecture in family.kinds}
    wanted = _comparable(config)
    for family in (FAMILIES[name] for name in LAYOUTS):
        if family.config is not type(config):
            continue
        # Kinds that imply something before those that leave it open.
        for architecture, kind in sorted(family.kinds.items(), key=lambda item: not item[1].values):
            if bool(kind.head) is not bool(classes) or (architecture in pairs and not family.towers):
                continue
            given = write_config(config, model, family, architecture)
            # The names of the tensors say which optional parts there are.
            shapes: dict[str, tuple[int, ...]] = dict.fromkeys(model.state_dict(), ())
            shapes |= {f"{family.pooler}.weight": ()} if getattr(config, "pooler", False) else {}
            source = Source(name=family.name, revision=None, config=given, preprocessor=None, shards=())
            try:
                read, _ = read_config(source, family, shapes)
            except CheckpointError:
                continue
            if _comparable(read) == wanted:
                return family, kind, given
    raise UsageError(
        f"none of transformers' layouts {', '.join(LAYOUTS)} has a place for every part of this model: {config}"
    )


def _comparable(config: Config) -> Config:
    """Return a configuration without what the files do not hold: how images of other sizes are treated."""
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
    """Return whether transformers cuts, pads and rolls the windows in the same way at the Swin's own image size."""
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
    """Return the files of a CLIP's tokenizer, unchanged: name -> contents."""
    tokenizer = model.tokenizer if model.has_text else None
    if tokenizer is None:
        return {}
    if tokenizer.canonical:
        raise UsageError(
            f"{tokenizer.path}: does not say that punctuation and capitals are removed first, as open_clip does, so "
            "transformers would tokenize texts differently; set model.tokenizer = None to write the model without it"
        )
    beside = [tokenizer.path.parent / name for name in ("tokenizer_config.json", "special_tokens_map.json")]
    return {path.name: path.read_bytes() for path in (tokenizer.path, *beside) if path.is_file()}


def _json(value: Given) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


def write_config(config: Config, model: Model, family: Family, architecture: str) -> Given:
    """Return config.json of transformers for this model in one of LAYOUTS: the inverse of `read_config`."""
    result: Given = {"architectures": [architecture], "model_type": family.name}
    if isinstance(config, CLIPConfig):
        for name, tower in family.towers.items():
            result[str(tower.section)] = {"model_type": tower.name, **_fields(getattr(config, name), tower)}
        return result if config.score == "sigmoid" else {**result, "projection_dim": config.text.projection}
    result |= _fields(config, family)
    if not isinstance(config, TextConfig) and config.classes:
        labels = image_model(model).labels or {index: f"LABEL_{index}" for index in range(config.classes)}
        problems = {score: problem for problem, score in PROBLEMS.items()}
        result |= {"problem_type": problems[config.score]} if config.score != "softmax" else {}
        result["id2label"] = {str(index): name for index, name in labels.items()}
        result["label2id"] = {name: index for index, name in labels.items()}
    return result


def _fields(config: ViTConfig | TextConfig | SwinConfig, family: Family) -> Given:
    """Return a configuration with the keys of one family."""
    given: Given = {key: getattr(config, name) for name, (key, _) in family.fields.items()}
    if not isinstance(config, TextConfig):
        height, width = config.image_size
        given["image_size"] = height if height == width else [height, width]
    theirs = {ours: name for name, ours in reversed(list(family.activations.items()))}
    given["hidden_act"] = theirs[config.activation]
    return given | (family.write(config) if family.write else {})
