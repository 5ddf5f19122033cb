"""The original .pth files of github.com/facebookresearch/dino, dinov2, deit and mae (vision_transformer.py of each)."""

from __future__ import annotations

import math
import re

from minivit.weights.families.base import Family, Given, Kind, Named, Shapes, depth_of
from minivit.weights.families.processors import IMAGENET
from minivit.weights.families.timm.vit import ROWS

# Beginnings of the published names of this code; of all of them but MAE's ViT-H, heads are 64 wide.
_PUBLISHED = re.compile("dino|ibot|deit|mae_|mae-", re.IGNORECASE)


def _heads(given: Given, shapes: Shapes, width: int) -> int:
    """Return the number of attention heads, which no shape says: as asked for, or of the code that wrote the file.

    Raises:
        ValueError: neither says it.
    """
    if given.get("heads"):
        return int(given["heads"])
    name = str(given.get("weights_file", ""))
    dinov2 = any(part in name for name in shapes for part in (".ls1.gamma", "mask_token", "register_tokens"))
    if not (_PUBLISHED.search(name) or given.get("wrapper") == "teacher" or dinov2):
        raise ValueError(
            f"the number of attention heads is in no shape of {name}; give heads (--heads): width {width} has "
            f"{width // 64} in DINO, DINOv2 and DeiT; MoCo-v3 has 12, MAE's ViT-H 16"
        )
    return 16 if width == 1280 and "mae" in name.lower() else width // 64


def _read_facebook(given: Given, shapes: Shapes) -> Given:
    """Return ViTConfig values from the shapes of a file; all have square grids."""
    missing = [name for name in ("patch_embed.proj.weight", "pos_embed", "blocks.0.norm1.weight") if name not in shapes]
    if missing:
        raise ValueError(f"it has no tensor {', '.join(missing)}, so it is no ViT of this code")
    width, channels, patch, _ = shapes["patch_embed.proj.weight"]
    distilled, rows = "dist_token" in shapes, shapes["pos_embed"][1]
    all_rows = math.isqrt(rows) ** 2 == rows and rows > 1  # no row for the class token: DeiT III
    side = round((rows - (0 if all_rows else 1 + int(distilled))) ** 0.5)
    swiglu = any(".mlp.w12." in name for name in shapes)
    hidden = "blocks.0.mlp.w3.weight" if swiglu else "blocks.0.mlp.fc1.weight"
    if hidden not in shapes:
        raise ValueError(f"it has no tensor {hidden}")
    registers = shapes.get("register_tokens", (1, 0))[1]
    averaged = "fc_norm.weight" in shapes  # MAE, fine-tuned
    return {
        "image_size": (side * patch, side * patch),
        "patch_size": patch,
        "channels": channels,
        "width": width,
        "depth": depth_of(shapes, r"blocks\.(\d+)\."),
        "heads": _heads(given, shapes, width),
        "mlp": "swiglu" if swiglu else "plain",
        "mlp_width": shapes[hidden][int(swiglu)],
        "activation": "silu" if swiglu else "gelu",
        "layer_scale": any(name.endswith((".ls1.gamma", ".gamma_1")) for name in shapes),
        "registers": registers,
        "dist_token": distilled,
        "positions": "learned_patches" if all_rows else "learned",
        "pooling": "cls&dist" if distilled else "mean" if averaged else "cls",
        "norm": "pooled" if averaged else "tokens",
        "classes": shapes.get("head.weight", (0,))[0],
        # The hub entry points of dinov2 ask for antialiasing without offset where there are registers.
        "position_resampling": "timm" if registers else "dino",
    }


def _without_chunk(name: str) -> str:
    """Return a name without the number of its chunk, as DINOv2's training adds: blocks.0.3. -> blocks.3.."""
    return re.sub(r"^blocks\.\d+\.(\d+\.)", r"blocks.\1", name)


def _preprocessor(config: Given, size: tuple[int, int]) -> tuple[Given | None, str]:
    """Return the evaluation transform of both repositories, which is in no file."""
    values = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}, **IMAGENET}
    return values, "assumed for the family"


# With and without registers: all differences are in the shapes.
FACEBOOK = Family(
    name="facebook",
    by_model_type=False,
    by_name=lambda model: Named({}),
    kinds={"DinoVisionTransformer": Kind("head")},
    wrappers=("teacher",),  # of DINO and DINOv2, beside the student
    rename=_without_chunk,
    by_file=True,
    prefixes=("module.backbone.", "backbone.", "module."),
    constants={"any_size": True, "eps": 1e-6},
    read=_read_facebook,
    rows={**ROWS, "reg_tokens": ("register_tokens",)},
    variants={
        ("norm", "pooled"): {"norm": ("fc_norm",)},
        ("mlp", "swiglu"): {
            "blocks.{i}.mlp.fc1": ("blocks.{i}.mlp.w12",),
            "blocks.{i}.mlp.fc2": ("blocks.{i}.mlp.w3",),
        },
    },
    # The heads of self-supervised training, and MAE's decoder.
    dropped=("mask_token", "head.mlp.*", "head.last_layer.*", "dino_head.*", "ibot_head.*", "decoder_*"),
    preprocessor=_preprocessor,
)

REGISTER = (FACEBOOK,)
