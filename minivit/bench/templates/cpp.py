"""An attention kernel to start from: C++ for the CPU, in the .cpp file beside this one, compiled when first imported.

Check it with `minivit bench check THIS_FILE --quick`. Use it with `minivit.load(..., attend=attention)`.
"""

import ctypes
import os
import subprocess
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_suffix(".cpp")
LIBRARY = SOURCE.with_suffix(".so")
COMPILER = [os.environ.get("CXX", "c++"), "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC", "-std=c++17"]

if not LIBRARY.exists() or LIBRARY.stat().st_mtime < SOURCE.stat().st_mtime:
    unfinished = LIBRARY.with_suffix(f".{os.getpid()}")
    subprocess.run([*COMPILER, str(SOURCE), "-o", str(unfinished)], check=True)
    unfinished.replace(LIBRARY)  # whole or not at all, should two processes compile at once

_attention = ctypes.CDLL(str(LIBRARY)).attention_float32
_attention.restype = None


def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) v for q, k, v of (batch, heads, tokens, head_dim), possibly strided views of one tensor."""
    if supports_tensor(q) is not True or q.requires_grad or k.requires_grad or v.requires_grad:
        raise NotImplementedError("float32 on the CPU only, without gradients")
    # The C++ reads the head's elements one after the other and takes the other strides as they come.
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    # Memory in the order (B, N, A, K): the model's reshape to (B, N, A * K) after attention then copies nothing.
    batch, heads, tokens, head_dim = q.shape
    out = torch.empty(batch, tokens, heads, head_dim, dtype=q.dtype).transpose(1, 2)
    strides = [stride for x in (q, k, v, out) for stride in x.stride()[:3]]
    _attention(
        *(ctypes.c_void_p(x.data_ptr()) for x in (q, k, v, out)),
        *(ctypes.c_int64(size) for size in (batch, heads, tokens, k.shape[2], head_dim)),
        (ctypes.c_int64 * len(strides))(*strides),
        ctypes.c_float(head_dim**-0.5 if scale is None else scale),
    )
    return out


def supports_tensor(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.device.type == "cpu"


def supports(spec) -> bool | str:
    """True, or the reason why not: what the checks then leave out, and say so."""
    if spec.dtype != torch.float32 or spec.device != "cpu":
        return "float32 on the CPU only"
    return "no gradients" if spec.grads else True
