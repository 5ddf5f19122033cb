"""Maps: rollout's laws, gradients against plain autograd written out again, tokens against hand-made cases."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers.fakes import build, pixels
from torch import nn

import minivit
from minivit import study
from minivit.errors import ShapeError, UsageError
from minivit.model.attention import attend_reference, attend_sdpa
from minivit.model.config import TokenLayout

CLOSE = {"rtol": 0, "atol": 1e-12}
LAYOUTS = {
    "cls": TokenLayout(grid=(2, 5)),
    "two": TokenLayout(dist=1, grid=(2, 5)),
    "registers": TokenLayout(registers=3, grid=(5, 2)),
    "none": TokenLayout(cls=0, grid=(2, 5)),
}


def random_probs(layout, layers=3, batch=2, heads=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, heads, layout.count, layout.count)
    return [(2 * torch.randn(shape, generator=generator, dtype=torch.float64)).softmax(-1) for _ in range(layers)]


# One attention


@pytest.mark.parametrize("kind", LAYOUTS)
def test_attention_map_of_any_query_and_head(kind):
    layout = LAYOUTS[kind]
    probs = random_probs(layout)[0]
    rows, columns = layout.grid
    patch = study.attention_map(probs, layout, query=(1, 0), head=2)
    assert patch.shape == (2, rows, columns)
    for r in range(rows):
        for c in range(columns):
            place = layout.prefix + r * columns + c
            assert patch[1, r, c] == probs[1, 2, layout.prefix + columns, place]
    first = study.attention_map(probs, layout, query=0, head="max")
    assert first[0, 1, 1] == max(probs[0, a, 0, layout.prefix + columns + 1] for a in range(3))
    low = study.attention_map(probs, layout, query=0, head="min")
    assert low[0, 0, 1] == min(probs[0, a, 0, layout.prefix + 1] for a in range(3))
    mean = study.attention_map(probs, layout)
    weights = probs[:, :, 0] if layout.cls else probs.mean(2)
    torch.testing.assert_close(mean, weights.mean(1)[:, layout.prefix :].reshape(2, rows, columns), **CLOSE)


def test_one_kept_row_is_enough():
    layout = LAYOUTS["two"]
    probs = random_probs(layout)[0]
    whole = study.attention_map(probs, layout, query="dist")
    torch.testing.assert_close(study.attention_map(probs[:, :, 1:2], layout), whole, **CLOSE)
    with pytest.raises(ShapeError, match="1 query rows; all 12 are needed"):
        study.attention_map(probs[:, :, 1:2], layout, query="dist")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"query": "dist"}, "no token dist"),
        ({"query": (2, 0)}, r"no token \(2, 0\): this model has 11 tokens, 1 cls, 10 patches in 2 rows of 5"),
        ({"query": "sep"}, "no token sep"),
        ({"head": 3}, "heads 0 to 2"),
        ({"head": "median"}, "mean, max, min"),
    ],
)
def test_no_such_token_or_head(arguments, words):
    layout = LAYOUTS["cls"]
    with pytest.raises(UsageError, match=words):
        study.attention_map(random_probs(layout)[0], layout, **arguments)
    with pytest.raises(ShapeError, match="11 tokens"):
        study.attention_map(torch.rand(1, 1, 9, 9), layout)


# Rollout


def test_rollout_of_three_tokens_by_hand():
    """CLS and two patches, two layers, one head."""
    layout = TokenLayout(grid=(1, 2))
    first = torch.tensor([[0.2, 0.6, 0.2], [0.0, 1.0, 0.0], [0.4, 0.2, 0.4]], dtype=torch.float64)
    second = torch.tensor([[0.0, 0.5, 0.5], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    # Half of each and half of the identity:
    #   first  [.6 .3 .1; 0 1 0; .2 .1 .7]   second  [.5 .25 .25; ...]
    # CLS row of the product second x first: .5 [.6 .3 .1] + .25 [0 1 0] + .25 [.2 .1 .7] = [.35 .425 .225]
    probs = [first[None, None], second[None, None]]
    expected = torch.tensor([[[0.425, 0.225]]], dtype=torch.float64)
    torch.testing.assert_close(study.rollout(probs, layout), expected, **CLOSE)
    # The other order would give .6 [.5 .25 .25] + .3 [.5 .5 0] + .1 [0 0 1] = [.45 .3 .25].
    assert not torch.allclose(study.rollout(probs[::-1], layout), expected)
    torch.testing.assert_close(
        study.rollout(probs[::-1], layout), torch.tensor([[[0.3, 0.25]]], dtype=torch.float64), **CLOSE
    )


@pytest.mark.parametrize("kind", LAYOUTS)
@pytest.mark.parametrize("fusion", ["mean", "max", "min", 1])
@pytest.mark.parametrize("residual", [0.0, 0.3, 0.5, 1.0])
def test_rows_sum_to_one_and_the_row_equals_the_full_product(kind, fusion, residual):
    layout = LAYOUTS[kind]
    probs = random_probs(layout)
    matrix = study.rollout_matrix(probs, layout, residual=residual, fusion=fusion)
    torch.testing.assert_close(matrix.sum(-1), torch.ones(2, layout.count, dtype=torch.float64), **CLOSE)
    for query, row in (((1, 1), layout.prefix + layout.grid[1] + 1), (0, 0)):
        carried = study.rollout(probs, layout, query=query, residual=residual, fusion=fusion)
        torch.testing.assert_close(carried, layout.to_grid(matrix[:, row]), **CLOSE)
    if kind == "none":
        mean = layout.to_grid(matrix.mean(1))
        torch.testing.assert_close(study.rollout(probs, layout, residual=residual, fusion=fusion), mean, **CLOSE)


def test_full_product_is_the_paper_s():
    layout = LAYOUTS["cls"]
    probs = random_probs(layout)
    expected = torch.eye(11, dtype=torch.float64).expand(2, 11, 11)
    for p in probs:
        a = torch.stack([sum(p[b, h] for h in range(3)) / 3 + torch.eye(11) for b in range(2)])
        a = torch.stack([torch.stack([row / row.sum() for row in picture]) for picture in a])
        expected = torch.einsum("bij,bjk->bik", a, expected)
    torch.testing.assert_close(study.rollout_matrix(probs, layout), expected, **CLOSE)


def test_identity_attention_gives_a_one_hot_map():
    layout = LAYOUTS["two"]
    probs = [torch.eye(12, dtype=torch.float64).expand(1, 3, 12, 12)] * 4
    expected = torch.zeros(1, 2, 5, dtype=torch.float64)
    expected[0, 1, 3] = 1
    torch.testing.assert_close(study.rollout(probs, layout, query=(1, 3), residual=0.3), expected, **CLOSE)
    assert study.rollout(probs, layout).abs().sum() == 0  # CLS has seen CLS alone


@pytest.mark.parametrize("discard", [0.0, 0.4, 1.0])
def test_a_batch_is_its_pictures_one_by_one(discard):
    layout = LAYOUTS["registers"]
    probs = random_probs(layout, batch=3)
    together = study.rollout(probs, layout, discard=discard, start_layer=1)
    for i in range(3):
        alone = study.rollout([p[i : i + 1] for p in probs], layout, discard=discard, start_layer=1)
        torch.testing.assert_close(together[i : i + 1], alone, **CLOSE)


def test_tokens_may_be_renamed():
    """A permutation of the patches permutes the map and nothing else."""
    layout = LAYOUTS["cls"]
    probs = random_probs(layout)
    order = torch.tensor([0, 3, 1, 10, 2, 4, 9, 8, 6, 7, 5])
    permuted = [p[:, :, order][:, :, :, order] for p in probs]
    plain = study.rollout(probs, layout).flatten(1)
    torch.testing.assert_close(study.rollout(permuted, layout).flatten(1), plain[:, order[1:] - 1], **CLOSE)


def test_discard_takes_the_smallest_of_each_picture_but_never_what_looks_at_a_prefix_token():
    layout = TokenLayout(grid=(1, 2))
    a = torch.tensor([[0.01, 0.9, 0.09], [0.3, 0.5, 0.2], [0.02, 0.05, 0.93]], dtype=torch.float64)
    b = torch.tensor([[0.3, 0.3, 0.4], [0.8, 0.05, 0.15], [0.2, 0.7, 0.1]], dtype=torch.float64)
    # 4 of 9 entries: of a .01 .02 .05 .09, of b .05 .1 .15 .2; a's .01 and .02 and b's .2 stand in the CLS column.
    kept_a = torch.tensor([[0.01, 0.9, 0.0], [0.3, 0.5, 0.2], [0.02, 0.0, 0.93]], dtype=torch.float64)
    kept_b = torch.tensor([[0.3, 0.3, 0.4], [0.8, 0.0, 0.0], [0.2, 0.7, 0.0]], dtype=torch.float64)
    expected = (torch.stack([kept_a, kept_b]) + torch.eye(3)) / 2
    expected = expected / expected.sum(-1, keepdim=True)
    matrix = study.rollout_matrix([torch.stack([a, b])[:, None]], layout, discard=4.5 / 9)
    torch.testing.assert_close(matrix, expected, **CLOSE)


def test_start_layer_leaves_the_layers_before_it_out():
    layout = LAYOUTS["cls"]
    probs = random_probs(layout)
    late = study.rollout(probs, layout, start_layer=2)
    torch.testing.assert_close(late, study.rollout(probs[2:], layout), **CLOSE)
    assert not torch.allclose(late, study.rollout(probs, layout))


@pytest.mark.parametrize(
    "arguments",
    [{"residual": -0.1}, {"residual": 1.5}, {"discard": 2}, {"start_layer": 3}, {"start_layer": -1}, {"fusion": "sum"}],
)
def test_rollout_refuses_what_makes_no_sense(arguments):
    layout = LAYOUTS["cls"]
    with pytest.raises(UsageError):
        study.rollout(random_probs(layout), layout, **arguments)
    with pytest.raises(UsageError, match="nothing"):
        study.rollout(random_probs(LAYOUTS["none"]), LAYOUTS["none"], residual=0.0, discard=1.0)


@pytest.mark.parametrize("kind", ["cls", "two", "none"])
def test_rollout_of_a_traced_model_needs_q_and_k_alone(kind):
    model, x = build(kind), pixels()
    trace = minivit.trace(model, x, keep=["blocks.*.q", "blocks.*.k"])
    probs = list(minivit.trace(model, x, keep="blocks.*.attn.probs").values())
    mapped = study.rollout(trace.attention, trace.layout)
    assert mapped.shape == (2, 3, 5)
    torch.testing.assert_close(mapped, study.rollout(probs, model.config.layout), **CLOSE)


# Gradients, each written out again the plain way: one picture, one layer, one head at a time.


class Watched(nn.Module):
    """The reference attention that remembers the probabilities it made."""

    def __init__(self):
        super().__init__()
        self.probs: list[torch.Tensor] = []

    def forward(self, q, k, v, *, scale):
        probs = torch.softmax(torch.einsum("bank,bamk->banm", q, k) * scale, dim=-1)
        self.probs.append(probs)
        return torch.einsum("banm,bamk->bank", probs, v)


def watched(kind, picture, target):
    """Probabilities of all layers of one picture and the gradients of one logit by them."""
    kernel = Watched()
    model = build(kind, kernel)
    logits = model(picture[None])
    grads = torch.autograd.grad(logits[0, target], kernel.probs)
    return [p.detach()[0] for p in kernel.probs], [g[0] for g in grads]


def head_row(kind, matrix):
    """The row of what the head reads: CLS, or the mean of the patches."""
    rows = {"cls": [0], "two": [0], "none": list(range(15))}[kind]
    prefix = {"cls": 1, "two": 2, "none": 0}[kind]
    return torch.stack([matrix[row] for row in rows]).mean(0)[prefix:].reshape(3, 5)


@pytest.mark.parametrize("kind", ["cls", "two", "none"])
def test_relevance_is_chefer_s(kind):
    x, targets = pixels(), [4, 1]
    expected = []
    for picture, target in zip(x, targets, strict=True):
        relevance = torch.eye(15 + {"cls": 1, "two": 2, "none": 0}[kind], dtype=torch.float64)
        for probs, grads in zip(*watched(kind, picture, target), strict=True):
            positive = sum((grads[a] * probs[a]).clamp(min=0) for a in range(3)) / 3
            relevance = relevance + positive @ relevance
        expected.append(head_row(kind, relevance))
    mapped = study.relevance(build(kind), x, target=torch.tensor(targets))
    torch.testing.assert_close(mapped, torch.stack(expected), **CLOSE)
    assert mapped.min() >= 0


@pytest.mark.parametrize("kind", ["cls", "two", "none"])
def test_grad_rollout_weighs_every_probability(kind):
    x = pixels()
    expected = []
    for picture in x:
        tokens = 15 + {"cls": 1, "two": 2, "none": 0}[kind]
        product = torch.eye(tokens, dtype=torch.float64)
        for probs, grads in zip(*watched(kind, picture, 3), strict=True):
            fused = (sum(grads[a] * probs[a] for a in range(3)) / 3).clamp(min=0)
            mixed = 0.8 * fused + 0.2 * torch.eye(tokens, dtype=torch.float64)
            product = (mixed / mixed.sum(-1)[:, None]) @ product
        expected.append(head_row(kind, product))
    mapped = study.grad_rollout(build(kind), x, target=3, residual=0.2)
    torch.testing.assert_close(mapped, torch.stack(expected), **CLOSE)
    without = study.grad_rollout(build(kind), x, target=3, residual=0.0)
    assert without.isfinite().all()


@pytest.mark.parametrize("kind", ["cls", "two", "none"])
@pytest.mark.parametrize("pool", ["mean", "head"])
def test_legrad_reads_every_layer_by_the_head(kind, pool):
    x, target = pixels(), 2
    prefix = {"cls": 1, "two": 2, "none": 0}[kind]
    expected = []
    for picture in x:
        total = torch.zeros(15 + prefix, dtype=torch.float64)
        for layer in range(3):
            kernel = Watched()
            model = build(kind, kernel)
            tokens = model.embed(picture[None])
            for block in model.blocks[: layer + 1]:
                tokens = block(tokens)
            if pool == "mean":
                read = nn.functional.layer_norm(tokens.mean(1), (21,), model.norm.weight, model.norm.bias, 1e-6)
            else:
                read = model.norm(tokens)[:, 0] if kind != "none" else model.norm(tokens).mean(1)
            score = model.head(read)[0, target]
            (grad,) = torch.autograd.grad(score, kernel.probs[layer])
            total += grad[0].clamp(min=0).mean(dim=(0, 1))
        expected.append(total[prefix:].reshape(3, 5) / 3)
    mapped = study.legrad(build(kind), x, target=target, pool=pool)
    torch.testing.assert_close(mapped, torch.stack(expected), **CLOSE)
    assert mapped.max() > 0


def pooled(kind, **changes):
    """A model whose head reads an attention pool; with a class token, which the pool does not see, or without."""
    return build(kind, pooling="map", **changes)


def watched_pool(kind, picture, target):
    """As `watched`, the pool's row of attention, spread over all tokens, at the end of either list."""
    kernel = Watched()
    model = pooled(kind, attend=kernel)
    model.attn_pool.attend = kernel
    logits = model(picture[None])
    grads = torch.autograd.grad(logits[0, target], kernel.probs)
    unseen = torch.zeros(3, 1, model.config.layout.prefix, dtype=torch.float64)
    *probs, pool = [p.detach()[0] for p in kernel.probs]
    *slopes, slope = [g[0] for g in grads]
    return [*probs, torch.cat([unseen, pool], -1)], [*slopes, torch.cat([unseen, slope], -1)]


@pytest.mark.parametrize("kind", ["cls", "none"])
@pytest.mark.parametrize("start", [0, 2])
def test_relevance_through_an_attention_pool_is_chefer_s_cross_attention(kind, start):
    x, targets = pixels(), [4, 1]
    prefix = {"cls": 1, "none": 0}[kind]
    eye = torch.eye(15 + prefix, dtype=torch.float64)
    expected = []
    for picture, target in zip(x, targets, strict=True):
        (*probs, pool), (*grads, slope) = watched_pool(kind, picture, target)
        relevance = eye
        for p, g in zip(probs[start:], grads[start:], strict=True):
            relevance = relevance + (g * p).clamp(min=0).mean(0) @ relevance
        # Equations 8 and 9: what tokens got from others, its rows made to sum to 1, and themselves.
        gained = relevance - eye
        normed = (gained / gained.sum(dim=-1, keepdim=True)).nan_to_num() + eye  # 0 / 0: a token nobody reads
        row = (slope * pool).clamp(min=0).mean(0) @ normed  # equation 10; the pool's query knows only itself
        expected.append(row[0, prefix:].reshape(3, 5))
    mapped = study.relevance(pooled(kind), x, target=torch.tensor(targets), start_layer=start)
    torch.testing.assert_close(mapped, torch.stack(expected), **CLOSE)
    by_start = study.relevance_by_start(pooled(kind), x, targets)
    torch.testing.assert_close(by_start[[0, 1], start, [0, 1]], mapped, **CLOSE)
    assert not torch.allclose(mapped, study.relevance(pooled(kind), x, target=torch.tensor(targets), query="mean"))


def test_relevance_through_an_attention_pool_by_hand():
    """Three patches that nothing mixes before the pool, which gives them 1/8, 2/8 and 5/8."""
    model = build(image_size=(8, 24), width=4, heads=1, depth=1, classes=2, eps=1e-15, cls_token=False, pooling="map")
    tokens = torch.tensor([[1.0, -1, 1, -1], [1, 1, -1, -1], [-1, 1, 1, -1]]).double()  # LayerNorm leaves them alone
    pool = model.attn_pool
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        model.norm.weight.fill_(1)
        model.norm.bias.zero_()
        model.pos_embed.copy_(tokens)
        pool.qkv.weight.copy_(torch.eye(4).repeat(3, 1))
        pool.proj.weight.copy_(torch.eye(4))
        solve = torch.linalg.pinv(tokens)
        pool.latent.copy_(2 * solve @ torch.tensor([1.0, 2, 5]).double().log())  # scores are halved: 1 / sqrt(4)
        model.head.weight[1] = solve @ torch.tensor([3.0, -1, 2]).double()  # what each patch's value adds to class 1
    x = torch.zeros(1, 3, 8, 24, dtype=torch.float64)
    torch.testing.assert_close(study.pool_attention(model, x)[0, 0, 0], torch.tensor([1.0, 2, 5]).double() / 8, **CLOSE)
    expected = torch.tensor([[[3 / 8, 0, 10 / 8]]]).double()  # of the second patch, which speaks against it, nothing
    torch.testing.assert_close(study.relevance(model, x, target=1), expected, **CLOSE)
    shares = expected / expected.sum()
    torch.testing.assert_close(study.grad_rollout(model, x, target=1), shares, **CLOSE)
    assert study.grad_rollout(model, x, target=0).eq(0).all()  # nothing speaks for a class of weight 0


@pytest.mark.parametrize("kind", ["cls", "none"])
def test_grad_rollout_begins_at_an_attention_pool(kind):
    x = pixels(1)
    (*probs, pool), (*grads, slope) = watched_pool(kind, x[0], 3)
    prefix = {"cls": 1, "none": 0}[kind]
    row = (slope * pool).amax(0).clamp(min=0)
    row = row / row.sum()
    for p, g in zip(reversed(probs), reversed(grads), strict=True):
        mixed = 0.8 * (p * g).amax(0).clamp(min=0) + 0.2 * torch.eye(15 + prefix, dtype=torch.float64)
        row = row @ (mixed / mixed.sum(-1, keepdim=True))
    mapped = study.grad_rollout(pooled(kind), x, target=3, residual=0.2, fusion="max")
    torch.testing.assert_close(mapped[0], row[0, prefix:].reshape(3, 5), **CLOSE)


@pytest.mark.parametrize("kind", ["cls", "none"])
def test_where_an_attention_pool_looks(kind):
    kernel = Watched()
    model, x = pooled(kind), pixels()
    with torch.no_grad():
        before = model(x)
        watching = pooled(kind)
        watching.attn_pool.attend = kernel
        watching(x)
    probs = study.pool_attention(model, x)
    assert probs.shape == (2, 3, 1, 15)
    assert model.attn_pool.attend is attend_sdpa
    assert torch.equal(model(x), before)
    torch.testing.assert_close(probs, kernel.probs[0], **CLOSE)
    layout = model.config.layout
    torch.testing.assert_close(study.method_map(model, x, "pool", head=2), probs[:, 2, 0].unflatten(1, (3, 5)), **CLOSE)
    layers = minivit.trace(model, x, keep=["blocks.*.q", "blocks.*.k"]).attention
    row = nn.functional.pad(probs.mean(1), (layout.prefix, 0)) @ study.rollout_matrix(layers, layout)
    rolled = study.method_map(model, x, "rollout", query="pool")
    torch.testing.assert_close(rolled, layout.to_grid(row[:, 0]), **CLOSE)
    for method, settings in (("pool", {}), ("rollout", {"query": "pool"})):
        with pytest.raises(UsageError, match="no attention pool"):
            study.method_map(build(kind), x, method, **settings)


def test_later_start_layers_leave_earlier_layers_out():
    model, x = build(), pixels(1)
    probs, grads = watched("cls", x[0], 4)
    positive = (probs[2] * grads[2]).clamp(min=0).mean(0)
    torch.testing.assert_close(
        study.relevance(model, x, target=4, start_layer=2)[0], head_row("cls", positive), **CLOSE
    )
    mixed = (0.5 * positive_mean(probs[2], grads[2]) + 0.5 * torch.eye(16)).double()
    row = head_row("cls", mixed / mixed.sum(-1, keepdim=True))
    torch.testing.assert_close(study.grad_rollout(model, x, target=4, start_layer=2)[0], row, **CLOSE)
    assert not torch.allclose(study.legrad(model, x, target=4, start_layer=2), study.legrad(model, x, target=4))


def positive_mean(probs, grads):
    return (probs * grads).mean(0).clamp(min=0)


def test_input_gradients_against_finite_differences():
    model, x = build(), pixels(1)
    grad = study.input_gradients(model, x, target=3)
    for place in ((0, 0, 3, 5), (0, 2, 23, 39), (0, 1, 12, 20)):
        step = torch.zeros_like(x)
        step[place] = 1e-6
        with torch.no_grad():
            slope = (model(x + step) - model(x - step))[0, 3] / 2e-6
        assert abs(slope - grad[place]) < 1e-7


def test_integrated_gradients_add_up_to_the_rise_of_the_logit():
    model, x = build(depth=1), 0.1 * pixels()
    baseline = torch.full((3, 1, 1), 0.02, dtype=torch.float64)
    with torch.no_grad():
        rise = (model(x) - model(baseline.expand_as(x)))[:, 1]
    coarse, fine = (
        study.integrated_gradients(model, x, target=1, baseline=baseline, steps=steps).sum(dim=(1, 2, 3)) - rise
        for steps in (12, 24)
    )
    # The midpoint rule errs by 1 / steps^2: twice the steps, a quarter of the error.
    assert (fine.abs() < 1e-3 * rise.abs()).all()
    torch.testing.assert_close(coarse / fine, torch.full_like(rise, 4), rtol=0.01, atol=0)


def test_integrated_gradients_of_a_linear_model_are_exact_in_one_step():
    class Linear(nn.Module):
        config = build().config

        def forward(self, x):
            return x.flatten(1) @ torch.stack([torch.arange(3 * 24 * 40.0), torch.ones(3 * 24 * 40)], 1).double()

    x = pixels()
    parts = study.integrated_gradients(Linear(), x, target=0, steps=1)
    torch.testing.assert_close(parts, x * torch.arange(3 * 24 * 40.0).view(3, 24, 40), **CLOSE)


def test_magnitudes_are_summed_per_patch():
    attribution = torch.zeros(1, 3, 24, 40)
    attribution[0, 0, 7, 8] = -2.0  # row 0, column 1
    attribution[0, 2, 0, 15] = 3.0  # the same patch
    attribution[0, 1, 16, 39] = 0.5  # row 2, column 4
    expected = torch.zeros(1, 3, 5)
    expected[0, 0, 1], expected[0, 2, 4] = 5.0, 0.5
    assert torch.equal(study.per_patch(attribution, TokenLayout(grid=(3, 5))), expected)
    with pytest.raises(ShapeError, match="24 x 40 pixels do not make 7 x 5"):
        study.per_patch(attribution, TokenLayout(grid=(7, 5)))


METHODS = {
    "relevance": study.relevance,
    "grad_rollout": study.grad_rollout,
    "legrad": study.legrad,
    "input_gradients": study.input_gradients,
    "integrated_gradients": partial(study.integrated_gradients, steps=2),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_class_methods_leave_the_model_as_it_was(method):
    def own(q, k, v, *, scale):
        return attend_reference(q, k, v, scale=scale)

    model, x = build(attend=own), pixels()
    best = model(x).argmax(-1)
    first = method(model, x)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(block.attn.attend is own for block in model.blocks)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not first.requires_grad
    assert x.grad is None
    assert not x.requires_grad
    torch.testing.assert_close(method(model, x, target=best), first, **CLOSE)  # None is the class it is given
    other = method(model, x, target=(best + 1) % 5)
    assert not torch.allclose(first, other)
    for picture in range(2):
        alone = method(model, x[picture : picture + 1])
        torch.testing.assert_close(alone, first[picture : picture + 1], **CLOSE)
    frozen = build(attend=own).requires_grad_(False)
    with torch.no_grad():
        torch.testing.assert_close(method(frozen, x), first, **CLOSE)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_class_methods_refuse(method):
    with pytest.raises(UsageError, match="classes 0 to 4"):
        method(build(), pixels(), target=5)
    with pytest.raises(UsageError, match="no head"):
        method(build(classes=0), pixels())


def test_refusals_of_single_methods():
    model, x = build(), pixels()
    for method in (study.relevance, study.grad_rollout, study.legrad):
        with pytest.raises(UsageError, match="layers 0 to 2"):
            method(model, x, start_layer=3)
        with pytest.raises(ShapeError, match="24 x 40"):
            method(model, pixels(size=(16, 56)))
    with pytest.raises(UsageError, match="mean or head"):
        study.legrad(model, x, pool="max")
    with pytest.raises(UsageError, match="share"):
        study.grad_rollout(model, x, residual=2)
    with pytest.raises(UsageError, match="at least 1"):
        study.integrated_gradients(model, x, steps=0)


def test_an_error_inside_leaves_the_model_as_it_was():
    model = build()
    own = model.blocks[0].attn.attend

    def fail(*_):
        raise RuntimeError("a module fails")

    model.norm.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="a module fails"):
        study.legrad(model, pixels())
    assert all(block.attn.attend is own for block in model.blocks)
    assert not any(m._forward_hooks for m in model.modules())


# Tokens


def test_similarity_and_norms_by_hand():
    layout = TokenLayout(dist=1, grid=(1, 3))
    tokens = torch.tensor([[[3.0, 4.0], [0.0, -1.0], [6.0, 8.0], [-4.0, 3.0], [0.0, 5.0]]], dtype=torch.float64)
    expected = torch.tensor([[[1.0, 0.0, 0.8]]], dtype=torch.float64)
    torch.testing.assert_close(study.similarity(tokens, layout), expected, **CLOSE)
    by_dist = torch.tensor([[[-0.8, -0.6, -1.0]]], dtype=torch.float64)
    torch.testing.assert_close(study.similarity(tokens, layout, query="dist"), by_dist, **CLOSE)
    by_patch = torch.tensor([[[0.0, 1.0, 0.6]]], dtype=torch.float64)
    torch.testing.assert_close(study.similarity(tokens, layout, query=(0, 1)), by_patch, **CLOSE)
    assert study.norms(tokens, layout).tolist() == [[[10.0, 5.0, 5.0]]]


def test_pca_finds_the_axes_patches_were_spread_along():
    layout = TokenLayout(grid=(3, 5))
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(7, 7, generator=generator, dtype=torch.float64)).Q[:3]
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    # Orthogonal, centred coordinates of falling size, so that the components are known exactly.
    spread = torch.linalg.qr(torch.randn(15, 4, generator=generator, dtype=torch.float64) * 1.0).Q
    spread = torch.linalg.qr(spread - spread.mean(0)).Q[:, :3] * torch.tensor([9.0, 4.0, 1.0], dtype=torch.float64)
    tokens = torch.cat([torch.full((1, 7), 50.0, dtype=torch.float64), spread @ axes + 3.0])[None]
    scores = study.pca(tokens, layout)
    assert scores.shape == (1, 3, 5, 3)
    torch.testing.assert_close(scores, spread.reshape(1, 3, 5, 3), rtol=0, atol=1e-9)
    pair = torch.cat([tokens, tokens.flip(1)])
    torch.testing.assert_close(study.pca(pair, layout)[:1], scores, rtol=0, atol=1e-9)
    together = study.pca(torch.cat([tokens, tokens + 1.0]), layout, joint=True, components=1)
    assert together.shape == (2, 3, 5, 1)
    assert together[1].mean() != pytest.approx(0.0)
    with pytest.raises(UsageError, match="15 rows of 7 have 1 to 7"):
        study.pca(tokens, layout, components=8)


def test_position_similarity_is_a_map_for_every_patch():
    layout = TokenLayout(dist=1, grid=(2, 3))
    positions = torch.randn(1, 8, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    maps = study.position_similarity(positions, layout)
    assert maps.shape == (2, 3, 2, 3)
    a, b = positions[0, 2 + 1 * 3 + 0], positions[0, 2 + 0 * 3 + 2]
    torch.testing.assert_close(maps[1, 0, 0, 2], a @ b / a.norm() / b.norm(), **CLOSE)
    torch.testing.assert_close(maps[1, 2, 1, 2], torch.tensor(1.0, dtype=torch.float64), **CLOSE)
    torch.testing.assert_close(study.position_similarity(positions[:, 2:], layout), maps, **CLOSE)


def test_patch_filters_are_principal_components():
    weight = build().patch_embed.weight.detach()
    filters = study.patch_filters(weight, components=4)
    assert filters.shape == (4, 3, 8, 8)
    flat = weight.flatten(1) - weight.flatten(1).mean(0)
    values, vectors = torch.linalg.eigh(flat.T @ flat)
    for i in range(4):
        assert abs(filters[i].flatten() @ vectors[:, -1 - i]) == pytest.approx(1.0)
        assert filters[i].flatten()[filters[i].abs().argmax()] > 0
    assert values[-1] > values[-4]
    with pytest.raises(UsageError, match="21 rows of 192 have 1 to 21"):
        study.patch_filters(weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_maps_are_maps(dtype):
    model, x = build(dtype=dtype), pixels(dtype=dtype)
    trace = minivit.trace(model, x, keep=["norm", "blocks.*.q", "blocks.*.k"])
    for mapped in (
        study.rollout(trace.attention, trace.layout),
        study.similarity(trace["norm"], trace.layout),
        study.relevance(model, x),
        study.pca(trace["norm"], trace.layout)[..., 0],
    ):
        assert mapped.shape == (2, 3, 5)
        assert mapped.isfinite().all()
