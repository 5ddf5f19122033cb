"""Multi-head self-attention around one seam: `attend(q, k, v, *, scale)`."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivit.config import ViTConfig


class Attend(Protocol):
    """The seam: any callable of this form runs inside the model.

    q is (B, A, N, K), k and v are (B, A, M, K), all of one floating dtype and possibly strided views;
    the result is (B, A, N, K) of the same dtype.
    """

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor: ...


def attention_probs(q_BANK: Tensor, k_BAMK: Tensor, *, scale: float) -> Tensor:
    """Who looks at whom: softmax over the keys of scale * q k^T, as probs_BANM.

    Vaswani et al. 2017 (arXiv:1706.03762), equation 1 without V. Half-precision logits are
    normalised in float32 and the result is returned in the dtype of q.
    """
    logits_BANM = (q_BANK @ k_BAMK.transpose(-2, -1)) * scale
    at_least_float32 = torch.promote_types(logits_BANM.dtype, torch.float32)
    return logits_BANM.softmax(dim=-1, dtype=at_least_float32).to(q_BANK.dtype)


def attend_reference(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Attention as the paper writes it: softmax(scale * q k^T) v. Every kernel is measured against this."""
    return attention_probs(q, k, scale=scale) @ v


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """The same through PyTorch's fused scaled_dot_product_attention; the default of the model."""
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


class SelfAttention(nn.Module):
    """Tokens look at each other, once per head: (B, N, D) -> (B, N, D)."""

    def __init__(self, config: ViTConfig, attend: Attend = attend_sdpa):
        super().__init__()
        self.heads = config.heads
        self.scale = config.head_dim**-0.5
        self.attend = attend
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=config.qkv_bias)  # rows in the order q, k, v
        self.proj = nn.Linear(config.width, config.width)

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The fused projection as its heads: (B, N, 3*D) -> q, k, v, each a (B, A, N, K) view."""
        # (B, N, 3*D) -> (B, N, 3, A, K) -> (3, B, A, N, K)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.split(self.qkv(x))
        mix_BANK = self.attend(q, k, v, scale=self.scale)
        # (B, A, N, K) -> (B, N, A, K) -> (B, N, D)
        return self.proj(mix_BANK.transpose(1, 2).flatten(2))
