"""FlexAttention (Dong et al. 2024, arXiv:2412.05496) without a mask or a change of the scores, compiled.

On the CPU it needs a C++ compiler and has no gradients; there it compiles for seconds.
"""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

torch._dynamo.config.cache_size_limit = 256  # programs, see compiled.py
_compiled = torch.compile(flex_attention, dynamic=True)


def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """softmax(scale q k^T) v for q of (B, A, N, K), k and v of (B, A, M, K)."""
    return _compiled(q, k, v, scale=scale)


def supports(spec) -> bool | str:
    """True, or the reason why not."""
    if torch.__version__ < "2.7":
        return "needs torch 2.7"
    if spec.dtype == torch.float64:
        return "no float64"
    if spec.device == "cpu" and spec.tokens % 8 == 0:  # whole registers of keys; seen with torch 2.14
        return "answers zeros for nan on the CPU where 8 divides the keys"
    return "no gradients on the CPU" if spec.grads and spec.device == "cpu" else True
