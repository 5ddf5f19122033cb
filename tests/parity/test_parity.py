"""The ladder: every number between picture and label equals transformers', in float64 and in float32.

float64 settles what is computed: 1e-9 leaves no room for another formula. In float32 both sides round
differently; each is within its own rounding of the float64 truth, so their difference is bounded by the
sum of the two errors, which is measured here rather than guessed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import minivit
from minivit.model.attention import attend_reference, attend_sdpa, attention_probs
from minivit.weights import BUNDLED, find

EXACT = 1e-9


@pytest.fixture
def full_precision_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' eager attention takes its softmax in float32 even for float64 models; lift that to float64.

    Without this its own maps are 1e-8 off the truth, and the comparison would test its rounding.
    """
    softmax = F.softmax

    def at_least(x: Tensor, dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return softmax(x, dim=dim, dtype=torch.promote_types(x.dtype, dtype))

    monkeypatch.setattr(torch.nn.functional, "softmax", at_least)


def steps_of_minivit(model: minivit.ViT, pixels: Tensor, **kwargs) -> dict[str, Tensor]:
    """Every rung of the ladder by name; maps from the q and k that went into the kernel."""
    steps: dict[str, Tensor] = {}
    hooks = []
    for i, block in enumerate(model.blocks):

        def keep(module, inputs, output, i=i):
            steps[f"block {i}"] = output

        def probs(module, inputs, output, i=i, attn=block.attn):
            q, k, _ = attn.split(output)
            steps[f"attention {i}"] = attention_probs(q, k, scale=attn.scale)

        hooks += [block.register_forward_hook(keep), block.attn.qkv.register_forward_hook(probs)]
    with torch.no_grad():
        steps["tokens"] = model.embed(pixels, **kwargs)
        steps["features"] = model.features(pixels, **kwargs)
        steps["cls"] = steps["features"][:, 0]
        steps["logits" if model.config.classes else "pooled"] = model(pixels, **kwargs)
    for hook in hooks:
        hook.remove()
    return steps


def steps_of_transformers(folder: Path, pixels: Tensor, **kwargs) -> dict[str, Tensor]:
    from transformers import ViTForImageClassification, ViTModel

    has_head = "ViTForImageClassification" in (folder / "config.json").read_text()
    kind = ViTForImageClassification if has_head else ViTModel
    model = kind.from_pretrained(folder, attn_implementation="eager").to(pixels.dtype).eval()
    trunk = model.vit if has_head else model
    with torch.no_grad():
        out = model(pixels, output_hidden_states=True, output_attentions=True, **kwargs)
    # The last hidden state is given after the final norm or before it, by version: take the norm's own output.
    hidden = list(out.hidden_states)
    last: list[Tensor] = []
    hook = trunk.layernorm.register_forward_hook(lambda module, inputs, output: last.extend([inputs[0], output]))
    with torch.no_grad():
        model(pixels, **kwargs)
    hook.remove()
    steps = {"tokens": hidden[0]}
    steps |= {f"block {i}": state for i, state in enumerate([*hidden[1 : len(out.attentions)], last[0]])}
    steps |= {f"attention {i}": probs for i, probs in enumerate(out.attentions)}
    steps |= {"features": last[1], "cls": last[1][:, 0]}
    return steps | ({"logits": out.logits} if has_head else {"pooled": out.pooler_output})


def assert_equal_steps(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name].shape == value.shape, name
        difference = (ours[name].double() - value.double()).abs().max().item()
        assert difference <= tolerance, f"{name}: {difference:.3g} apart, {tolerance:.3g} allowed"


def random_pixels(folder: Path, dtype: torch.dtype, size: tuple[int, int] | None = None) -> Tensor:
    config = find(folder).config
    given = config["image_size"]
    height, width = size or (given if isinstance(given, list) else (given, given))
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(5)).to(dtype)


VARIANTS = {
    "odd sizes": {},
    "in21k with pooler": {"head": False},
    "patch 14, square": {"image_size": 42, "patch_size": 14},
    "patch 16, wide": {"image_size": [32, 80], "patch_size": 16},
    "patch 32, tall": {"image_size": [96, 64], "patch_size": 32},
    "no qkv bias": {"qkv_bias": False},
    "eps that matters": {"layer_norm_eps": 0.03},
    "tanh gelu": {"hidden_act": "gelu_pytorch_tanh"},
    "quick gelu": {"hidden_act": "quick_gelu"},
}


@pytest.mark.parametrize("attend", [attend_sdpa, attend_reference])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_step_equals_transformers_in_float64(variant, attend, hf_checkpoint, full_precision_softmax):
    folder = hf_checkpoint(**VARIANTS[variant])
    pixels = random_pixels(folder, torch.float64)
    model = minivit.load(folder, dtype=torch.float64, attend=attend)
    assert_equal_steps(steps_of_minivit(model, pixels), steps_of_transformers(folder, pixels), EXACT)


@pytest.mark.parametrize("size", [(24, 40), (40, 24), (72, 8), (16, 88)])
def test_other_picture_sizes_resample_positions_as_transformers(size, hf_checkpoint, full_precision_softmax):
    # transformers takes the square root of the trained grid, so it can only start from a square one.
    folder = hf_checkpoint(image_size=40)
    pixels = random_pixels(folder, torch.float64, size)
    model = minivit.load(folder, dtype=torch.float64)
    ours = steps_of_minivit(model, pixels, resample=True)
    theirs = steps_of_transformers(folder, pixels, interpolate_pos_encoding=True)
    assert_equal_steps(ours, theirs, EXACT)


def test_another_size_is_refused_unless_asked_for(hf_checkpoint):
    model = minivit.load(hf_checkpoint())
    with pytest.raises(minivit.ShapeError, match=r"32 x 40.*24 x 40.*resample=True"):
        model(torch.zeros(1, 3, 32, 40))
    with pytest.raises(minivit.ShapeError, match="33 x 40 is not a whole number of patches of 8"):
        model(torch.zeros(1, 3, 33, 40), resample=True)
    with pytest.raises(minivit.ShapeError, match=r"\(1, 4, 24, 40\).*\(B, 3, H, W\)"):
        model(torch.zeros(1, 4, 24, 40))


@pytest.mark.slow
def test_vit_b16_equals_transformers_in_float64_and_float32(hf_checkpoint, full_precision_softmax):
    """The published architecture at full size, 86.6 million random parameters."""
    full = {"image_size": 224, "patch_size": 16, "hidden_size": 768, "num_hidden_layers": 12}
    full |= {"num_attention_heads": 12, "intermediate_size": 3072, "num_labels": 1000}
    folder = hf_checkpoint(**full)
    pixels = random_pixels(folder, torch.float64)[:1]
    truth = steps_of_transformers(folder, pixels)
    assert_equal_steps(steps_of_minivit(minivit.load(folder, dtype=torch.float64), pixels), truth, EXACT)

    theirs = steps_of_transformers(folder, pixels.float())
    ours = steps_of_minivit(minivit.load(folder), pixels.float())
    for name, exact in truth.items():
        # Twice the reference's own rounding error, which both sides may make, in opposite directions.
        own = (theirs[name].double() - exact).abs().max().item()
        error = (ours[name].double() - exact).abs().max().item()
        assert error <= 2 * own + 1e-7, f"{name}: {error:.3g}, transformers itself {own:.3g}"
    assert ours["logits"].argmax(-1).tolist() == theirs["logits"].argmax(-1).tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_as_near_the_truth_as_transformers(dtype, hf_checkpoint):
    from transformers import ViTForImageClassification

    folder = hf_checkpoint()
    pixels = random_pixels(folder, torch.float64)
    with torch.no_grad():
        truth = minivit.load(folder, dtype=torch.float64)(pixels)
        ours = minivit.load(folder, dtype=dtype)(pixels.to(dtype))
        theirs = ViTForImageClassification.from_pretrained(folder, dtype=dtype).eval()(pixels.to(dtype)).logits
    assert ours.dtype == dtype
    error, own = ((logits.double() - truth).norm() for logits in (ours, theirs))
    assert error <= 2 * own
    assert own > 0


def test_gradients_equal_transformers_in_float64(hf_checkpoint):
    """The same loss has the same gradient in every parameter, so training is the same too."""
    from transformers import ViTForImageClassification

    from minivit.weights.convert import rows_for, spellings
    from minivit.weights.families.transformers.vit import VIT

    folder = hf_checkpoint()
    pixels, target = random_pixels(folder, torch.float64), torch.tensor([3, 7])
    ours = minivit.load(folder, dtype=torch.float64)
    F.cross_entropy(ours(pixels), target).backward()
    theirs = ViTForImageClassification.from_pretrained(folder).double().eval()
    theirs(pixels, labels=target).loss.backward()
    rows = rows_for(VIT, VIT.kinds["ViTForImageClassification"], ours.config)
    gradients = {name.removeprefix("vit."): parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        spelled = next(spelling.parts for spelling in spellings(rows, name) if spelling.parts[0] in gradients)
        torch.testing.assert_close(parameter.grad, torch.cat([gradients[p] for p in spelled]), rtol=0, atol=EXACT)


def test_a_trained_checkpoint_agrees_too(full_precision_softmax):
    """Real statistics: the model in the box, every step, as transformers runs it."""
    folder = BUNDLED["minivit/cifar10-vit"]
    pixels = random_pixels(folder, torch.float64)
    model = minivit.load("minivit/cifar10-vit", dtype=torch.float64)
    assert_equal_steps(steps_of_minivit(model, pixels), steps_of_transformers(folder, pixels), EXACT)


@pytest.mark.hub
def test_published_numbers_of_vit_base(shared: Path):
    """transformers' own integration test: COCO val2017 000000039769, tests/models/vit/test_modeling_vit.py."""
    model = minivit.load("google/vit-base-patch16-224")
    pixels = minivit.preprocess(shared / "cats.jpg", model.image_spec)
    logits = model(pixels[None])[0]
    torch.testing.assert_close(logits[:3], torch.tensor([-0.2744, 0.8215, -0.0836]), rtol=0, atol=1e-4)
    assert logits.argmax().item() == 285
    assert model.labels[285] == "Egyptian cat"
    assert sum(parameter.numel() for parameter in model.parameters()) == 86_567_656
