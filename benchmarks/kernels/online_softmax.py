"""FlashAttention-2 (Dao 2023, arXiv:2307.08691) in plain PyTorch, forward and backward, to read beside the paper.

The names are the paper's, in words: queries Q, keys K, values V, out O, logsumexp L. Nothing of the size N x M is
ever in memory: a block of logits is made, used and forgotten, and made again for the gradients.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 64  # queries, and keys, at a time (the paper's B_r and B_c); the last block is as long as what is left


def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """softmax(scale q k^T) v for q of (B, A, N, K), k and v of (B, A, M, K)."""
    return FlashAttention.apply(q, k, v, scale)


class FlashAttention(torch.autograd.Function):
    """Algorithms 1 (forward) and 2 (backward)."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Algorithm 1. Half precision is added up in float32, as the tensor cores do it."""
        sums = torch.promote_types(q.dtype, torch.float32)
        out, logsumexp = torch.empty_like(q), torch.empty(q.shape[:3], dtype=sums, device=q.device)
        for rows in blocks(q):
            queries = q[:, :, rows].to(sums)
            # Of the keys seen so far: the largest logit of each query, the sum of exp(logit - largest), and the
            # sum of exp(logit - largest) * value.
            largest = queries.new_full((*queries.shape[:3], 1), -torch.inf)
            weight = torch.zeros_like(largest)
            mix = torch.zeros_like(queries)
            for columns in blocks(k):
                logits = queries @ k[:, :, columns].to(sums).mT * scale
                # The softmax does not change when the same number is subtracted from all logits of a query; the
                # largest keeps exp from overflowing. Where a larger one comes, what was added up relative to the
                # old one is made relative to the new one: exp(x - old) * exp(old - new) = exp(x - new).
                new_largest = torch.maximum(largest, logits.amax(-1, keepdim=True))
                shrink = (largest - new_largest).exp()
                probs = (logits - new_largest).exp()
                weight = weight * shrink + probs.sum(-1, keepdim=True)
                mix = mix * shrink + probs @ v[:, :, columns].to(sums)
                largest = new_largest
            out[:, :, rows] = (mix / weight).to(q.dtype)  # divided once, at the end (section 3.1)
            # All that backward needs of the softmax: exp(logit - logsumexp) is the probability, in one step.
            logsumexp[:, :, rows] = (largest + weight.log()).squeeze(-1)
        ctx.save_for_backward(q, k, v, out, logsumexp)
        ctx.scale = scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Algorithm 2: with P the probabilities and D the row sums of dO * O, dV = P^T dO, dS = P * (dO V^T - D)."""
        q, k, v, out, logsumexp = ctx.saved_tensors
        sums = logsumexp.dtype
        dq, dk, dv = (torch.zeros_like(x, dtype=sums) for x in (q, k, v))
        # The gradient of a softmax takes the mean of dP under P off dP. That mean, over keys, is the sum over the
        # head of dO * O, because O is the mean of V under P: no row of probabilities has to be whole.
        mean = (d_out.to(sums) * out.to(sums)).sum(-1, keepdim=True)
        for columns in blocks(k):
            keys, values = k[:, :, columns].to(sums), v[:, :, columns].to(sums)
            for rows in blocks(q):
                queries, d_rows = q[:, :, rows].to(sums), d_out[:, :, rows].to(sums)
                probs = (queries @ keys.mT * ctx.scale - logsumexp[:, :, rows, None]).exp()
                dv[:, :, columns] += probs.mT @ d_rows
                d_logits = probs * (d_rows @ values.mT - mean[:, :, rows]) * ctx.scale
                dq[:, :, rows] += d_logits @ keys
                dk[:, :, columns] += d_logits.mT @ queries
        return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype), None


def blocks(x: Tensor) -> list[slice]:
    """The tokens of (B, A, N, K) in blocks."""
    return [slice(start, start + BLOCK) for start in range(0, x.shape[2], BLOCK)]
