"""FlashAttention-2's forward (Dao 2023, arXiv:2307.08691, algorithm 1) in Triton, for CUDA.

Without a GPU it is checked, slowly, in Triton's interpreter, which needs no compiler:
`TRITON_INTERPRET=1 minivit bench check benchmarks/kernels/triton_flash.py --quick --timeout 600`.

Two things that a template leaves out: powers of two in the place of exp, for which GPUs have an instruction, and no
masks but in the last block of keys. (Of the 197 keys of a ViT at 224 pixels, 5 are in it.)
"""

import math
import os

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@triton.jit
def _add_block(
    q, k_at, v_at, start, keys, scale, largest, weight, mix, k_n, v_n, columns,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, LAST: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One step of the online softmax: the keys from `start` on are added to (largest, weight, mix)."""
    here = start + tl.arange(0, BLOCK_M).to(tl.int64)
    there = (columns < HEAD_DIM)[None, :]
    if LAST:
        there = there & (here < keys)[:, None]
    k = tl.load(k_at + here[:, None] * k_n, mask=there, other=0.0)
    v = tl.load(v_at + here[:, None] * v_n, mask=there, other=0.0)
    if WIDEN:
        k = k.to(tl.float32)
    logits = tl.dot(q, tl.trans(k), input_precision="ieee") * scale  # "ieee": float32 itself, not its tf32
    if LAST:
        logits = tl.where((here < keys)[None, :], logits, float("-inf"))  # keys beyond the last weigh nothing
    new_largest = tl.maximum(largest, tl.max(logits, 1))
    shrink = tl.exp2(largest - new_largest)
    probs = tl.exp2(logits - new_largest[:, None])
    weight = weight * shrink + tl.sum(probs, 1)
    if WIDEN:
        v = v.to(tl.float32)
    mix = mix * shrink[:, None] + tl.dot(probs.to(v.dtype), v, input_precision="ieee")
    return new_largest, weight, mix


@triton.jit
def _forward(
    q_ptr, k_ptr, v_ptr, out_ptr, scale, heads, queries, keys,
    q_b, q_a, q_n, q_k, k_b, k_a, k_n, k_k, v_b, v_a, v_n, v_k, o_b, o_a, o_n, o_k,
    HEAD_DIM: tl.constexpr, PADDED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr, WIDEN: tl.constexpr,
):  # fmt: skip
    """One block of queries of one head. PADDED is HEAD_DIM up to a power of two, as tl.arange wants it."""
    # 64 bits: batch * heads * tokens * head_dim goes beyond 2**31.
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, PADDED)
    inside = (rows < queries)[:, None] & (columns < HEAD_DIM)[None, :]
    q_at = q_ptr + batch * q_b + head * q_a + rows[:, None] * q_n + columns[None, :] * q_k
    q = tl.load(q_at, mask=inside, other=0.0)
    if WIDEN:
        q = q.to(tl.float32)
    k_at = k_ptr + batch * k_b + head * k_a + columns[None, :] * k_k
    v_at = v_ptr + batch * v_b + head * v_a + columns[None, :] * v_k

    largest = tl.full([BLOCK_N], float("-inf"), tl.float32)
    weight = tl.zeros([BLOCK_N], tl.float32)
    mix = tl.zeros([BLOCK_N, PADDED], tl.float32)
    whole = keys // BLOCK_M * BLOCK_M
    for start in range(0, whole, BLOCK_M):
        largest, weight, mix = _add_block(
            q, k_at, v_at, start, keys, scale, largest, weight, mix, k_n, v_n, columns, HEAD_DIM, BLOCK_M, False, WIDEN
        )
    if whole < keys:
        largest, weight, mix = _add_block(
            q, k_at, v_at, whole, keys, scale, largest, weight, mix, k_n, v_n, columns, HEAD_DIM, BLOCK_M, True, WIDEN
        )
    out_at = out_ptr + batch * o_b + head * o_a + rows[:, None] * o_n + columns[None, :] * o_k
    tl.store(out_at, (mix / weight[:, None]).to(out_ptr.dtype.element_ty), mask=inside)


def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """softmax(scale q k^T) v for q of (B, A, N, K), k and v of (B, A, M, K), possibly strided views of one tensor."""
    if q.requires_grad or k.requires_grad or v.requires_grad:
        raise NotImplementedError("forward only; use it under torch.inference_mode()")
    batch, heads, queries, head_dim = q.shape
    # The interpreter multiplies the bits of bfloat16 as integers, and cuts them off where a GPU rounds.
    widen = INTERPRETED and q.dtype == torch.bfloat16
    # Memory in the order (B, N, A, K): the model's reshape to (B, N, A * K) after attention then copies nothing.
    memory = torch.empty(batch, queries, heads, head_dim, dtype=torch.float32 if widen else q.dtype, device=q.device)
    out = memory.transpose(1, 2)
    block = 64 if q.dtype != torch.float32 else 32  # rows of float32 take twice the shared memory
    grid = (triton.cdiv(queries, block), batch * heads)
    _forward[grid](
        q, k, v, out, scale * math.log2(math.e), heads, queries, k.shape[2],
        *q.stride(), *k.stride(), *v.stride(), *out.stride(),
        HEAD_DIM=head_dim, PADDED=max(16, triton.next_power_of_2(head_dim)), BLOCK_N=block, BLOCK_M=block, WIDEN=widen,
    )  # fmt: skip
    return out.to(q.dtype)


def supports(spec) -> bool | str:
    """True, or the reason why not."""
    if not spec.device.startswith("cuda") and not INTERPRETED:
        return "needs CUDA, or TRITON_INTERPRET=1"
    if spec.dtype == torch.float64:
        return "no float64"
    return "no gradients" if spec.grads else True
