"""The Transformer block: norm -> attention -> add -> norm -> MLP -> add."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minivit.model.attention import Attend, SelfAttention, attend_sdpa
from minivit.model.config import BlockConfig


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation of GELU that OpenAI's CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


def activation(name: str) -> nn.Module:
    """Return the module for a name in config.ACTIVATIONS."""
    exact, tanh = nn.GELU(), nn.GELU(approximate="tanh")
    return {"gelu": exact, "gelu_tanh": tanh, "quick_gelu": QuickGELU(), "silu": nn.SiLU(), "relu": nn.ReLU()}[name]


class MLP(nn.Module):
    """Two linear layers with an activation between them, for each token: (B, N, D) -> (B, N, F) -> (B, N, D)."""

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.act = activation(config.activation)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class SwiGLU(nn.Module):
    """A gated MLP, fc2(activation(gate) * value), for each token: (B, N, D) -> (B, N, F) -> (B, N, D).

    Shazeer 2020 (arXiv:2002.05202), equation 6, with biases. The largest models of DINOv2 and DINOv3 use it.
    """

    def __init__(self, config: BlockConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.width, 2 * config.mlp_width)  # rows in the order gate, value
        self.act = activation(config.activation)
        self.fc2 = nn.Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(self.act(gate) * value)


class LayerScale(nn.Module):
    """One learned factor per channel (Touvron et al. 2021, arXiv:2103.17239, equation 4)."""

    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma

    def extra_repr(self) -> str:
        return f"{self.gamma.shape[0]}"


class Block(nn.Module):
    """One pre-norm Transformer block, (B, N, D) -> (B, N, D): equations 2 and 3 of arXiv:2010.11929."""

    attention = SelfAttention

    def __init__(self, config: BlockConfig, attend: Attend = attend_sdpa):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.width, eps=config.eps)
        self.attn = self.attention(config, attend)
        self.ls1 = LayerScale(config.width) if config.layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(config.width, eps=config.eps)
        self.mlp = SwiGLU(config) if config.mlp == "swiglu" else MLP(config)
        self.ls2 = LayerScale(config.width) if config.layer_scale else nn.Identity()

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None = None) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x), rope))
        x = x + self.ls2(self.mlp(self.norm2(x)))
        return x
