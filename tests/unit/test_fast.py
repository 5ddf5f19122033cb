"""optimize: equal to the readable model in every family and dtype; what is missing, wrong or foreign runs plain."""

from __future__ import annotations

import copy
import os
import pickle
import platform
import subprocess
import sys

import pytest
import torch
from helpers.fakes import build, pixels

import minivit
from minivit.errors import ShapeError, UsageError
from minivit.inference import optimize as fast
from minivit.inference.optimize import (
    FastBlock,
    PackedLinear,
    PlainLinear,
    QuantisedLinear,
    attend_products,
    optimize,
    pays,
)
from minivit.model.attention import attend_reference, attend_sdpa
from minivit.model.block import QuickGELU
from minivit.model.config import ViTConfig
from minivit.model.vit import ViT

# Everything a published family switches, alone and as families combine it.
FAMILIES = {
    "vit": {},
    "quick-gelu": {"activation": "quick_gelu"},
    "gelu-tanh": {"activation": "gelu_tanh"},
    "silu": {"activation": "silu"},
    "swiglu": {"mlp": "swiglu", "activation": "silu"},
    "layer-scale": {"layer_scale": True},
    "no-qkv-bias": {"qkv_bias": False},
    "distilled": {"dist_token": True, "pooling": "cls&dist"},
    "registers": {"registers": 3},
    "mean": {"pooling": "mean"},
    "mean-norm-pooled": {"pooling": "mean", "norm": "pooled", "cls_token": False},
    "cls-norm-pooled": {"norm": "pooled"},
    "cls+mean": {"pooling": "cls+mean"},
    "map": {"pooling": "map", "cls_token": False, "classes": 0},
    "pooler": {"pooler": True, "classes": 0},
    "clip": {
        "norm_pre": True, "norm": "pooled", "activation": "quick_gelu", "patch_bias": False, "classes": 0,
        "projection": 13,
    },
    "dinov2-giant": {"layer_scale": True, "mlp": "swiglu", "activation": "silu", "registers": 4, "any_size": True},
    "dinov3": {
        "positions": "rope", "width": 24, "registers": 2, "layer_scale": True, "mlp": "swiglu", "activation": "silu",
        "any_size": True,
    },
}  # fmt: skip
BY_FAMILY = pytest.mark.parametrize("family", FAMILIES)


def fresh(family: str = "vit", dtype=torch.float32, attend=attend_sdpa, **changes) -> ViT:
    return build(attend=attend, dtype=dtype, **{**FAMILIES[family], **changes})


def has_packed(dtype=torch.float32) -> bool:
    return fast.fault(PackedLinear, fresh(), dtype, limit=1e-2) is None


needs_packed = pytest.mark.skipif(not has_packed(), reason="this PyTorch has no packed products for this processor")
needs_int8 = pytest.mark.skipif(
    bool(fast.no_int8(torch.device("cpu")) or fast.fault(QuantisedLinear, fresh(), torch.float32, 0.1)),
    reason="no int8 dot product here",
)


def differences(ours: ViT, model: ViT, batch=2, size=(24, 40), resample=False) -> tuple[float, float]:
    """Of tokens and answers, relative to the length of the readable model's."""
    x = pixels(batch, dtype=model.patch_embed.weight.dtype, size=size)
    with torch.no_grad():
        pairs = [(call(ours), call(model)) for call in (lambda m: m.features(x, resample=resample),
                                                        lambda m: m(x, resample=resample))]  # fmt: skip
    for one, other in pairs:
        assert one.shape == other.shape
        assert not one.requires_grad
    return tuple(((one.double() - other.double()).norm() / other.double().norm()).item() for one, other in pairs)


# --- equality -----------------------------------------------------------------------------------------------------


@BY_FAMILY
def test_every_family_is_equal_in_float64(family):
    """No packed products there: what is folded into weights, the order of the steps, the rows of the last block."""
    model = fresh(family, torch.float64)
    ours = optimize(model)
    assert ours.paths["products"].startswith("plain")
    assert all(isinstance(block, FastBlock) for block in ours.blocks)
    assert max(differences(ours, model)) < 1e-12
    other = pixels(1, size=(32, 24))
    with torch.no_grad():
        torch.testing.assert_close(ours(other, resample=True), model(other, resample=True), rtol=0, atol=1e-10)
    # The comparison can fail: the same without one block's scale on the queries.
    ours.blocks[1].qkv.weight_OI[0] *= 1.001
    assert max(differences(ours, model)) > 1e-9


@BY_FAMILY
@needs_packed
def test_every_family_is_equal_in_float32_out_of_packed_products(family):
    model = fresh(family)
    ours = optimize(model)
    assert ours.paths == {"products": "packed by oneDNN, GELU and addition fused"}
    assert isinstance(ours.blocks[0].fc1, PackedLinear)
    # Both against float64: no further from the truth than twice the readable model, or 1e-4 of it.
    exact = copy.deepcopy(model).double()
    x = pixels(3, torch.float32)
    with torch.no_grad():
        truth = exact(x.double())
        own, theirs = ((answer.double() - truth).norm() / truth.norm() for answer in (ours(x), model(x)))
    assert own <= max(2 * theirs, 1e-6)


@BY_FAMILY
def test_bfloat16_is_within_twice_the_readable_models_own_error(family):
    model = fresh(family)
    rounded = copy.deepcopy(model).bfloat16()
    ours = optimize(model, "bfloat16")
    exact = copy.deepcopy(model).double()
    x = pixels(8, torch.float32).bfloat16()
    with torch.no_grad():
        truth = exact(x.double())
        own, theirs = ((answer.double() - truth).norm() for answer in (ours(x), rounded(x)))
        assert ours(x.float()).equal(ours(x))
        assert ours(x).dtype == torch.bfloat16
    assert own <= 2 * theirs
    # The weights of a model that is bfloat16 already are not rounded a second time where nothing is folded in.
    assert optimize(rounded).patch_embed.weight.dtype == torch.bfloat16


@BY_FAMILY
@needs_int8
def test_int8_is_near_and_keeps_what_is_not_a_product_in_float32(family):
    model = fresh(family)
    ours = optimize(model, "int8")
    assert isinstance(ours.blocks[0].fc2, QuantisedLinear)
    assert ours(pixels(2, torch.float32)).dtype == torch.float32
    tokens, answer = differences(ours, model)
    assert 1e-4 < tokens < 0.15
    assert answer < 0.3


# --- products -----------------------------------------------------------------------------------------------------


@needs_packed
@pytest.mark.parametrize("activation", fast.ACTIVATIONS)
@pytest.mark.parametrize("tokens", [1, 2, 17, 197])
def test_packed_products_equal_the_plain_ones(activation, tokens):
    draw = torch.Generator().manual_seed(tokens)
    weight, bias = torch.randn(13, 21, generator=draw), torch.randn(13, generator=draw)
    x, add = torch.randn(3, tokens, 21, generator=draw), torch.randn(3, tokens, 13, generator=draw)
    for bias_O in (bias, None):
        packed, plain = PackedLinear(weight, bias_O, activation), PlainLinear(weight, bias_O, activation)
        torch.testing.assert_close(packed(x), plain(x), rtol=1e-5, atol=1e-5)
        if activation == "none":
            torch.testing.assert_close(packed(x, add=add), plain(x, add=add), rtol=1e-5, atol=1e-5)


def test_quantise_rounds_to_the_nearest_step():
    step = 2.54 / 127
    x = torch.tensor([2.54, -2.54, 0.0, 0.6 * step, -0.6 * step, 0.4 * step, -0.4 * step, 5 * step])
    eight_bits, found = fast.quantise(x)
    assert found == pytest.approx(step)
    assert eight_bits.dtype == torch.uint8
    assert eight_bits.tolist() == [255, 1, 128, 129, 127, 128, 128, 133]
    assert fast.quantise(torch.zeros(4))[0].tolist() == [128] * 4


@needs_int8
def test_a_quantised_product_by_hand():
    """Weights and inputs that 8 bits hold exactly give the exact answer, whatever the scale of an output channel."""
    weight = torch.tensor([[127.0, -3, 2, 0], [0.127, 0.005, -0.001, 0.002], [0, 0, 0, 0]])
    x = torch.tensor([[[127.0, 1, -2, 3], [0, -127, 64, 5]]])
    bias = torch.tensor([1.0, 2, 3])
    expected = x @ weight.T + bias
    product = QuantisedLinear(weight, bias)
    torch.testing.assert_close(product(x.clone()), expected, rtol=1e-5, atol=1e-4)
    add = torch.ones(1, 2, 3)
    torch.testing.assert_close(product(x.clone(), add=add), expected + 1, rtol=1e-5, atol=1e-4)


def test_attention_by_products_equals_the_reference():
    q, k, v = torch.randn(3, 2, 5, 7, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for scale in (1.0, 0.3):
        expected = attend_reference(q, k, v, scale=scale)
        torch.testing.assert_close(attend_products(q, k, v, scale=scale), expected)
        torch.testing.assert_close(fast.attend_fast(q, k, v, scale=scale), expected)


# --- an attend, a block, a picture of the user's ----------------------------------------------------------------------


def test_an_attend_of_the_users_runs_as_it_is():
    calls = []

    def attend(q, k, v, *, scale):
        calls.append((q.shape, q.dtype, scale))
        return attend_reference(q, k, v, scale=scale) * 2

    model = fresh(attend=attend)
    ours = optimize(model)
    assert ours.attend is attend
    assert max(differences(ours, model)) < 1e-5
    layout = model.config.layout
    assert calls[0] == ((2, 3, layout.count, 7), torch.float32, 7**-0.5)
    assert len({shape for shape, *_ in calls}) == 1  # all query rows in every block, the last too


@needs_int8
def test_int8_gives_an_attend_of_the_users_float32():
    kinds = set()

    def attend(q, k, v, *, scale):
        kinds.add(q.dtype)
        return attend_reference(q, k, v, scale=scale)

    optimize(fresh(attend=attend), "int8")(pixels(1, torch.float32))
    assert kinds == {torch.float32}


def test_an_attend_in_one_block_alone_and_one_that_is_a_module():
    class Loud(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.loudness = torch.nn.Parameter(torch.tensor(3.0))

        def forward(self, q, k, v, *, scale):
            return attend_reference(q, k, v, scale=scale) * self.loudness

    model = fresh()
    model.blocks[1].attn.attend = Loud()
    assert max(differences(optimize(model), model)) < 1e-5
    loud = Loud()
    model = fresh(attend=loud).train()
    optimize(model, "bfloat16")
    # It stays the user's: neither converted, frozen nor switched.
    assert loud.loudness.dtype == torch.float32
    assert loud.loudness.requires_grad
    assert loud.training


@needs_int8
def test_what_the_user_keeps_is_not_overwritten():
    kept = []

    def attend(q, k, v, *, scale):
        # In memory of (B, N, A, K), as SDPA returns it, so that no copy stands between it and the next product.
        mix = attend_reference(q, k, v, scale=scale).transpose(1, 2).contiguous().transpose(1, 2)
        kept.append((mix, mix.clone()))
        return mix

    def keep(module, args, output):
        kept.append((output, output.clone()))

    model = fresh(attend=attend)
    model.blocks[0].register_forward_hook(keep)
    optimize(model, "int8")(pixels(1, torch.float32))
    assert len(kept) == 4
    assert all(one.equal(other) for one, other in kept)


def double(module, args, output):
    return output * 2


@pytest.mark.parametrize("change", ["hook", "forward", "split", "subclass", "parametrised", "added"])
def test_a_block_that_is_not_as_built_runs_as_it_is(change):
    class Doubling(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    model = fresh()
    block = model.blocks[1]
    if change == "hook":
        block.mlp.register_forward_hook(double)
    elif change == "forward":
        plain = block.mlp.act.forward
        block.mlp.act.forward = lambda x: plain(x) * 2
    elif change == "split":
        split = block.attn.split
        block.attn.split = lambda qkv, rope=None: [part * 2 for part in split(qkv, rope)]
    elif change == "subclass":
        block.attn.qkv.__class__ = Doubling
    elif change == "parametrised":
        torch.nn.utils.parametrizations.weight_norm(block.mlp.fc1)
    else:
        block.mlp.fc1.add_module("adapter", torch.nn.Identity())
    ours = optimize(model)
    assert ours.paths["blocks.1"].startswith("runs as it is: ")
    assert not isinstance(ours.blocks[1], FastBlock)
    assert isinstance(ours.blocks[0], FastBlock)
    assert isinstance(ours.blocks[2], FastBlock)
    assert max(differences(ours, model)) < 1e-5
    last = fresh()
    last.blocks[-1].mlp.register_forward_hook(double)
    assert max(differences(optimize(last), last)) < 1e-5


def test_it_is_a_snapshot_that_is_called_as_the_model():
    model = fresh()
    model.labels, model.name, model.revision = {0: "dog"}, "somebody/vit", "abc"
    model.image_spec = minivit.ImageSpec(resize=(24, 40))
    x = pixels(2, torch.float32)
    ours = optimize(model)
    assert (ours.config, ours.image_spec, ours.labels) == (model.config, model.image_spec, model.labels)
    assert (ours.name, ours.revision, ours.attend) == ("somebody/vit", "abc", model.attend)
    assert isinstance(ours, ViT)
    assert not ours.training
    assert not any(p.requires_grad for p in ours.parameters())
    tokens = ours.features(x)
    torch.testing.assert_close(ours.answer(tokens), ours(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.pool(tokens, "mean"), model.pool(model.features(x), "mean"), rtol=1e-4, atol=1e-4)
    before = ours(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert ours(x).equal(before)


def test_a_batch_of_many_passes_is_in_order(monkeypatch):
    monkeypatch.setattr(fast, "TOKENS_AT_ONCE", 40)  # two pictures of 16 tokens
    model = fresh()
    ours = optimize(model)
    sizes = []
    step = ours.step
    ours.step = lambda x, *more: (sizes.append(len(x)), step(x, *more))[1]
    x = pixels(7, torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), model(x), rtol=1e-4, atol=1e-4)
        assert sizes == [3, 3, 1] or max(sizes) <= 3


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the rule is glibc's")
def test_passes_reuse_their_memory():
    """In a process of its own, whose largest block so far is small; a block is what a pass of many tokens frees."""
    script = """
import resource, torch
from minivit.inference.optimize import keep_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        blocks = [torch.ones(2**20) for _ in range(4)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
keep_memory(); faults(); print(faults())
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert int(found.stdout) < 1000  # of 8 * 4 * 1024 pages


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64", pytest.param("int8", marks=needs_int8)])
def test_no_pictures_and_pictures_in_any_memory_layout(dtype):
    model = fresh()
    ours, x = optimize(model, dtype), pixels(3, torch.float32)
    assert ours(x[:0]).shape == (0, model.config.classes)
    assert ours.features(x[:0]).shape == (0, model.config.layout.count, model.config.width)
    for strided in (x.contiguous(memory_format=torch.channels_last), x.mT.contiguous().mT):
        assert not strided.is_contiguous()
        assert ours(strided).equal(ours(x))
    kept = x.clone()
    ours(x)
    assert x.equal(kept)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", pytest.param("int8", marks=needs_int8)])
def test_autocast_changes_nothing(dtype):
    ours, x = optimize(fresh(), dtype), pixels(2, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        answers = ours(x)
    assert answers.dtype == ours(x).dtype
    assert answers.equal(ours(x))


# --- operators that are missing or wrong ------------------------------------------------------------------------------


def missing(*args, **kwargs):
    raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute '_linear_pointwise'")


def changed(*args, **kwargs):
    raise RuntimeError("mkldnn::_linear_pointwise() is missing value for argument 'groups'.\nDeclaration: ...")


@pytest.mark.parametrize(("planted", "says"), [(missing, "no attribute"), (changed, "missing value for argument")])
@pytest.mark.parametrize("place", ["__init__", "__call__"])
def test_a_missing_operator_is_replaced_by_the_plain_path(monkeypatch, planted, says, place):
    monkeypatch.setattr(PackedLinear, place, planted)
    model = fresh()
    ours = optimize(model)
    assert ours.paths["products"].startswith("plain: torch ")
    assert says in ours.paths["products"]
    assert "\n" not in ours.paths["products"]
    assert max(differences(ours, model)) < 1e-5


@needs_packed
@pytest.mark.parametrize("wrong", ["activation forgotten", "bias forgotten", "addition forgotten", "one row", "nan"])
def test_a_wrong_operator_is_replaced_by_the_plain_path(monkeypatch, wrong):
    right = PackedLinear.__call__

    def planted(self, x, add=None):
        if wrong == "activation forgotten":
            self.activation = ("none", "")
        if wrong == "bias forgotten":
            self.bias_O = None
        y = right(self, x, None if wrong == "addition forgotten" else add)
        if wrong == "one row":
            y[..., -1, :] = 0
        return y * torch.nan if wrong == "nan" else y

    monkeypatch.setattr(PackedLinear, "__call__", planted)
    model = fresh()
    ours = optimize(model)
    assert "differs from the plain one" in ours.paths["products"]
    assert max(differences(ours, model)) < 1e-5


@needs_int8
def test_int8_is_refused_where_it_cannot_be_had(monkeypatch):
    model = fresh()
    with monkeypatch.context() as patched:
        patched.setattr(QuantisedLinear, "__call__", changed)
        with pytest.raises(UsageError, match=r"dtype int8 is unavailable: torch .* missing value for argument"):
            optimize(model, "int8")
    monkeypatch.setattr(fast, "no_int8", lambda device: "this processor has no int8 dot product")
    with pytest.raises(UsageError, match=r"no int8 dot product.*; use float32 or bfloat16") as refused:
        optimize(model, "int8")
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2


def test_a_processor_without_the_instruction_is_told_by_its_flags(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False, raising=False)
    assert "no int8 dot product" in fast.no_int8(torch.device("cpu"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx_vnni": True})
    assert fast.no_int8(torch.device("cpu")) is None
    assert "on cuda" in fast.no_int8(torch.device("cuda"))


# --- refusals -----------------------------------------------------------------------------------------------------


def test_what_cannot_be_honoured_is_refused():
    model = fresh()
    ours = optimize(model)
    x = pixels(1, torch.float32)
    refusals = [
        (lambda: optimize(ours), "as it was loaded, not a FastViT"),
        (lambda: optimize(torch.nn.Linear(2, 2)), "not a Linear"),
        (lambda: optimize(model, "int4"), "int4; it must be one of float32, bfloat16"),
        (lambda: optimize(model, compile=True), "for CUDA"),
        (lambda: optimize(model, graphs=True), "for CUDA"),
        (lambda: ours(x.double()), "pixels are float64; this model takes float32$"),
        (lambda: optimize(model, "bfloat16")(x.double()), "this model takes float32 or bfloat16$"),
        (lambda: ours(x.clone().requires_grad_()), "no gradients"),
        (lambda: ours.to(torch.bfloat16), "optimize it again"),
        (lambda: copy.deepcopy(ours), "cannot be copied or pickled"),
        (lambda: pickle.dumps(ours), "cannot be copied or pickled"),
        (lambda: ours.state_dict(), "save the model it was made from"),
        (lambda: ours.load_state_dict(model.state_dict(), strict=False), "takes no other weights"),
        (lambda: minivit.trace(ours, x), "use the model it was made from"),
        (lambda: minivit.trace(ours, x, keep="norm"), "use the model it was made from"),
    ]
    for call, says in refusals:
        with pytest.raises(UsageError, match=says):
            call()
    with pytest.raises(ShapeError, match="pass resample=True"):
        ours(pixels(1, torch.float32, size=(32, 24)))


def test_packing_pays_for_many_pictures_only():
    model = ViT(ViTConfig.preset("Ti/16", depth=1))  # 197 tokens a picture
    assert not pays(model, 1)
    assert not pays(model, 5)
    assert pays(model, 6)
    assert not pays(model.to("meta"), 100)


# --- the trained model in the box -------------------------------------------------------------------------------------


@needs_int8
def test_top_1_of_trained_weights_in_every_dtype(photos):
    model = minivit.load("minivit/cifar10-vit")
    x = torch.stack([minivit.preprocess(photo, model.image_spec) for photo in photos])
    with torch.no_grad():
        logits = model(x)
    for dtype, agree, limit in (("float32", 49, 1e-5), ("bfloat16", 47, 0.03), ("int8", 45, 0.1)):
        answers = optimize(model, dtype)(x).float()
        assert (answers.argmax(1) == logits.argmax(1)).sum() >= agree
        assert (answers - logits).norm() / logits.norm() < limit


def test_quick_gelu_is_silu_between_two_factors():
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    activation, factor = fast._activation_of(QuickGELU())
    torch.testing.assert_close(fast.ACTIVATIONS[activation](x * factor) / factor, QuickGELU()(x))
