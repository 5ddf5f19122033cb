"""From pixels to tokens: patch embedding, position embeddings and their resampling, rotary angles."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivit.errors import ShapeError, UsageError
from minivit.model.config import SwinConfig, TokenLayout, ViTConfig


def check_batch(pixels_BCHW: object, channels: int) -> None:
    """Refuse an input that is no batch of pixels, in words that say how to make one; of any floating dtype.

    Raises:
        UsageError: not a tensor of floats; ShapeError: not (B, channels, H, W).
    """
    if not isinstance(pixels_BCHW, Tensor):
        kind = type(pixels_BCHW)
        where = "" if kind.__module__ == "builtins" else f"{kind.__module__.partition('.')[0]}."
        raise UsageError(
            f"pixels are a {where}{kind.__name__}; expected a tensor (B, {channels}, H, W)" + _hint(pixels_BCHW)
        )
    if not pixels_BCHW.is_floating_point():
        dtype = str(pixels_BCHW.dtype).removeprefix("torch.")
        raise UsageError(
            f"pixels are {dtype}; expected floats, preprocessed: use minivit.preprocess(image, model.image_spec)[None]"
        )
    shape = tuple(pixels_BCHW.shape)
    if pixels_BCHW.ndim == 4 and shape[1] == channels:
        return
    hint = ""
    if pixels_BCHW.ndim == 3 and shape[0] == channels:
        hint = "; the batch axis is missing: pixels[None]"
    elif pixels_BCHW.ndim in (3, 4) and shape[-1] == channels:
        order = "(2, 0, 1)[None]" if pixels_BCHW.ndim == 3 else "(0, 3, 1, 2)"
        hint = f"; the channels are last: pixels.permute{order}"
    raise ShapeError(f"pixels have shape {shape}; expected (B, {channels}, H, W){hint}")


def check_pixels(pixels_BCHW: object, weight: Tensor) -> None:
    """Refuse an input that a model cannot take, in words that say what to do.

    Args:
        pixels_BCHW: what was passed to the model.
        weight: of the patch embedding, (D, C, patch, patch).

    Raises:
        ShapeError, UsageError: as `check_batch`; UsageError: another dtype or device than that of the weights.
    """
    check_batch(pixels_BCHW, weight.shape[1])
    assert isinstance(pixels_BCHW, Tensor)
    if pixels_BCHW.device != weight.device:
        given, wanted = str(pixels_BCHW.device), str(weight.device)
        raise UsageError(f"pixels are on {given} and the weights on {wanted}; use pixels.to({wanted!r})")
    if pixels_BCHW.dtype != weight.dtype and not _autocast(pixels_BCHW):
        given, wanted = (str(dtype).removeprefix("torch.") for dtype in (pixels_BCHW.dtype, weight.dtype))
        raise UsageError(f"pixels are {given} and the weights {wanted}; use pixels.to(torch.{wanted})")


def _autocast(x: Tensor) -> bool:
    """Return whether autocast converts this tensor: it is on, and the dtype is not float64, which it leaves alone."""
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind) and x.dtype != torch.float64


def _hint(given: object) -> str:
    """Return how pixels are made of something that is no tensor."""
    module = type(given).__module__
    if isinstance(given, (str, bytes, os.PathLike)) or module.partition(".")[0] == "PIL":
        return ": use minivit.preprocess(image, model.image_spec)[None], or minivit.classify(image, model=model)"
    if isinstance(given, Mapping):
        return f"; it has the entries {', '.join(map(str, given))}: pass the one that holds the pixels"
    if isinstance(given, (list, tuple)):
        stack = bool(given) and all(isinstance(each, Tensor) for each in given)
        return ": use torch.stack(pixels)" if stack else ""
    return ": use torch.as_tensor(pixels)" if hasattr(given, "__array__") else ""


class PatchEmbed(nn.Module):
    """Split the image into patches and map each patch to a token: (B, C, H, W) -> (B, P, D).

    A linear layer on flattened patches, equation 1 of arXiv:2010.11929. It equals a convolution with kernel and
    stride of one patch. `weight` has the convolution's shape (D, C, patch, patch), in which checkpoints store it.
    Pixels at the right and bottom that do not fill a patch are dropped, as the convolution drops them.
    """

    def __init__(self, config: ViTConfig | SwinConfig):
        super().__init__()
        patch = config.patch_size
        self.patch_size = patch
        self.weight = nn.Parameter(torch.empty(config.width, config.channels, patch, patch))
        self.bias = nn.Parameter(torch.empty(config.width)) if config.patch_bias else None

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        patch = self.patch_size
        height, width = (side - side % patch for side in pixels_BCHW.shape[2:])
        # (B, C, H, W) -> (B, C, rows, patch, columns, patch)
        x = pixels_BCHW[:, :, :height, :width].unflatten(3, (-1, patch)).unflatten(2, (-1, patch))
        # -> (B, rows, columns, C, patch, patch) -> (B, P, C*patch*patch)
        x = x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return F.linear(x, self.weight.flatten(1), self.bias)

    def extra_repr(self) -> str:
        width, channels = self.weight.shape[:2]
        return f"patch {self.patch_size}, {channels} -> {width}, bias={self.bias is not None}"


# The arguments of F.interpolate for each name in config.POSITION_RESAMPLINGS. "dino" passes another scale, see below.
_INTERPOLATE: dict[str, dict[str, Any]] = {
    "hf": {"mode": "bicubic", "align_corners": False},
    "dinov2": {"mode": "bicubic", "align_corners": False},
    "timm": {"mode": "bicubic", "align_corners": False, "antialias": True},
    "dino": {"mode": "bicubic", "align_corners": False},
    "torchvision": {"mode": "bicubic", "align_corners": True},
    "npz": {"mode": "bilinear", "align_corners": False},
    "jax": {"mode": "bilinear", "align_corners": True},
}
_IN_FLOAT32 = ("dinov2", "timm", "npz")  # these resample in float32, whatever the dtype of the model


def resample_positions(pos_embed: Tensor, old: TokenLayout, new: TokenLayout, rule: str = "hf") -> Tensor:
    """Return learned positions resampled to another grid: (1, prefix + P, D) -> (1, prefix + P', D).

    The rows of prefix tokens do not change.

    Args:
        pos_embed: rows for all, some or none of the prefix tokens of `old`, then for its patches.
        rule: one of config.POSITION_RESAMPLINGS, each as a reference library does it:
            "hf": bicubic; transformers' ViT, DeiT, MAE, CLIP and SigLIP under interpolate_pos_encoding=True.
            "dinov2": as "hf", in float32.
            "timm": bicubic with antialiasing, in float32; timm's resample_abs_pos_embed and transformers'
            DINOv2 with registers.
            "dino": bicubic, with the scale of a grid that is 0.1 larger; facebookresearch's dino and dinov2.
            "torchvision": bicubic with aligned corners; its interpolate_embeddings.
            "npz": bilinear in float32; timm's reader of JAX files.
            "jax": bilinear with aligned corners; vision_transformer's scipy.ndimage.zoom of order 1.

    Raises:
        ShapeError: pos_embed has fewer rows than `old` has patches, or more than it has tokens.
    """
    rows = pos_embed.shape[1]
    if not old.patches <= rows <= old.count:
        raise ShapeError(f"position embedding has {rows} rows; {old.patches} patches make {old.count} tokens")
    prefix_1ND, patches_1ND = pos_embed.split([rows - old.patches, old.patches], dim=1)
    # (1, P, D) -> (1, rows, columns, D) -> (1, D, rows, columns), where F.interpolate works
    image = patches_1ND.unflatten(1, old.grid).permute(0, 3, 1, 2)
    image = image.to(torch.float32 if rule in _IN_FLOAT32 else torch.promote_types(image.dtype, torch.float32))
    if rule == "dino":
        scale = tuple((count + 0.1) / before for count, before in zip(new.grid, old.grid, strict=True))
        image = F.interpolate(image, scale_factor=scale, **_INTERPOLATE[rule])
    else:
        image = F.interpolate(image, size=new.grid, **_INTERPOLATE[rule])
    # (1, D, rows', columns') -> (1, P', D)
    patches_1ND = image.flatten(2).transpose(1, 2).to(pos_embed.dtype)
    return torch.cat([prefix_1ND, patches_1ND], dim=1)


def spread_positions(pos_embed: Tensor, positioned: int, layout: TokenLayout) -> Tensor:
    """Return learned positions with one row for each token: (1, positioned + P, D) -> (1, N, D).

    Args:
        positioned: how many of the prefix tokens, from the first, have a row; the others get zeros.
    """
    without = layout.prefix - positioned
    if not without:
        return pos_embed
    prefix_1ND, patches_1ND = pos_embed.split([positioned, layout.patches], dim=1)
    return torch.cat([prefix_1ND, pos_embed.new_zeros(1, without, pos_embed.shape[-1]), patches_1ND], dim=1)


def rope_angles(grid: tuple[int, int], head_dim: int, theta: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and sines (P, K) of the angles by which `attention.rotate` rotates each patch.

    The centre of a patch lies between -1 and 1 on both axes. K/4 frequencies are multiplied by its row and K/4 by its
    column. The K/2 angles are repeated, for the two channels of each pair. Frequencies and centres are float32;
    their product is float32 or wider, as in DINOv3 (arXiv:2508.10104; transformers' DINOv3ViTRopePositionEmbedding).

    Args:
        grid: patches as (rows, columns).
        head_dim: K.
        theta: base of the frequencies.
        like: a tensor with the dtype and device of the result.
    """
    frequencies = 1 / theta ** torch.arange(0, 1, 4 / head_dim, dtype=torch.float32, device=like.device)
    frequencies = frequencies.to(torch.promote_types(like.dtype, torch.float32))
    rows, columns = ((torch.arange(n, dtype=torch.float32, device=like.device) + 0.5) / n * 2 - 1 for n in grid)
    centres_P2 = torch.cartesian_prod(rows, columns)
    # (P, 2, 1) * (K/4) -> (P, 2, K/4) -> (P, K/2) -> (P, K)
    angles_PK = (2 * math.pi * centres_P2[:, :, None] * frequencies).flatten(1).tile(2)
    return angles_PK.cos().to(like), angles_PK.sin().to(like)
