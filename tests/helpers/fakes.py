"""Small models whose tokens lie otherwise: two prefix tokens, or none at all."""

from __future__ import annotations

import torch

from helpers.models import randomise
from minivit.model.attention import attend_sdpa
from minivit.model.config import SwinConfig, ViTConfig
from minivit.model.swin import Swin
from minivit.model.vit import ViT

SMALL = {"image_size": (24, 40), "patch_size": 8, "width": 21, "depth": 3, "heads": 3, "mlp_width": 37, "classes": 5}


KINDS = {"cls": {}, "two": {"dist_token": True}, "none": {"cls_token": False, "pooling": "mean"}}

# The switches of every published family, as changes to build().
_DINOV2 = {"layer_scale": True, "pooling": "cls+mean"}
_DINOV3 = {"registers": 2, "positions": "rope", "width": 24, "layer_scale": True, "mlp": "swiglu", "activation": "silu"}
_CLIP = {"norm_pre": True, "norm": "pooled", "patch_bias": False, "activation": "quick_gelu"}
FAMILIES = {
    "vit": {},
    "in21k": {"classes": 0, "pooler": True},
    "deit": {"dist_token": True, "pooling": "cls&dist"},
    "dinov2": _DINOV2,
    "dinov2-giant": {**_DINOV2, "mlp": "swiglu", "activation": "silu", "registers": 3},
    "dinov3": {**_DINOV3, "any_size": True},
    "mae": {"norm": "pooled", "pooling": "mean"},
    "clip": {**_CLIP, "classes": 0, "projection": 13},
    "timm-clip": _CLIP,
    "siglip": {"cls_token": False, "pooling": "map", "activation": "gelu_tanh"},
    "mean": {"cls_token": False, "pooling": "mean"},
}


def build(kind: str = "cls", attend=attend_sdpa, dtype=torch.float64, seed: int = 0, **changes) -> ViT:
    """A random model: "cls" as published, "two" with a distillation token, "none" without prefix tokens."""
    torch.manual_seed(seed)
    model = ViT(ViTConfig(**{**SMALL, **KINDS[kind], **changes}), attend)
    randomise(model)
    with torch.no_grad():  # so that attention is far from uniform
        for block in model.blocks:
            block.attn.qkv.weight.mul_(30)
    return model.to(dtype).eval()


def pixels(batch: int = 2, dtype=torch.float64, seed: int = 1, size=(24, 40)) -> torch.Tensor:
    return torch.randn(batch, 3, *size, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def state(model: torch.nn.Module) -> tuple:
    """What a context may leave behind: the number of hooks, every block's own `attend`, and the parameters."""
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
    attends = [dict(block.attn.__dict__)["attend"] if "attend" in block.attn.__dict__ else None
               for block in model.blocks]  # fmt: skip
    return hooks, attends, [parameter.clone() for parameter in model.parameters()]


def same(before: tuple, after: tuple) -> bool:
    return before[:2] == after[:2] and all(torch.equal(a, b) for a, b in zip(before[2], after[2], strict=True))


SMALL_SWIN = {"image_size": (40, 56), "width": 14, "depths": (2, 3, 2), "heads": (2, 7, 4), "window": (3, 3, 3)}


def build_swin(attend=attend_sdpa, seed: int = 0, **changes) -> Swin:
    """A random Swin with stages of different depth, whose attention is far from uniform."""
    torch.manual_seed(seed)
    model = Swin(SwinConfig(**{**SMALL_SWIN, "mlp_ratio": 1.5, "classes": 5, **changes}), attend)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight.mul_(20)
            block.attn.proj.weight.mul_(20)
            block.attn.bias_table.normal_()
        model.head.weight.mul_(20)
    return model.double().eval()
