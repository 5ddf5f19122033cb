"""Multi-head self-attention, with a callable `attend(q, k, v, *, scale)` as the attention interface."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivit.model.config import BlockConfig, ViTConfig


class Attend(Protocol):
    """The attention interface: a callable of this form computes attention inside the model.

    q is (B, A, N, K), k and v are (B, A, M, K). All have one floating dtype and may be strided views.
    The result is (B, A, N, K) in the same dtype.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor: ...


class BiasedAttend(Protocol):
    """The attention interface of Swin: as Attend, with a `bias` that is added to scale * q k^T.

    `bias` has the dtype of q and broadcasts to (B, A, N, M). It is passed only to a callable with a parameter of this
    name. Models without a bias do not pass it, so one function with `bias=None` serves both interfaces.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, bias: Tensor) -> Tensor: ...


def takes_bias(attend: Callable[..., Tensor]) -> bool:
    """Return whether a callable has a parameter named `bias`; `**kwargs` does not count, because it may be ignored."""
    try:
        return "bias" in inspect.signature(attend.forward if isinstance(attend, nn.Module) else attend).parameters
    except (TypeError, ValueError):  # a builtin without a signature
        return False


def attention_probs(q_BANK: Tensor, k_BAMK: Tensor, *, scale: float, bias: Tensor | None = None) -> Tensor:
    """Return the attention probabilities probs_BANM: softmax over the keys of scale * q k^T + bias.

    Vaswani et al. 2017 (arXiv:1706.03762), equation 1 without V. The softmax of half-precision logits runs in
    float32. The result has the dtype of q.
    """
    logits_BANM = (q_BANK @ k_BAMK.transpose(-2, -1)) * scale
    logits_BANM = logits_BANM if bias is None else logits_BANM + bias
    at_least_float32 = torch.promote_types(logits_BANM.dtype, torch.float32)
    return logits_BANM.softmax(dim=-1, dtype=at_least_float32).to(q_BANK.dtype)


def attend_reference(q: Tensor, k: Tensor, v: Tensor, *, scale: float, bias: Tensor | None = None) -> Tensor:
    """Return softmax(scale * q k^T + bias) v, (B, A, N, K), as the paper writes it: the reference for every kernel."""
    return attention_probs(q, k, scale=scale, bias=bias) @ v


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor, *, scale: float, bias: Tensor | None = None) -> Tensor:
    """Return the same from PyTorch's fused scaled_dot_product_attention, the default of the model."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


def attend_causal(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Return attention in which a token attends to itself and to earlier tokens.

    CLIP's text tower always uses it, whatever the model's own `attend`: that interface has no mask.
    """
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)


def rotate(x_BANK: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Return queries or keys (B, A, N, K) rotated by the position of their patch; prefix tokens are not rotated.

    Rotary positions (Su et al. 2021, arXiv:2104.09864, equation 34). Channel i is paired with channel i + K/2,
    as in DINOv3 (arXiv:2508.10104; transformers' modeling_dinov3_vit.py, apply_rotary_pos_emb).

    Args:
        rope: cosines and sines, both (P, K), from `embed.rope_angles`.
    """
    cos_PK, sin_PK = rope
    prefix, x = x_BANK.split([x_BANK.shape[2] - cos_PK.shape[0], cos_PK.shape[0]], dim=2)
    first, second = x.chunk(2, dim=-1)
    rotated = x * cos_PK + torch.cat([-second, first], dim=-1) * sin_PK
    return torch.cat([prefix, rotated], dim=2)


class SelfAttention(nn.Module):
    """Multi-head self-attention, (B, N, D) -> (B, N, D): arXiv:1706.03762, section 3.2.2."""

    def __init__(self, config: BlockConfig, attend: Attend = attend_sdpa):
        super().__init__()
        self.heads = config.heads
        self.scale = config.head_dim**-0.5
        self.attend = attend
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.qkv_bias)  # rows in the order q, k, v
        self.proj = nn.Linear(config.width, config.width)

    def split(self, qkv: Tensor, rope: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Return q, k, v as `attend` receives them, from the output of `self.qkv`: (B, N, 3*D) -> three (B, A, N, K).

        Args:
            rope: cosines and sines from `ViT.rope`; q and k are rotated by them. Without it, q, k and v are views.
        """
        # (B, N, 3*D) -> (B, N, 3, A, K) -> (3, B, A, N, K)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return (q, k, v) if rope is None else (rotate(q, rope), rotate(k, rope), v)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None = None) -> Tensor:
        q, k, v = self.split(self.qkv(x), rope)
        output_BANK = self.attend(q, k, v, scale=self.scale)
        # (B, A, N, K) -> (B, N, A, K) -> (B, N, D)
        return self.proj(output_BANK.transpose(1, 2).flatten(2))

    def extra_repr(self) -> str:
        return f"heads {self.heads}, head_dim {self.proj.in_features // self.heads}"


class AttentionPool(nn.Module):
    """One learned query attends to all tokens, then an MLP: (B, N, D) -> (B, D), the MAP head of SigLIP.

    Zhai et al. 2022 (arXiv:2106.04560, section 3.2); transformers' SiglipMultiheadAttentionPoolingHead
    and timm's AttentionPoolLatent. It always uses `attend_sdpa`, whatever the blocks use.
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
        query_B1D = F.linear(self.latent, self.qkv.weight[:width], self.qkv.bias[:width]).expand_as(x[:, :1])
        kv = F.linear(x, self.qkv.weight[width:], self.qkv.bias[width:])
        # (B, 1, D) -> (B, 1, A, K) -> (B, A, 1, K)
        q = query_B1D.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        # (B, N, 2*D) -> (B, N, 2, A, K) -> (2, B, A, N, K)
        k, v = kv.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        output_BA1K = self.attend(q, k, v, scale=self.scale)
        # (B, A, 1, K) -> (B, D)
        pooled_BD = self.proj(output_BA1K.flatten(1))
        return pooled_BD + self.mlp(self.norm(pooled_BD))

    def extra_repr(self) -> str:
        return f"heads {self.heads}, head_dim {self.proj.in_features // self.heads}"
