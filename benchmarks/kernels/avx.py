"""A fused attention in C++ for x86 CPUs, avx.cpp beside this file: AVX-512 or AVX2, compiled when first imported.

The instructions are chosen by what torch itself uses on this CPU, so ATEN_CPU_CAPABILITY=avx2 forces AVX2 here too.
Needs a C++ compiler that knows x86-64-v4 (GCC 11, Clang 12) and ninja.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.utils.cpp_extension import load

LEVELS = {"AVX512": ["-march=x86-64-v4"], "AVX2": ["-march=x86-64-v3"]}
CAPABILITY = torch.backends.cpu.get_cpu_capability()
HALVES = (torch.float16, torch.bfloat16)


def _build():
    """The compiled module for this CPU; each choice of instructions has a library of its own."""
    level, flags = next((level, flags) for level, flags in LEVELS.items() if CAPABILITY.startswith(level))
    if level == "AVX512" and torch.cpu._is_avx512_bf16_supported():
        level, flags = "AVX512_BF16", [*flags, "-mavx512bf16"]
    return load(
        name=f"minivit_attention_{level.lower()}",
        sources=[str(Path(__file__).with_suffix(".cpp"))],
        extra_cflags=["-O3", "-fopenmp", *flags],
    )


_module = _build() if CAPABILITY.startswith(tuple(LEVELS)) else None


def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) v for q, k, v of (batch, heads, tokens, head_dim), possibly strided views of one tensor."""
    if q.requires_grad or k.requires_grad or v.requires_grad:
        raise NotImplementedError("forward only; use it under torch.inference_mode()")
    return _module.attention(q, k, v, q.shape[-1] ** -0.5 if scale is None else scale)


def supports(spec) -> bool | str:
    """True, or the reason why not."""
    if _module is None or spec.device != "cpu":
        return "needs an x86 CPU with AVX2"
    if spec.dtype not in (torch.float32, *HALVES):
        return f"no {spec.dtype}"
    return "no gradients" if spec.grads else True
