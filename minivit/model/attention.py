"""Multi-head self-attention around one seam: `attend(q, k, v, *, scale)`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivit.model.config import BlockConfig, ViTConfig


class Attend(Protocol):
    """The seam: any callable of this form runs inside the model.

    q is (B, A, N, K), k and v are (B, A, M, K), all of one floating dtype and possibly strided views;
    the result is (B, A, N, K) of the same dtype.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor: ...


class BiasedAttend(Protocol):
    """The seam where attention is told of places (Swin): as Attend, with a `bias` that is added to scale * q k^T.

    `bias` is of the dtype of q and broadcasts to (B, A, N, M). A callable is handed one only if it has a parameter of
    this name; it may be None, and then it is not handed at all, so that one function can serve both seams.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, bias: Tensor) -> Tensor: ...


def takes_bias(attend: Callable[..., Tensor]) -> bool:
    """Whether a callable names a parameter `bias`; one that swallows all keywords may ignore it, and does not count."""
    try:
        return "bias" in inspect.signature(attend.forward if isinstance(attend, nn.Module) else attend).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return False


def attention_probs(q_BANK: Tensor, k_BAMK: Tensor, *, scale: float, bias: Tensor | None = None) -> Tensor:
    """Who looks at whom: softmax over the keys of scale * q k^T, plus a bias where there is one, as probs_BANM.

    Vaswani et al. 2017 (arXiv:1706.03762), equation 1 without V. Half-precision logits are
    normalised in float32 and the result is returned in the dtype of q.
    """
    logits_BANM = (q_BANK @ k_BAMK.transpose(-2, -1)) * scale
    logits_BANM = logits_BANM if bias is None else logits_BANM + bias
    at_least_float32 = torch.promote_types(logits_BANM.dtype, torch.float32)
    return logits_BANM.softmax(dim=-1, dtype=at_least_float32).to(q_BANK.dtype)


def attend_reference(q: Tensor, k: Tensor, v: Tensor, *, scale: float, bias: Tensor | None = None) -> Tensor:
    """Attention as the paper writes it: softmax(scale * q k^T) v. Every kernel is measured against this."""
    return attention_probs(q, k, scale=scale, bias=bias) @ v


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor, *, scale: float, bias: Tensor | None = None) -> Tensor:
    """The same through PyTorch's fused scaled_dot_product_attention; the default of the model."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


def attend_causal(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Attention in which a token sees itself and those before it: what CLIP's text tower runs, whatever the model's
    own `attend`, which is not told of a mask."""
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)


def rotate(x_BANK: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Turn queries or keys by the place of their patch; the prefix tokens in front, which have none, stay.

    Rotary positions (Su et al. 2021, arXiv:2104.09864, equation 34) with channel i paired to i + K/2,
    as DINOv3 does (arXiv:2508.10104; transformers' modeling_dinov3_vit.py, apply_rotary_pos_emb).

    Args:
        rope: cosines and sines, both (P, K), from `embed.rope_angles`.
    """
    cos_PK, sin_PK = rope
    prefix, x = x_BANK.split([x_BANK.shape[2] - len(cos_PK), len(cos_PK)], dim=2)
    first, second = x.chunk(2, dim=-1)
    turned = x * cos_PK + torch.cat([-second, first], dim=-1) * sin_PK
    return torch.cat([prefix, turned], dim=2)


class SelfAttention(nn.Module):
    """Tokens look at each other, once per head: (B, N, D) -> (B, N, D)."""

    def __init__(self, config: BlockConfig, attend: Attend = attend_sdpa):
        super().__init__()
        self.heads = config.heads
        self.scale = config.head_dim**-0.5
        self.attend = attend
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.qkv_bias)  # rows in the order q, k, v
        self.proj = nn.Linear(config.width, config.width)

    def split(self, qkv: Tensor, rope: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """What `qkv` put out, as q, k, v exactly as `attend` sees them: (B, N, 3*D) -> three (B, A, N, K).

        Without `rope` they are views; with it (`ViT.rope` of the picture's layout) q and k are rotated.
        """
        # (B, N, 3*D) -> (B, N, 3, A, K) -> (3, B, A, N, K)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return (q, k, v) if rope is None else (rotate(q, rope), rotate(k, rope), v)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None = None) -> Tensor:
        q, k, v = self.split(self.qkv(x), rope)
        mix_BANK = self.attend(q, k, v, scale=self.scale)
        # (B, A, N, K) -> (B, N, A, K) -> (B, N, D)
        return self.proj(mix_BANK.transpose(1, 2).flatten(2))


class AttentionPool(nn.Module):
    """One learned query attends to all tokens, then an MLP: (B, N, D) -> (B, D), the MAP head of SigLIP.

    Zhai et al. 2022 (arXiv:2106.04560, section 3.2); transformers' SiglipMultiheadAttentionPoolingHead
    and timm's AttentionPoolLatent. It runs PyTorch's attention, whatever the blocks do.
    """

    def __init__(self, config: ViTConfig, mlp: nn.Module):
        super().__init__()
        self.heads = config.heads
        self.scale = config.head_dim**-0.5
        self.attend: Attend = attend_sdpa
        self.latent = nn.Parameter(torch.empty(1, 1, config.width))
        self.qkv = nn.Linear(config.width, 3 * config.width)  # rows in the order q, k, v
        self.proj = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.mlp = mlp

    def forward(self, x: Tensor) -> Tensor:
        width = x.shape[-1]
        query_B1D = F.linear(self.latent, self.qkv.weight[:width], self.qkv.bias[:width]).expand(len(x), -1, -1)
        kv = F.linear(x, self.qkv.weight[width:], self.qkv.bias[width:])
        # (B, 1, D) -> (B, 1, A, K) -> (B, A, 1, K)
        q = query_B1D.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        # (B, N, 2*D) -> (B, N, 2, A, K) -> (2, B, A, N, K)
        k, v = kv.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mix_BA1K = self.attend(q, k, v, scale=self.scale)
        # (B, A, 1, K) -> (B, D)
        pooled_BD = self.proj(mix_BA1K.flatten(1))
        return pooled_BD + self.mlp(self.norm(pooled_BD))
