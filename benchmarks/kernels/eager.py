"""Attention as the paper writes it (Vaswani et al. 2017, arXiv:1706.03762, equation 1), operation by operation.

All B A N M logits stand in memory, are read and written by every operation, and stay there for the gradients.
"""

from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """softmax(scale q k^T) v for q of (B, A, N, K), k and v of (B, A, M, K)."""
    return (q @ k.mT * scale).softmax(-1) @ v
