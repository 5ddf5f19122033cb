"""The tolerance: the error against float64, relative to the error of plain attention in the same dtype.

As in FlashAttention's tests (Dao-AILab/flash-attention, tests/test_flash_attn.py), the error of a kernel may be twice
the error of eager PyTorch in the same precision, the baseline. Here, the truth is float64 attention of the rounded
inputs; the largest element, the L2 norm and every single row have to pass; and a baseline with too large an error makes
the result inconclusive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from minivit.model.attention import attend_reference, attend_sdpa, attention_probs

SLACK = 2.0  # maximum error in units of the baseline: largest element and relative L2
ROW_SLACK = 4.0  # the same for the worst row, which varies more
MEANINGLESS = 0.1  # a baseline with a larger relative L2 error proves nothing
MAX_ROWS = 24  # query rows that are compared in each head


@dataclass(frozen=True, kw_only=True)
class Errors:
    """The errors of an output; nan and inf stay nan and inf."""

    largest: float  # element, absolute
    rel_l2: float  # |output - truth| / |truth| over all elements
    row: float  # |output - truth| / |size| of the worst row; |size| is at least a tenth of the typical one

    @staticmethod
    def of(answer: Tensor, truth: Tensor, size: Tensor | None = None) -> Errors:
        """Return the errors of `answer`. `size`: of the terms, if the truth is a small difference of large numbers."""
        difference = answer.double() - truth
        size_rows = (truth if size is None else size).norm(dim=-1)
        typical = size_rows.square().mean().sqrt()
        worst_row = (difference.norm(dim=-1) / size_rows.clamp(min=0.1 * typical)).max()
        return Errors(
            largest=difference.abs().max().item(),
            rel_l2=(difference.norm() / truth.norm()).item(),
            row=worst_row.item(),
        )

    @staticmethod
    def largest_of(errors: Iterable[Errors]) -> Errors:
        every = list(errors)
        return Errors(**{name: max(getattr(one, name) for one in every) for name in ("largest", "rel_l2", "row")})


def rounding(truth: Tensor, dtype: torch.dtype, terms: int, size: Tensor | None = None) -> Errors:
    """Return the minimum of every baseline: unavoidable rounding errors, also where eager happens to be exact.

    One rounding to dtype, plus the rounding of a sum of so many terms in float32 (float64 for float64), which grows
    with sqrt(terms) in any order: of the truth, or of `size` (see Errors.of). In float64, the truth itself has the same
    error; SLACK has room for both.
    """
    size = truth if size is None else size
    sums = torch.finfo(torch.promote_types(dtype, torch.float32)).eps * terms**0.5
    relative = torch.finfo(dtype).eps / 2 + sums
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    return Errors(
        largest=relative * size.abs().max().item() + smallest,
        rel_l2=relative * (size.norm() / truth.norm()).item(),
        row=relative,
    )


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The judgement of an output. It is right if `of_limit` is at most 1; nan is not."""

    errors: Errors
    x_eager: float  # relative L2 as a multiple of eager's
    x_sdpa: float  # and of scaled_dot_product_attention's
    of_limit: float  # the worst of the three errors, relative to its limit
    broken: str  # the name of that error
    meaningful: bool  # False if the error of eager itself is above MEANINGLESS

    @property
    def right(self) -> bool:
        return self.of_limit <= 1


def judge(
    answer: Tensor,
    truth: Tensor,
    *,
    eager: Iterable[Tensor],
    sdpa: Tensor,
    terms: int,
    size: Tensor | None = None,
) -> Verdict:
    """Return the verdict on an output.

    `eager` are equally valid ways of plain attention in the dtype of `answer`; the worst one is the baseline. `terms`
    is the length of the longest sum (see rounding), `size` the size of a row (see Errors.of).
    """
    floor = rounding(truth, answer.dtype, terms, size)
    baseline = Errors.largest_of([floor, *(Errors.of(one, truth, size) for one in eager)])
    other = Errors.largest_of([floor, Errors.of(sdpa, truth, size)])
    errors = Errors.of(answer, truth, size)
    ratios = {
        "largest error": errors.largest / (SLACK * baseline.largest),
        "relative L2": errors.rel_l2 / (SLACK * baseline.rel_l2),
        "worst row": errors.row / (ROW_SLACK * baseline.row),
    }
    # max() would ignore a nan that does not come first.
    broken = next((name for name, ratio in ratios.items() if ratio != ratio), max(ratios, key=lambda n: ratios[n]))
    return Verdict(
        errors=errors,
        x_eager=errors.rel_l2 / baseline.rel_l2,
        x_sdpa=errors.rel_l2 / other.rel_l2,
        of_limit=ratios[broken],
        broken=broken,
        meaningful=baseline.rel_l2 <= MEANINGLESS,
    )


def pick_rows(tokens: int, generator: Generator) -> Tensor:
    """Return query rows to compare: first, last, both sides of the last block edges, the others at random."""
    edges = [edge + side for block in (16, 64, 128) for edge in [tokens // block * block] for side in (-1, 0)]
    picked = {row for row in (0, tokens - 1, *edges) if 0 <= row < tokens}
    rest = [row for row in torch.randperm(tokens, generator=generator).tolist() if row not in picked]
    return torch.tensor(sorted([*picked, *rest[: max(0, MAX_ROWS - len(picked))]]))


def _scaled_q(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    return attend_reference(q * scale, k, v, scale=1.0)


def _scaled_k(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    return attend_reference(q, k * scale, v, scale=1.0)


def _scaled_both(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """The way of PyTorch's math backend, in which neither q nor k overflows."""
    return attend_reference(q * scale**0.5, k * scale**0.5, v, scale=1.0)


def _base_two(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """The way of kernels on devices where exp2 is faster: log2(e) is part of the scale."""
    sums = torch.promote_types(q.dtype, torch.float32)
    logits_BANM = (q.to(sums) * (scale * math.log2(math.e))) @ k.to(sums).mT
    powers_BANM = (logits_BANM - logits_BANM.amax(dim=-1, keepdim=True)).exp2()
    return (powers_BANM / powers_BANM.sum(dim=-1, keepdim=True)).to(v.dtype) @ v


# Plain attention in the dtype of its inputs, with the scale applied to the logits, to q, to k, to both, and in base
# two. A single way may be exact by chance, and large logits amplify the rounding of each way differently.
EAGER = (attend_reference, _scaled_q, _scaled_k, _scaled_both, _base_two)


def judge_rows(answer: Tensor, q: Tensor, k: Tensor, v: Tensor, *, rows: Tensor, scale: float) -> Verdict:
    """Return the verdict on some query rows of all heads and batches, with all keys: B A rows M K, not B A N M K."""
    q, answer = q[:, :, rows], answer[:, :, rows]
    truth = attend_reference(q.double(), k.double(), v.double(), scale=scale)
    sdpa = attend_sdpa(q, k, v, scale=scale)
    eager = [attend(q, k, v, scale=scale) for attend in EAGER]
    terms = max(k.shape[2:])  # a sum over the keys of sums over the head
    return judge(answer, truth, eager=eager, sdpa=sdpa, terms=terms)


def gradients(
    attend: Callable[..., Tensor], qkv: tuple[Tensor, ...], cotangent: Tensor, *, scale: float
) -> list[Tensor]:
    """Return the output of attend(q, k, v) and the gradients of q, k and v for a gradient of the output."""
    leaves = [x.detach().requires_grad_() for x in qkv]
    out = attend(*leaves, scale=scale)
    return [out.detach(), *torch.autograd.grad(out, leaves, cotangent)]


def gradients_from_output(qkv: tuple[Tensor, ...], cotangent: Tensor, *, scale: float) -> list[Tensor]:
    """Return the same by hand, in the dtype of q, as FlashAttention does (Dao 2023, arXiv:2307.08691, algorithm 2).

    The mean of the gradients of the probabilities is computed from the rounded output, not from the probabilities. It
    is as valid as autograd, with other rounding errors.
    """
    q, k, v = qkv
    probs_BANM = attention_probs(q, k, scale=scale)
    out = probs_BANM @ v
    mean_BAN1 = (cotangent * out).sum(-1, keepdim=True)
    d_logits_BANM = probs_BANM * (cotangent @ v.mT - mean_BAN1) * scale
    return [out, d_logits_BANM @ k, d_logits_BANM.mT @ q, probs_BANM.mT @ cotangent]


def judge_gradients(
    answers: Mapping[str, Tensor], qkv: tuple[Tensor, ...], cotangent: Tensor, *, scale: float
) -> dict[str, Verdict]:
    """Return the verdicts, over all rows, on those of "out", "dq", "dk" and "dv" that are given.

    dq and dk are sums of P * (dP - mean) * scale. Where dP is close to its mean (with two keys, for one query in a
    hundred), the difference is small, but its rounding error is that of dP and of the mean: equally valid ways differ
    by large factors. The error of such a row is measured relative to its size without the subtraction.
    """
    q, k, v = exact = tuple(x.double() for x in qkv)
    g = cotangent.double()
    truth = gradients(attend_reference, exact, g, scale=scale)
    probs_BANM = attention_probs(q, k, scale=scale)
    # dP and the mean, over the keys, are sums over the head: g v and g out.
    squares_BANM = g.square() @ v.square().mT + (g * truth[0]).square().sum(-1, keepdim=True)
    squares_BANM *= (probs_BANM * scale).square()
    sizes = [truth[0], (squares_BANM @ k.square()).sqrt(), (squares_BANM.mT @ q.square()).sqrt(), truth[3]]
    eager = [gradients(attend, qkv, cotangent, scale=scale) for attend in EAGER]
    eager.append(gradients_from_output(qkv, cotangent, scale=scale))
    sdpa = gradients(attend_sdpa, qkv, cotangent, scale=scale)
    terms = max(k.shape[2:])  # sums over the keys or queries, of sums over the head
    return {
        name: judge(answers[name], truth[i], eager=[way[i] for way in eager], sdpa=sdpa[i], terms=terms, size=sizes[i])
        for i, name in enumerate(("out", "dq", "dk", "dv"))
        if name in answers
    }
