"""Attentions that are wrong on purpose, each with the checks that must refuse it. They prove the power of the check.

All are `attend(q, k, v, *, scale)`. Each has a typical error: of a tail, a padding, a layout, a cache.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minivit.model.attention import attend_reference as right


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A wrong attention. Every check in `refused_by` must refuse it, with `because` in the reason."""

    attention: Callable[..., Any]
    refused_by: tuple[str, ...]
    because: str = ""


# --- keys and their weights


def dropped_last_key(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """All keys but the last."""
    return right(q, k[:, :, :-1], v[:, :, :-1], scale=scale)


def unmasked_padding(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Keys of zero up to the next 64, with the weight exp(0) each."""
    padding = (0, 0, 0, -k.shape[2] % 64)
    return right(q, F.pad(k, padding), F.pad(v, padding), scale=scale)


def mean_of_v(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """No attention at all."""
    return v.mean(dim=2, keepdim=True).expand_as(q).contiguous()


def unnormalised_softmax(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Never divides by the sum of the weights."""
    logits = q @ k.mT * scale
    return (logits - logits.amax(-1, keepdim=True)).exp() @ v


def no_maximum_subtracted(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """exp(logit) as it is, which overflows."""
    weights = (q.float() @ k.float().mT * scale).exp()
    return (weights / weights.sum(-1, keepdim=True)).to(v.dtype) @ v


def shifted_keys(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Values one row off their keys."""
    return right(q, k, v.roll(1, dims=2), scale=scale)


# --- scale


def no_scale(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """softmax(q k^T) v."""
    return right(q, k, v, scale=1.0)


def scale_of_padded_head(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """1 / sqrt(128) for heads of 72, 80 and 96, which are padded to 128; right for powers of two."""
    head_dim = q.shape[-1]
    return right(q, k, v, scale=scale * math.sqrt(head_dim / 2 ** math.ceil(math.log2(head_dim))))


def ignored_scale(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """1 / sqrt(K), whatever it is given."""
    return right(q, k, v, scale=q.shape[-1] ** -0.5)


# --- which query, head, batch, column


def swapped_q_and_k(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """The transposed logits."""
    return right(k, q, v, scale=scale)


def swapped_heads(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Writes the heads in the reverse order."""
    return right(q, k, v, scale=scale).flip(1)


def first_batch_everywhere(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Keys and values of the first image for all."""
    return right(q, k[:1].expand_as(k), v[:1].expand_as(v), scale=scale)


def no_cls_row(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Row 0, the class token's, is never written."""
    out = torch.zeros_like(q)
    out[:, :, 1:] = right(q[:, :, 1:], k, v, scale=scale)
    return out


def last_columns_zero(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """The last eight columns of every head are forgotten."""
    out = right(q, k, v, scale=scale)
    return F.pad(out[..., :-8], (0, 8))


# --- precision


def bfloat16_inside(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Float32 outside only; right for bfloat16 itself."""
    return right(q.bfloat16(), k.bfloat16(), v.bfloat16(), scale=scale).to(q.dtype)


def tf32_inside(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Ten bits of the significand of float32, as tensor cores read them."""
    if q.dtype != torch.float32:
        return right(q, k, v, scale=scale)
    q, k, v = ((x.contiguous().view(torch.int32) & -(1 << 13)).view(torch.float32) for x in (q, k, v))
    return right(q, k, v, scale=scale)


def other_dtype(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Float32 whatever it is given."""
    return right(q.float(), k.float(), v.float(), scale=scale)


# --- memory


def ignored_strides(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Reads every input as if it were contiguous."""
    _, heads, tokens, head_dim = q.shape
    strides = (heads * tokens * head_dim, tokens * head_dim, head_dim, 1)
    return right(*(x.as_strided(x.shape, strides) for x in (q, k, v)), scale=scale)


def reads_beyond(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """One row more of the last head than there is, with weight zero."""
    last = v[-1, -1]
    beyond = last.as_strided((1, v.shape[3]), last.stride(), last.storage_offset() + v.shape[2] * last.stride(0))
    return right(q, k, v, scale=scale) + 0 * beyond.sum()


def writes_beyond(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """One element after the last of k."""
    last = k[-1, -1, -1].detach()
    last.as_strided((1,), (1,), last.storage_offset() + last.numel()).zero_()
    return right(q, k, v, scale=scale)


def uncleared_accumulator(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Zero times what the memory held before, which is not zero where that is nan."""
    return right(q, k, v, scale=scale) + 0 * torch.empty_like(q)


def changed_input(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Scales q where it lies."""
    q.detach().mul_(scale)
    return right(q, k, v, scale=1.0)


def output_in_v(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Saves memory by writing the output over v."""
    return v.detach().copy_(right(q, k, v, scale=scale).detach())


_buffers: dict[Any, Tensor] = {}


def reused_buffer(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """The same output tensor for every call of one shape."""
    out = _buffers.setdefault((q.shape, q.dtype, q.device), torch.empty_like(q, memory_format=torch.contiguous_format))
    return out.copy_(right(q, k, v, scale=scale).detach())


_answers: dict[Any, Tensor] = {}


def cached_output(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Caches the last output by address, shape, scale and version; memory is reused sooner or later."""
    key = (q.data_ptr(), q.shape, q.stride(), q.dtype, q._version, scale)
    if key not in _answers:
        _answers.clear()
        _answers[key] = right(q, k, v, scale=scale).detach()
    return _answers[key].clone()


def expanded_output(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Head 0 in the place of all, at no cost."""
    return right(q[:, :1], k[:, :1], v[:, :1], scale=scale).expand_as(q)


class LazyTensor(Tensor):
    """A tensor that could put its work off until somebody looks."""


def lazy_output(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Returns a subclass of Tensor."""
    return right(q, k, v, scale=scale).as_subclass(LazyTensor)


# --- nan and inf


def swallowed_nan(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Hides nan and inf behind numbers."""
    return right(q, k, v, scale=scale).nan_to_num()


def spilled_nan(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Zero times the other heads, which is not zero where they are nan or inf."""
    out = right(q, k, v, scale=scale)
    return out + 0 * out.sum(dim=1, keepdim=True)


# --- gradients


class _BadGradients(torch.autograd.Function):
    """A right forward; the backward forgets that the weights sum to one, and takes its input for contiguous."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, how: str) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.scale, ctx.how = scale, how
        return right(q, k, v, scale=scale)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        (g,) = cotangents
        if ctx.how == "ignored strides" and g.stride()[-1]:  # an expanded one has no such memory to read
            g = g.as_strided(g.shape, torch.empty(g.shape, device="meta").stride())
        q, k, v = ctx.saved_tensors
        probs = (q @ k.mT * ctx.scale).softmax(-1)
        d_probs = g @ v.mT
        mean = 0 if ctx.how == "no mean" else (probs * d_probs).sum(-1, keepdim=True)
        d_logits = probs * (d_probs - mean) * ctx.scale
        return d_logits @ k, d_logits.mT @ q, probs.mT @ g, None, None


def gradient_without_mean(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """The gradient of exp in the place of that of softmax."""
    return _BadGradients.apply(q, k, v, scale, "no mean")


def gradient_ignores_strides(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Reads the gradient of the output as if it were contiguous."""
    return _BadGradients.apply(q, k, v, scale, "ignored strides")


def gradient_only_with_q(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Looks at q alone to decide whether gradients are wanted."""
    return right(q, k, v, scale=scale) if q.requires_grad else right(q, k.detach(), v.detach(), scale=scale)


# --- the world around


def one_thread(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Changes the number of threads for everybody."""
    torch.set_num_threads(torch.get_num_threads() % 2 + 1)
    return right(q, k, v, scale=scale)


def no_grad_for_all(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Switches gradients off and not on again."""
    torch.set_grad_enabled(False)
    return right(q, k, v, scale=scale)


def random_order(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Sums in another order every time, as atomics do; drawn from the system, so that no state of torch tells."""
    order = torch.tensor(random.SystemRandom().sample(range(k.shape[2]), k.shape[2]), device=k.device)
    return right(q, k[:, :, order], v[:, :, order], scale=scale)


def random_numbers(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Dropout of probability 0, which still draws."""
    torch.rand(1)
    return right(q, k, v, scale=scale)


MUTANTS = {
    "dropped-last-key": Mutant(
        attention=dropped_last_key, refused_by=("forward/last-key", "forward/normal", "needle/permutation")
    ),
    "unmasked-padding": Mutant(attention=unmasked_padding, refused_by=("forward/normal", "forward/constant-keys")),
    "mean-of-v": Mutant(attention=mean_of_v, refused_by=("forward/normal", "needle/permutation")),
    "unnormalised-softmax": Mutant(attention=unnormalised_softmax, refused_by=("forward/normal", "forward/large-mean")),
    "no-maximum-subtracted": Mutant(
        attention=no_maximum_subtracted, refused_by=("forward/logits-x30",), because="finite"
    ),
    "shifted-keys": Mutant(attention=shifted_keys, refused_by=("forward/normal", "needle/permutation")),
    "no-scale": Mutant(attention=no_scale, refused_by=("forward/normal", "conduct/scale")),
    "scale-of-padded-head": Mutant(attention=scale_of_padded_head, refused_by=("forward/normal", "forward/logits-x4")),
    "ignored-scale": Mutant(attention=ignored_scale, refused_by=("conduct/scale",), because="scale"),
    "swapped-q-and-k": Mutant(attention=swapped_q_and_k, refused_by=("forward/normal", "needle/permutation")),
    "swapped-heads": Mutant(attention=swapped_heads, refused_by=("forward/normal", "forward/constant-keys")),
    "first-batch-everywhere": Mutant(
        attention=first_batch_everywhere, refused_by=("forward/normal", "needle/permutation")
    ),
    "no-cls-row": Mutant(attention=no_cls_row, refused_by=("forward/normal", "needle/permutation")),
    "last-columns-zero": Mutant(attention=last_columns_zero, refused_by=("forward/normal", "needle/permutation")),
    "bfloat16-inside": Mutant(attention=bfloat16_inside, refused_by=("forward/normal", "backward/random")),
    "tf32-inside": Mutant(attention=tf32_inside, refused_by=("forward/normal", "forward/logits-x4")),
    "other-dtype": Mutant(attention=other_dtype, refused_by=("forward/normal", "conduct/output"), because="float32"),
    "ignored-strides": Mutant(attention=ignored_strides, refused_by=("forward/normal", "conduct/reads-inside")),
    "reads-beyond": Mutant(attention=reads_beyond, refused_by=("conduct/reads-inside",), because="outside"),
    "writes-beyond": Mutant(attention=writes_beyond, refused_by=("conduct/writes-inside",), because="outside"),
    "uncleared-accumulator": Mutant(
        attention=uncleared_accumulator, refused_by=("conduct/uninitialised",), because="never written"
    ),
    "changed-input": Mutant(attention=changed_input, refused_by=("conduct/inputs-unchanged",), because="q"),
    "output-in-v": Mutant(attention=output_in_v, refused_by=("conduct/output",), because="memory of v"),
    "reused-buffer": Mutant(attention=reused_buffer, refused_by=("conduct/outputs-kept",), because="earlier"),
    "cached-output": Mutant(attention=cached_output, refused_by=("conduct/fresh-values",), because="new values"),
    "expanded-output": Mutant(attention=expanded_output, refused_by=("conduct/output",), because="stride"),
    "lazy-output": Mutant(attention=lazy_output, refused_by=("conduct/output",), because="LazyTensor"),
    "swallowed-nan": Mutant(attention=swallowed_nan, refused_by=("isolation/nan",), because="nan"),
    "spilled-nan": Mutant(attention=spilled_nan, refused_by=("isolation/nan", "isolation/inf"), because="spilled"),
    "gradient-without-mean": Mutant(attention=gradient_without_mean, refused_by=("backward/random",), because="dq"),
    "gradient-ignores-strides": Mutant(
        attention=gradient_ignores_strides, refused_by=("backward/strided",), because="d"
    ),
    "gradient-only-with-q": Mutant(attention=gradient_only_with_q, refused_by=("backward/only-k", "backward/only-v")),
    "one-thread": Mutant(attention=one_thread, refused_by=("conduct/global-state",), because="threads"),
    "no-grad-for-all": Mutant(attention=no_grad_for_all, refused_by=("conduct/global-state",), because="grad mode"),
    "random-order": Mutant(attention=random_order, refused_by=("conduct/deterministic",), because="20 calls"),
    "random-numbers": Mutant(attention=random_numbers, refused_by=("conduct/global-state",), because="random"),
}
