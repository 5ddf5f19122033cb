"""Image processors: the defaults of transformers' classes for keys that preprocessor_config.json leaves out.

Adding a processor is adding a line to PROCESSORS.
"""

from __future__ import annotations

from collections.abc import Callable

from minivit.weights.families.base import Given

# `square` says whether an int `size` is both sides or the shorter edge. The last two entries of PROCESSORS are the
# transforms of torchvision's weights and of timm's pretrained_cfg.
_HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
_STANDARD = _HALVES  # transformers' IMAGENET_STANDARD_MEAN and _STD
_RESIZED: Given = {
    "square": True,
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 2,
    "do_center_crop": False,
    "crop_size": None,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    **_HALVES,
    "float_resize": False,
    "crop_rounding": "down",
}
_CROPPED: Given = {
    **_RESIZED,
    "square": False,
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    **CLIP,
}
PROCESSORS: dict[str, Given] = {
    "ViT": _RESIZED,
    "DeiT": {**_CROPPED, "square": True, "size": {"height": 256, "width": 256}, **_HALVES},
    "Bit": _CROPPED,
    "CLIP": _CROPPED,
    "Beit": {**_RESIZED, "resample": 3},
    "VideoMAE": {**_CROPPED, **_STANDARD, "resample": 2},
    "ConvNext": {**_RESIZED, **_STANDARD, "square": False, "size": {"shortest_edge": 384}, "resample": 3},
    "Siglip": {**_RESIZED, "square": False, "resample": 3},
    "DINOv3ViT": {**_RESIZED, **IMAGENET, "float_resize": True},
    "TorchvisionPreset": {**_CROPPED, **IMAGENET, "size": {"shortest_edge": 256}, "crop_rounding": "even"},
    "TimmTransform": {**_CROPPED, **IMAGENET, "crop_rounding": "even"},
}


def _convnext(values: Given) -> Given:
    """Return ConvNext's steps: below 384 pixels a larger resize and a crop, from 384 on a resize of both sides."""
    edge = (values["size"] or {}).get("shortest_edge") if isinstance(values["size"], dict) else values["size"]
    fraction = values.get("crop_pct") or 224 / 256
    if type(edge) is not int or not isinstance(fraction, int | float) or not 0 < fraction <= 1:
        return values  # the step that reads the size refuses it
    if edge >= 384:
        return {**values, "size": {"height": edge, "width": edge}}
    crop = {"do_center_crop": True, "crop_size": {"height": edge, "width": edge}}
    return {**values, **crop, "size": {"shortest_edge": int(edge / fraction)}}


# Processors whose steps follow from their values otherwise than STEPS says.
DERIVED: dict[str, Callable[[Given], Given]] = {"ConvNext": _convnext}
