"""The inputs of the checks: values that expose errors, in the memory layouts of a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from minivit.bench.checks.cases import Spec

Triple = tuple[Tensor, Tensor, Tensor]


def normal(spec: Spec, generator: Generator) -> Triple:
    """Zero mean, unit variance. (With inputs of one sign, even the mean of V looks like attention.)"""
    # Made on the CPU in at least float32, so that every device and dtype gets the same numbers, rounded.
    dtype = torch.promote_types(spec.dtype, torch.float32)
    shape = (3, spec.batch, spec.heads, spec.tokens, spec.head_dim)
    q, k, v = torch.randn(shape, generator=generator, dtype=dtype)
    return q, k, v


def logits_x4(spec: Spec, generator: Generator) -> Triple:
    """Softmax with few large weights."""
    q, k, v = normal(spec, generator)
    return q * 4, k, v


def logits_x30(spec: Spec, generator: Generator) -> Triple:
    """Softmax close to one-hot, and exp(logit) beyond float32 unless the largest is subtracted."""
    q, k, v = normal(spec, generator)
    return q * 30, k, v


def constant_keys(spec: Spec, generator: Generator) -> Triple:
    """All keys are equal, so the output is the mean of V."""
    q, k, v = normal(spec, generator)
    return q, k[..., :1, :].expand_as(k), v


def first_key(spec: Spec, generator: Generator) -> Triple:
    """The first key, that of the class token, has most of the weight."""
    return _dominated_by(0, *normal(spec, generator))


def last_key(spec: Spec, generator: Generator) -> Triple:
    """The last key has most of the weight. With 257, 577 and 1025 tokens it is alone in its block of keys."""
    return _dominated_by(-1, *normal(spec, generator))


def _dominated_by(key: int, q: Tensor, k: Tensor, v: Tensor) -> Triple:
    """One key to which every query attends with most of its weight."""
    tokens, head_dim = q.shape[-2:]
    direction = k[..., key, :].sign()
    # exp(logit) of the others adds up to about e * tokens; the logit of this one is strength * sqrt(head_dim).
    strength = (math.log(tokens) + 3) / math.sqrt(head_dim)
    k = k.clone()
    k[..., key, :] = direction * strength
    return q + direction[..., None, :], k, v


def large_mean(spec: Spec, generator: Generator) -> Triple:
    """V around 100: exposes missing normalisation and cancellation."""
    q, k, v = normal(spec, generator)
    return q, k, v + 100


def tiny(spec: Spec, generator: Generator) -> Triple:
    """Close to the smallest normal numbers of the dtype, where logits underflow."""
    q, k, v = normal(spec, generator)
    size = 2.0**-10 if spec.dtype == torch.float16 else 2.0**-100
    return q * size, k * size, v * size


def large(spec: Spec, generator: Generator) -> Triple:
    """V so large that a sum of a few overflows float16, or their squares overflow float32."""
    q, k, v = normal(spec, generator)
    return q, k, v * (2.0**13 if spec.dtype == torch.float16 else 2.0**100)


VALUES: dict[str, Callable[[Spec, Generator], Triple]] = {
    "normal": normal,
    "logits-x4": logits_x4,
    "logits-x30": logits_x30,
    "constant-keys": constant_keys,
    "first-key": first_key,
    "last-key": last_key,
    "large-mean": large_mean,
    "tiny": tiny,
    "large": large,
}


def needles(spec: Spec, generator: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return q, k, v and a secret permutation_BAN: query i attends to key permutation[i] alone; output row i is its v.

    A key is the binary number of its token, repeated to fill the head, with secret random signs. Two keys differ in at
    least two elements, so their logits differ by at least 4 * 64 / sqrt(K) = 45 at K = 32, and the weights of all other
    keys add up to less than 1e-16.
    """
    batch, heads, tokens, head_dim = spec.batch, spec.heads, spec.tokens, spec.head_dim
    bits = torch.arange(head_dim) % max(1, (tokens - 1).bit_length())
    # (N, 1), (K) -> (N, K)
    codes_NK = 1 - 2 * (torch.arange(tokens)[:, None] >> bits & 1).float()
    signs = 1 - 2 * torch.randint(2, (batch, heads, 1, head_dim), generator=generator).float()
    order = torch.rand(batch, heads, tokens, generator=generator).argsort(-1)
    permutation = torch.rand(batch, heads, tokens, generator=generator).argsort(-1)
    k = 8 * signs * codes_NK[order]
    q = _rows(k, permutation)
    return q, k, normal(spec, generator)[2], permutation


def _rows(x_BANK: Tensor, indices_BAN: Tensor) -> Tensor:
    """x[b, a, indices[b, a, n], :] for every b, a, n."""
    return x_BANK.gather(2, indices_BAN[..., None].expand_as(x_BANK))


MARGIN = 1 << 16  # elements before and after every input: a tile of 64 rows, and a whole number of cache lines
PADDING = 8  # elements after every row in the layout "padded"


@dataclass(frozen=True)
class Laid:
    """q, k, v as strided views into buffers whose other elements are all `fill`."""

    q: Tensor
    k: Tensor
    v: Tensor
    buffers: tuple[Tensor, ...]

    @property
    def qkv(self) -> Triple:
        return self.q, self.k, self.v

    def overwrite(self, qkv: Triple) -> None:
        """Write new values in the same memory, through .data so that no version counter changes."""
        for view, values in zip(self.qkv, qkv, strict=True):
            view.data.copy_(values)


def rounded(qkv: Triple, spec: Spec) -> Triple:
    """Return the values as the kernel receives them, from which the truth is computed."""
    q, k, v = (x.to(device=spec.device, dtype=spec.dtype) for x in qkv)
    return q, k, v


def lay_out(qkv: Triple, spec: Spec, *, fill: float = math.nan, margin: int = MARGIN) -> Laid:
    """Return the values in the dtype, device and layout of `spec`, between margins of so many elements of `fill`.

    contiguous: each its own (B, A, N, K). packed: views into one (B, N, 3, A, K), as SelfAttention.split makes them.
    bnhd: views into (B, N, A, K), the layout of separate projections. padded: rows PADDING apart. misaligned:
    contiguous, one element after an aligned address.
    """
    batch, heads, tokens, head_dim = qkv[0].shape
    views: list[Tensor] = []
    buffers: list[Tensor] = []
    if spec.layout == "packed":
        buffer, packed = _slab((batch, tokens, 3, heads, head_dim), spec, fill, margin)
        # (B, N, 3, A, K) -> (3, B, A, N, K)
        views += packed.permute(2, 0, 3, 1, 4).unbind(0)
        buffers += [buffer]
    else:
        for _ in qkv:
            if spec.layout == "bnhd":
                buffer, view = _slab((batch, tokens, heads, head_dim), spec, fill, margin)
                # (B, N, A, K) -> (B, A, N, K)
                view = view.transpose(1, 2)
            elif spec.layout == "padded":
                buffer, view = _slab((batch, heads, tokens, head_dim + PADDING), spec, fill, margin)
                view[..., head_dim:] = fill
                view = view[..., :head_dim]
            else:
                buffer, view = _slab(qkv[0].shape, spec, fill, margin, shift=int(spec.layout == "misaligned"))
            views.append(view)
            buffers.append(buffer)
    q, k, v = views
    laid = Laid(q=q, k=k, v=v, buffers=tuple(buffers))
    laid.overwrite(qkv)
    return laid


def _slab(shape: tuple[int, ...], spec: Spec, fill: float, margin: int, *, shift: int = 0) -> tuple[Tensor, Tensor]:
    """Return a flat buffer of `fill`, and a view of this shape into its middle."""
    size = math.prod(shape)
    flat = torch.full((margin + shift + size + margin,), fill, dtype=spec.dtype, device=spec.device)
    return flat, flat[margin + shift :][:size].view(shape)
