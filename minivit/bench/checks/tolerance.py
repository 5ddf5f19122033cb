"""How far from right is too far: error against float64, in units of the error of plain attention in the same dtype.

FlashAttention's rule (Dao-AILab/flash-attention, tests/test_flash_attn.py): a kernel may be twice as far from the
truth as eager PyTorch of the same precision. Here the truth is float64 from the rounded inputs, the norm and every
single row must pass as well as the largest element, and a yardstick that measures nothing is said to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from minivit.model.attention import attend_reference, attend_sdpa, attention_probs

SLACK = 2.0  # the kernel's errors may be this many yardsticks: largest element and relative L2
ROW_SLACK = 4.0  # and this many for the worst row, which is an extreme of an extreme
MEANINGLESS = 0.1  # a yardstick of relative L2 beyond this accepts too much to prove anything
MOST_ROWS = 24  # query rows looked at in each head


@dataclass(frozen=True, kw_only=True)
class Errors:
    """How far an answer is from the truth; nan and inf stay what they are."""

    largest: float  # element, absolute
    rel_l2: float  # |answer - truth| / |truth| over everything
    row: float  # |answer - truth| / |size| of the worst row; sizes below a tenth of the typical one count as a tenth

    @staticmethod
    def of(answer: Tensor, truth: Tensor, size: Tensor | None = None) -> Errors:
        """`size`: of what was added up, where the truth is what two large numbers leave of each other."""
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
    """The floor of every yardstick: what nobody is blamed for, even where eager happens to be exact.

    One rounding to dtype, and the growth by sqrt(terms) of the rounding of a sum of so many terms in float32 (float64
    for float64), in whatever order it is added up: of the truth, or of `size` (see Errors.of). The truth itself, which
    has no more digits than an answer in float64, may be as far off; SLACK has room for both.
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
    """An answer judged. It is right when `of_limit` is at most 1, which no nan is."""

    errors: Errors
    x_eager: float  # relative L2 as a multiple of eager's
    x_sdpa: float  # and of scaled_dot_product_attention's
    of_limit: float  # the worst of the three errors, as a share of what is allowed
    broken: str  # which of the three that is
    meaningful: bool  # False where eager itself is wrong by more than MEANINGLESS

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
    """The rule. `eager` are equally honest ways of plain attention in the dtype of `answer`; the worst one counts.

    `terms` is the length of the longest sum in it (see rounding), `size` what a row is measured by (see Errors.of).
    """
    floor = rounding(truth, answer.dtype, terms, size)
    yardstick = Errors.largest_of([floor, *(Errors.of(one, truth, size) for one in eager)])
    other = Errors.largest_of([floor, Errors.of(sdpa, truth, size)])
    errors = Errors.of(answer, truth, size)
    shares = {
        "largest error": errors.largest / (SLACK * yardstick.largest),
        "relative L2": errors.rel_l2 / (SLACK * yardstick.rel_l2),
        "worst row": errors.row / (ROW_SLACK * yardstick.row),
    }
    # max() would pass over a nan that does not come first.
    broken = next((name for name, share in shares.items() if share != share), max(shares, key=lambda n: shares[n]))
    return Verdict(
        errors=errors,
        x_eager=errors.rel_l2 / yardstick.rel_l2,
        x_sdpa=errors.rel_l2 / other.rel_l2,
        of_limit=shares[broken],
        broken=broken,
        meaningful=yardstick.rel_l2 <= MEANINGLESS,
    )


def pick_rows(tokens: int, generator: Generator) -> Tensor:
    """Query rows to look at: the first, the last, both sides of the last edges of blocks, the others at random."""
    edges = [edge + side for block in (16, 64, 128) for edge in [tokens // block * block] for side in (-1, 0)]
    picked = {row for row in (0, tokens - 1, *edges) if 0 <= row < tokens}
    rest = [row for row in torch.randperm(tokens, generator=generator).tolist() if row not in picked]
    return torch.tensor(sorted([*picked, *rest[: max(0, MOST_ROWS - len(picked))]]))


def _scaled_q(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    return attend_reference(q * scale, k, v, scale=1.0)


def _scaled_k(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    return attend_reference(q, k * scale, v, scale=1.0)


def _scaled_both(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """As PyTorch's own math backend does it, so that neither overflows."""
    return attend_reference(q * scale**0.5, k * scale**0.5, v, scale=1.0)


def _base_two(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """As kernels do it where exp2 is the faster instruction: log2(e) goes into the scale."""
    sums = torch.promote_types(q.dtype, torch.float32)
    logits_BANM = (q.to(sums) * (scale * math.log2(math.e))) @ k.to(sums).mT
    powers_BANM = (logits_BANM - logits_BANM.amax(dim=-1, keepdim=True)).exp2()
    return (powers_BANM / powers_BANM.sum(dim=-1, keepdim=True)).to(v.dtype) @ v


# Plain attention in the dtype of its inputs, with the scale applied to the product, to q, to k, to both, and in base
# two: one alone may be exact by luck, and large logits turn each rounding of them into a share of the answer.
EAGER = (attend_reference, _scaled_q, _scaled_k, _scaled_both, _base_two)


def judge_rows(answer: Tensor, q: Tensor, k: Tensor, v: Tensor, *, rows: Tensor, scale: float) -> Verdict:
    """The rule for the given query rows of all heads and batches, every key counted: B A rows M K, not B A N M K."""
    q, answer = q[:, :, rows], answer[:, :, rows]
    truth = attend_reference(q.double(), k.double(), v.double(), scale=scale)
    sdpa = attend_sdpa(q, k, v, scale=scale)
    eager = [attend(q, k, v, scale=scale) for attend in EAGER]
    terms = max(k.shape[2:])  # a sum over the keys of what is a sum over the head
    return judge(answer, truth, eager=eager, sdpa=sdpa, terms=terms)


def gradients(
    attend: Callable[..., Tensor], qkv: tuple[Tensor, ...], cotangent: Tensor, *, scale: float
) -> list[Tensor]:
    """The output of attend(q, k, v) and the gradients of q, k and v for a gradient of the output."""
    leaves = [x.detach().requires_grad_() for x in qkv]
    out = attend(*leaves, scale=scale)
    return [out.detach(), *torch.autograd.grad(out, leaves, cotangent)]


def gradients_from_output(qkv: tuple[Tensor, ...], cotangent: Tensor, *, scale: float) -> list[Tensor]:
    """The same by hand, in the dtype of q, as FlashAttention does it (Dao 2023, arXiv:2307.08691, algorithm 2).

    The mean of the gradients of the probabilities is taken from the rounded output, not from the probabilities: as
    honest as autograd's way, with other roundings.
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
    """The rule, over all rows, for what there is of "out", "dq", "dk" and "dv".

    In plain attention and in a kernel dq and dk are sums of P * (dP - mean) * scale. Where dP is close to its mean, as
    it is for one query in a hundred when there are but two keys, what is left is small, but not its rounding, which
    is that of dP and of the mean: it differs by multiples between equally honest ways. Such a row is measured by what
    it would be without the subtraction.
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
