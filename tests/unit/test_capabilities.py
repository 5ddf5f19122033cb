"""What each kind of model can do, and what a refusal says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from minivit import CLIPConfig, TextConfig, UsageError, ViT, ViTConfig
from minivit.model.capabilities import image_model, require_text, require_vit, require_windowed
from minivit.model.clip import CLIP
from minivit.model.config import SwinConfig
from minivit.model.swin import Swin

VIT = ViTConfig(image_size=(8, 12), patch_size=4, width=10, depth=1, heads=2, mlp_width=14, classes=0)
TEXT = TextConfig(vocabulary=9, context=5, width=6, depth=1, heads=3, mlp_width=8, end=8, projection=10)
SWIN = SwinConfig(image_size=(16, 16), width=4, depths=(1, 1), heads=(2, 4), window=(2, 2), classes=3)


@pytest.fixture(scope="module")
def models() -> tuple[ViT, Swin, CLIP]:
    vit, swin, clip = ViT(VIT), Swin(SWIN), CLIP(CLIPConfig(image=VIT, text=TEXT))
    swin.name = "some/swin"
    return vit, swin, clip


def test_every_model_says_what_it_can_do(models):
    assert [(model.has_text, model.windowed) for model in models] == [(False, False), (False, True), (True, False)]


def test_the_image_model_is_the_tower_of_a_clip_and_else_the_model(models):
    vit, swin, clip = models
    assert image_model(vit) is vit
    assert image_model(swin) is swin
    assert image_model(clip) is clip.image


def test_a_model_that_fits_is_returned(models):
    vit, swin, clip = models
    assert require_vit(vit, "trace") is vit
    assert require_windowed(swin, "window_attention") is swin
    assert require_text(clip) is clip


def test_a_refusal_names_the_model_the_caller_and_what_works(models):
    vit, swin, clip = models
    with pytest.raises(UsageError, match=r"^some/swin: is a Swin; trace needs a minivit ViT.*supports classify, embed"):
        require_vit(swin, "trace")
    with pytest.raises(UsageError, match=r"^the model is a CLIP; trace needs a minivit ViT.*model\.image"):
        require_vit(clip, "trace")
    with pytest.raises(UsageError, match=r"^the model is a Linear; lens needs a minivit ViT.*_orig_mod"):
        require_vit(nn.Linear(2, 3), "lens")
    with pytest.raises(UsageError, match=r"^the model is a ViT; window_attention needs a minivit Swin"):
        require_windowed(vit, "window_attention")
    with pytest.raises(UsageError, match=r"^some/swin: has no text tower"):
        require_text(swin)


def test_a_compiled_model_is_kept_as_the_image_model(models):
    compiled = torch.compile(models[0])
    assert image_model(compiled) is compiled
    assert not compiled.windowed
