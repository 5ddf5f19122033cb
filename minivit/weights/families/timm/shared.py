"""What timm's families have in common: names, arguments, labels and preprocessing in config.json."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from minivit.errors import CheckpointError
from minivit.images.spec import RESAMPLES
from minivit.weights.families.base import Given, Named
from minivit.weights.families.labels import imagenet_labels
from minivit.weights.families.timm.architectures import TRAINING


def named(model: str) -> Named | None:
    """Return the config.json that a name such as "vit_base_patch16_224.augreg_in1k" stands for."""
    return Named({"architecture": model.partition(".")[0]}) if model else None


def arguments(given: Given, defaults: Given, own: Given, supported: Mapping[str, Collection[object]]) -> Given:
    """Return the arguments of timm's model class: its defaults, the architecture's own, and config.json's.

    Args:
        given: the contents of config.json.
        defaults: of the class, for all supported arguments.
        own: those of the architecture.
        supported: argument -> its supported values.

    Raises:
        ValueError: an argument or a value that minivit's models have no switch for.
    """
    pretrained, overrides = given.get("pretrained_cfg") or {}, given.get("model_args") or {}
    args = {**defaults, **own}
    if "input_size" in pretrained:
        args["in_chans"], *args["img_size"] = pretrained["input_size"]
    args.update({key: given[key] for key in ("num_classes", "global_pool") if key in given})
    args.update({key: value for key, value in overrides.items() if key not in TRAINING})
    wrong = {key: value for key, value in args.items() if key not in defaults and value}
    wrong |= {key: args[key] for key, values in supported.items() if args[key] not in values}
    if wrong:
        raise ValueError(f"there is no switch for timm's {', '.join(f'{k}={v!r}' for k, v in wrong.items())}")
    return args


_FLAT = ("architecture", "num_classes", "num_features", "global_pool", "model_args", "pretrained_cfg")


def normal(config: Given, where: str) -> Given:
    """Return a config.json of timm in its present form; any other one as it is.

    Files of 2021 keep what is now in `pretrained_cfg` beside `architecture`, and call label_names `labels`; files that
    were saved again have label_names inside pretrained_cfg (timm/models/_hub.py, _parse_model_cfg).

    Raises:
        CheckpointError: a value of another type than timm's.
    """
    if config.get("architecture") is None or config.get("model_type") not in (None, "timm_wrapper"):
        return config
    known: dict[str, tuple[type, ...]] = {"model_args": (dict,), "pretrained_cfg": (dict,), "architecture": (str,)}
    known |= {"label_names": (list, dict), "label_descriptions": (list, dict), "labels": (list, dict)}
    known |= {"num_classes": (int,)}
    nested = config.get("pretrained_cfg")
    for part in (config, nested if isinstance(nested, dict) else {}):
        for key, kinds in known.items():
            if part.get(key) is not None and (not isinstance(part[key], kinds) or isinstance(part[key], bool)):
                words = " or ".join(
                    {dict: "an object", list: "a list", str: "a text", int: "a number"}[k] for k in kinds
                )
                raise CheckpointError(f"{where}: {key} is {part[key]!r}; expected {words}")
    if nested is None and any(key in config for key in ("input_size", "mean", "std", "interpolation", "crop_pct")):
        nested = {key: value for key, value in config.items() if key not in _FLAT}
    nested = dict(nested) if nested is not None else None
    result = {**config, "pretrained_cfg": nested} if nested is not None else dict(config)
    nested = nested or {}
    for key in ("label_names", "label_descriptions"):
        if result.get(key) is None:
            result[key] = nested.get(key)
    if result["label_names"] is None:
        result["label_names"] = nested.get("labels")
    return result


def labels(config: Given, classes: int) -> dict[int, str] | None:
    """Return the names of label_names, explained in label_descriptions; of 1000 classes without names, ImageNet-1k's.

    Source: timm's infer_imagenet_subset.
    """
    names, described = config.get("label_names"), config.get("label_descriptions") or {}
    if not names:
        return imagenet_labels() if classes == 1000 and _is_imagenet(config) else None
    if isinstance(names, dict):
        if sorted(map(str, names)) != sorted(map(str, range(len(names)))):
            raise CheckpointError(
                f"label_names has keys {', '.join(map(str, names))[:80]}; expected 0 to {len(names) - 1}"
            )
        names = [names[str(index)] for index in range(len(names))]
    if isinstance(described, list):
        described = dict(zip(names, described, strict=False))
    return {index: str(described.get(str(name), name)) for index, name in enumerate(names)}


def _is_imagenet(config: Given) -> bool:
    """Return whether a head of 1000 outputs is timm's own: no other repository states that it kept those classes."""
    pretrained = config.get("pretrained_cfg") or {}
    owner = str(pretrained.get("hf_hub_id") or "timm/").partition("/")[0]
    return "architecture" in config and owner == "timm"


def preprocessor(config: Given, size: tuple[int, int]) -> tuple[Given | None, str]:
    """Return preprocessor_config.json from config.json's pretrained_cfg, and where it is from."""
    pretrained = config.get("pretrained_cfg")
    if not isinstance(pretrained, dict):
        return None, ""
    return transform(pretrained, *size), "config.json's pretrained_cfg"


def transform(pretrained: Given, height: int, width: int) -> Given:
    """Return timm's transforms_imagenet_eval for a pretrained_cfg, in the words of a preprocessor_config.json.

    Raises:
        CheckpointError: a crop mode or a filter that is not supported.
    """
    fraction, mode = pretrained.get("crop_pct") or 0.875, pretrained.get("crop_mode") or "center"
    resample = pretrained.get("interpolation") or "bicubic"
    edges = {"height": math.floor(height / fraction), "width": math.floor(width / fraction)}
    # A center crop of an image that keeps its aspect ratio is defined for squares.
    sizes = {"squash": edges} | ({"center": {"shortest_edge": edges["height"]}} if height == width else {})
    if mode not in sizes or resample not in RESAMPLES:
        raise CheckpointError(
            f"pretrained_cfg has crop_mode {mode!r}, interpolation {resample!r} for {height} x {width} pixels; "
            f"known are center (of squares) and squash, with {', '.join(RESAMPLES)}"
        )
    return {
        "image_processor_type": "TimmTransform",
        "size": sizes[mode],
        "resample": RESAMPLES.index(resample),
        "crop_size": {"height": height, "width": width},
        **({"image_mean": pretrained["mean"]} if "mean" in pretrained else {}),
        **({"image_std": pretrained["std"]} if "std" in pretrained else {}),
    }
