"""Interventions: what is replaced, that nothing else is, and that the model is as it was; scans against one by one."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from helpers.fakes import FAMILIES, build, pixels, same, state
from torch import nn

import minivit
from minivit import study
from minivit.errors import ShapeError, UsageError
from minivit.model.attention import attend_reference, attend_sdpa

CLOSE = {"rtol": 0, "atol": 1e-12}


class ReusedBuffer(nn.Module):
    """A kernel that is a module and answers from one piece of memory, which nobody else may write to."""

    def forward(self, q, k, v, *, scale):
        mix = attend_reference(q, k, v, scale=scale)
        self.memory = mix
        self.copy = mix.clone()
        return mix


KERNELS = {"sdpa": attend_sdpa, "reference": attend_reference, "module": ReusedBuffer()}


def by_hand(model, x, *, head=None, mlp=None, tokens=None, replace=torch.zeros_like):
    """The forward of a plain ViT once more, with parts replaced by a function of what stood there."""
    stream = model.embed(x)
    if tokens is not None:
        stream = stream.clone()
        stream[:, tokens] = replace(stream)[:, tokens]
    for i, block in enumerate(model.blocks):
        q, k, v = block.attn.split(block.attn.qkv(block.norm1(stream)))
        mix = list(attend_reference(q, k, v, scale=block.attn.scale).unbind(1))
        if head is not None and head[0] == i:
            mix[head[1]] = replace(mix[head[1]])
        stream = stream + block.ls1(block.attn.proj(torch.cat(mix, dim=-1)))
        out = block.mlp(block.norm2(stream))
        stream = stream + block.ls2(replace(out) if mlp == i else out)
    return model.answer(model.norm(stream))


def token_mean(x):
    return x.mean(dim=1, keepdim=True).expand_as(x)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("how", ["zero", "mean"])
@pytest.mark.parametrize("family", ["vit", "deit", "dinov2-giant", "mean"])
def test_heads_mlps_and_tokens_by_hand(family, how, kernel):
    model, x = build(attend=KERNELS[kernel], **FAMILIES[family]), pixels()
    replace = torch.zeros_like if how == "zero" else token_mean
    before = state(model)
    with torch.no_grad():
        plain = model(x)
        for ask, hand in (
            ({"heads": {(1, 2)}}, {"head": (1, 2)}),
            ({"mlps": [2]}, {"mlp": 2}),
            ({"tokens": (1, 3)}, {"tokens": [model.config.layout.prefix + 8]}),
            (
                {"tokens": [0, "patches"]},
                {"tokens": [0, *range(model.config.layout.prefix, model.config.layout.count)]},
            ),
            ({"heads": {(0, 1)}, "mlps": {0}, "tokens": {3}}, {"head": (0, 1), "mlp": 0, "tokens": [3]}),
        ):
            with minivit.ablate(model, how=how, **ask):
                ablated = model(x)
            torch.testing.assert_close(ablated, by_hand(model, x, replace=replace, **hand), **CLOSE)
            assert (ablated - plain).abs().max() > 1e-6, ask
        assert torch.equal(model(x), plain)
    assert same(before, state(model))
    if kernel == "module":
        assert torch.equal(KERNELS[kernel].memory, KERNELS[kernel].copy)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_ablated_head_whose_projection_is_zero_changes_nothing(family):
    model, x = build(**FAMILIES[family]), pixels()
    size = model.config.head_dim
    with torch.no_grad():
        model.blocks[1].attn.proj.weight[:, 2 * size : 3 * size] = 0
        plain = model(x)
        with minivit.ablate(model, heads={(1, 2)}):
            torch.testing.assert_close(model(x), plain, **CLOSE)
        with minivit.ablate(model, heads={(1, 1)}):
            assert (model(x) - plain).abs().max() > 1e-6
    logits = study.scan(model, x)
    torch.testing.assert_close(logits[:, 1, 2], plain, **CLOSE)


def test_a_tensor_stands_in():
    """The mean over a data set, taken from a trace; and the activations themselves, which change nothing."""
    model, x, other = build(), pixels(), pixels(5, seed=9)
    trace = minivit.trace(model, x, keep=["blocks.1.attn.mix", "blocks.2.mlp.out", "embed.tokens"])
    mean = minivit.trace(model, other, keep="blocks.1.attn.mix")["blocks.1.attn.mix"].mean(0)[2]
    with torch.no_grad():
        plain = model(x)
        for ask, own in (
            ({"heads": {(1, 2)}}, trace["blocks.1.attn.mix"][:, 2]),
            ({"mlps": {2}}, trace["blocks.2.mlp.out"]),
            ({"tokens": (0, 4)}, trace["embed.tokens"][:, 5:6]),
        ):
            with minivit.ablate(model, how=own, **ask):
                torch.testing.assert_close(model(x), plain, **CLOSE)
        with minivit.ablate(model, heads={(1, 2)}, how=mean):
            ablated = model(x)
        torch.testing.assert_close(ablated, by_hand(model, x, head=(1, 2), replace=lambda _: mean.expand(2, -1, -1)))
        with minivit.ablate(model, mlps={2}, how=torch.zeros(5)), pytest.raises(ShapeError, match=r"how is \(5,\)"):
            model(x)
        assert torch.equal(model(x), plain)


def test_a_trace_inside_sees_what_runs():
    model, x = build(), pixels()
    with minivit.ablate(model, heads={(1, 2)}, mlps={0}, tokens="cls"):
        trace = minivit.trace(model, x)
    assert not trace["blocks.1.attn.mix"][:, 2].any()
    assert trace["blocks.1.attn.mix"][:, 1].all()
    assert not trace["blocks.0.mlp.out"].any()
    assert not trace["embed.tokens"][:, 0].any()


def test_ablations_nest():
    model, x = build(), pixels()
    with torch.no_grad():
        with minivit.ablate(model, heads={(1, 2), (1, 0)}, mlps={1}):
            together = model(x)
        with (
            minivit.ablate(model, heads={(1, 2)}),
            minivit.ablate(model, mlps={1}),
            minivit.ablate(model, heads={(1, 0)}),
        ):
            torch.testing.assert_close(model(x), together, **CLOSE)


@pytest.mark.parametrize(
    ("ask", "words"),
    [
        ({}, "nothing to ablate"),
        ({"heads": {(3, 0)}}, "no head 3.0: there are blocks 0 to 2 with heads 0 to 2"),
        ({"heads": {(0, -1)}}, "no head 0.-1"),
        ({"mlps": {3}}, "no block 3: there are blocks 0 to 2"),
        ({"mlps": {0}, "how": "median"}, "zero, mean or a tensor"),
    ],
)
def test_what_cannot_be_ablated_is_refused_before_anything_runs(ask, words):
    model = build()
    before = state(model)
    with pytest.raises(UsageError, match=words), minivit.ablate(model, **ask):
        raise AssertionError
    assert same(before, state(model))


def test_a_token_that_is_not_there():
    model = build()
    for tokens in ("dist", 16, (3, 0), ["cls", "sep"]):
        with minivit.ablate(model, tokens=tokens), pytest.raises(UsageError, match="no token"):
            model(pixels())


@pytest.mark.parametrize("kernel", KERNELS)
def test_an_error_inside_leaves_the_model_as_it_was(kernel):
    model, x = build(attend=KERNELS[kernel]), pixels()
    before, source = state(model), minivit.trace(model, x, keep=["blocks.1.q", "embed.tokens", "blocks.2.mlp.out"])
    for context in (
        lambda: minivit.ablate(model, heads={(0, 1), (2, 2)}, mlps={1}, tokens="cls"),
        lambda: study.knockout(model, "cls", "patches"),
        lambda: study.patched(model, source),
    ):
        with pytest.raises(ZeroDivisionError), context():
            model(x)
            raise ZeroDivisionError
        assert same(before, state(model))
    broken = build(attend=lambda q, k, v, *, scale: 1 / 0)
    before = state(broken)
    for call in (lambda: study.scan(broken, x), lambda: study.scan(broken, x, "mlps")):
        with pytest.raises(ZeroDivisionError):
            call()
        assert same(before, state(broken))


# Knock-out


def masked_by_hand(model, x, queries, keys, blocks, heads):
    stream = model.embed(x)
    rope = model.rope(model.config.layout)
    for i, block in enumerate(model.blocks):
        q, k, v = block.attn.split(block.attn.qkv(block.norm1(stream)), rope)
        weights = (q @ k.mT * block.attn.scale).exp()
        if i in blocks:
            for head in heads:
                for query in queries:
                    weights[:, head, query, keys] = 0
        mix = weights / weights.sum(-1, keepdim=True) @ v
        stream = stream + block.ls1(block.attn.proj(mix.transpose(1, 2).flatten(2)))
        stream = stream + block.ls2(block.mlp(block.norm2(stream)))
    return model.answer(model.norm(stream) if model.config.norm == "tokens" else stream)


@pytest.mark.parametrize("family", FAMILIES)
def test_knockout_is_a_mask_on_the_scores(family):
    model, x = build(**FAMILIES[family]), pixels()
    before, prefix = state(model), model.config.layout.prefix
    patches = range(prefix, model.config.layout.count)
    with torch.no_grad():
        plain = model(x)
        with study.knockout(model, [0, (1, 1)], [(0, 0), (2, 4)], blocks=[1], heads=[0, 2]):
            some = model(x)
        hand = masked_by_hand(model, x, [0, prefix + 6], [prefix, prefix + 14], [1], [0, 2])
        torch.testing.assert_close(some, hand, **CLOSE)
        with study.knockout(model, "patches", (1, 2)):
            hidden = model(x)
        torch.testing.assert_close(hidden, masked_by_hand(model, x, patches, [prefix + 7], range(3), range(3)), **CLOSE)
        assert (some - plain).abs().max() > 1e-7
        assert (hidden - some).abs().max() > 1e-7
        assert torch.equal(model(x), plain)
    assert same(before, state(model))


def test_a_key_nobody_sees_has_no_say():
    """With the whole picture hidden from a patch's value, that patch may be anything."""
    model, x = build(), pixels()
    changed = x.clone()
    changed[:, :, 8:16, 16:24] += 3  # the patch in row 1, column 2
    others = [place for place in range(16) if place != 1 + 7]
    with torch.no_grad(), study.knockout(model, others, (1, 2)):
        torch.testing.assert_close(model(x), model(changed), **CLOSE)
    with torch.no_grad():
        assert (model(x) - model(changed)).abs().max() > 1e-4


def test_knockout_refuses():
    model, x = build(), pixels()
    for ask, words in (({"blocks": [3]}, "no block 3"), ({"heads": [3]}, "heads 0 to 2"), ({"heads": []}, "no head")):
        with pytest.raises(UsageError, match=words), study.knockout(model, "cls", "patches", **ask):
            raise AssertionError
    with study.knockout(model, "cls", ["cls", "patches"]), pytest.raises(UsageError, match="no key"):
        model(x)
    with study.knockout(model, "dist", "cls"), pytest.raises(UsageError, match="no token dist"):
        model(x)


# Patching


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("family", ["vit", "deit", "dinov2-giant", "dinov3", "timm-clip", "siglip"])
def test_patching_everything_downstream_gives_the_other_answer(family, kernel):
    model, x, other = build(attend=KERNELS[kernel], **FAMILIES[family]), pixels(1), pixels(1, seed=5)
    before = state(model)
    with torch.no_grad():
        expected, plain = model(other), model(x)
        for names in (
            "embed.tokens",
            "blocks.2.resid_post",
            "blocks.0.resid_post[patches,0]" if model.config.layout.prefix == 1 else "blocks.0.resid_post",
            ["blocks.*.attn.mix", "blocks.*.mlp.out", "embed.tokens"],
            ["blocks.*.attn.out", "blocks.*.mlp.act", "embed.tokens"],
            ["embed.tokens", "blocks.*.q", "blocks.*.k", "blocks.*.v", "blocks.*.norm2"],
        ):
            source = minivit.trace(model, other, keep=names)
            with study.patched(model, source):
                torch.testing.assert_close(model(x), expected, **CLOSE)
        assert torch.equal(model(x), plain)
    assert same(before, state(model))


def test_patching_one_head_of_one_token_by_hand():
    model, x, other = build(), pixels(), pixels(1, seed=5)
    source = minivit.trace(model, other, keep=["blocks.1.attn.mix[cls,(1,1); heads=2]", "blocks.2.q[cls]"])

    def replace(mix):
        mix = mix.clone()
        mix[:, [0, 7]] = source["blocks.1.attn.mix"][:, 0]
        return mix

    with torch.no_grad():
        with study.patched(model, source, ["blocks.1.attn.mix[cls,(1,1); heads=2]"]):
            patched = minivit.trace(model, x)
        torch.testing.assert_close(patched["logits"], by_hand(model, x, head=(1, 2), replace=replace), **CLOSE)
        plain = minivit.trace(model, x)
        with study.patched(model, source):
            both = minivit.trace(model, x)
    assert torch.equal(both["blocks.1.attn.mix"][:, 2, 7], source["blocks.1.attn.mix"][:, 0, 1].expand(2, -1))
    untouched = torch.ones(3, 16, dtype=torch.bool)
    untouched[2, [0, 7]] = False
    assert torch.equal(both["blocks.1.attn.mix"][:, untouched], plain["blocks.1.attn.mix"][:, untouched])
    assert not torch.equal(both["logits"], patched["logits"])


def test_patching_refuses():
    model, x = build(), pixels()
    source = minivit.trace(model, x)
    for names, words in (
        (["blocks.0.attn.probs"], "is no input of a kernel; patch q, k, v or attn.mix"),
        (["blocks.0.resid_mid"], "has two readers"),
        (["blocks.7.q"], "the trace holds"),
        ([], "the trace holds"),
    ):
        with pytest.raises(UsageError, match=words), study.patched(model, source, names):
            raise AssertionError
    with study.patched(model, source, ["blocks.0.q"]), pytest.raises(ShapeError, match=r"\(2, 3, 16, 7\) in the trace"):
        model(pixels(3))
    wide = build(**FAMILIES["dinov3"])
    small = minivit.trace(wide, pixels(size=(16, 48)), keep="blocks.0.q")
    with study.patched(wide, small), pytest.raises(ShapeError, match="trace is of 15 tokens, this image has 18"):
        wide(x)


# Scans


@pytest.mark.parametrize("how", ["zero", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_scan_is_one_by_one(family, how):
    model, x = build(**FAMILIES[family]), pixels()
    before = state(model)
    for what, shape in (("heads", (3, 3)), ("mlps", (3,)), ("patches", (3, 5))):
        found = {size: study.scan(model, x, what, how=how, batch_size=size) for size in (1, 5, 64)}
        expected = torch.empty_like(found[1])
        assert expected.shape[:-1] == (2, *shape)
        for place in torch.cartesian_prod(*map(torch.arange, shape)).reshape(-1, len(shape)).tolist():
            ask = {"heads": [tuple(place)], "mlps": place, "patches": tuple(place)}[what]
            with torch.no_grad(), minivit.ablate(model, how=how, **{what.replace("patches", "tokens"): ask}):
                expected[(slice(None), *place)] = model(x)
        for logits in found.values():
            torch.testing.assert_close(logits, expected, **CLOSE)
    assert same(before, state(model))


def test_a_scan_starts_at_the_ablated_block():
    """A block sees the sequences without a head of earlier blocks, those without its own three, and the whole one."""
    model, x = build(), pixels(1)
    seen = [0, 0, 0]
    with ExitStack() as stack:
        for i, block in enumerate(model.blocks):

            def count(module, args, i=i):
                seen[i] += len(args[0])

            stack.callback(block.register_forward_pre_hook(count).remove)
        reported = []
        study.scan(model, x, batch_size=2, report=lambda *counts: reported.append(counts))
        assert seen == [3 + 1, 3 + 3 + 1, 6 + 3 + 1]
        assert reported == [(2, 9), (3, 9), (5, 9), (6, 9), (8, 9), (9, 9)]


def test_scan_refuses():
    model, x = build(), pixels()
    for ask, words in (
        ({"what": "tokens"}, "heads, mlps, patches"),
        ({"how": "sum"}, "zero"),
        ({"batch_size": 0}, "1"),
    ):
        with pytest.raises(UsageError, match=words):
            study.scan(model, x, **ask)
    with pytest.raises(ShapeError, match="16 x 48"):
        study.scan(model, pixels(size=(16, 48)))
