"""The lines of eager.py for torch.compile, which makes its own loops of them; needs a C++ compiler on the CPU."""

import torch
from torch import Tensor

# A program for any size, though another for each dtype, kind of layout and size of 1. The plans of the check have more
# of those than the 8 that torch.compile keeps; what it does not keep it runs as it stands, uncompiled.
torch._dynamo.config.cache_size_limit = 256


@torch.compile(dynamic=True)
def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """softmax(scale q k^T) v for q of (B, A, N, K), k and v of (B, A, M, K)."""
    return (q @ k.mT * scale).softmax(-1) @ v
