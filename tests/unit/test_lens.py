"""The lens: on the last block the model's own answer, for every family; on a single token what its head would say."""

from __future__ import annotations

import pytest
import torch
from helpers.fakes import FAMILIES, build, pixels

import minivit
from minivit import study
from minivit.errors import ShapeError, UsageError

CLOSE = {"rtol": 0, "atol": 1e-12}
STREAMS = ["embed.tokens", "blocks.*.resid_post"]


def streams_of(model, x):
    trace = minivit.trace(model, x, keep=STREAMS)
    assert list(trace) == ["embed.tokens", *(f"blocks.{i}.resid_post" for i in range(model.config.depth))]
    return list(trace.values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_at_the_last_block_it_is_the_answer_to_the_last_bit(family, dtype):
    model, x = build(dtype=dtype, **FAMILIES[family]), pixels(dtype=dtype)
    answers = study.lens(model, streams_of(model, x))
    with torch.no_grad():
        expected = model(x)
    assert answers.shape == (model.config.depth + 1, 2, 1, expected.shape[1])
    assert torch.equal(answers[-1, :, 0], expected)
    assert not torch.allclose(answers[-2, :, 0], expected)
    assert not answers.requires_grad


def test_pictures_of_another_size():
    model = build(**FAMILIES["dinov3"])
    x = pixels(size=(16, 48))
    answers = study.lens(model, streams_of(model, x), rows="patches")
    assert answers.shape == (4, 2, 12, 5)


@pytest.mark.parametrize("family", ["vit", "deit", "mean", "mae", "timm-clip", "siglip", "dinov2-giant"])
def test_single_tokens_by_hand(family):
    model, x = build(**FAMILIES[family]), pixels()
    config, prefix = model.config, model.config.layout.prefix
    stream = streams_of(model, x)[2]
    patches = study.lens(model, [stream], rows="patches")[0]
    some = study.lens(model, [stream], rows=[prefix + 4, prefix, prefix + 4])[0]
    assert patches.shape == (2, 15, 5)
    torch.testing.assert_close(some, patches[:, [4, 0, 4]], **CLOSE)
    normed = torch.nn.functional.layer_norm(stream, stream.shape[-1:], model.norm.weight, model.norm.bias, config.eps)
    read = normed[:, prefix:]
    with torch.no_grad():
        if family == "deit":
            expected = (model.head(read) + model.head_dist(read)) / 2
        elif family == "dinov2-giant":
            expected = model.head(torch.cat([normed[:, :1].expand_as(read), read], dim=-1))
        elif family == "siglip":  # attention to one key gives its value, whatever the query
            pool = model.attn_pool
            values = read @ pool.qkv.weight[2 * config.width :].T + pool.qkv.bias[2 * config.width :]
            seen = pool.proj(values)
            expected = model.head(seen + pool.mlp(pool.norm(seen)))
        else:
            expected = model.head(read)
    torch.testing.assert_close(patches, expected, **CLOSE)


@pytest.mark.parametrize("family", ["mean", "dinov2", "dinov2-giant"])
def test_where_the_head_reads_a_mean_the_patches_average_to_the_answer(family):
    model, x = build(**FAMILIES[family]), pixels()
    streams = streams_of(model, x)
    apart = study.lens(model, streams, rows="patches").mean(dim=2)
    torch.testing.assert_close(apart, study.lens(model, streams)[:, :, 0], **CLOSE)


def test_the_class_token_alone_is_the_answer_of_a_model_that_reads_it():
    for family in ("vit", "dinov2"):
        model, x = build(**FAMILIES[family]), pixels()
        streams = streams_of(model, x)
        torch.testing.assert_close(study.lens(model, streams, rows=[0]), study.lens(model, streams), **CLOSE)


def test_divergence_by_hand():
    final = torch.tensor([0.5, 0.25, 0.25]).log()
    answer = torch.tensor([0.25, 0.25, 0.5]).log() + 7  # logits, so a constant is nothing
    expected = 0.5 * torch.tensor(2.0).log() + 0.25 * torch.tensor(0.5).log()
    torch.testing.assert_close(study.divergence(answer, final), expected.double())
    assert study.divergence(final + 3, final) < 1e-12
    assert study.divergence(final, final).dtype == torch.float64


@pytest.mark.parametrize(
    ("rows", "words"),
    [([16], "there are tokens 0 to 15"), ([-1], "tokens 0 to 15"), ([], "tokens 0 to 15"), ("cls", "'patches'")],
)
def test_no_such_row(rows, words):
    model = build()
    with pytest.raises(UsageError, match=words):
        study.lens(model, streams_of(model, pixels()), rows=rows)


def test_what_is_no_stream():
    with pytest.raises(ShapeError, match=r"\(2, 16, 20\); expected \(B, N, 21\)"):
        study.lens(build(), [torch.zeros(2, 16, 20)])
    with pytest.raises(UsageError, match="at least one stream"):
        study.lens(build(), [])
