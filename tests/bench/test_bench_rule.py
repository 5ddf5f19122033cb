"""The parts of the kernel check that have answers by hand: errors, yardsticks, plans, layouts, needles."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

from minivit.bench.checks.cases import DTYPES, EFFORTS, LAYOUTS, SIZES, Case, Spec, covering, plan
from minivit.bench.checks.inputs import MARGIN, PADDING, VALUES, lay_out, needles, normal, rounded
from minivit.bench.checks.numerics import CHECKS
from minivit.bench.checks.tolerance import (
    EAGER,
    Errors,
    gradients,
    gradients_from_output,
    judge,
    judge_gradients,
    judge_rows,
    pick_rows,
    rounding,
)
from minivit.errors import UsageError
from minivit.model.attention import SelfAttention, attend_reference
from minivit.model.config import ViTConfig

ALL_DTYPES = list(DTYPES.values())


def spec(dtype: torch.dtype = torch.float32, layout: str = "packed", tokens: int = 17, **changes) -> Spec:
    sizes = {"batch": 2, "heads": 3, "tokens": tokens, "head_dim": 32} | changes
    return Spec(**sizes, dtype=dtype, layout=layout)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_errors_by_hand():
    truth = torch.tensor([[3.0, 4.0], [0.0, 12.0]], dtype=torch.float64)  # rows of norm 5 and 12
    errors = Errors.of(truth + torch.tensor([[0.0, 1.0], [0.0, -0.6]]), truth)
    assert errors.largest == 1.0
    assert errors.rel_l2 == pytest.approx(math.sqrt(1.36) / 13)
    assert errors.row == pytest.approx(1 / 5)  # the second row is off by 0.6 / 12


def test_a_row_of_nothing_is_measured_by_its_neighbours():
    truth = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    typical = 5 / math.sqrt(2)
    assert Errors.of(truth + 1.0, truth).row == pytest.approx(math.sqrt(2) / (0.1 * typical))


def test_nan_never_equals_and_inf_is_no_number():
    truth = torch.ones(2, 3, dtype=torch.float64)
    for bad in (math.nan, math.inf):
        answer = truth.clone()
        answer[1, 2] = bad
        for truth_too in (truth, answer):
            verdict = judge(answer, truth_too, eager=[truth], sdpa=truth, terms=1)
            assert not verdict.right


def test_the_limit_is_twice_the_worst_eager():
    truth = torch.full((4, 8), 2.0, dtype=torch.float64)
    eager = [truth.float() + 0.01, truth.float() + 0.02]

    def verdict(error: float):
        return judge(truth.float() + error, truth, eager=eager, sdpa=truth.float() + 0.005, terms=8)

    assert verdict(0.039).right
    assert not verdict(0.041).right
    assert verdict(0.03).x_eager == pytest.approx(1.5, rel=1e-4)
    assert verdict(0.03).x_sdpa == pytest.approx(6, rel=1e-3)
    assert verdict(0.03).of_limit == pytest.approx(0.75, rel=1e-4)


def test_one_bad_row_among_many_is_seen():
    truth = torch.randn(500, 8, generator=seeded(), dtype=torch.float64)
    truth[7] *= 0.2  # a small row, so that its error is neither the largest nor much of the norm
    eager = truth + 1e-3 * torch.randn(500, 8, generator=seeded(1), dtype=torch.float64)
    answer = truth.clone()
    answer[7] += 0.006
    verdict = judge(answer, truth, eager=[eager], sdpa=eager, terms=1)
    assert verdict.broken == "worst row"
    assert not verdict.right


def test_what_cancels_is_measured_by_what_was_added_up():
    # Rows of norm 5 and 0.1, of which the second is what 13 and 13 leave of each other.
    truth = torch.tensor([[3.0, 4.0], [0.06, 0.08]], dtype=torch.float64)
    size = torch.tensor([[3.0, 4.0], [5.0, 12.0]], dtype=torch.float64)
    answer = truth + torch.tensor([[0.0, 0.0], [0.0, 0.013]])
    assert Errors.of(answer, truth, size).row == pytest.approx(0.001)
    assert Errors.of(answer, truth).row == pytest.approx(0.013 / (0.1 * math.sqrt((25 + 0.01) / 2)))
    floor = rounding(truth, torch.bfloat16, 64, size)
    assert floor.row == 2**-8 + 8 * 2**-23
    assert floor.largest == pytest.approx(12 * floor.row)
    assert floor.rel_l2 == pytest.approx(floor.row * math.sqrt((25 + 169) / (25 + 0.01)))


def test_two_equal_values_leave_a_gradient_of_rounding_alone():
    """One head of two keys whose values are the same: dP is its mean, and dq and dk would be 0."""
    q, k, v, g = torch.randn(4, 1, 2, 2, 32, generator=seeded(), dtype=torch.float64)
    v[:, 0, 1] = v[:, 0, 0] * (1 + 1e-13)
    honest = gradients_from_output((q, k, v), g, scale=0.3)

    def right(dq: Tensor) -> bool:
        answers = {"dq": dq, "dk": honest[2]}
        return all(verdict.right for verdict in judge_gradients(answers, (q, k, v), g, scale=0.3).values())

    assert right(honest[1])
    wrong = honest[1].clone()
    wrong[:, 0] += 1e-12  # thousands of roundings
    assert not right(wrong)


def test_a_yardstick_that_measures_nothing_is_said_to():
    truth = torch.ones(2, 3, dtype=torch.float64)
    assert not judge(truth, truth, eager=[truth * 1.2], sdpa=truth, terms=1).meaningful


def test_rounding_by_hand():
    floor = rounding(torch.full((2, 3), 4.0, dtype=torch.float64), torch.bfloat16, terms=64)
    assert floor.rel_l2 == 2**-8 + 8 * 2**-23
    assert floor.largest == pytest.approx(4 * floor.rel_l2)


@pytest.mark.parametrize("tokens", [1, 2, 17, 197, 1025])
def test_rows_looked_at(tokens: int):
    rows = pick_rows(tokens, seeded()).tolist()
    assert rows == sorted(set(rows))
    assert len(rows) == min(tokens, 24)
    assert {0, tokens - 1} <= set(rows)
    if tokens == 1025:
        assert {1023, 1024} <= set(rows)


def test_sampled_rows_are_judged_as_all_rows_are():
    q, k, v = rounded(normal(spec(tokens=65), seeded()), spec())
    out = attend_reference(q, k, v, scale=0.2)
    assert judge_rows(out, q, k, v, rows=torch.arange(65), scale=0.2).right
    out[1, 2, 64, 5] += 1
    assert not judge_rows(out, q, k, v, rows=pick_rows(65, seeded()), scale=0.2).right


def test_every_honest_way_is_the_same_attention():
    qkv = tuple(x.double() for x in normal(spec(), seeded()))
    g = torch.randn(qkv[0].shape, generator=seeded(2), dtype=torch.float64)
    first, *others = [gradients(attend, qkv, g, scale=0.3) for attend in EAGER]
    for other in (*others, gradients_from_output(qkv, g, scale=0.3)):
        for a, b in zip(first, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_covering_meets_every_value_and_every_pair_that_is_allowed():
    axes = {"a": [0, 1, 2], "b": [0, 1, 2, 3], "c": [0, 1]}

    def allowed(point):
        return point["a"] + point["b"] < 5

    points = list(covering(axes, pairs=combinations(axes, 2), allowed=allowed))
    assert all(allowed(point) for point in points)
    for one, two in combinations(axes, 2):
        pairs = {(point[one], point[two]) for point in points}
        missing = {(2, 3)} if (one, two) == ("a", "b") else set()
        assert len(pairs) == len(axes[one]) * len(axes[two]) - len(missing)
    assert len(points) < 24
    assert len(list(covering(axes, pairs=[], allowed=allowed))) <= 5


@pytest.mark.slow
@pytest.mark.parametrize("effort", EFFORTS)
def test_plans_ask_every_check_in_every_dtype(effort: str):
    cases = plan(list(CHECKS), EFFORTS[effort], device="cpu", dtypes=ALL_DTYPES)
    asked = {(case.check, case.spec.dtype) for case in cases}
    if effort == "full":
        assert max(case.spec.batch * (case.spec.tokens == 1025) for case in cases) == 256
    sampled = {(check, dtype) for check in CHECKS for dtype in ALL_DTYPES if not check.startswith("needle")}
    assert sampled <= asked
    for name, values in EFFORTS[effort].sizes.items():
        assert {getattr(case.spec, name) for case in cases} == set(values)
    assert {case.spec.layout for case in cases} == set(LAYOUTS)
    assert cases == plan(list(CHECKS), EFFORTS[effort], device="cpu", dtypes=ALL_DTYPES)


def test_the_quick_plan_asks_for_every_number_of_tokens_in_every_dtype():
    cases = plan(["forward/normal"], EFFORTS["quick"], device="cpu", dtypes=ALL_DTYPES)
    asked = {(case.spec.tokens, case.spec.dtype) for case in cases}
    assert asked == {(tokens, dtype) for tokens in SIZES["tokens"] for dtype in ALL_DTYPES}


def test_the_quick_plan_does_not_compile_for_every_pair_of_heads_and_head_dim():
    cases = plan(list(CHECKS), EFFORTS["quick"], device="cpu", dtypes=ALL_DTYPES)
    assert len({(case.spec.heads, case.spec.head_dim) for case in cases}) == 6


def test_a_case_is_its_text():
    case = Case(check="backward/only-k", spec=Spec(**vars(spec()) | {"grads": True}))
    assert str(case) == "backward/only-k/2x3x17x32/float32/packed"
    assert Case.parse(str(case), device="cpu") == case
    draws = [torch.rand(3, generator=case.generator(seed)).tolist() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize(
    "text",
    ["nonsense", "forward/normal/2x3x17/float32/packed", "a/b/1x1x1x1/float8/packed", "a/b/0x1x1x1/float32/bnhd"],
)
def test_a_case_of_another_form_is_refused(text: str):
    with pytest.raises(UsageError, match="--case"):
        Case.parse(text, device="cpu")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_hold_the_values_and_nothing_else(layout: str):
    one = spec(torch.bfloat16, layout)
    qkv = rounded(normal(one, seeded()), one)
    laid = lay_out(qkv, one)
    for view, values in zip(laid.qkv, qkv, strict=True):
        assert torch.equal(view, values)
        assert view.stride(-1) == 1
        assert view.data_ptr() // 2 % 16 == (1 if layout == "misaligned" else view.storage_offset() % 16)
        before = view.storage_offset()
        after = view.untyped_storage().nbytes() // 2 - before - 1
        after -= sum((size - 1) * stride for size, stride in zip(view.shape, view.stride(), strict=True))
        assert min(before, after) >= MARGIN
    numbers = sum(int((~buffer.isnan()).sum()) for buffer in laid.buffers)
    assert numbers == 3 * one.elements


def test_packed_and_bnhd_and_padded_are_what_they_are_called():
    batch, heads, tokens, head_dim = 2, 3, 17, 32
    attention = SelfAttention(ViTConfig(width=96, heads=3, mlp_width=7, depth=1, image_size=(8, 8), patch_size=4))
    by_the_model = attention.split(torch.empty(batch, tokens, 3 * 96))[0]
    strides = {layout: lay_out(normal(spec(), seeded()), spec(layout=layout)).q.stride() for layout in LAYOUTS}
    assert strides["packed"] == by_the_model.stride()
    assert strides["bnhd"] == (tokens * heads * head_dim, head_dim, heads * head_dim, 1)
    row = head_dim + PADDING
    assert strides["padded"] == (heads * tokens * row, tokens * row, row, 1)
    assert strides["misaligned"] == strides["contiguous"] == torch.empty(batch, heads, tokens, head_dim).stride()


@pytest.mark.parametrize("head_dim", [32, 72, 128])
@pytest.mark.parametrize("tokens", [1, 2, 197, 1025])
def test_needles_are_found(tokens: int, head_dim: int):
    one = spec(tokens=tokens, head_dim=head_dim, batch=1)
    q, k, v, permutation = needles(one, seeded())
    out = attend_reference(q.double(), k.double(), v.double(), scale=one.scale)
    assert sorted(permutation[0, 0].tolist()) == list(range(tokens))
    for head in range(3):
        torch.testing.assert_close(out[0, head], v[0, head, permutation[0, head]].double(), rtol=0, atol=1e-14)


def test_inputs_are_what_they_are_called():
    one = spec(tokens=197)

    def probs(name: str) -> torch.Tensor:
        q, k, _ = (x.double() for x in VALUES[name](one, seeded()))
        return (q @ k.mT * one.scale).softmax(-1)

    assert probs("first-key")[..., 0].mean() > 0.75
    assert probs("last-key")[..., -1].mean() > 0.75
    torch.testing.assert_close(probs("constant-keys"), torch.full_like(probs("normal"), 1 / 197))
    assert probs("logits-x30").amax(-1).mean() > 0.9
    _, _, v = VALUES["large-mean"](one, seeded())
    assert 99 < v.mean() < 101
    for dtype in ALL_DTYPES:
        for name in VALUES:
            assert all(x.isfinite().all() for x in rounded(VALUES[name](spec(dtype), seeded()), spec(dtype)))


def test_logits_added_up_one_after_the_other_are_honest():
    """Two keys round less than the 128 products in each of their logits: the floor counts the longer sum."""

    def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        logits = torch.zeros(*q.shape[:3], k.shape[2])
        for i in range(q.shape[-1]):
            logits = logits + q[..., i, None] * k[..., None, :, i]
        return (logits * scale).softmax(-1) @ v

    two = spec(batch=1, heads=16, tokens=2, head_dim=128)
    for seed in range(40):
        q, k, v = VALUES["first-key"](two, seeded(seed))
        verdict = judge_rows(attend(q, k, v, scale=two.scale), q, k, v, rows=torch.arange(2), scale=two.scale)
        assert verdict.right, (seed, verdict)
