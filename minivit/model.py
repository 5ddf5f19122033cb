"""The Vision Transformer, top to bottom."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minivit.attention import Attend, attend_sdpa
from minivit.block import Block
from minivit.config import ImageSpec, TokenLayout, ViTConfig
from minivit.embed import PatchEmbed, resample_positions
from minivit.errors import ShapeError


class ViT(nn.Module):
    """Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929, equations 1 to 4).

    Attributes:
        config: the ViTConfig it was built from.
        attend: the attention callable of every block.
        image_spec: how its pictures are prepared, or None when no checkpoint said so.
        labels: {index: name} of the head's outputs, or None.
        name, revision: where the weights came from; set by `minivit.load`.
    """

    def __init__(self, config: ViTConfig, attend: Attend = attend_sdpa):
        super().__init__()
        self.config = config
        self.attend = attend
        self.image_spec: ImageSpec | None = None
        self.labels: dict[int, str] | None = None
        self.name: str | None = None
        self.revision: str | None = None

        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.empty(1, config.layout.count, config.width))
        self.blocks = nn.ModuleList(Block(config, attend) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.pooler = nn.Linear(config.width, config.width) if config.pooler else None
        self.head = nn.Linear(config.width, config.classes) if config.classes else nn.Identity()
        self.apply(init_weights)

    def forward(self, pixels_BCHW: Tensor, *, resample: bool = False) -> Tensor:
        """Pixels (B, C, H, W) in the dtype of the weights -> logits_BL, or pooled_BD without a head."""
        tokens_BND = self.features(pixels_BCHW, resample=resample)
        pooled_BD = self.pool(tokens_BND)
        return self.head(pooled_BD)

    def features(self, pixels_BCHW: Tensor, *, resample: bool = False) -> Tensor:
        """Pixels (B, C, H, W) -> tokens_BND after the final norm, prefix tokens first."""
        x = self.embed(pixels_BCHW, resample=resample)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def embed(self, pixels_BCHW: Tensor, *, resample: bool = False) -> Tensor:
        """Pixels (B, C, H, W) -> tokens_BND as the first block reads them.

        Args:
            resample: accept a picture of another size than config.image_size and stretch the
                positions to it.

        Raises:
            ShapeError: wrong channels, no whole number of patches, or another size without `resample`.
        """
        layout = self.layout_of(pixels_BCHW, resample=resample)
        patches_BPD = self.patch_embed(pixels_BCHW)
        cls_B1D = self.cls_token.expand(len(patches_BPD), -1, -1)
        return torch.cat([cls_B1D, patches_BPD], dim=1) + self.positions(layout)

    def pool(self, tokens_BND: Tensor) -> Tensor:
        """What the head reads: (B, N, D) -> (B, D)."""
        if self.config.pooling == "mean":
            pooled_BD = tokens_BND[:, self.config.layout.prefix :].mean(dim=1)
        else:
            pooled_BD = tokens_BND[:, 0]
        return pooled_BD if self.pooler is None else torch.tanh(self.pooler(pooled_BD))

    def positions(self, layout: TokenLayout) -> Tensor:
        """The position embedding (1, N, D) for a layout; resampled when its grid is not the trained one."""
        trained = self.config.layout
        return self.pos_embed if layout == trained else resample_positions(self.pos_embed, trained, layout)

    def layout_of(self, pixels_BCHW: Tensor, *, resample: bool = False) -> TokenLayout:
        """The token layout of these pixels; raises ShapeError as `embed` says."""
        config = self.config
        if pixels_BCHW.ndim != 4 or pixels_BCHW.shape[1] != config.channels:
            raise ShapeError(f"pixels have shape {tuple(pixels_BCHW.shape)}; expected (B, {config.channels}, H, W)")
        height, width = pixels_BCHW.shape[2:]
        if (height, width) != config.image_size and not resample:
            raise ShapeError(
                f"the image is {height} x {width}, the model was trained for "
                f"{config.image_size[0]} x {config.image_size[1]}; pass resample=True to stretch its positions"
            )
        return config.layout_for((height, width))


def init_weights(module: nn.Module) -> None:
    """Initialise one module for training from scratch.

    Truncated normal with standard deviation 0.02 for matrices, tokens and positions, zero for
    biases: the scheme of DeiT (arXiv:2012.12877) and timm. LayerNorms keep PyTorch's ones and zeros.
    """
    if isinstance(module, (nn.Linear, PatchEmbed)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, ViT):
        nn.init.trunc_normal_(module.cls_token, std=0.02)
        nn.init.trunc_normal_(module.pos_embed, std=0.02)
