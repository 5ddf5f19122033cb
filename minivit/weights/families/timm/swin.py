"""timm's swin_*: timm/models/swin_transformer.py. The merging of a stage is at the start of the next one."""

from __future__ import annotations

from minivit.model.config import SwinConfig
from minivit.weights.families.base import Family, Given, Kind, Reference, Rows, Shapes, swin_places, swin_rows
from minivit.weights.families.timm.shared import arguments, labels, preprocessor

# Arguments that minivit's Swin has a switch for, with timm's defaults.
DEFAULTS: Given = {
    "img_size": 224,
    "patch_size": 4,
    "in_chans": 3,
    "num_classes": None,  # as many as the file's head has
    "global_pool": "avg",
    "embed_dim": 96,
    "depths": (2, 2, 6, 2),
    "num_heads": (3, 6, 12, 24),
    "window_size": 7,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "dynamic_img_size": False,
}
_SWIN_S = {"depths": (2, 2, 18, 2)}
_SWIN_B = {**_SWIN_S, "embed_dim": 128, "num_heads": (4, 8, 16, 32)}
_SWIN_L = {**_SWIN_S, "embed_dim": 192, "num_heads": (6, 12, 24, 48)}
_12_384 = {"window_size": 12, "img_size": 384}
ARCHITECTURES: dict[str, Given] = {
    "swin_tiny_patch4_window7_224": {},
    "swin_small_patch4_window7_224": _SWIN_S,
    "swin_base_patch4_window7_224": _SWIN_B,
    "swin_base_patch4_window12_384": {**_SWIN_B, **_12_384},
    "swin_large_patch4_window7_224": _SWIN_L,
    "swin_large_patch4_window12_384": {**_SWIN_L, **_12_384},
    "swin_s3_tiny_224": {"window_size": (7, 7, 14, 7)},
    "swin_s3_small_224": {"window_size": (14, 14, 14, 7), **_SWIN_S},
    "swin_s3_base_224": {"window_size": (7, 7, 14, 7), "depths": (2, 2, 30, 2)},
}


def _read_swin(given: Given, shapes: Shapes) -> Given:
    """Return SwinConfig values from `architecture`, `model_args` and `pretrained_cfg`: timm's SwinTransformer."""
    args = arguments(given, DEFAULTS, ARCHITECTURES[given["architecture"]], {"global_pool": ("avg",)})
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


_ROWS: Rows = {
    "patch_embed": ("patch_embed.proj",),
    "norm_embed": ("patch_embed.norm",),
    **swin_rows("layers.{i}.blocks.{j}.", "layers.{i+1}.downsample."),
}

TIMM_SWIN = Family(
    name="timm_swin",
    by_model_type=False,
    architectures=ARCHITECTURES,
    wrappers=("state_dict_ema", "model_ema", "state_dict", "model"),  # timm/models/_helpers.py, load_state_dict
    config=SwinConfig,
    makes="Swin",
    kinds={"SwinTransformer": Kind("head.fc")},
    constants={"windowing": "timm"},
    read=_read_swin,
    rows=_ROWS,
    dropped=("*.relative_position_index", "*.attn_mask"),
    processor="TimmTransform",
    preprocessor=preprocessor,
    labels=labels,
    steps={"timm": swin_places(_ROWS, "head.fc")},
    reference=Reference("timm", "timm"),
)

REGISTER = (TIMM_SWIN,)
