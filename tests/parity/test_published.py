"""Numbers published for the real files: transformers' integration tests and conversion scripts.

Run with `pytest -m hub`, with a network or a filled cache. Their picture is COCO val2017 000000039769.
"""

from __future__ import annotations

import pytest
import torch

import minivit

pytestmark = pytest.mark.hub


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


@pytest.fixture
def pixels(shared):
    def prepare(model, spec=None):
        return minivit.preprocess(shared / "cats.jpg", spec or model.image_spec)[None]

    return prepare


def close(found: torch.Tensor, expected: list, tolerance: float) -> None:
    torch.testing.assert_close(found, torch.tensor(expected), rtol=tolerance, atol=tolerance)


# Names as in transformers' tests/models/*/test_modeling_*.py, which these numbers and tolerances come from.
LOGITS = [
    ("google/vit-base-patch16-224", [-0.2744, 0.8215, -0.0836], 1e-4),
    ("facebook/deit-base-distilled-patch16-224", [-1.0266, 0.1912, -1.2861], 1e-4),
    ("microsoft/swin-tiny-patch4-window7-224", [-0.0948, -0.6454, -0.0921], 1e-4),
]
TOKENS = [
    (
        "facebook/dinov2-base",
        [[-2.1747, -0.4729, 1.0936], [-3.2780, -0.8269, -0.9210], [-2.9129, 1.1284, -0.7306]],
        257,
    ),
    (
        "facebook/dinov2-with-registers-base",
        [[-0.4638, -1.4563, -0.0289], [-1.4736, -0.8866, 0.3005], [0.0720, -0.2406, -1.5943]],
        261,
    ),
]


@pytest.mark.parametrize("id, expected, tolerance", LOGITS)
@torch.no_grad()
def test_logits(id, expected, tolerance, pixels):
    model = minivit.load(id)
    close(model(pixels(model))[0, :3], expected, tolerance)


@torch.no_grad()
def test_the_cats_are_cats(pixels):
    model = minivit.load("google/vit-base-patch16-224")
    assert model.labels[int(model(pixels(model)).argmax())] == "Egyptian cat"


@pytest.mark.parametrize("id, expected, count", TOKENS)
@torch.no_grad()
def test_tokens(id, expected, count, pixels):
    model = minivit.load(id)
    tokens = model.features(pixels(model))
    assert tokens.shape[1] == count
    close(tokens[0, :3, :3], expected, 1e-4)


@torch.no_grad()
def test_dino_at_another_size(pixels):
    from dataclasses import replace

    model = minivit.load("facebook/dino-vits8")
    tokens = model.features(pixels(model, replace(model.image_spec, resize=(480, 480))), resample=True)
    assert tokens.shape == (1, 3601, 384)
    expected = [[4.2325, 4.3882, -6.6678], [4.5372, 1.8933, -6.7355], [4.4454, 0.8514, -5.8747]]
    close(tokens[0, :3, :3], expected, 1e-3)


@torch.no_grad()
def test_the_original_rule_of_dino_at_another_size(pixels):
    from dataclasses import replace

    from minivit.model.vit import ViT

    loaded = minivit.load("facebook/dino-vits8")
    model = ViT(replace(loaded.config, position_resampling="dino"))
    model.load_state_dict(loaded.state_dict())
    tokens = model.features(pixels(loaded, replace(loaded.image_spec, resize=(480, 480))), resample=True)
    expected = [[4.2340, 4.3906, -6.6692], [4.5463, 1.8928, -6.7257], [4.4429, 0.8496, -5.8585]]
    close(tokens[0, :3, :3], expected, 1e-4)


DINOV3 = [
    ("vits16", [0.4637, -0.4160, 0.4086, -0.1265, -0.2865], [-0.0386, -0.2509, -0.0161, -0.4556, 0.5716]),
    (
        "vitb16",
        [1.034643, -0.180609, -0.341018, -0.066377, -0.011384],
        [-0.082524, -0.456273, -0.728030, -0.430680, -0.152880],
    ),
    (
        "vitl16",
        [0.484527, -0.582215, 0.480636, 0.592040, 0.945166],
        [-0.211367, -0.490864, -0.257131, 0.101764, 0.154511],
    ),
]


@pytest.mark.parametrize("size, pooled, patch", DINOV3)
@torch.no_grad()
def test_dinov3(size, pooled, patch, pixels):
    model = minivit.load(f"facebook/dinov3-{size}-pretrain-lvd1689m")
    tokens = model.features(pixels(model))
    close(model.pool(tokens)[0, :5], pooled, 1e-4)
    close(tokens[0, model.config.layout.prefix, :5], patch, 1e-4)


@torch.no_grad()
def test_clip_at_another_size(pixels):
    from dataclasses import replace

    model = minivit.load("openai/clip-vit-base-patch32")
    # 180 pixels are no whole number of patches of 32; the reference leaves out what is too much on the right and below.
    x = pixels(model, replace(model.image_spec, resize=180, crop=(180, 180)))[:, :, :160, :160]
    tokens = model.image.features(x, resample=True)
    assert tokens.shape == (1, 26, 768)
    expected = [[-0.1538, 0.0322, -0.3235], [0.2893, 0.1135, -0.5708], [0.0461, 0.1540, -0.6018]]
    close(tokens[0, :3, :3], expected, 1e-4)


# Texts as in transformers' tests of CLIP and SigLIP.
PAIRS = [
    ("openai/clip-vit-base-patch32", ["a photo of a cat", "a photo of a dog"], [24.5701, 19.3049]),
    ("google/siglip-base-patch16-224", ["a photo of 2 cats", "a photo of 2 dogs"], [-0.7567, -10.3354]),
]


@pytest.mark.parametrize("id, texts, expected", PAIRS)
@torch.no_grad()
def test_pictures_and_texts(id, texts, expected, pixels):
    model = minivit.load(id)
    close(model(pixels(model), model.tokenize(texts))[0], expected, 1e-3)


@pytest.mark.parametrize("id, texts, expected", PAIRS)
@torch.no_grad()
def test_texts_as_classes(id, texts, expected, shared):
    best = minivit.classify(shared / "cats.jpg", model=minivit.load(id).zero_shot(texts))[0]
    assert best[0].label == texts[0]
    scores = torch.tensor(expected, dtype=torch.float64)
    scores = scores.sigmoid() if "siglip" in id else scores.softmax(dim=0)
    assert [p.score for p in best] == pytest.approx(scores.tolist(), rel=5e-3)


@pytest.mark.parametrize(
    "id",
    [
        "torchvision/vit_b_16",
        "torchvision/swin_t",
        "timm/swin_tiny_patch4_window7_224.ms_in1k",
        "timm/vit_base_patch16_224.augreg_in21k_ft_in1k",
        "timm/deit_base_distilled_patch16_224.fb_in1k",
        "facebook/dinov2-small-imagenet1k-1-layer",
    ],
)
def test_a_classifier_of_each_house_names_the_cats(id, shared):
    best = minivit.classify(shared / "cats.jpg", model=id, top_k=3)[0]
    assert any("cat" in (prediction.label or "") for prediction in best), best
