"""Swin Transformer: attention inside shifted windows, and patches that merge from stage to stage.

In shapes of this file W is the number of windows of an image, V = B*W, and N the tokens of a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivit.errors import ShapeError, UsageError
from minivit.images.spec import ImageSpec
from minivit.model.attention import Attend, BiasedAttend, SelfAttention, attend_sdpa, takes_bias
from minivit.model.block import Block
from minivit.model.config import SwinConfig, SwinStage
from minivit.model.embed import PatchEmbed, check_pixels
from minivit.model.vit import followed

MASKED = -100.0  # added to logits of tokens that are no neighbours in the image, as in every reference library


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How a grid of tokens is split into windows of window x window tokens, and joined again."""

    grid: tuple[int, int]  # tokens as (rows, columns)
    window: int  # tokens along each side of a window
    shift: tuple[int, int] = (0, 0)  # tokens by which the grid is rolled up and left before it is split
    pad_first: bool = True  # zeros are added at the bottom and right before the roll; else after it

    @property
    def padded(self) -> tuple[int, int]:
        """(rows, columns) of the grid when it is padded to whole windows."""
        rows, columns = (-(-side // self.window) * self.window for side in self.grid)
        return rows, columns

    def cut(self, x_BPD: Tensor) -> Tensor:
        """Return the W windows of every image, N = window * window tokens each: (B, P, D) -> (B*W, N, D)."""
        x = x_BPD.unflatten(1, self.grid)
        (rows, columns), (height, width) = self.grid, self.padded
        zeros = (0, 0, 0, width - columns, 0, height - rows)
        x = F.pad(x, zeros) if self.pad_first else x
        x = x.roll((-self.shift[0], -self.shift[1]), dims=(1, 2)) if any(self.shift) else x
        x = x if self.pad_first else F.pad(x, zeros)
        # (B, H, W, D) -> (B, rows, window, columns, window, D) -> (B*W, N, D)
        x = x.unflatten(2, (-1, self.window)).unflatten(1, (-1, self.window))
        return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)

    def stitch(self, x_VND: Tensor) -> Tensor:
        """Return the tokens of the windows that `cut` returned, without the padding: (B*W, N, D) -> (B, P, D)."""
        (rows, columns), (height, width) = self.grid, self.padded
        # (B*W, N, D) -> (B, rows, columns, window, window, D) -> (B, H, W, D)
        x = x_VND.unflatten(1, (self.window, self.window)).unflatten(
            0, (-1, height // self.window, width // self.window)
        )
        x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        x = x if self.pad_first else x[:, :rows, :columns]
        x = x.roll(self.shift, dims=(1, 2)) if any(self.shift) else x
        return x[:, :rows, :columns].flatten(1, 2)

    def mask(self, like: Tensor) -> Tensor | None:
        """Return a bias (W, 1, N, N), MASKED for tokens that only the roll brought into one window, else 0.

        None if nothing is rolled. `like` has the dtype and device of the result.
        """
        if not any(self.shift):
            return None
        regions = []
        for side, shift in zip(self.padded, self.shift, strict=True):
            place = torch.arange(side, device=like.device)
            # Regions: 0 before the last window, 1 and 2 inside it; region 2, the last `shift` tokens, was rolled there.
            last = (place >= side - self.window).long() + (place >= side - shift).long()
            regions.append(last if shift else torch.zeros_like(place))
        region_P1 = (regions[0][:, None] * 3 + regions[1]).flatten()[None, :, None]
        whole = Windows(grid=self.padded, window=self.window)
        region_WN = whole.cut(region_P1)[:, :, 0]
        apart = region_WN[:, None, :, None] != region_WN[:, None, None, :]
        return torch.zeros(apart.shape, dtype=like.dtype, device=like.device).masked_fill(apart, MASKED)


def windows_of(config: SwinConfig, stage: int, grid: tuple[int, int], *, shifted: bool) -> Windows:
    """Return the windows of a block, as the reference library named by `config.windowing` computes them.

    In all three, tokens attend to the zeros of the padding.
    "hf" (transformers' modeling_swin.py) pads, then rolls; it does not roll if the shorter side is one window.
    "torchvision" (swin_transformer.py, shifted_window_attention) pads, then rolls, and decides for each side.
    "timm" (swin_transformer.py) rolls, then pads; the shift follows from the config's own image size.

    Raises:
        ShapeError: the grid is smaller than a window, which the reference library refuses.
    """
    window, rule = config.window[stage], config.windowing
    if rule != "torchvision" and min(grid) < window:
        raise ShapeError(
            f"stage {stage} has {grid[0]} x {grid[1]} tokens, less than a window of {window}; use a larger image"
        )
    decisive = config.grid(stage=stage) if rule == "timm" else grid
    small = [side <= window for side in decisive]
    small = [any(small)] * 2 if rule == "hf" else small
    rows, columns = (0 if is_small or not shifted else window // 2 for is_small in small)
    return Windows(grid=grid, window=window, shift=(rows, columns), pad_first=rule != "timm")


class WindowAttention(SelfAttention):
    """Self-attention inside windows with a relative position bias: (B, P, D) -> (B, P, D).

    Equation 4 of arXiv:2103.14030. One call of `attend` computes all windows, with a bias (1 or B*W, A, N, N).
    """

    def __init__(self, config: SwinStage, attend: BiasedAttend = attend_sdpa):
        super().__init__(config, attend)  # type: ignore[arg-type]  # only this class calls it
        self.window = config.window
        # One row for each offset of two tokens: -(window - 1) to window - 1 in rows, and the same in columns.
        self.bias_table = nn.Parameter(torch.empty((2 * config.window - 1) ** 2, config.heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)

    def bias(self) -> Tensor:
        """Return the relative position bias of queries and keys, (1, A, N, N)."""
        side = torch.arange(self.window, device=self.bias_table.device)
        position_N2 = torch.cartesian_prod(side, side)
        offset_NN2 = position_N2[:, None] - position_N2[None, :] + self.window - 1
        rows_NN = offset_NN2[..., 0] * (2 * self.window - 1) + offset_NN2[..., 1]
        # (N, N, A) -> (1, A, N, N)
        return self.bias_table[rows_NN].permute(2, 0, 1)[None]

    def forward(self, x: Tensor, windows: Windows, mask_W1NN: Tensor | None = None) -> Tensor:  # type: ignore[override]
        cut_VND = windows.cut(x)
        q, k, v = self.split(self.qkv(cut_VND))
        bias = self.bias()
        if mask_W1NN is not None:
            # (1, A, N, N) + (W, 1, N, N) -> (W, A, N, N) -> (B, W, A, N, N) -> (B*W, A, N, N)
            bias = (bias + mask_W1NN).expand(x.shape[0], -1, -1, -1, -1).flatten(0, 1)
        output_VANK = self.attend(q, k, v, scale=self.scale, bias=bias)  # type: ignore[call-arg]
        # (B*W, A, N, K) -> (B*W, N, A, K) -> (B*W, N, D)
        return windows.stitch(self.proj(output_VANK.transpose(1, 2).flatten(2)))


class SwinBlock(Block):
    """A Block with attention inside windows: (B, P, D) -> (B, P, D)."""

    attention = WindowAttention  # type: ignore[assignment]

    def forward(self, x: Tensor, windows: Windows, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        x = x + self.attn(self.norm1(x), windows, mask)
        x = x + self.mlp(self.norm2(x))
        return x


class PatchMerging(nn.Module):
    """Merge 2 x 2 tokens into one of twice the width: (B, rows * columns, D) -> (B, rows/2 * columns/2, 2*D).

    arXiv:2103.14030, section 3.1. An odd side is padded with zeros.
    """

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.norm = nn.LayerNorm(4 * width, eps=eps)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = x.unflatten(1, grid)
        x = F.pad(x, (0, 0, 0, grid[1] % 2, 0, grid[0] % 2))
        # (B, rows, columns, D) -> (B, rows/2, 2, columns/2, 2, D) -> (B, rows/2, columns/2, 2, 2, D); the order of the
        # four is upper left, lower left, upper right, lower right -> (B, rows/2 * columns/2, 4*D)
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 4, 2, 5).flatten(3).flatten(1, 2)
        return self.reduction(self.norm(x))


class Stage(nn.Module):
    """Blocks whose windows are plain and shifted in turn; then patches merge, except in the last stage."""

    def __init__(self, config: SwinConfig, index: int, attend: BiasedAttend):
        super().__init__()
        self.config = config
        self.index = index
        sizes = config.stages[index]
        self.blocks = nn.ModuleList(SwinBlock(sizes, attend) for _ in range(config.depths[index]))  # type: ignore[arg-type]
        last = index == len(config.depths) - 1
        self.merge = None if last else PatchMerging(sizes.width, config.eps)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        plain, shifted = (windows_of(self.config, self.index, grid, shifted=shifted) for shifted in (False, True))
        mask = shifted.mask(x)
        for i, block in enumerate(self.blocks):
            x = block(x, shifted, mask) if i % 2 else block(x, plain)
        return x if self.merge is None else self.merge(x, grid)


class Swin(nn.Module):
    """Swin Transformer (Liu et al. 2021, arXiv:2103.14030, figure 3).

    Attributes:
        config: the SwinConfig it was built from.
        attend: the attention callable of every block; it accepts a bias.
        image_spec, labels, name, revision: as of a ViT.
    """

    has_text: ClassVar[Literal[False]] = False  # see capabilities.py
    windowed: ClassVar[Literal[True]] = True

    def __init__(self, config: SwinConfig, attend: Attend | BiasedAttend = attend_sdpa):
        """
        Raises:
            UsageError: `attend` has no parameter `bias`, which the relative positions need.
        """
        super().__init__()
        if not takes_bias(attend):
            name = getattr(attend, "__name__", type(attend).__name__)
            raise UsageError(
                f"attention {name} accepts no bias, which Swin adds to the logits of every window; give it a keyword "
                "`bias` that broadcasts to (B, A, N, M) and is added to scale * q k^T "
                "(minivit.model.attention.BiasedAttend)"
            )
        self.config = config
        self.attend: BiasedAttend = attend  # type: ignore[assignment]
        self.image_spec: ImageSpec | None = None
        self.labels: dict[int, str] | None = None
        self.categories: dict[int, str] | None = None
        self.notes: list[str] = []
        self.name: str | None = None
        self.revision: str | None = None
        self.patch_embed = PatchEmbed(config)
        self.norm_embed = nn.LayerNorm(config.width, eps=config.eps)
        self.stages = nn.ModuleList(Stage(config, i, self.attend) for i in range(len(config.depths)))
        width = config.stages[-1].width
        self.norm = nn.LayerNorm(width, eps=config.eps)
        self.head = nn.Linear(width, config.classes) if config.classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, (nn.Linear, PatchEmbed)):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; config.classes follows a new `head`, as of a ViT."""
        if name == "head" and (config := followed(self.config, value)) is not self.config:
            self.config, self.labels = config, None
        super().__setattr__(name, value)

    def extra_repr(self) -> str:
        config = self.config
        height, width = config.image_size
        return (
            f"image {height} x {width}, patch {config.patch_size}, widths {[stage.width for stage in config.stages]}, "
            f"depths {list(config.depths)}, heads {list(config.heads)}, window {list(config.window)}, "
            f"classes {config.classes}, {sum(p.numel() for p in self.parameters()):,} parameters"
        )

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Return logits_BL, or pooled_BD without a head, from pixels (B, C, H, W) in the dtype of the weights."""
        return self.head(self.pool(self.features(pixels_BCHW)))

    def features(self, pixels_BCHW: Tensor) -> Tensor:
        """Return the tokens of the last stage (B, P, D) after the final norm, from pixels (B, C, H, W).

        Raises:
            ShapeError: no batch axis, wrong channels, or a size that the reference library refuses.
            UsageError: not a tensor, or in another dtype or on another device than the weights.
        """
        x = self.embed(pixels_BCHW)
        height, width = pixels_BCHW.shape[2:]
        for i, stage in enumerate(self.stages):
            x = stage(x, self.config.grid((height, width), i))
        return self.norm(x)

    def embed(self, pixels_BCHW: Tensor) -> Tensor:
        """Return the tokens (B, P, D) that the first block receives, from pixels (B, C, H, W); raises as `features`."""
        config = self.config
        check_pixels(pixels_BCHW, self.patch_embed.weight)
        height, width = pixels_BCHW.shape[2:]
        config.grid((height, width))  # refuses a size that is not a whole number of patches
        pixels_BCHW = F.pad(pixels_BCHW, (0, -width % config.patch_size, 0, -height % config.patch_size))
        return self.norm_embed(self.patch_embed(pixels_BCHW))

    def pool(self, tokens_BPD: Tensor, pooling: str | None = None) -> Tensor:
        """Return the mean of the tokens, the input of the head: (B, P, D) -> (B, D).

        Raises:
            UsageError: another pooling than "mean".
        """
        if pooling not in (None, "mean"):
            raise UsageError(f"a Swin has no pooling {pooling}; it has mean, of its tokens")
        return tokens_BPD.mean(dim=1)

    @property
    def blocks(self) -> list[SwinBlock]:
        """The blocks of all stages, in the order of the forward pass."""
        return [block for stage in self.stages for block in stage.blocks]  # type: ignore[union-attr]
