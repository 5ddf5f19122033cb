"""The model by itself: hand-computed answers, the size table, and refusals that carry both numbers."""

from __future__ import annotations

import math
from dataclasses import FrozenInstanceError

import pytest
import torch

import minivit
from minivit.errors import ShapeError, UsageError
from minivit.images.spec import ImageSpec
from minivit.inference.predictions import top_k
from minivit.model.attention import SelfAttention, attend_reference, attend_sdpa, attention_probs
from minivit.model.block import MLP, QuickGELU
from minivit.model.config import SIZES, TokenLayout, ViTConfig
from minivit.model.embed import PatchEmbed, resample_positions
from minivit.model.vit import ViT

SMALL = {"image_size": (24, 40), "patch_size": 8, "width": 91, "depth": 3, "heads": 7, "mlp_width": 101, "classes": 11}

# Parameters at 224 x 224 with 1000 classes. B/16, B/32, L/16, L/32 and H/14 are the published counts of
# torchvision's weights (vit_b_16 and its siblings), Ti/16 and S/16 those of timm's DeiT; the others follow by
#   3 * patch^2 * D + D + D + (P + 1) * D + depth * (4 D^2 + 2 D F + 9 D + F) + 2 D + 1000 D + 1000.
PARAMETERS = {
    "Ti/14": 5_717_416 - 192 * 3 * (16**2 - 14**2) + 192 * (256 - 196),
    "Ti/16": 5_717_416,
    "Ti/32": 5_717_416 + 192 * 3 * (32**2 - 16**2) - 192 * (196 - 49),
    "S/14": 22_050_664 - 384 * 3 * (16**2 - 14**2) + 384 * (256 - 196),
    "S/16": 22_050_664,
    "S/32": 22_050_664 + 384 * 3 * (32**2 - 16**2) - 384 * (196 - 49),
    "B/14": 86_567_656 - 768 * 3 * (16**2 - 14**2) + 768 * (256 - 196),
    "B/16": 86_567_656,
    "B/32": 88_224_232,
    "L/14": 304_326_632 - 1024 * 3 * (16**2 - 14**2) + 1024 * (256 - 196),
    "L/16": 304_326_632,
    "L/32": 306_535_400,
    "H/14": 632_045_800,
    "H/16": 632_045_800 + 1280 * 3 * (16**2 - 14**2) - 1280 * (256 - 196),
    "H/32": 632_045_800 + 1280 * 3 * (32**2 - 14**2) - 1280 * (256 - 49),
}


def test_every_preset_has_its_published_parameter_count():
    assert PARAMETERS.keys() == {f"{size}/{patch}" for size in SIZES for patch in (14, 16, 32)}
    for name, expected in PARAMETERS.items():
        with torch.device("meta"):
            model = ViT(ViTConfig.preset(name))
        assert sum(parameter.numel() for parameter in model.parameters()) == expected, name


def test_attention_on_a_hand_computed_case():
    """Two queries, three keys, K = 2: logits are scale * q.k, softmax by hand."""
    q = torch.tensor([[[[1.0, 0.0], [0.0, 2.0]]]], dtype=torch.float64)
    k = torch.tensor([[[[0.0, 0.0], [math.log(2.0), 0.0], [0.0, math.log(3.0)]]]], dtype=torch.float64)
    v = torch.tensor([[[[4.0, 0.0], [8.0, 0.0], [0.0, 16.0]]]], dtype=torch.float64)
    # Row 0: exp(0), exp(log 2), exp(0) = 1, 2, 1. Row 1: 1, 1, exp(2 log 3 * scale) = 1, 1, 3 at scale 1/2.
    probs = attention_probs(q, k, scale=1.0)[0, 0]
    torch.testing.assert_close(probs[0], torch.tensor([1, 2, 1], dtype=torch.float64) / 4)
    half = attention_probs(q, k, scale=0.5)[0, 0]
    torch.testing.assert_close(half[1], torch.tensor([1, 1, 3], dtype=torch.float64) / 5)
    for attend in (attend_reference, attend_sdpa):
        mix = attend(q, k, v, scale=1.0)[0, 0]
        torch.testing.assert_close(mix[0], torch.tensor([5.0, 4.0], dtype=torch.float64))


def test_half_precision_softmax_is_normalised_in_float32():
    """1000 equal keys: summing 1000 bfloat16 exponentials in bfloat16 would stop at 256."""
    q = torch.zeros(1, 1, 1, 4, dtype=torch.bfloat16)
    probs = attention_probs(q, torch.ones(1, 1, 1000, 4, dtype=torch.bfloat16), scale=0.5)
    assert probs.dtype == torch.bfloat16
    torch.testing.assert_close(probs.double().sum().item(), 1.0, rtol=2e-3, atol=0)


def test_the_seam_sees_the_documented_call_and_its_answer_is_used():
    seen = {}

    def spy(q, k, v, *, scale):
        seen.update(q=q.shape, k=k.shape, v=v.shape, scale=scale)
        return torch.zeros_like(v)

    config = ViTConfig(**SMALL)
    attention = SelfAttention(config, attend=spy)
    out = attention(torch.randn(2, 16, 91))
    assert seen == {"q": (2, 7, 16, 13), "k": (2, 7, 16, 13), "v": (2, 7, 16, 13), "scale": 13**-0.5}
    torch.testing.assert_close(out, attention.proj.bias.expand(2, 16, 91))


def test_split_orders_rows_as_q_k_v_and_heads_in_turn():
    config = ViTConfig(**{**SMALL, "width": 6, "heads": 2})
    q, k, v = SelfAttention(config).split(torch.arange(18.0).view(1, 1, 18))
    assert q.flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert k[0, 1, 0].tolist() == [9, 10, 11]
    assert v[0, 0, 0].tolist() == [12, 13, 14]


def test_patch_embedding_is_the_strided_convolution():
    embed = PatchEmbed(ViTConfig(**SMALL)).double()
    torch.nn.init.normal_(embed.weight)
    torch.nn.init.normal_(embed.bias)
    pixels = torch.randn(2, 3, 24, 40, dtype=torch.float64)
    expected = torch.nn.functional.conv2d(pixels, embed.weight, embed.bias, stride=8).flatten(2).transpose(1, 2)
    torch.testing.assert_close(embed(pixels), expected, rtol=0, atol=1e-12)


def test_mean_pooling_leaves_the_class_token_out():
    model = ViT(ViTConfig(**{**SMALL, "pooling": "mean", "classes": 0}))
    tokens = torch.zeros(1, 16, 91)
    tokens[:, 0] = 1000
    tokens[:, 1:] = torch.arange(15.0)[:, None]
    torch.testing.assert_close(model.pool(tokens), torch.full((1, 91), 7.0))


def test_positions_of_the_same_grid_are_unchanged_and_prefix_rows_never_resampled():
    old, new = TokenLayout(grid=(3, 5)), TokenLayout(grid=(4, 7))
    positions = torch.randn(1, 16, 6, dtype=torch.float64)
    torch.testing.assert_close(resample_positions(positions, old, old), positions, rtol=0, atol=1e-12)
    stretched = resample_positions(positions, old, new)
    assert stretched.shape == (1, 29, 6)
    assert torch.equal(stretched[:, 0], positions[:, 0])
    with pytest.raises(ShapeError, match=r"16 rows.*29 tokens"):
        resample_positions(positions, new, old)


def test_token_layout_folds_the_image_and_refuses_other_lengths():
    layout = TokenLayout(cls=1, dist=1, registers=4, grid=(2, 3))
    assert (layout.prefix, layout.patches, layout.count) == (6, 6, 12)
    tokens = torch.arange(12).view(1, 12)
    assert layout.to_grid(tokens).tolist() == [[[6, 7, 8], [9, 10, 11]]]
    assert layout.to_grid(torch.arange(6), dim=0).tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ShapeError, match="11 entries; a 2 x 3 grid has 6 patches and 12 tokens with its 6 prefix"):
        layout.to_grid(torch.zeros(1, 11))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 90}, "width 90 is not divisible by 7 heads"),
        ({"image_size": (24, 41)}, r"\(24, 41\) is not a whole number of patches of 8"),
        ({"image_size": (24, 7), "drop_rest": True}, r"\(24, 7\) is not a whole number of patches of 8"),
        ({"depth": 0}, "depth is 0"),
        ({"classes": -1}, "classes is -1"),
        ({"eps": 0.0}, "eps is 0.0"),
        ({"activation": "tanh"}, "'tanh'.*gelu"),
        ({"pooling": "max"}, "'max'.*cls, mean"),
    ],
)
def test_config_refuses_what_makes_no_vit(change, message):
    with pytest.raises(UsageError, match=message):
        ViTConfig(**{**SMALL, **change})


def test_config_is_frozen_and_keyword_only():
    with pytest.raises(FrozenInstanceError):
        ViTConfig().width = 3
    with pytest.raises(TypeError):
        ViTConfig((24, 40))
    with pytest.raises(UsageError, match="no preset 'XL/16'; sizes are Ti, S, B, L, H"):
        ViTConfig.preset("XL/16")


def test_image_spec_refuses_what_it_cannot_do_and_prints_as_a_pipeline():
    with pytest.raises(UsageError, match="'cubic'"):
        ImageSpec(resize=(2, 2), resample="cubic")
    with pytest.raises(UsageError, match="must not contain 0"):
        ImageSpec(resize=(2, 2), std=(1, 0, 1))
    spec = ImageSpec(resize=256, crop=(224, 160), resample="bicubic")
    assert str(spec).startswith("resize shorter edge to 256 (bicubic), centre crop 224 x 160, x 1/255")
    assert spec.size == (224, 160)


def test_activations():
    x = torch.tensor([-1.0, 0.5], dtype=torch.float64)
    expected = [v / (1 + math.exp(-1.702 * v)) for v in x.tolist()]
    torch.testing.assert_close(QuickGELU()(x), torch.tensor(expected, dtype=torch.float64))
    # The exact GELU at 1 is the normal distribution function there.
    mlp = MLP(ViTConfig(**SMALL))
    torch.testing.assert_close(mlp.act(torch.ones(1)).item(), 0.8413447, rtol=1e-6, atol=0)


def test_top_k_orders_scores_and_keeps_indices():
    logits = torch.tensor([[math.log(1.0), math.log(5.0), math.log(2.0)]])
    (predictions,) = top_k(logits, {0: "a", 1: "b", 2: "c"}, k=2)
    assert [(p.index, p.label) for p in predictions] == [(1, "b"), (2, "c")]
    assert [p.score for p in predictions] == pytest.approx([5 / 8, 2 / 8])
    assert [p.label for p in top_k(logits, None, k=9)[0]] == [None, None, None]


def test_the_model_exports_as_one_graph():
    model = ViT(ViTConfig(**SMALL)).eval()
    pixels = torch.randn(2, 3, 24, 40)
    graph = torch.export.export(model, (pixels,)).module()
    torch.testing.assert_close(graph(pixels), model(pixels))


def test_import_surface():
    assert set(minivit.__all__) <= set(dir(minivit))
    assert all(getattr(minivit, name) is not None for name in minivit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        minivit.nonsense  # noqa: B018
