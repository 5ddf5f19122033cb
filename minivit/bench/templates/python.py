"""An attention kernel to start from: blocks of keys and an online softmax, in plain PyTorch.

Check it with `minivit bench check THIS_FILE --quick`. Use it with `minivit.load(..., attend=attention)`.
"""

import torch
from torch import Tensor

BLOCK = 64  # keys at a time; the last block is as long as what is left, which for 197 keys is 5


def attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) v for q, k, v of (batch, heads, tokens, head_dim), possibly strided views of one tensor.

    `scale` is optional: without the argument in its signature a kernel is used and checked at 1 / sqrt(head_dim).
    """
    if scale is None:
        scale = q.shape[-1] ** -0.5
    sums = torch.promote_types(q.dtype, torch.float32)  # half precision is added up in float32
    queries = q.to(sums) * scale
    largest = queries.new_full((*q.shape[:-1], 1), -torch.inf)  # logit of each query so far
    weight = torch.zeros_like(largest)  # sum of exp(logit - largest)
    mix = torch.zeros_like(queries)  # sum of exp(logit - largest) * value
    for start in range(0, k.shape[2], BLOCK):
        logits = queries @ k[:, :, start : start + BLOCK].to(sums).mT
        new_largest = torch.maximum(largest, logits.amax(-1, keepdim=True))
        shrink = (largest - new_largest).exp()  # what was added up before a larger logit came
        probs = (logits - new_largest).exp()
        weight = weight * shrink + probs.sum(-1, keepdim=True)
        mix = mix * shrink + probs @ v[:, :, start : start + BLOCK].to(sums)
        largest = new_largest
    return (mix / weight).to(q.dtype)


def supports(spec) -> bool | str:
    """True, or the reason why not. Say here what the kernel does not do; what it says yes to must be right.

    spec has batch, heads, tokens, head_dim, dtype, layout, device, and grads: whether gradients will be asked for.
    """
    return True


# A kernel that may differ from call to call (atomics) says so: DETERMINISTIC = False
