"""Small models whose tokens lie otherwise: two prefix tokens, or none at all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from conftest import randomise
from torch import nn

from minivit.attention import attend_sdpa
from minivit.config import TokenLayout, ViTConfig
from minivit.model import ViT

SMALL = {"image_size": (24, 40), "patch_size": 8, "width": 21, "depth": 3, "heads": 3, "mlp_width": 37, "classes": 5}


@dataclass(frozen=True, kw_only=True)
class TwoPrefixConfig(ViTConfig):
    def layout_for(self, image_size):
        return TokenLayout(cls=1, dist=1, grid=super().layout_for(image_size).grid)


class TwoPrefix(ViT):
    def __init__(self, config, attend=attend_sdpa):
        super().__init__(config, attend)
        self.dist_token = nn.Parameter(torch.randn(1, 1, config.width))

    def embed(self, pixels_BCHW, *, resample=False):
        patches_BPD = self.patch_embed(pixels_BCHW)
        prefix = [token.expand(len(patches_BPD), -1, -1) for token in (self.cls_token, self.dist_token)]
        return torch.cat([*prefix, patches_BPD], dim=1) + self.pos_embed


@dataclass(frozen=True, kw_only=True)
class NoPrefixConfig(ViTConfig):
    def layout_for(self, image_size):
        return TokenLayout(cls=0, grid=super().layout_for(image_size).grid)


class NoPrefix(ViT):
    def embed(self, pixels_BCHW, *, resample=False):
        return self.patch_embed(pixels_BCHW) + self.pos_embed


def build(kind: str = "cls", attend=attend_sdpa, dtype=torch.float64, seed: int = 0, **changes) -> ViT:
    """A random model: "cls" as published, "two" with a distillation token, "none" without prefix tokens."""
    torch.manual_seed(seed)
    sizes = {**SMALL, **changes}
    if kind == "two":
        model: ViT = TwoPrefix(TwoPrefixConfig(**sizes), attend)
    elif kind == "none":
        model = NoPrefix(NoPrefixConfig(**{"pooling": "mean", **sizes}), attend)
    else:
        model = ViT(ViTConfig(**sizes), attend)
    randomise(model)
    with torch.no_grad():  # so that attention is far from uniform
        for block in model.blocks:
            block.attn.qkv.weight.mul_(30)
    return model.to(dtype).eval()


def pixels(batch: int = 2, dtype=torch.float64, seed: int = 1, size=(24, 40)) -> torch.Tensor:
    return torch.randn(batch, 3, *size, dtype=dtype, generator=torch.Generator().manual_seed(seed))
