"""Wrong inputs of models, of study functions and of preprocess: one clear error that says what to do."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from PIL import Image

import minivit
from minivit import CLIPConfig, ShapeError, TextConfig, UsageError, ViT, ViTConfig, study
from minivit.model.clip import CLIP
from minivit.model.config import SwinConfig
from minivit.model.embed import check_batch, check_pixels
from minivit.model.swin import Swin
from minivit.study.maps.methods import compute

SIZES = {"patch_size": 4, "width": 10, "depth": 2, "heads": 2, "mlp_width": 14, "classes": 3}
SWIN = SwinConfig(image_size=(16, 16), width=4, depths=(1, 1), heads=(2, 4), window=(2, 2), classes=3)
PIXELS = torch.linspace(-1, 1, 3 * 8 * 12).view(1, 3, 8, 12)

# What people pass by mistake -> the error, and what its message says.
MISTAKES = {
    "a NumPy array": (PIXELS.numpy(), UsageError, "numpy.ndarray.*torch.as_tensor"),
    "a PIL image": (Image.new("RGB", (12, 8)), UsageError, "PIL.Image.*minivit.preprocess"),
    "a path": ("dog.jpg", UsageError, "str.*minivit.preprocess.*minivit.classify"),
    "bytes": (b"\xff\xd8", UsageError, "bytes.*minivit.preprocess"),
    "a list of tensors": ([PIXELS[0]], UsageError, "list.*torch.stack"),
    "a list of paths": (["dog.jpg"], UsageError, "list; expected a tensor"),
    "a processor's batch": ({"pixel_values": PIXELS}, UsageError, "dict.*pixel_values"),
    "8-bit values": ((PIXELS * 99).to(torch.uint8), UsageError, "uint8.*minivit.preprocess"),
    "booleans": (PIXELS > 0, UsageError, "bool"),
    "no batch axis": (PIXELS[0], ShapeError, r"\(3, 8, 12\).*batch axis.*pixels\[None\]"),
    "channels last": (PIXELS.permute(0, 2, 3, 1), ShapeError, r"\(1, 8, 12, 3\).*permute\(0, 3, 1, 2\)"),
    "one image, channels last": (PIXELS[0].permute(1, 2, 0), ShapeError, r"permute\(2, 0, 1\)\[None\]"),
    "one channel": (PIXELS[:, :1], ShapeError, r"\(1, 1, 8, 12\); expected \(B, 3, H, W\)$"),
}
WRONG_DTYPE = (PIXELS.double(), UsageError, r"float64 and the weights float32; use pixels.to\(torch.float32\)")


@pytest.fixture(scope="module")
def model() -> ViT:
    return ViT(ViTConfig(image_size=(8, 12), **SIZES)).eval()


def functions(model):
    """Every function that takes a model and pixels."""
    several = {
        "model": model,
        "features": model.features,
        "embed": model.embed,
        "trace": lambda x: minivit.trace(model, x),
        "compute": lambda x: compute(model, x),
        "curves": lambda x: study.curves(model, x, torch.rand(1, 2, 3)),
        "faithfulness": lambda x: study.faithfulness(model, [x]),
        "summarise_heads": lambda x: study.summarise_heads(model, [x]),
        "scan_effect": lambda x: study.scan_effect(model, x, 1),
        "ablation_effect": lambda x: study.ablation_effect(model, x, 1, mlps=[1]),
        "optimize": minivit.optimize(model),
    }
    names = "attribute explore grad_rollout head_statistics input_gradients integrated_gradients legrad lens_reading"
    for name in [*names.split(), "relevance", "scan"]:
        several[name] = lambda x, name=name: getattr(study, name)(model, x)
    for name in sorted(study.MAPS.keys() - {"pool"}):  # "pool" needs another model, and says so
        several[f"method_map {name}"] = lambda x, name=name: study.method_map(model, x, name)
    return several


@pytest.mark.parametrize("kind", MISTAKES)
def test_every_function_refuses_a_wrong_input_with_the_same_words(model, kind):
    wrong, error, says = MISTAKES[kind]
    for name, function in functions(model).items():
        with pytest.raises(error, match=says):
            function(wrong)
            pytest.fail(f"{name} took {kind}")


def test_pixels_of_another_dtype_are_refused_by_name(model):
    wrong, error, says = WRONG_DTYPE
    for name, function in functions(model).items():
        if name not in ("summarise_heads", "optimize"):  # the first converts, the second has a message of its own
            with pytest.raises(error, match=says):
                function(wrong)
    with pytest.raises(UsageError, match="float64; this model takes float32"):
        minivit.optimize(model)(wrong)


def test_pixels_on_another_device_are_refused_with_both_names(model):
    with pytest.raises(UsageError, match=r"on meta and the weights on cpu; use pixels.to\('cpu'\)"):
        model(PIXELS.to("meta"))


def test_other_models_refuse_the_same_inputs():
    swin = Swin(SWIN).eval()
    text = TextConfig(vocabulary=9, context=5, width=6, depth=1, heads=3, mlp_width=8, end=8, projection=10)
    clip = CLIP(CLIPConfig(image=ViTConfig(image_size=(8, 12), **{**SIZES, "classes": 0}), text=text)).eval()
    ids = torch.tensor([[1, 8]])
    for wrong, error, says in [*MISTAKES.values(), WRONG_DTYPE]:
        for function in (swin, swin.features, lambda x: study.head_statistics(swin, x), lambda x: clip(x, ids)):
            with pytest.raises(error, match=says):
                function(wrong)
    with pytest.raises(UsageError, match=r"ids are a list.*model\.tokenize"):
        clip(PIXELS, ["a dog"])
    with pytest.raises(UsageError, match=r"ids are torch.float32; expected torch.int64"):
        clip(PIXELS, ids.float())


def test_autocast_still_takes_pixels_of_the_other_floating_dtypes(model):
    """Under autocast PyTorch converts float32 and half precision itself; float64 it does not."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(PIXELS.bfloat16()).shape == (1, 3)
        with pytest.raises(UsageError, match="float64"):
            model(PIXELS.double())


def test_a_good_batch_passes_the_checks():
    weight = torch.zeros(7, 3, 4, 4)
    check_pixels(torch.zeros(0, 3, 8, 8), weight)  # no image is a batch too
    check_batch(torch.zeros(2, 3, 5, 6, dtype=torch.float64), 3)


def test_one_number_is_a_square_image_size():
    assert ViTConfig(image_size=32).image_size == (32, 32)
    assert ViTConfig(image_size=[32, 48]).image_size == (32, 48)
    assert SwinConfig(image_size=64).image_size == (64, 64)
    assert ViTConfig(image_size=32) == ViTConfig(image_size=(32, 32))
    assert ViTConfig.preset("Ti/16", image_size=32).layout.grid == (2, 2)


@pytest.mark.parametrize("wrong", ["32", (32,), (32, 32, 3), 32.0, (32.0, 32), None, True, (True, 32)])
def test_other_image_sizes_are_refused_as_they_were_given(wrong):
    for config in (ViTConfig, SwinConfig):
        with pytest.raises(UsageError, match=f"image_size is {re.escape(repr(wrong))}; expected \\(height, width\\)"):
            config(image_size=wrong)


def test_preprocess_names_the_spec_that_it_was_not_given(model):
    image = Image.fromarray(np.zeros((9, 13, 3), dtype=np.uint8))
    with pytest.raises(UsageError, match=r"spec is a ViT; expected model\.image_spec"):
        minivit.preprocess(image, model)
    with pytest.raises(UsageError, match=r"spec is a ViT"):  # before the file is looked for
        minivit.preprocess("no such file.jpg", model)
    with pytest.raises(UsageError, match=r"spec is None; expected model\.image_spec.*do not state it"):
        minivit.preprocess(image, model.image_spec)
    with pytest.raises(UsageError, match="spec is a str; expected an ImageSpec"):
        minivit.preprocess(minivit.ImageSpec(resize=8), "dog.jpg")
