"""The trace: every step by name, exact under any kernel, nothing left behind."""

from __future__ import annotations

import warnings

import pytest
import torch
from helpers.fakes import SMALL, build, pixels
from torch import nn

import minivit
from minivit import study
from minivit.errors import UsageError
from minivit.model.attention import attend_reference, attend_sdpa
from minivit.model.config import ViTConfig
from minivit.model.embed import PatchEmbed
from minivit.model.vit import ViT
from minivit.study.changes import AttendChange, at_attention
from minivit.weights.shards import save_file

EXACT = {"rtol": 0, "atol": 0}
CLOSE = {"rtol": 0, "atol": 1e-12}


def flex(q, k, v, *, scale):
    from torch.nn.attention.flex_attention import flex_attention

    if torch.__version__ < "2.7":
        pytest.skip("flex_attention of torch 2.6 takes heads of a power of two only")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it runs uncompiled, which is what is wanted here
        return flex_attention(q, k, v, scale=scale)


def online(q, k, v, *, scale):
    """A user's kernel: keys one at a time, never a matrix of probabilities, and q overwritten on the way."""
    q.mul_(scale)
    best = torch.full_like(q[..., :1], -torch.inf)
    total, mix = torch.zeros_like(best), torch.zeros_like(q)
    for i in range(k.shape[-2]):
        logit = (q * k[..., i : i + 1, :]).sum(-1, keepdim=True)
        new = torch.maximum(best, logit)
        total = total * (best - new).exp() + (logit - new).exp()
        mix = mix * (best - new).exp() + (logit - new).exp() * v[..., i : i + 1, :]
        best = new
    return mix / total


class ModuleKernel(nn.Module):
    """A kernel that is itself a module, and so a registered child of the attention."""

    def forward(self, q, k, v, *, scale):
        return attend_sdpa(q, k, v, scale=scale)


KERNELS = {"sdpa": attend_sdpa, "reference": attend_reference, "flex": flex, "user": online, "module": ModuleKernel()}


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def by_hand(model: ViT, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The forward written out once more, straight from the paper, every step under its name."""
    steps = {"embed.patches": model.patch_embed(x), "embed.tokens": model.embed(x)}
    tokens, heads = steps["embed.tokens"], model.config.heads
    for i, block in enumerate(model.blocks):
        here = {
            "norm1": nn.functional.layer_norm(tokens, tokens.shape[-1:], block.norm1.weight, block.norm1.bias, 1e-6)
        }
        projected = (here["norm1"] @ block.attn.qkv.weight.T + block.attn.qkv.bias).chunk(3, dim=-1)
        for name, part in zip("qkv", projected, strict=True):
            here[name] = torch.stack(part.chunk(heads, dim=-1), dim=1)
        here["attn.scores"] = torch.einsum("bank,bamk->banm", here["q"], here["k"]) / model.config.head_dim**0.5
        here["attn.probs"] = here["attn.scores"].exp() / here["attn.scores"].exp().sum(-1, keepdim=True)
        here["attn.mix"] = torch.einsum("banm,bamk->bank", here["attn.probs"], here["v"])
        joined = torch.cat(here["attn.mix"].unbind(1), dim=-1)
        here["attn.out"] = joined @ block.attn.proj.weight.T + block.attn.proj.bias
        here["resid_mid"] = tokens + here["attn.out"]
        here["norm2"] = block.norm2(here["resid_mid"])
        here["mlp.pre"] = block.mlp.fc1(here["norm2"])
        here["mlp.act"] = nn.functional.gelu(here["mlp.pre"])
        here["mlp.out"] = block.mlp.fc2(here["mlp.act"])
        here["resid_post"] = tokens = here["resid_mid"] + here["mlp.out"]
        steps |= {f"blocks.{i}.{name}": value for name, value in here.items()}
    steps["norm"] = model.norm(tokens)
    steps["pooled"] = steps["norm"][:, model.config.layout.prefix :].mean(1)
    steps["pooled"] = steps["norm"][:, 0] if model.config.pooling == "cls" else steps["pooled"]
    steps["logits"] = model.head(steps["pooled"])
    return steps


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["cls", "two", "none"])
def test_every_step_of_every_block_under_every_kernel(kind, kernel):
    model, x = build(kind, KERNELS[kernel]), pixels()
    expected = by_hand(model, x)
    trace = minivit.trace(model, x)
    assert list(trace) == list(expected) == study.step_names(model)
    for name, tensor in trace.items():
        torch.testing.assert_close(
            tensor, expected[name].detach(), **CLOSE, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_output_is_bit_equal_and_nothing_is_left_behind(kernel, dtype):
    model, x = build(attend=KERNELS[kernel], dtype=dtype), pixels(dtype=dtype)
    before = [dict(block.attn.__dict__) for block in model.blocks]
    with torch.no_grad():
        plain = model(x)
        with minivit.trace(model) as trace:
            traced = model(x)
    assert torch.equal(plain, traced)
    assert torch.equal(plain, trace["logits"])
    assert hooks(model) == 0
    assert [dict(block.attn.__dict__) for block in model.blocks] == before
    assert all(block.attn.attend is KERNELS[kernel] for block in model.blocks)


@pytest.mark.parametrize("kernel", KERNELS)
def test_attention_equals_transformers_eager(hf_checkpoint, kernel, monkeypatch):
    from transformers import ViTForImageClassification

    softmax = torch.nn.functional.softmax

    def wide(x, dim, dtype=None):
        # transformers asks for a float32 softmax whatever its input; rounding there would hide what is compared.
        return softmax(x, dim=dim, dtype=None if dtype is None else torch.promote_types(dtype, x.dtype))

    monkeypatch.setattr(torch.nn.functional, "softmax", wide)
    folder = hf_checkpoint()
    theirs = ViTForImageClassification.from_pretrained(folder, attn_implementation="eager").double().eval()
    ours = minivit.load(folder, dtype=torch.float64, attend=KERNELS[kernel])
    x = pixels()
    with torch.no_grad():
        expected = theirs(x, output_attentions=True).attentions
    trace = minivit.trace(ours, x, keep=["blocks.*.attn.probs", "blocks.*.attn.probs[cls]"])
    for i, probs in enumerate(expected):
        assert probs.dtype == torch.float64
        torch.testing.assert_close(trace[f"blocks.{i}.attn.probs"], probs, rtol=0, atol=1e-9)
        torch.testing.assert_close(trace[f"blocks.{i}.attn.probs[cls]"], probs[:, :, :1], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("pattern", "shape", "rows", "heads"),
    [
        ("blocks.1.attn.probs[cls]", (2, 3, 1, 17), [0], None),
        ("blocks.1.attn.probs[dist,cls]", (2, 3, 2, 17), [1, 0], None),
        ("blocks.1.attn.probs[5]", (2, 3, 1, 17), [5], None),
        ("blocks.1.attn.probs[(1,3)]", (2, 3, 1, 17), [2 + 1 * 5 + 3], None),
        ("blocks.1.attn.scores[ (2,4), 0 ; heads=2,0 ]", (2, 2, 2, 17), [16, 0], [2, 0]),
        ("blocks.1.attn.mix[heads=1]", (2, 1, 17, 7), None, [1]),
        ("blocks.1.q[patches]", (2, 3, 15, 7), list(range(2, 17)), None),
        ("blocks.1.mlp.pre[dist]", (2, 1, 37), [1], None),
        ("norm[cls]", (2, 1, 21), [0], None),
    ],
)
def test_selectors_pick_tokens_and_heads(pattern, shape, rows, heads):
    model, x = build("two"), pixels()
    name = pattern.partition("[")[0]
    whole = minivit.trace(model, x, keep=name)[name]
    trace = minivit.trace(model, x, keep=pattern)
    assert tuple(trace[name].shape) == shape
    axis = 2 if whole.ndim == 4 else 1
    expected = whole if rows is None else whole.index_select(axis, torch.tensor(rows))
    expected = expected if heads is None else expected[:, heads]
    torch.testing.assert_close(trace[name], expected, **CLOSE)


def test_patches_of_the_embedding_are_counted_without_prefix_tokens():
    model, x = build("two"), pixels()
    trace = minivit.trace(model, x, keep=["embed.patches", "embed.patches[(1,3)]"])
    assert torch.equal(trace["embed.patches[(1,3)]"][:, 0], trace["embed.patches"][:, 8])
    with pytest.raises(UsageError, match="holds the patches only"):
        minivit.trace(model, x, keep="embed.patches[cls]")


@pytest.mark.parametrize(
    ("keep", "words"),
    [
        ("blocks.*.attn.prob", "matches no step"),
        ("blocks.7.q", "matches no step"),
        ("logits[cls]", "no axis of tokens"),
        ("norm[heads=1]", "no axis of heads"),
        ("blocks.0.q[heads=3]", "heads 0 to 2"),
        ("blocks.0.q[row]", "'row' is no token or head"),
        ("blocks.0.q[-1]", "'-1' is no token or head"),
        ("blocks.0.q[", "not a name with perhaps one selector"),
        ("blocks.0.q[]", "is no token or head"),
        ("blocks.0.q[16]", "no token 16: this model has 16 tokens, 1 cls, 15 patches in 3 rows of 5"),
        ("blocks.0.q[(3,0)]", r"no token \(3, 0\)"),
        ("blocks.0.q[dist]", "no token dist"),
        ("blocks.0.q[registers]", "no token registers"),
    ],
)
def test_what_cannot_be_kept_is_refused(keep, words):
    model = build()
    with pytest.raises(UsageError, match=words):
        minivit.trace(model, pixels(), keep=keep)
    assert hooks(model) == 0


def test_a_trace_above_its_limit_is_refused_before_anything_runs(monkeypatch):
    model, x = build(), pixels()
    size = minivit.trace(model, x).nbytes
    assert minivit.trace(model, x, limit=size).nbytes == size

    def fail(*args):
        raise AssertionError("computed something")

    monkeypatch.setattr(PatchEmbed, "forward", fail)
    with pytest.raises(UsageError, match=f"would take {size:,} bytes, more than the limit of {size - 1:,}"):
        minivit.trace(model, x, limit=size - 1)
    assert hooks(model) == 0
    with pytest.raises(UsageError, match="limit is 'much'"):
        minivit.trace(model, x, limit="much")


@pytest.mark.parametrize(
    "keep", ["*", "blocks.*.attn.probs[cls]", "blocks.*.attn.mix[(0,1),5; heads=0,2]", "embed.*[patches]", "pooled"]
)
@pytest.mark.parametrize("kind", ["cls", "two", "none"])
def test_announced_bytes_are_the_bytes_held(kind, keep):
    if "cls" in keep and kind == "none":
        return
    model, x = build(kind, dtype=torch.float32), pixels(dtype=torch.float32)
    trace = minivit.trace(model, x, keep=keep)
    assert trace.nbytes == sum(tensor.untyped_storage().nbytes() for tensor in trace.values())
    assert trace.nbytes == sum(tensor.numel() * 4 for tensor in trace.values())
    with pytest.raises(UsageError, match=f"take {trace.nbytes:,} bytes"):
        minivit.trace(model, x, keep=keep, limit=trace.nbytes - 1)


def test_cls_rows_of_a_base_model_take_a_tenth_of_a_megabyte():
    """On the meta device: the shapes of a full-size run without its memory."""
    with torch.device("meta"):
        model, x = ViT(ViTConfig.preset("B/16")), torch.empty(8, 3, 224, 224)
    rows = minivit.trace(model, x, keep="blocks.*.attn.probs[cls]")
    assert rows.nbytes == 8 * 12 * 12 * 197 * 4 == 907_776  # 0.11 MB a picture
    with pytest.raises(UsageError, match=f"{8 * 12 * 12 * 197 * 197 * 4:,} bytes"):  # 22 MB a picture
        minivit.trace(model, x, keep="blocks.*.attn.probs", limit="100M")


def test_hooks_are_gone_after_an_error_in_the_forward():
    def broken(q, k, v, *, scale):
        raise RuntimeError("kernel failed")

    model = build(attend=broken)
    with pytest.raises(RuntimeError, match="kernel failed"), minivit.trace(model) as trace:
        assert hooks(model) > 20
        model(pixels())
    assert hooks(model) == 0
    assert all(block.attn.attend is broken and block.attn.__dict__["attend"] is broken for block in model.blocks)
    assert "blocks.0.norm1" in trace
    assert "blocks.0.attn.out" not in trace


def test_a_listener_comes_off_again_whatever_attend_is():
    attn = build(attend=ModuleKernel()).blocks[0].attn
    own = attn.attend
    q = torch.zeros(1, 1, 2, 4)
    with at_attention(attn, AttendChange(kernel=lambda call: call.v + 1)):
        assert torch.equal(attn.attend(q, q, q, scale=1.0), q + 1)
        assert dict(attn.named_children())["attend"] is own  # still registered, so .to(device) reaches it
    assert attn.attend is own
    assert "attend" not in attn.__dict__


def test_the_last_forward_of_several_is_kept_and_features_alone_can_be_traced():
    model = build()
    with torch.no_grad(), minivit.trace(model, keep=["norm", "logits"]) as trace:
        with pytest.raises(UsageError, match="empty"):
            _ = trace.layout
        model(pixels(seed=3))
        model.features(pixels(seed=4))
    assert list(trace) == ["norm"]
    torch.testing.assert_close(trace["norm"], model.features(pixels(seed=4)).detach(), **EXACT)


def test_another_size_of_picture_has_its_own_layout():
    model = build()
    trace = minivit.trace(model, pixels(size=(16, 56)), keep="blocks.0.attn.probs[(1,6)]", resample=True)
    assert trace.layout.grid == (2, 7)
    assert trace["blocks.0.attn.probs"].shape == (2, 3, 1, 15)
    with pytest.raises(UsageError, match="resample"):
        minivit.trace(model, resample=True)


def test_gradients_flow_when_asked_for():
    model, x = build(), pixels().requires_grad_()
    assert not minivit.trace(model, x, keep="*")["blocks.2.q"].requires_grad
    trace = minivit.trace(model, x, grad=True)
    assert all(tensor.requires_grad for tensor in trace.values())
    # From a probability that was computed beside the kernel back to the pixels, against finite differences.
    (grad,) = torch.autograd.grad(trace["blocks.2.attn.probs"][0, 1, 0, 4], x, retain_graph=True)
    step = torch.zeros_like(x)
    step[0, 2, 11, 17] = 1e-5
    ahead, behind = (minivit.trace(model, (x + s).detach(), keep="*")["blocks.2.attn.probs"] for s in (step, -step))
    slope = (ahead - behind)[0, 1, 0, 4] / 2e-5
    assert abs(slope - grad[0, 2, 11, 17]) < 1e-8
    assert abs(slope) > 1e-6
    # And from the logits back to a step on the way: the head's own weights.
    (grad,) = torch.autograd.grad(trace["logits"][1, 3], trace["pooled"])
    torch.testing.assert_close(grad[1], model.head.weight[3].detach(), **CLOSE)


def test_probabilities_of_all_layers_come_from_q_and_k():
    model, x = build("two"), pixels()
    whole = minivit.trace(model, x, keep="blocks.*.attn.probs")
    small = minivit.trace(model, x, keep=["blocks.*.q", "blocks.*.k"])
    assert len(small.attention) == len(whole.attention) == 3
    for i, probs in enumerate(whole.attention):
        torch.testing.assert_close(small.attention[i], probs, **CLOSE)
    assert len(small.attention[1:]) == 2
    assert torch.equal(small.attention[-1], small.attention[2])
    with pytest.raises(UsageError, match=r"keep blocks.*.q and blocks.*.k whole"):
        _ = minivit.trace(model, x, keep="norm").attention[0]


def test_a_name_without_selector_is_understood_when_it_is_clear():
    trace = minivit.trace(build(), pixels(), keep=["norm[cls]", "blocks.0.q[cls]", "blocks.0.q[(0,0)]"])
    assert trace["norm"] is trace["norm[cls]"]
    assert "norm" in trace
    with pytest.raises(KeyError, match=r"kept are blocks.0.q\[cls\], blocks.0.q\[\(0,0\)\]"):
        _ = trace["blocks.0.q"]


def test_a_saved_trace_comes_back_whole(tmp_path):
    model, x = build("two"), pixels()
    trace = minivit.trace(model, x, keep=["*", "blocks.*.attn.probs[dist]"])
    trace.save(tmp_path / "t.safetensors")
    back = study.Trace.load(tmp_path / "t.safetensors")
    assert list(back) == list(trace)
    assert back.layout == trace.layout
    assert back.scales == trace.scales
    assert all(torch.equal(back[name], trace[name]) for name in trace)
    with_grad = minivit.trace(model, x, grad=True)  # views of one memory, in the graph
    with_grad.save(tmp_path / "g.safetensors")
    assert torch.equal(study.Trace.load(tmp_path / "g.safetensors")["blocks.1.v"], with_grad["blocks.1.v"])
    (tmp_path / "no.safetensors").write_bytes(b"nothing")
    for name in ("no.safetensors", "missing.safetensors"):
        with pytest.raises(UsageError, match="not a trace written by minivit"):
            study.Trace.load(tmp_path / name)


def test_the_table_says_what_the_tensors_are():
    model = build()
    trace = minivit.trace(model, pixels(), keep=["pooled", "blocks.0.attn.probs[cls]"])
    lines = str(trace).splitlines()
    assert lines[0].split() == ["name", "shape", "dtype", "bytes", "mean", "std", "absmax"]
    probs = trace["blocks.0.attn.probs"]
    numbers = [f"{float(value):.4g}" for value in (probs.mean(), probs.std(correction=0), probs.abs().max())]
    assert lines[1].split() == [
        "blocks.0.attn.probs[cls]",
        "2",
        "x",
        "3",
        "x",
        "1",
        "x",
        "16",
        "float64",
        "768",
        *numbers,
    ]
    assert lines[-1] == f"2 tensors, {768 + 2 * 21 * 8:,} bytes"


def test_only_a_vit_is_traced():
    with pytest.raises(UsageError, match="is a Linear; trace needs a minivit ViT"):
        minivit.trace(nn.Linear(2, 3), keep="*")


def test_no_head_means_no_logits():
    model = build(classes=0)
    trace = minivit.trace(model, pixels())
    assert list(trace)[-2:] == ["norm", "pooled"]
    torch.testing.assert_close(trace["pooled"], model(pixels()).detach(), **EXACT)


# Names of other libraries.


# How many steps of a model of three blocks have a name in these; the others have more than 40.
FEWER = {"torchvision": 29, "transformers5-dinov3": 39}
FEWER |= {"transformers5-clip": 39, "transformers5-siglip": 39}


@pytest.mark.parametrize("library", study.ALIASES)
def test_aliases_go_both_ways(library):
    model = build()
    there = []
    for name in study.step_names(model):
        try:
            alias = study.to_alias(name, library)
        except UsageError as error:
            assert "alone" in str(error)
            continue
        assert study.from_alias(alias, library) == name
        assert study.from_alias(alias + "[cls]", library) == name + "[cls]"
        there.append(alias)
    assert len(set(there)) == len(there) >= FEWER.get(library, 41)
    with pytest.raises(UsageError, match="known are timm, torchvision, transformers4"):
        study.to_alias("norm", "flax")
    with pytest.raises(UsageError, match="no step called"):
        study.from_alias("vit.layers.0.unheard", library)


def test_some_aliases_by_heart():
    assert study.to_alias("blocks.11.attn.probs[cls]", "transformerlens") == "blocks.11.attn.hook_pattern[cls]"
    assert study.from_alias("vit.encoder.layer.7.attention.attention.query", "transformers4") == "blocks.7.q"
    assert study.from_alias("vit.layers.7.attention.q_proj", "transformers5") == "blocks.7.q"
    assert study.to_alias("blocks.7.resid_mid", "timm") == "blocks.7.norm2.input"


def heard(model: nn.Module, x: torch.Tensor, places: list[str]) -> dict[str, torch.Tensor]:
    """What passes at places of another library's model, by plain hooks."""
    found: dict[str, torch.Tensor] = {}
    handles = []
    for place in places:
        module = model.get_submodule(place.removesuffix(".input"))
        if place.endswith(".input"):
            handles.append(module.register_forward_pre_hook(lambda m, a, p=place: found.__setitem__(p, a[0])))
        else:
            keep = lambda m, a, out, p=place: found.__setitem__(p, out[0] if isinstance(out, tuple) else out)  # noqa: E731
            handles.append(module.register_forward_hook(keep))
    with torch.no_grad():
        model(x)
    for handle in handles:
        handle.remove()
    return found


def compare(trace, found, library):
    for name in trace:
        try:
            place = study.to_alias(name, library)
        except UsageError:
            continue
        if place not in found:
            continue
        theirs = found.pop(place)
        ours = trace[name] if theirs.ndim == trace[name].ndim else trace[name].transpose(1, 2).flatten(2)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")
    assert not found


def test_aliases_of_transformers_5_hold_the_same_tensors(hf_checkpoint, monkeypatch):
    from transformers import ViTForImageClassification

    folder = hf_checkpoint()
    theirs = ViTForImageClassification.from_pretrained(folder).double().eval()
    ours, x = minivit.load(folder, dtype=torch.float64), pixels()
    trace = minivit.trace(ours, x)
    aliases = [study.to_alias(name, "transformers5") for name in trace if not name.endswith("attn.scores")]
    found = heard(theirs, x, [alias for alias in aliases if not alias.startswith("attentions")])
    assert len(found) == len(study.step_names(ours)) - 2 * 3
    compare(trace, found, "transformers5")


def test_aliases_of_timm_hold_the_same_tensors():
    from timm.models.vision_transformer import VisionTransformer

    theirs = VisionTransformer(
        img_size=(24, 40), patch_size=8, embed_dim=21, depth=3, num_heads=3, mlp_ratio=37 / 21, num_classes=5
    )
    theirs = theirs.double().eval()
    for block in theirs.blocks:
        block.attn.fused_attn = False  # else no module of timm sees a probability
    ours, x = build(), pixels()
    state = {name: tensor for name, tensor in theirs.state_dict().items() if not name.startswith("patch_embed")}
    state |= {f"patch_embed.{name}": tensor for name, tensor in theirs.patch_embed.proj.state_dict().items()}
    ours.load_state_dict(state)
    trace = minivit.trace(ours, x)
    names = [name for name in trace if not name.endswith(("attn.scores", ".v"))]
    found = heard(theirs, x, [study.to_alias(name, "timm") for name in names])
    assert len(found) == len(names) == len(study.step_names(ours)) - 2 * SMALL["depth"]
    compare(trace, found, "timm")


FAMILIES = {
    "distilled": {"dist_token": True, "pooling": "cls&dist"},
    "registers, class and mean": {"registers": 3, "pooling": "cls+mean", "layer_scale": True, "any_size": True},
    "norm of what is pooled, projection": {"norm_pre": True, "norm": "pooled", "classes": 0, "projection": 17},
    "no class token, attention pool": {"cls_token": False, "pooling": "map", "classes": 0},
    "rotary positions, gated": {"positions": "rope", "registers": 2, "mlp": "swiglu", "width": 28, "heads": 7},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_traced_to_the_byte_and_under_its_own_tokens(family):
    """Bytes are foretold exactly, the answer is the model's, and attention is what the kernel worked with."""
    torch.manual_seed(3)
    sizes = {"image_size": (24, 40), "patch_size": 8, "width": 26, "depth": 2, "heads": 2, "mlp_width": 19}
    sizes |= {"classes": 5}
    model = minivit.ViT(minivit.ViTConfig(**{**sizes, **FAMILIES[family]})).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    pixels = torch.randn(2, 3, 24, 40, dtype=torch.float64)
    t = minivit.trace(model, pixels)
    assert torch.equal(t["logits" if model.config.classes else "pooled"], model(pixels))
    assert t.nbytes == minivit.trace(model, pixels, limit=t.nbytes).nbytes
    with pytest.raises(UsageError, match=f"{t.nbytes:,} bytes, more than"):
        minivit.trace(model, pixels, limit=t.nbytes - 1)
    for i in range(2):
        mix = t[f"blocks.{i}.attn.probs"] @ t[f"blocks.{i}.v"]
        torch.testing.assert_close(mix, t[f"blocks.{i}.attn.mix"], rtol=0, atol=1e-12)
    maps = study.rollout(t.attention, t.layout, query="mean")
    assert maps.shape == (2, 3, 5)
    if model.config.classes:
        assert study.legrad(model, pixels).shape == (2, 3, 5)
        assert study.relevance(model, pixels, query="mean").shape == (2, 3, 5)


def test_a_file_of_tensors_is_one_of_safetensors_and_may_replace_the_one_they_are_mapped_from(tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file

    x = torch.arange(12.0).view(3, 4)
    tensors = {"b": x.T, "a": x[1:], "c": x.bfloat16(), "one": x[0, 1].double(), "none": torch.empty(0, 5).half()}
    kept = tensors
    for _ in range(2):
        save_file(kept, tmp_path / "x.safetensors", {"key": "value"})
        kept = load_file(tmp_path / "x.safetensors")
        assert kept.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert kept[name].dtype == tensor.dtype and torch.equal(kept[name], tensor), name
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert file.metadata() == {"key": "value"}
    with pytest.raises(OSError):
        save_file(tensors, tmp_path / "nowhere" / "x.safetensors", {})
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
