"""Attribution: the parts sum to the logit, each is what it says, and what is not linear is refused."""

from __future__ import annotations

import pytest
import torch
from helpers.fakes import FAMILIES, build, pixels

import minivit
from minivit import study
from minivit.errors import UsageError
from minivit.model.attention import attend_reference

LINEAR = sorted(FAMILIES.keys() - {"in21k", "clip", "siglip"})
CLOSE = {"rtol": 0, "atol": 1e-12}


@pytest.mark.parametrize("family", LINEAR)
def test_the_parts_sum_to_the_logit_of_every_class(family):
    model, x = build(**FAMILIES[family]), pixels(3)
    with torch.no_grad():
        expected = model(x)
    for target in (None, 4, torch.tensor([2, 0, 1])):
        found = study.attribute(model, x, target=target)
        classes = expected.argmax(-1) if target is None else torch.as_tensor(target).expand(3)
        assert torch.equal(found.classes, classes)
        assert torch.equal(found.logits, expected.gather(1, classes[:, None])[:, 0])
        assert found.heads.shape == (3, 3, 3)
        assert found.mlps.shape == found.proj_bias.shape == (3, 3)
        assert found.residual.abs().max() < 1e-9
        torch.testing.assert_close(found.total, found.logits, rtol=0, atol=1e-9)
        # It is a sum of parts that matter, each of which the sum would miss.
        for part in (found.embedding, found.heads, found.proj_bias, found.mlps, found.norm_bias, found.head_bias):
            assert (part.abs() > 1e-9).all()


def parts_by_hand(model, x, target):
    """A part's share: the frozen norm and head applied to the stream with and without that part, for each token."""
    trace = minivit.trace(model, x)
    config = model.config
    final = trace[f"blocks.{config.depth - 1}.resid_post"]
    pooled_norm = config.norm == "pooled"

    def logit(stream, biases):
        """Pooling, norm at the scale of `final`, head."""
        rows = slice(config.layout.prefix, None) if config.pooling == "mean" else slice(0, 1)
        seen, scaled_by = stream[:, rows], final[:, rows]
        if pooled_norm:
            seen, scaled_by = seen.mean(1, keepdim=True), scaled_by.mean(1, keepdim=True)
        scale = (scaled_by.var(-1, correction=0, keepdim=True) + config.eps).sqrt()
        normed = (seen - seen.mean(-1, keepdim=True)) / scale * model.norm.weight + biases * model.norm.bias
        return normed.mean(1) @ model.head.weight[target] + biases * model.head.bias[target]

    with torch.no_grad():
        torch.testing.assert_close(logit(final, 1), trace["logits"][:, target], **CLOSE)
        block, size = model.blocks[1], config.head_dim
        mix = torch.zeros_like(trace["blocks.1.attn.mix"])
        mix[:, 2] = trace["blocks.1.attn.mix"][:, 2]
        from_head = block.ls1(mix.transpose(1, 2).flatten(2) @ block.attn.proj.weight.T)
        assert size == 7
        bias = block.ls1(block.attn.proj.bias).expand_as(final)
        return {
            "embedding": logit(trace["embed.tokens"], 0),
            "head": logit(from_head, 0),
            "proj_bias": logit(bias, 0),
            "mlp": logit(block.ls2(trace["blocks.1.mlp.out"]), 0),
        }


@pytest.mark.parametrize("changes", [{}, {"layer_scale": True}, FAMILIES["mean"], FAMILIES["mae"]], ids=str)
def test_each_part_by_hand(changes):
    model, x = build(attend=attend_reference, **changes), pixels()
    found = study.attribute(model, x, target=3)
    hand = parts_by_hand(model, x, 3)
    torch.testing.assert_close(found.embedding, hand["embedding"], **CLOSE)
    torch.testing.assert_close(found.heads[:, 1, 2], hand["head"], **CLOSE)
    torch.testing.assert_close(found.proj_bias[:, 1], hand["proj_bias"], **CLOSE)
    torch.testing.assert_close(found.mlps[:, 1], hand["mlp"], **CLOSE)


def test_a_head_that_writes_nothing_has_no_part():
    model = build()
    with torch.no_grad():
        model.blocks[2].attn.proj.weight[:, 7:14] = 0
    found = study.attribute(model, pixels())
    assert (found.heads[:, 2, 1] == 0).all()
    assert (found.heads[:, 2, 0] != 0).all()
    assert found.residual.abs().max() < 1e-9


def test_a_wrong_part_would_show_in_the_residual():
    """The residual is measured against the model's own logit: a kernel that lies to the trace is caught by it."""
    model, x = build(), pixels()
    honest = study.attribute(model, x)
    handle = model.blocks[1].ls1.register_forward_hook(lambda module, args, out: out * 1.5)
    try:
        assert study.attribute(model, x).residual.abs().max() > 1e-4
    finally:
        handle.remove()
    assert honest.residual.abs().max() < 1e-9


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("in21k", "no head, so there is no logit"),
        ("clip", "no head"),
        ("siglip", "an attention pool stands between"),
    ],
)
def test_what_is_no_sum_is_refused(family, words):
    with pytest.raises(UsageError, match=words):
        study.attribute(build(**FAMILIES[family]), pixels())


def test_a_tanh_layer_and_a_class_that_is_not_there_are_refused():
    with pytest.raises(UsageError, match="a tanh layer stands between"):
        study.attribute(build(pooler=True), pixels())
    for target in (5, -1, torch.tensor([0, 7])):
        with pytest.raises(UsageError, match="classes 0 to 4"):
            study.attribute(build(), pixels(), target=target)
