"""Heads that a user put in place, saved and loaded again; dtypes as strings; what a model prints."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import minivit
from minivit import UsageError, ViT, ViTConfig
from minivit.model.config import SwinConfig
from minivit.model.swin import Swin

SIZES = {"image_size": (8, 12), "patch_size": 4, "width": 10, "depth": 2, "heads": 2, "mlp_width": 14}
SWIN = SwinConfig(image_size=(32, 32), width=4, depths=(1, 1), heads=(2, 4), window=(2, 2), classes=3)


def build(**changes) -> ViT:
    torch.manual_seed(5)
    return ViT(ViTConfig(**{**SIZES, "classes": 3, **changes})).eval()


def pixels(model) -> torch.Tensor:
    return torch.randn(2, 3, *model.config.image_size, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("kind", ["ViT", "ViT without a head", "Swin"])
def test_a_new_head_is_saved_and_loaded_with_its_classes(kind, tmp_path):
    model = Swin(SWIN).eval() if kind == "Swin" else build(classes=3 if kind == "ViT" else 0)
    if kind == "ViT":
        model.labels = {0: "a", 1: "b", 2: "c"}
    width = 8 if kind == "Swin" else 10
    model.head = nn.Linear(width, 7)
    minivit.save(model, tmp_path / "out")
    loaded = minivit.load(tmp_path / "out")
    assert loaded.config.classes == 7
    assert torch.equal(loaded(pixels(model)), model(pixels(model)))
    assert loaded.labels is None or loaded.labels[6] == "LABEL_6"  # the names of the former classes are gone


def test_labels_stay_where_the_new_head_has_as_many_classes(tmp_path):
    model = build()
    model.labels = {0: "a", 1: "b", 2: "c"}
    model.head = nn.Linear(10, 3)
    minivit.save(model, tmp_path / "out")
    assert minivit.load(tmp_path / "out").labels == {0: "a", 1: "b", 2: "c"}


def test_a_removed_head_is_saved_as_a_model_without_classes(tmp_path):
    model = build()
    model.head = nn.Identity()
    minivit.save(model, tmp_path / "out")
    loaded = minivit.load(tmp_path / "out")
    assert loaded.config.classes == 0
    torch.testing.assert_close(loaded(pixels(model)), model(pixels(model)), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (nn.Linear(10, 7, bias=False), "head.bias"),
        (nn.Sequential(nn.Linear(10, 4), nn.GELU(), nn.Linear(4, 7)), "head is a Sequential"),
        (nn.Linear(9, 7), r"head.weight is \[7, 9\], expected \[7, 10\]"),
        (nn.Sequential(nn.Dropout(), nn.Linear(10, 7)), "head is a Sequential"),
    ],
)
def test_a_head_that_no_file_can_hold_is_refused_before_a_file_is_written(head, says, tmp_path):
    model = build()
    model.head = head
    with pytest.raises(UsageError, match=says):
        minivit.save(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_changed_modules_are_refused_by_the_name_of_the_tensor(tmp_path):
    model = build()
    model.blocks[1].mlp.fc1 = nn.Linear(10, 15)
    with pytest.raises(UsageError, match=r"blocks\.1\.mlp\.fc1\.weight is \[15, 10\], expected \[14, 10\]"):
        minivit.save(model, tmp_path / "out")
    model = build()
    model.blocks[0].attn.lora = nn.Linear(10, 2)
    with pytest.raises(UsageError, match=r"blocks\.0\.attn\.lora"):
        minivit.save(model, tmp_path / "out")
    model = build()
    del model.blocks[1]
    with pytest.raises(UsageError, match=r"missing.*blocks\.1\."):
        minivit.save(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_distilled_model_needs_both_heads_of_one_size(tmp_path):
    model = build(pooling="cls&dist", dist_token=True)
    model.head = nn.Linear(10, 7)
    with pytest.raises(UsageError, match=r"head_dist\.weight is \[3, 10\], expected \[7, 10\]"):
        minivit.save(model, tmp_path / "out")
    model.head_dist = nn.Linear(10, 7)
    minivit.save(model, tmp_path / "out")
    assert torch.equal(minivit.load(tmp_path / "out")(pixels(model)), model(pixels(model)))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_dtypes_are_accepted_as_strings(dtype, tmp_path):
    model = build()
    minivit.save(model, tmp_path / "out", dtype=dtype)
    loaded = minivit.load(tmp_path / "out", dtype=dtype)
    assert loaded.head.weight.dtype == getattr(torch, dtype)
    torch.testing.assert_close(loaded.head.weight, model.head.weight.to(getattr(torch, dtype)), rtol=0, atol=0)


@pytest.mark.parametrize("wrong", ["int8", "half-ish", torch.int8, 32, None, torch.complex64])
def test_other_dtypes_are_refused_with_the_ones_there_are(wrong):
    with pytest.raises(UsageError, match="expected float32, float64, bfloat16 or float16"):
        minivit.load("minivit/cifar10-vit", dtype=wrong)


def test_a_model_prints_its_sizes():
    text = repr(build())
    assert "image 8 x 12, patch 4, 7 tokens (1 prefix), width 10, depth 2, heads 2, mlp 14, classes 3" in text
    parameters = sum(p.numel() for p in build().parameters())
    assert f"{parameters:,} parameters" in text
    assert "PatchEmbed(\n" not in text
    assert "patch 4, 3 -> 10" in text
    assert "heads 2, head_dim 5" in text
    assert "image 32 x 32, patch 4" in repr(Swin(SWIN))
