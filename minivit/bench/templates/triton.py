"""An attention kernel to start from: a Triton forward, blocks of queries times blocks of keys, online softmax.

Check it with `minivit bench check THIS_FILE --quick --device cuda`; without a GPU, slowly, in Triton's interpreter:
`TRITON_INTERPRET=1 minivit bench check THIS_FILE --quick --timeout 600`.
Use it with `minivit.load(..., attend=attention)`.
"""

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, out_ptr, scale, heads, queries, keys,
    q_b, q_a, q_n, q_k, k_b, k_a, k_n, k_k, v_b, v_a, v_n, v_k, o_b, o_a, o_n, o_k,
    HEAD_DIM: tl.constexpr, PADDED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """One block of queries of one head. PADDED is HEAD_DIM up to a power of two, as tl.arange wants it."""
    # 64 bits: batch * heads * tokens * head_dim goes beyond 2**31.
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, PADDED)
    inside = (rows[:, None] < queries) & (columns[None, :] < HEAD_DIM)
    q_at = q_ptr + batch * q_b + head * q_a + rows[:, None] * q_n + columns[None, :] * q_k
    q = tl.load(q_at, mask=inside, other=0.0)

    largest = tl.full([BLOCK_N], float("-inf"), tl.float32)
    weight = tl.zeros([BLOCK_N], tl.float32)
    mix = tl.zeros([BLOCK_N, PADDED], tl.float32)
    for start in range(0, keys, BLOCK_M):
        here = start + tl.arange(0, BLOCK_M).to(tl.int64)
        there = (here[:, None] < keys) & (columns[None, :] < HEAD_DIM)
        k_at = k_ptr + batch * k_b + head * k_a + here[:, None] * k_n + columns[None, :] * k_k
        v_at = v_ptr + batch * v_b + head * v_a + here[:, None] * v_n + columns[None, :] * v_k
        k = tl.load(k_at, mask=there, other=0.0)
        v = tl.load(v_at, mask=there, other=0.0)
        logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        logits = tl.where(here[None, :] < keys, logits, float("-inf"))  # keys beyond the last weigh nothing
        new_largest = tl.maximum(largest, tl.max(logits, 1))
        shrink = tl.exp(largest - new_largest)
        probs = tl.exp(logits - new_largest[:, None])
        weight = weight * shrink + tl.sum(probs, 1)
        mix = mix * shrink[:, None] + tl.dot(probs.to(v.dtype), v, input_precision="ieee")
        largest = new_largest
    out_at = out_ptr + batch * o_b + head * o_a + rows[:, None] * o_n + columns[None, :] * o_k
    tl.store(out_at, (mix / weight[:, None]).to(out_ptr.dtype.element_ty), mask=inside)


def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) v for q, k, v of (batch, heads, tokens, head_dim), possibly strided views of one tensor."""
    if q.requires_grad or k.requires_grad or v.requires_grad:
        raise NotImplementedError("forward only")
    batch, heads, queries, head_dim = q.shape
    # Memory in the order (B, N, A, K): the model's reshape to (B, N, A * K) after attention then copies nothing.
    out = torch.empty(batch, queries, heads, head_dim, dtype=q.dtype, device=q.device).transpose(1, 2)
    block = 64 if q.dtype != torch.float32 else 32  # rows of float32 take twice the shared memory
    grid = (triton.cdiv(queries, block), batch * heads)
    _forward[grid](
        q, k, v, out, head_dim**-0.5 if scale is None else scale, heads, queries, k.shape[2],
        *q.stride(), *k.stride(), *v.stride(), *out.stride(),
        HEAD_DIM=head_dim, PADDED=max(16, triton.next_power_of_2(head_dim)), BLOCK_N=block, BLOCK_M=block,
    )  # fmt: skip
    return out


def supports(spec) -> bool | str:
    """True, or the reason why not: what the checks then leave out, and say so."""
    if not spec.device.startswith("cuda") and not INTERPRETED:
        return "needs CUDA, or TRITON_INTERPRET=1"
    if spec.dtype == torch.float64:
        return "no float64"
    if INTERPRETED and spec.dtype == torch.bfloat16:
        return "no bfloat16 in the interpreter, whose tl.dot takes its bits for integers"
    return "no gradients" if spec.grads else True
