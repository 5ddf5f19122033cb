"""The original .pth files of github.com/facebookresearch/dino and dinov2 (vision_transformer.py of either)."""

from __future__ import annotations

from minivit.weights.families.base import Family, Given, Kind, Named, Shapes, depth_of
from minivit.weights.families.processors import IMAGENET
from minivit.weights.families.timm.vit import ROWS


def _read_facebook(given: Given, shapes: Shapes) -> Given:
    """Return ViTConfig values from the shapes of a DINO or DINOv2 file; all have heads of 64 and square grids."""
    width, channels, patch, _ = shapes["patch_embed.proj.weight"]
    side = round((shapes["pos_embed"][1] - 1) ** 0.5)
    swiglu = any(".mlp.w12." in name for name in shapes)
    registers = shapes.get("register_tokens", (1, 0))[1]
    return {
        "image_size": (side * patch, side * patch),
        "patch_size": patch,
        "channels": channels,
        "width": width,
        "depth": depth_of(shapes, r"blocks\.(\d+)\."),
        "heads": width // 64,
        "mlp": "swiglu" if swiglu else "plain",
        "mlp_width": shapes["blocks.0.mlp.w3.weight" if swiglu else "blocks.0.mlp.fc1.weight"][int(swiglu)],
        "activation": "silu" if swiglu else "gelu",
        "layer_scale": any(name.endswith(".ls1.gamma") for name in shapes),
        "registers": registers,
        # The hub entry points of dinov2 ask for antialiasing without offset where there are registers.
        "position_resampling": "timm" if registers else "dino",
    }


def _preprocessor(config: Given, size: tuple[int, int]) -> tuple[Given | None, str]:
    """Return the evaluation transform of both repositories, which is in no file."""
    values = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, **IMAGENET}
    return values, "assumed for the family"


# With and without registers: all differences are in the shapes.
FACEBOOK = Family(
    name="facebook",
    by_model_type=False,
    by_name=lambda model: Named({}),
    kinds={"DinoVisionTransformer": Kind()},
    prefixes=("module.backbone.", "backbone.", "module."),
    constants={"any_size": True, "eps": 1e-6},
    read=_read_facebook,
    rows={**ROWS, "reg_tokens": ("register_tokens",)},
    variants={
        ("mlp", "swiglu"): {"blocks.{i}.mlp.fc1": ("blocks.{i}.mlp.w12",), "blocks.{i}.mlp.fc2": ("blocks.{i}.mlp.w3",)}
    },
    dropped=("mask_token", "head.*"),
    preprocessor=_preprocessor,
)

REGISTER = (FACEBOOK,)
