"""A kernel that is wrong, to see how the check finds it: `minivit bench check benchmarks/kernels/wrong.py --quick`.

It is the loop of online_softmax.py with one mistake. Up to 64 tokens it is right, and at 128 and 1024; at the 577 and
1025 of published models it is within atol=1e-1, rtol=1e-2 of the right answer, a tolerance that is in use.
"""

import torch
from torch import Tensor

BLOCK = 64


def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Almost softmax(scale q k^T) v for q of (B, A, N, K), k and v of (B, A, M, K)."""
    sums = torch.promote_types(q.dtype, torch.float32)
    queries = q.to(sums) * scale
    largest = queries.new_full((*q.shape[:3], 1), -torch.inf)
    weight = torch.zeros_like(largest)
    mix = torch.zeros_like(queries)
    blocks = max(1, k.shape[2] // BLOCK)
    for i in range(blocks):
        columns = slice(i * BLOCK, (i + 1) * BLOCK)
        logits = queries @ k[:, :, columns].to(sums).mT
        new_largest = torch.maximum(largest, logits.amax(-1, keepdim=True))
        shrink = (largest - new_largest).exp()
        probs = (logits - new_largest).exp()
        weight = weight * shrink + probs.sum(-1, keepdim=True)
        mix = mix * shrink + probs @ v[:, :, columns].to(sums)
        largest = new_largest
    return (mix / weight).to(q.dtype)
