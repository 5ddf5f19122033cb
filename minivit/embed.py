"""Pixels become tokens: patches, the class token, positions and their resampling."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivit.config import TokenLayout, ViTConfig
from minivit.errors import ShapeError


class PatchEmbed(nn.Module):
    """Cut the picture into patches and map each to a token: (B, C, H, W) -> (B, P, D).

    A linear layer on flattened patches; `weight` keeps the (D, C, patch, patch) shape of the equal
    convolution with stride = patch, which is how every checkpoint stores it.
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        patch = config.patch_size
        self.patch_size = patch
        self.weight = nn.Parameter(torch.empty(config.width, config.channels, patch, patch))
        self.bias = nn.Parameter(torch.empty(config.width))

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        patch = self.patch_size
        # (B, C, H, W) -> (B, C, rows, patch, columns, patch)
        x = pixels_BCHW.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
        # -> (B, rows, columns, C, patch, patch) -> (B, P, C*patch*patch)
        x = x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return F.linear(x, self.weight.flatten(1), self.bias)


def resample_positions(pos_embed: Tensor, old: TokenLayout, new: TokenLayout) -> Tensor:
    """Stretch learned positions to another grid: (1, prefix + P, D) -> (1, prefix + P', D).

    Bicubic with align_corners=False and no antialiasing, prefix rows untouched: what transformers'
    ViT does under interpolate_pos_encoding=True (ViTEmbeddings in its modeling_vit.py). Computed in
    at least float32.

    Raises:
        ShapeError: pos_embed does not have the rows of `old`.
    """
    if pos_embed.shape[1] != old.count:
        raise ShapeError(f"position embedding has {pos_embed.shape[1]} rows; the layout has {old.count} tokens")
    prefix_1ND, patches_1ND = pos_embed.split([old.prefix, old.patches], dim=1)
    # (1, P, D) -> (1, D, rows, columns), where F.interpolate works
    image = old.to_grid(patches_1ND).permute(0, 3, 1, 2)
    image = image.to(torch.promote_types(image.dtype, torch.float32))
    image = F.interpolate(image, size=new.grid, mode="bicubic", align_corners=False)
    # (1, D, rows', columns') -> (1, P', D)
    patches_1ND = image.flatten(2).transpose(1, 2).to(pos_embed.dtype)
    return torch.cat([prefix_1ND, patches_1ND], dim=1)
