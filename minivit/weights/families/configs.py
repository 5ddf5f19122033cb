"""config.json and preprocessor_config.json, in every dialect, as a ViTConfig, labels and an ImageSpec."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from minivit.errors import CheckpointError, UsageError
from minivit.images.spec import RESAMPLES, ImageSpec
from minivit.model.config import CLIPConfig, SwinConfig, TextConfig, ViTConfig
from minivit.weights.families.architectures import (
    TIMM_ARCHITECTURES,
    TIMM_DEFAULTS,
    TIMM_SWIN_DEFAULTS,
    TIMM_SWINS,
    TIMM_TRAINING,
)
from minivit.weights.families.tables import PROCESSORS, Kind, Table
from minivit.weights.files import Source, imagenet_labels

Shapes = Mapping[str, tuple[int, ...]]  # source name without prefix -> shape
Config = ViTConfig | TextConfig | CLIPConfig | SwinConfig


def read_config(source: Source, table: Table, shapes: Shapes) -> tuple[Config, Kind]:
    """config.json as the configuration of its table; `shapes` tells which optional parts the file has.

    Raises:
        CheckpointError: a value this model cannot honour.
    """
    if table.towers:
        kind = _kind(source, table, shapes)
        towers = {name: read_config(source, tower, shapes)[0] for name, tower in table.towers.items()}
        try:
            return table.config(**table.constants, **towers), kind
        except UsageError as error:
            raise CheckpointError(f"{source.name}: config.json makes no pair of towers: {error}") from None
    given = _section(source.config, table)

    def refuse(key: str, why: str) -> CheckpointError:
        return CheckpointError(f"{source.name}: config.json has {key} = {given.get(key)!r}; {why}")

    for key, only in table.fixed.items():
        if given.get(key, only) != only:
            raise refuse(key, f"only {only!r} is known")
    values: dict[str, Any] = {}
    for name, (key, default) in table.fields.items():
        value = given.get(key, default)
        if name in ("image_size", "patch_size"):
            sides = tuple(value) if isinstance(value, list) else (value, value)
            if len(sides) != 2 or not all(_is_like(side, 1) for side in sides):
                raise refuse(key, "expected pixels, one number or height and width")
            value = sides
        elif not _is_like(value, default):
            raise refuse(key, f"expected a value like {json.dumps(default)}")
        values[name] = value
    if "patch_size" in values:
        height, values["patch_size"] = values["patch_size"]
        if height != values["patch_size"]:
            raise refuse(table.fields["patch_size"][0], "patches must be square")
    if "activation" in values:
        if values["activation"] not in table.activations:
            raise refuse(table.fields["activation"][0], f"known are {', '.join(table.activations)}")
        values["activation"] = table.activations[values["activation"]]
    if values.get("depth", 0) > len(shapes):
        raise refuse(table.fields["depth"][0], f"the weights have only {len(shapes)} tensors")
    kind = _kind(source, table, shapes)
    try:
        derived = DERIVED[table.derived](given, shapes) if table.derived else {}
        values = {**table.constants, **values, **derived, **kind.values}
        if table.config in (ViTConfig, SwinConfig):
            values.setdefault("classes", _classes(given, kind, shapes) if kind.head else 0)
        if table.config is ViTConfig:
            # A pooler beside a head is not used by the reference either; without a head it is the output.
            values.setdefault("pooler", not values["classes"] and _has(shapes, table.pooler))
        return table.config(**values), kind
    except CheckpointError:
        raise
    except (UsageError, TypeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{source.name}: config.json makes no {table.makes}: {error}") from None


def _section(given: dict, table: Table) -> dict:
    """What config.json says of one tower, where it describes two; else all of it."""
    if not table.section:
        return given
    # Old files say it a second time under another name, and that is what counts (transformers' CLIPConfig).
    section = given.get(f"{table.section}_dict") or given.get(table.section)
    if not isinstance(section, dict):
        return given
    # The size of the shared space stands beside both towers, nearly everything else inside each.
    shared = ("projection_dim", "architectures", "embed_dim", "quick_gelu")
    return {**section, **{key: given[key] for key in shared if key in given}}


def _is_like(value: object, default: object) -> bool:
    """Whether a value of config.json is of the default's type; an int may stand for a float, a bool for nothing."""
    if isinstance(default, float):
        return _is_number(value)
    return type(value) is type(default)


def _has(shapes: Shapes, module: str | None) -> bool:
    """Whether any tensor of this module is in the file."""
    return module is not None and any(name.startswith((f"{module}.", f"{module}/")) for name in shapes)


def _kind(source: Source, table: Table, shapes: Shapes) -> Kind:
    """What stands behind the backbone: by config.json's architectures, else by the head that is in the file."""
    names = source.config.get("architectures") or [None]
    name = names[0] if isinstance(names, list) else names
    if name is None:
        return next((kind for kind in table.kinds.values() if _has(shapes, kind.head)), list(table.kinds.values())[-1])
    if not isinstance(names, list) or name not in tuple(table.kinds):
        known = ", ".join(table.kinds)
        raise CheckpointError(f"{source.name}: config.json has architectures = {names!r}; known are {known}")
    return table.kinds[name]


def _classes(given: dict, kind: Kind, shapes: Shapes) -> int:
    """How many outputs the head has: what config.json says, else what the file holds."""
    if isinstance(given.get("id2label"), dict):
        return len(given["id2label"])
    if isinstance(given.get("num_labels"), int):
        return given["num_labels"]
    return shapes.get(f"{kind.head}.weight", (0,))[0]


def _dinov2(given: dict, shapes: Shapes) -> dict[str, Any]:
    """The MLP of DINOv2 by its ratio; its SwiGLU keeps two thirds, rounded up to a multiple of 8."""
    width = int(given.get("hidden_size", 768) * given.get("mlp_ratio", 4))
    if not given.get("use_swiglu_ffn", False):
        return {"mlp_width": width}
    # transformers ignores hidden_act here, so that the giant's "gelu" is no mistake of ours.
    return {"mlp": "swiglu", "mlp_width": (int(width * 2 / 3) + 7) // 8 * 8, "activation": "silu"}


def _dinov3(given: dict, shapes: Shapes) -> dict[str, Any]:
    biases = [given.get(key, True) for key in ("query_bias", "value_bias")]
    if len(set(biases)) != 1:
        raise ValueError(f"query_bias and value_bias are {biases}; they must be equal")
    return {"mlp": "swiglu" if given.get("use_gated_mlp", False) else "plain"}


def _clip_text(given: dict, shapes: Shapes) -> dict[str, Any]:
    """Old files call the token that ends a text 2, and mean the greatest id (see TextTower.pool)."""
    return {"pooling": "argmax" if given.get("eos_token_id", 49407) == 2 else "end"}


def _siglip_text(given: dict, shapes: Shapes) -> dict[str, Any]:
    size = given.get("projection_size")
    return {"projection": given.get("hidden_size", 768) if size is None else size}


def _timm(given: dict, shapes: Shapes) -> dict[str, Any]:
    """timm's `architecture` with its `model_args` and `pretrained_cfg`, in the vocabulary of VisionTransformer."""
    name = given.get("architecture")
    if name not in TIMM_ARCHITECTURES:
        near = [known for known in TIMM_ARCHITECTURES if str(name).split("_")[0] == known.split("_")[0]]
        raise ValueError(f"architecture {name!r} is not among the known, such as {', '.join(near[:6] or ['deit_*'])}")
    pretrained, overrides = given.get("pretrained_cfg") or {}, given.get("model_args") or {}
    args = {**TIMM_DEFAULTS, **TIMM_ARCHITECTURES[name]}
    if "input_size" in pretrained:
        args["in_chans"], *args["img_size"] = pretrained["input_size"]
    for key in ("num_classes", "global_pool"):
        if key in given:
            args[key] = given[key]
    args.update({key: value for key, value in overrides.items() if key not in TIMM_TRAINING})
    unknown = {key: value for key, value in args.items() if key not in TIMM_DEFAULTS and value}
    if unknown or args["act_layer"] not in _TIMM_ACTIVATIONS or args["global_pool"] not in _TIMM_POOLINGS:
        shown = unknown or {key: args[key] for key in ("act_layer", "global_pool")}
        raise ValueError(f"there is no switch for timm's {', '.join(f'{k}={v!r}' for k, v in shown.items())}")
    classes = args["num_classes"]
    size = (args["img_size"],) * 2 if isinstance(args["img_size"], int) else tuple(args["img_size"])
    hidden = int(args["embed_dim"] * args["mlp_ratio"])
    swiglu = args["mlp_layer"] == "swiglu_packed"
    averaged = args["global_pool"] == "avg"
    positions = "learned_patches" if args["no_embed_class"] else "learned_all" if args["reg_tokens"] else "learned"
    return {
        "image_size": size,
        "patch_size": args["patch_size"],
        "drop_rest": any(side % args["patch_size"] for side in size),  # of 384 pixels 378, in patches of 14
        "channels": args["in_chans"],
        "width": args["embed_dim"],
        "depth": args["depth"],
        "heads": args["num_heads"],
        "mlp": "swiglu" if swiglu else "plain",
        "mlp_width": hidden // 2 if swiglu else hidden,
        "classes": shapes.get("head.weight", (0,))[0] if classes is None else classes,
        "cls_token": args["class_token"],
        "dist_token": args["distilled"],
        "registers": args["reg_tokens"],
        "positions": positions,
        "any_size": args["dynamic_img_size"],
        "patch_bias": not args["pre_norm"],
        "eps": args["eps"],
        "activation": _TIMM_ACTIVATIONS[args["act_layer"]],
        "qkv_bias": args["qkv_bias"],
        "layer_scale": args["init_values"] is not None,
        "norm_pre": args["pre_norm"],
        "norm": "pooled" if (averaged if args["fc_norm"] is None else args["fc_norm"]) else "tokens",
        "pooling": "cls&dist" if args["distilled"] else _TIMM_POOLINGS[args["global_pool"]],
    }


def _swin(given: dict, shapes: Shapes) -> dict[str, Any]:
    """The stages of a Swin, in the words of transformers' SwinConfig."""
    depths, heads = given.get("depths", [2, 2, 6, 2]), given.get("num_heads", [3, 6, 12, 24])
    window = given.get("window_size", 7)
    for name, value in (("depths", depths), ("num_heads", heads)):
        if not isinstance(value, list) or not all(type(number) is int for number in value):
            raise ValueError(f"{name} is {value!r}; expected a list of whole numbers")
    if type(window) is not int:
        raise ValueError(f"window_size is {window!r}; expected a whole number")
    if sum(depths) > len(shapes):
        raise ValueError(f"depths is {depths}; the weights have only {len(shapes)} tensors")
    return {"depths": tuple(depths), "heads": tuple(heads), "window": (window,) * len(depths)}


def _timm_swin(given: dict, shapes: Shapes) -> dict[str, Any]:
    """timm's `architecture` with its `model_args` and `pretrained_cfg`, in the vocabulary of SwinTransformer."""
    pretrained, overrides = given.get("pretrained_cfg") or {}, given.get("model_args") or {}
    args = {**TIMM_SWIN_DEFAULTS, **TIMM_SWINS[given["architecture"]]}
    if "input_size" in pretrained:
        args["in_chans"], *args["img_size"] = pretrained["input_size"]
    args.update({key: given[key] for key in ("num_classes", "global_pool") if key in given})
    args.update({key: value for key, value in overrides.items() if key not in TIMM_TRAINING})
    unknown = {key: value for key, value in args.items() if key not in TIMM_SWIN_DEFAULTS and value}
    if args["global_pool"] != "avg" or unknown:
        shown = unknown or {"global_pool": args["global_pool"]}
        raise ValueError(f"there is no switch for timm's {', '.join(f'{k}={v!r}' for k, v in shown.items())}")
    size, window, depths = args["img_size"], args["window_size"], tuple(args["depths"])
    classes = args["num_classes"]
    if sum(depths) > len(shapes):
        raise ValueError(f"depths is {depths}; the weights have only {len(shapes)} tensors")
    return {
        "image_size": (size, size) if isinstance(size, int) else tuple(size),
        "patch_size": args["patch_size"],
        "channels": args["in_chans"],
        "width": args["embed_dim"],
        "depths": depths,
        "heads": tuple(args["num_heads"]),
        "window": (window,) * len(depths) if isinstance(window, int) else tuple(window),
        "mlp_ratio": args["mlp_ratio"],
        "qkv_bias": args["qkv_bias"],
        "any_size": args["dynamic_img_size"],
        "classes": shapes.get("head.fc.weight", (0,))[0] if classes is None else classes,
    }


# What of open_clip's CLIPVisionCfg and CLIPTextCfg is read, or changes nothing at inference.
_OPEN_CLIP_KEYS = frozenset(
    {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio", "context_length", "vocab_size", "heads"}
    | {"norm_kwargs", "act_kwargs", "pool_type", "no_causal_mask", "proj_bias", "embed_dim", "quick_gelu"}
    | {"timm_model_name", "timm_model_pretrained", "timm_pool", "timm_proj", "hf_tokenizer_name", "tokenizer_kwargs"}
    | {"patch_dropout", "timm_drop", "timm_drop_path"}
)


def _open_clip_block(given: dict, width: int, heads: int) -> dict[str, Any]:
    """What either tower of open_clip says of its blocks."""
    unknown = {key: value for key, value in given.items() if key not in _OPEN_CLIP_KEYS and value}
    tanh = (given.get("act_kwargs") or {}).get("approximate") == "tanh"
    if unknown:
        raise ValueError(f"there is no switch for open_clip's {', '.join(f'{k}={v!r}' for k, v in unknown.items())}")
    return {
        "width": width,
        "depth": given.get("layers", 12),
        "heads": heads,
        "mlp_width": int(width * given.get("mlp_ratio", 4.0)),
        "eps": (given.get("norm_kwargs") or {}).get("eps", 1e-5),
        "activation": "quick_gelu" if given.get("quick_gelu") else "gelu_tanh" if tanh else "gelu",
    }


def _open_clip_image(given: dict, shapes: Shapes) -> dict[str, Any]:
    size, width = given.get("image_size", 224), given.get("width", 768)
    return {
        **_open_clip_block(given, width, width // given.get("head_width", 64)),
        "image_size": (size, size) if isinstance(size, int) else tuple(size),
        "patch_size": given.get("patch_size", 16),
        "projection": given["embed_dim"],
    }


def _open_clip_trunk(given: dict, shapes: Shapes) -> dict[str, Any]:
    """An image tower of timm: its name, and its answer as it comes out of its pooling."""
    if (given.get("timm_pool"), given.get("timm_proj")) != ("map", "none"):
        raise ValueError("only timm_pool 'map' with timm_proj 'none' is known")
    size = given.get("image_size", 224)
    named = {"architecture": given.get("timm_model_name"), "model_args": {"img_size": size}, "num_classes": 0}
    return _timm(named, shapes)


def _open_clip_text(given: dict, shapes: Shapes) -> dict[str, Any]:
    pooling = given.get("pool_type", "argmax")
    if pooling not in ("argmax", "last"):
        raise ValueError(f"pool_type is {pooling!r}; known are argmax and last")
    return {
        **_open_clip_block(given, given.get("width", 512), given.get("heads", 8)),
        "vocabulary": given.get("vocab_size", 49408),
        "context": given.get("context_length", 77),
        "causal": not given.get("no_causal_mask", False),
        "pooling": pooling,
        "projection": given["embed_dim"],
        "projection_bias": given.get("proj_bias", False),
    }


_TIMM_ACTIVATIONS = {None: "gelu", "gelu": "gelu", "gelu_tanh": "gelu_tanh", "quick_gelu": "quick_gelu", "silu": "silu"}
_TIMM_POOLINGS = {"token": "cls", "avg": "mean", "map": "map"}


def _facebook(given: dict, shapes: Shapes) -> dict[str, Any]:
    """Everything from the shapes of an original DINO or DINOv2 file: all of them have heads of 64 and square grids."""
    width, channels, patch, _ = shapes["patch_embed.proj.weight"]
    side = round((shapes["pos_embed"][1] - 1) ** 0.5)
    swiglu = any(".mlp.w12." in name for name in shapes)
    registers = shapes.get("register_tokens", (1, 0))[1]
    return {
        "image_size": (side * patch, side * patch),
        "patch_size": patch,
        "channels": channels,
        "width": width,
        "depth": _depth(shapes, r"blocks\.(\d+)\."),
        "heads": width // 64,
        "mlp": "swiglu" if swiglu else "plain",
        "mlp_width": shapes["blocks.0.mlp.w3.weight" if swiglu else "blocks.0.mlp.fc1.weight"][int(swiglu)],
        "activation": "silu" if swiglu else "gelu",
        "layer_scale": any(name.endswith(".ls1.gamma") for name in shapes),
        "registers": registers,
        # The hub entry points of dinov2 ask for antialiasing without offset where there are registers.
        "position_resampling": "timm" if registers else "dino",
    }


def _jax(given: dict, shapes: Shapes) -> dict[str, Any]:
    """Everything from the shapes of a vision_transformer .npz; flax keeps the heads as an axis."""
    patch, _, channels, width = shapes["embedding/kernel"]
    side = round((shapes["Transformer/posembed_input/pos_embedding"][1] - 1) ** 0.5)
    block = "Transformer/encoderblock_0"
    return {
        "image_size": (side * patch, side * patch),
        "patch_size": patch,
        "channels": channels,
        "width": width,
        "depth": _depth(shapes, r"Transformer/encoderblock_(\d+)/"),
        "heads": shapes[f"{block}/MultiHeadDotProductAttention_1/query/kernel"][1],
        "mlp_width": shapes[f"{block}/MlpBlock_3/Dense_0/kernel"][1],
        "classes": shapes.get("head/kernel", (0, 0))[1],
        "pooler": _has(shapes, "pre_logits"),
    }


def _depth(shapes: Shapes, pattern: str) -> int:
    return 1 + max((int(match[1]) for name in shapes if (match := re.match(pattern, name))), default=-1)


DERIVED: dict[str, Callable[[dict, Shapes], dict[str, Any]]] = {
    "dinov2": _dinov2,
    "dinov3": _dinov3,
    "clip_text": _clip_text,
    "siglip_text": _siglip_text,
    "open_clip_image": _open_clip_image,
    "open_clip_trunk": _open_clip_trunk,
    "open_clip_text": _open_clip_text,
    "timm": _timm,
    "swin": _swin,
    "timm_swin": _timm_swin,
    "facebook": _facebook,
    "jax": _jax,
}


def read_labels(source: Source, classes: int) -> dict[int, str] | None:
    """{index: name} of config.json's id2label, or None where it has none or only LABEL_0, LABEL_1, ...

    timm names them in label_names, explained in label_descriptions; where it does not, it takes a head of
    1000 outputs for ImageNet-1k (timm's infer_imagenet_subset), and so do we.

    Raises:
        CheckpointError: the keys are not 0 to classes - 1.
    """
    given = source.config.get("id2label") or _timm_labels(source.config, classes)
    if not classes or not given:
        return None
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given.values()):
        raise CheckpointError(f"{source.name}: config.json has an id2label that does not map numbers to names")
    try:
        labels = {int(key): name for key, name in given.items()}
    except ValueError:
        wrong = next(key for key in given if not str(key).isdecimal())
        raise CheckpointError(f"{source.name}: config.json has the id2label key {wrong!r}, expected numbers") from None
    if sorted(labels) != list(range(classes)):
        gaps = sorted(set(range(classes)) - set(labels))
        raise CheckpointError(
            f"{source.name}: config.json has {len(given)} id2label keys that are not 0 to {classes - 1}; "
            f"missing: {listed([str(index) for index in gaps])}"
        )
    if all(name == f"LABEL_{index}" for index, name in labels.items()):
        return None
    return dict(sorted(labels.items()))


def _timm_labels(config: dict, classes: int) -> dict[int, str] | None:
    if "architecture" not in config:
        return None
    names = config.get("label_names")
    if not names:
        return imagenet_labels() if classes == 1000 else None
    described = config.get("label_descriptions") or {}
    return {index: described.get(name, name) for index, name in enumerate(names)}


def find_preprocessor(source: Source, table: Table, config: ViTConfig | SwinConfig) -> tuple[dict | None, str]:
    """The contents of preprocessor_config.json and where they are from: the file, pretrained_cfg, or the family."""
    if source.preprocessor is not None:
        return source.preprocessor, "preprocessor_config.json"
    height, width = config.image_size
    pretrained = source.config.get("pretrained_cfg")
    if isinstance(given := source.config.get("preprocess_cfg"), dict):
        # open_clip's words for what timm says in others; its mean and std are OpenAI's where it names none.
        mode = {"shortest": "center", "squash": "squash"}.get(given.get("resize_mode") or "shortest", "longest")
        means = {"mean": PROCESSORS["CLIP"]["image_mean"], "std": PROCESSORS["CLIP"]["image_std"]}
        stated = {key: given[key] for key in ("mean", "std", "interpolation") if key in given}
        words = {**means, **stated, "crop_pct": 1.0, "crop_mode": mode}
        return _timm_preprocessor(words, height, width), "open_clip_config.json"
    if isinstance(pretrained, dict):
        return _timm_preprocessor(pretrained, height, width), "config.json's pretrained_cfg"
    if table.assumed and "size" in table.assumed and table.assumed["size"] is None:
        return {**table.assumed, "size": {"height": height, "width": width}}, "assumed for the family"
    return table.assumed, "assumed for the family"


def _timm_preprocessor(pretrained: dict, height: int, width: int) -> dict:
    """timm's pretrained_cfg in the words of a preprocessor_config.json: its transforms_imagenet_eval.

    Raises:
        CheckpointError: a crop mode or a filter that cannot be honoured.
    """
    share, mode = pretrained.get("crop_pct") or 0.875, pretrained.get("crop_mode") or "center"
    filter = pretrained.get("interpolation") or "bicubic"
    edges = {"height": math.floor(height / share), "width": math.floor(width / share)}
    # A crop from the centre of a picture that keeps its proportions is defined for squares.
    sizes = {"squash": edges} | ({"center": {"shortest_edge": edges["height"]}} if height == width else {})
    if mode not in sizes or filter not in RESAMPLES:
        raise CheckpointError(
            f"pretrained_cfg has crop_mode {mode!r}, interpolation {filter!r} for {height} x {width} pixels; "
            f"known are center (of squares) and squash, with {', '.join(RESAMPLES)}"
        )
    return {
        "image_processor_type": "TimmTransform",
        "size": sizes[mode],
        "resample": RESAMPLES.index(filter),
        "crop_size": {"height": height, "width": width},
        **({"image_mean": pretrained["mean"]} if "mean" in pretrained else {}),
        **({"image_std": pretrained["std"]} if "std" in pretrained else {}),
    }


def read_image_spec(
    given: dict, name: str, processor: str = "ViTImageProcessor", where: str = "preprocessor_config.json"
) -> ImageSpec:
    """preprocessor_config.json, in its old and its new form, as an ImageSpec that remembers the keys it came from.

    Args:
        processor: the class whose defaults count where the file names none.
        where: what the values were read from, for the spec's memory.

    Raises:
        CheckpointError: a processor or a value that cannot be honoured.
    """
    kind = str(given.get("image_processor_type") or given.get("feature_extractor_type") or processor)
    short = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", kind)
    if short not in PROCESSORS:
        raise CheckpointError(f"{name}: preprocessor_config.json is for {kind}; known are {', '.join(PROCESSORS)}")
    values = {"do_pad": False, **PROCESSORS[short], **given}

    def fail(key: str) -> CheckpointError:
        return CheckpointError(
            f"{name}: preprocessor_config.json has {key} = {values[key]!r}, which minivit cannot honour"
        )

    def switch(key: str) -> bool:
        if values[key] not in (True, False, None):  # null is off, as in the reference
            raise fail(key)
        return bool(values[key])

    def size(key: str, square: bool) -> tuple[int, int] | int:
        value = values[key]
        if isinstance(value, dict):
            value = {edge: side for edge, side in value.items() if side is not None}
        found: tuple[int, int] | int
        match value:
            case int(side):
                found = (side, side) if square else side
            case {"height": int(height), "width": int(width)} | [int(height), int(width)] if len(value) == 2:
                found = height, width
            case {"shortest_edge": int(side)} if len(value) == 1:
                found = side
            case _:
                raise fail(key)
        if min(found if isinstance(found, tuple) else (found,)) < 1:
            raise fail(key)
        return found

    def channels(key: str) -> tuple[float, ...]:
        value = values[key]
        numbers = tuple(value) if isinstance(value, list) else (value,) * 3
        if len(numbers) != 3 or not all(_is_number(number) for number in numbers):
            raise fail(key)
        return numbers

    def code(key: str) -> str:
        if type(values[key]) is not int or values[key] not in range(len(RESAMPLES)):
            raise fail(key)
        return RESAMPLES[values[key]]

    def factor(key: str) -> float:
        if not _is_number(values[key]):
            raise fail(key)
        return values[key]

    if switch("do_pad"):
        raise fail("do_pad")
    spec: dict[str, Any] = {"resize": None, "rescale": 1.0, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    spec |= {key: PROCESSORS[short][key] for key in ("float_resize", "crop_rounding")}
    if switch("do_resize"):
        spec |= {"resize": size("size", square=values["square"]), "resample": code("resample")}
    if switch("do_center_crop"):
        spec["crop"] = size("crop_size", square=True)
        if isinstance(spec["crop"], int):
            raise fail("crop_size")
    if switch("do_rescale"):
        spec["rescale"] = factor("rescale_factor")
    if switch("do_normalize"):
        spec |= {"mean": channels("image_mean"), "std": channels("image_std")}
        if 0 in spec["std"]:
            raise fail("image_std")

    def origin(step: str, key: str) -> str:
        """Where a value was read: its key, or the switch that made it meaningless."""
        key = key if switch(step) else step
        return f"{where if key in given else f'default of {short}ImageProcessor'}: {key}"

    source = {
        "resize": origin("do_resize", "size"),
        "resample": origin("do_resize", "resample"),
        "crop": origin("do_center_crop", "crop_size"),
        "rescale": origin("do_rescale", "rescale_factor"),
        "mean": origin("do_normalize", "image_mean"),
        "std": origin("do_normalize", "image_std"),
    }
    try:
        return ImageSpec(**spec, source=source)
    except UsageError as error:
        raise CheckpointError(f"{name}: preprocessor_config.json makes no preprocessing: {error}") from None


def _is_number(value: object) -> bool:
    """A finite number of JSON, which Python reads NaN and Infinity from too; true and false are none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def listed(names: list[str], most: int = 12) -> str:
    """Names on one line, the first of them when there are many."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
