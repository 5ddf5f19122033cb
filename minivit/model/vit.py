"""The Vision Transformer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivit.errors import ShapeError, UsageError
from minivit.images.spec import ImageSpec
from minivit.model.attention import Attend, AttentionPool, attend_sdpa
from minivit.model.block import MLP, Block, LayerScale
from minivit.model.config import TokenLayout, ViTConfig
from minivit.model.embed import PatchEmbed, check_batch, check_pixels, resample_positions, rope_angles, spread_positions


class ViT(nn.Module):
    """Vision Transformer (Dosovitskiy et al. 2021, arXiv:2010.11929, equations 1 to 4).

    Attributes:
        config: the ViTConfig it was built from.
        attend: the attention callable of every block.
        image_spec: the image preprocessing, or None if the checkpoint has none.
        labels: {index: name} of the classes, or None.
        categories: {index: category} of the classes, or None; a tagger groups its classes by them.
        notes: what `minivit.load` decided where the files allow several readings, one sentence each.
        name, revision: hub id or path of the weights, and commit; set by `minivit.load`.
    """

    has_text: ClassVar[Literal[False]] = False  # see capabilities.py
    windowed: ClassVar[Literal[False]] = False

    def __init__(self, config: ViTConfig, attend: Attend = attend_sdpa):
        super().__init__()
        self.config = config
        self.attend = attend
        self.image_spec: ImageSpec | None = None
        self.labels: dict[int, str] | None = None
        self.categories: dict[int, str] | None = None
        self.notes: list[str] = []
        self.name: str | None = None
        self.revision: str | None = None

        width = config.width
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width)) if config.cls_token else None
        self.dist_token = nn.Parameter(torch.empty(1, 1, width)) if config.dist_token else None
        self.reg_tokens = nn.Parameter(torch.empty(1, config.registers, width)) if config.registers else None
        rows = config.positioned_prefix + config.layout.patches
        self.pos_embed = nn.Parameter(torch.empty(1, rows, width)) if config.positions != "rope" else None
        self.norm_pre = nn.LayerNorm(width, eps=config.eps) if config.norm_pre else nn.Identity()
        self.blocks = nn.ModuleList(Block(config, attend) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=config.eps)
        self.attn_pool = AttentionPool(config, MLP(config)) if config.pooling == "map" else None
        self.pooler = nn.Linear(width, width) if config.pooler else None
        self.proj = nn.Linear(width, config.projection, bias=False) if config.projection else nn.Identity()
        head_width = 2 * width if config.pooling == "cls+mean" else width
        if config.head == "cosine" and config.classes:
            self.head: nn.Module = CosineHead(config.projection or head_width, config.classes)
        else:
            self.head = nn.Linear(head_width, config.classes) if config.classes else nn.Identity()
        two_heads = config.pooling == "cls&dist" and config.classes
        self.head_dist = nn.Linear(width, config.classes) if two_heads else None
        self.apply(init_weights)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; config.classes follows a new `head`, and labels of another number of classes go."""
        if name == "head" and (config := followed(self.config, value)) is not self.config:
            self.config, self.labels = config, None
        super().__setattr__(name, value)

    def extra_repr(self) -> str:
        config, layout = self.config, self.config.layout
        height, width = config.image_size
        return (
            f"image {height} x {width}, patch {config.patch_size}, {layout.count} tokens ({layout.prefix} prefix), "
            f"width {config.width}, depth {config.depth}, heads {config.heads}, mlp {config.mlp_width}, "
            f"classes {config.classes}, {sum(p.numel() for p in self.parameters()):,} parameters"
        )

    def forward(self, pixels_BCHW: Tensor, resample: bool = False) -> Tensor:
        """Return logits_BL from pixels (B, C, H, W) in the dtype of the weights; without a head, as `answer`.

        `resample` may be positional, because the exporter to ONNX by TorchScript passes it so.
        Arguments and errors as `embed`.
        """
        tokens_BND = self.features(pixels_BCHW, resample=resample)
        return self.answer(tokens_BND)

    def features(self, pixels_BCHW: Tensor, *, resample: bool = False) -> Tensor:
        """Return tokens_BND, prefix tokens first, after the final norm if config.norm is "tokens".

        Arguments and errors as `embed`.
        """
        x = self.embed(pixels_BCHW, resample=resample)
        rope = self.rope(self.layout_of(pixels_BCHW, resample=resample))
        for block in self.blocks:
            x = block(x, rope)
        return self.norm(x) if self.config.norm == "tokens" else x

    def answer(self, tokens_BND: Tensor) -> Tensor:
        """Return logits_BL from the tokens of `features`; without a head pooled_BD, or (B, E) with a projection."""
        if self.head_dist is not None:
            return torch.stack(self.both_logits(tokens_BND)).mean(dim=0)
        pooled_BD = self.pool(tokens_BND)
        return self.head(self.proj(pooled_BD))

    def embed(self, pixels_BCHW: Tensor, *, resample: bool = False) -> Tensor:
        """Return the tokens_BND that the first block receives: equation 1 of arXiv:2010.11929.

        Args:
            pixels_BCHW: in the dtype of the weights.
            resample: accept an image of another size than config.image_size, and resample the positions to it.
                Models with config.any_size always do.

        Raises:
            ShapeError: no batch axis, wrong channels, not a whole number of patches, or another size without
                `resample`.
            UsageError: not a tensor, or in another dtype or on another device than the weights.
        """
        check_pixels(pixels_BCHW, self.patch_embed.weight)
        layout = self.layout_of(pixels_BCHW, resample=resample)
        patches_BPD = self.patch_embed(pixels_BCHW)
        prefix = [token for token in (self.cls_token, self.dist_token, self.reg_tokens) if token is not None]
        x = torch.cat([*(token.expand(pixels_BCHW.shape[0], -1, -1) for token in prefix), patches_BPD], dim=1)
        return self.norm_pre(x if self.pos_embed is None else x + self.positions(layout))

    def pool(self, tokens_BND: Tensor, pooling: str | None = None) -> Tensor:
        """Return the input of the head: (B, N, D) -> (B, D), or (B, 2*D) for pooling "cls+mean".

        For a distilled model, which has one head for each of two tokens, it is the mean of the two.

        Args:
            tokens_BND: the tokens of `features`.
            pooling: "cls" or "mean" in place of config.pooling; then attention pool and pooler are not applied.
        """
        if pooling is None and self.attn_pool is not None:
            patches_BPD = tokens_BND[:, self.config.layout.prefix :]
            pooled_BD = self.attn_pool(patches_BPD)
            return self.norm(pooled_BD) if self.config.norm == "pooled" else pooled_BD
        parts = {
            "cls": lambda: tokens_BND[:, 0],
            "cls&dist": lambda: tokens_BND[:, :2].mean(dim=1),
            "mean": lambda: tokens_BND[:, self.config.layout.prefix :].mean(dim=1),
        }
        pooled_BD = torch.cat([parts[part]() for part in (pooling or self.config.pooling).split("+")], dim=-1)
        pooled_BD = self.norm(pooled_BD) if self.config.norm == "pooled" else pooled_BD
        return pooled_BD if pooling or self.pooler is None else torch.tanh(self.pooler(pooled_BD))

    def both_logits(self, tokens_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits of the class token and of the distillation token of a distilled DeiT, each (B, L).

        Raises:
            UsageError: the model has one head only.
        """
        if self.head_dist is None:
            raise UsageError("this model has one head; only a distilled DeiT (pooling cls&dist) has two")
        return self.head(tokens_BND[:, 0]), self.head_dist(tokens_BND[:, 1])

    def positions(self, layout: TokenLayout) -> Tensor:
        """Return the learned positions (1, N, D) for a layout, resampled if its grid is not the trained one."""
        assert self.pos_embed is not None
        trained = self.config.layout
        pos_embed: Tensor = self.pos_embed
        if layout.grid != trained.grid:
            pos_embed = resample_positions(pos_embed, trained, layout, self.config.position_resampling)
        return spread_positions(pos_embed, self.config.positioned_prefix, layout)

    def rope(self, layout: TokenLayout) -> tuple[Tensor, Tensor] | None:
        """Return the cosines and sines (P, K) that rotate queries and keys; None if positions are learned."""
        config = self.config
        if config.positions != "rope":
            return None
        return rope_angles(layout.grid, config.head_dim, config.rope_theta, like=self.patch_embed.weight)

    def layout_of(self, pixels_BCHW: Tensor, *, resample: bool = False) -> TokenLayout:
        """Return the token layout of these pixels; arguments and errors as `embed`."""
        config = self.config
        check_batch(pixels_BCHW, config.channels)
        height, width = pixels_BCHW.shape[2:]
        if (height, width) != config.image_size and not (resample or config.any_size):
            raise ShapeError(
                f"the image is {height} x {width}, the model was trained for "
                f"{config.image_size[0]} x {config.image_size[1]}; pass resample=True to resample its positions"
            )
        # At the model's own size the constant of the config, whose numbers torch.compile and torch.export fix.
        return config.layout if (height, width) == config.image_size else config.layout_for((height, width))


def followed(config: Any, head: nn.Module) -> Any:
    """Return a ViTConfig or SwinConfig with the classes of a head: nn.Linear or none; another head changes nothing.

    Raises:
        UsageError: the config cannot have such a head.
    """
    if not isinstance(head, (nn.Linear, nn.Identity)):
        return config
    classes = head.out_features if isinstance(head, nn.Linear) else 0
    changes: dict[str, Any] = {} if classes == config.classes else {"classes": classes}
    if isinstance(head, nn.Linear) and getattr(config, "head", "linear") == "cosine":
        changes |= {"classes": classes, "head": "linear", "score": "softmax"}
    return replace(config, **changes) if changes else config


class CosineHead(nn.Module):
    """The head of a model whose classes are texts, made by `CLIP.zero_shot`: (B, E) -> (B, L)."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, width))  # the text embedding of each class
        self.logit_scale = nn.Parameter(torch.zeros(1))
        self.logit_bias = nn.Parameter(torch.zeros(1))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, pooled_BE: Tensor) -> Tensor:
        return cosine_logits(pooled_BE, self.weight, self.logit_scale, self.logit_bias)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[1]} -> {self.weight.shape[0]} classes"


def cosine_logits(pooled_BE: Tensor, texts_LE: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the similarity of every image to every text, exp(scale) * cosine + bias: (B, E), (L, E) -> (B, L).

    Radford et al. 2021 (arXiv:2103.00020), figure 3; the bias is SigLIP's (arXiv:2303.15343, algorithm 1).
    """
    cosines_BL = F.normalize(pooled_BE, dim=-1) @ F.normalize(texts_LE, dim=-1).T
    logits_BL = cosines_BL * scale.exp()
    return logits_BL if bias is None else logits_BL + bias


def init_weights(module: nn.Module) -> None:
    """Initialise one module for training from scratch.

    Matrices, tokens and positions are truncated normal with standard deviation 0.02, biases are zero, as in DeiT
    (arXiv:2012.12877) and timm. LayerNorms keep PyTorch's ones and zeros. Layer scales start at 1e-5 (CaiT,
    arXiv:2103.17239).
    """
    if isinstance(module, (nn.Linear, PatchEmbed)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, LayerScale):
        nn.init.constant_(module.gamma, 1e-5)
    elif isinstance(module, AttentionPool):
        nn.init.trunc_normal_(module.latent, std=0.02)
    elif isinstance(module, ViT):
        for tokens in (module.cls_token, module.dist_token, module.reg_tokens, module.pos_embed):
            if tokens is not None:
                nn.init.trunc_normal_(tokens, std=0.02)
