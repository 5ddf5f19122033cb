"""The encoder block: norm -> attention -> add -> norm -> MLP -> add."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minivit.attention import Attend, SelfAttention, attend_sdpa
from minivit.config import ViTConfig


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation OpenAI's CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def activation(name: str) -> nn.Module:
    """The module behind a name of config.ACTIVATIONS."""
    return {"gelu": nn.GELU(), "gelu_tanh": nn.GELU(approximate="tanh"), "quick_gelu": QuickGELU()}[name]


class MLP(nn.Module):
    """Two linear layers with a bend between them, token by token: (B, N, D) -> (B, N, F) -> (B, N, D)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.act = activation(config.activation)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """One pre-norm Transformer layer, (B, N, D) -> (B, N, D): equations 2 and 3 of arXiv:2010.11929."""

    def __init__(self, config: ViTConfig, attend: Attend = attend_sdpa):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.eps)
        self.attn = SelfAttention(config, attend)
        self.norm2 = nn.LayerNorm(config.width, eps=config.eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return x
