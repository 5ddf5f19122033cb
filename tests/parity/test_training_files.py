"""Files as training tools leave them: which weights count, what stands around them, and adapters beside a base."""

from __future__ import annotations

import argparse
import json

import pytest
import torch
from safetensors.torch import save_file

import minivit
from minivit.errors import CheckpointError, ModelUnavailableError, UsageError

ARGS = {"img_size": 24, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
X = torch.randn(2, 3, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def timm_model(seed, **args):
    import timm

    torch.manual_seed(seed)
    model = timm.create_model("vit_base_patch16_224", **{"num_classes": 5, **ARGS, **args}).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2)
    return model


def written(folder, content, name="model_best.pth"):
    config = {"architecture": "vit_base_patch16_224", "num_classes": 5, "model_args": ARGS}
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(content, folder / name)
    return folder / name


def logits(model):
    with torch.no_grad():
        return model.double()(X)


def load(path, **options):
    return minivit.load(path, dtype=torch.float64, **options)


def state(seed, before=""):
    return {before + name: tensor for name, tensor in timm_model(seed).state_dict().items()}


@pytest.mark.parametrize(
    ("content", "kept"),
    [
        ({"state_dict": 1, "state_dict_ema": 2, "epoch": 3}, 2),
        ({"state_dict": 1, "model_ema": 2}, 2),
        ({"model": 1, "state_dict": 2}, 2),
        ({"model": 1, "state_dict_ema": None}, 1),
    ],
)
def test_timm_s_choice_among_several_weights(tmp_path, content, kept):
    import timm

    content = {key: state(seed) if seed in (1, 2) else seed for key, seed in content.items()}
    path = written(tmp_path, content)
    theirs = timm_model(9)
    timm.models.load_checkpoint(theirs, str(path))
    ours = load(path)
    assert torch.allclose(logits(ours), logits(theirs), atol=1e-12)
    assert torch.allclose(logits(ours), logits(timm_model(kept)), atol=1e-12)
    assert bool(ours.notes) is (sum(isinstance(value, dict) for value in content.values()) > 1)


@pytest.mark.parametrize("before", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."])
def test_prefixes_of_training_tools_are_left_out_and_said(tmp_path, before):
    ours = load(written(tmp_path, {"state_dict": state(1, before), "args": argparse.Namespace(lr=0.1)}))
    assert torch.allclose(logits(ours), logits(timm_model(1)), atol=1e-12)
    assert "left out before the names" in " ".join(ours.notes)


def test_other_prefixes_are_asked_for(tmp_path):
    path = written(tmp_path, {"state_dict": {**state(1, "model."), "criterion.weight": torch.ones(3)}})
    with pytest.raises(CheckpointError):
        load(path)
    assert torch.allclose(logits(load(path, prefix="model.")), logits(timm_model(1)), atol=1e-12)
    with pytest.raises(CheckpointError, match="no tensor's name begins with the prefix"):
        load(path, prefix="net.")
    path = written(tmp_path, {"state_dict": state(1, "model.")})
    with pytest.raises(CheckpointError, match=r"prefix 'model\.' takes them"):
        load(path)


def test_an_unknown_key_is_named_and_taken_on_request(tmp_path):
    path = written(tmp_path, {"model_state_dict": state(1), "epoch": 1})
    with pytest.raises(CheckpointError, match=r"'model_state_dict\.'"):
        load(path)
    assert torch.allclose(logits(load(path, prefix="model_state_dict.")), logits(timm_model(1)), atol=1e-12)


# --- files of facebook's repositories, whose shapes do not say how many heads there are ------------------------


def test_heads_that_nothing_states_are_asked_for(tmp_path):
    model = timm_model(1, embed_dim=128, num_heads=4, num_classes=0)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "checkpoint.pth")
    with pytest.raises(CheckpointError, match="give heads"):
        load(tmp_path / "checkpoint.pth", family="facebook")
    ours = load(tmp_path / "checkpoint.pth", family="facebook", heads=4)
    assert torch.allclose(ours.features(X), model.double().forward_features(X), atol=1e-12)
    with pytest.raises(CheckpointError, match="not divisible by 5 heads"):
        load(tmp_path / "checkpoint.pth", family="facebook", heads=5)


def test_heads_are_for_files_that_do_not_state_them(tmp_path):
    with pytest.raises(UsageError, match="heads is 3; the files of family timm state theirs"):
        load(written(tmp_path, state(1)), heads=3)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_heads_of_deit_and_mae_files_are_kept(tmp_path, pool):
    model = timm_model(1, embed_dim=128, num_heads=2, num_classes=7, global_pool=pool)
    path = tmp_path / ("mae_finetuned_vit_base.pth" if pool == "avg" else "deit_small_patch16_224.pth")
    torch.save({"model": model.state_dict()}, path)
    assert torch.allclose(logits(load(path, family="facebook")), logits(model), atol=1e-12)


def test_maes_huge_model_has_16_heads(tmp_path):
    model = timm_model(1, embed_dim=1280, depth=1, num_heads=16, num_classes=0)
    torch.save({"model": model.state_dict()}, tmp_path / "mae_pretrain_vit_huge.pth")
    ours = load(tmp_path / "mae_pretrain_vit_huge.pth", family="facebook")
    assert ours.config.heads == 16
    assert torch.allclose(ours.features(X), model.double().forward_features(X), atol=1e-9)


# --- LoRA -----------------------------------------------------------------------------------------------------

SIZES = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40}
Q, FC = "vit.layers.{}.attention.q_proj", "vit.layers.{}.mlp.fc1"


@pytest.fixture
def base(tmp_path):
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(4)
    model = ViTForImageClassification(ViTConfig(**SIZES, image_size=24, patch_size=8, num_labels=5)).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.2)
    model.save_pretrained(tmp_path / "base")
    return tmp_path / "base", model


def adapter(folder, **words):
    """Write an adapter of q and fc1 of every block with a head of its own; return {module: (A, B)} and that head."""
    g = torch.Generator().manual_seed(5)
    rank = {"q_proj": 4, "fc1": 2}
    parts = {}
    for i in range(3):
        for module, size in ((Q.format(i), 24), (FC.format(i), 40)):
            r = rank[module.rpartition(".")[2]]
            parts[module] = torch.randn(r, 24, generator=g), torch.randn(size, r, generator=g)
    head = torch.randn(5, 24, generator=g), torch.randn(5, generator=g)
    tensors = {"classifier.weight": head[0], "classifier.bias": head[1]}
    for module, (a, b) in parts.items():
        tensors |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    folder.mkdir(exist_ok=True)
    save_file({f"base_model.model.{name}": t for name, t in tensors.items()}, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "rank_pattern": {"fc1": 2}, "alpha_pattern": {"fc1": 5}}
    settings |= {"target_modules": ["q_proj", "fc1"], "modules_to_save": ["classifier"], **words}
    (folder / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "org/base"}))
    return parts, head


@pytest.mark.parametrize("rslora", [False, True])
def test_an_adapter_is_merged(base, tmp_path, rslora):
    folder, model = base
    parts, head = adapter(tmp_path / "adapter", use_rslora=rslora)
    model.double()
    with torch.no_grad():
        for module, (a, b) in parts.items():
            rank, alpha = (2, 5) if module.endswith("fc1") else (4, 6)
            scale = alpha / (rank**0.5 if rslora else rank)
            model.get_submodule(module).weight += scale * (b.double() @ a.double())
        model.classifier.weight.copy_(head[0])
        model.classifier.bias.copy_(head[1])
        expected = model(X).logits
    assert torch.allclose(logits(load(folder, adapter=tmp_path / "adapter")), expected, atol=1e-9)
    adapter(folder, use_rslora=rslora)  # beside the weights
    ours = load(folder)
    assert torch.allclose(logits(ours), expected, atol=1e-9)
    assert "adapter is merged" in ours.notes[0]


def test_adapters_that_cannot_be_merged_are_refused(base, tmp_path):
    folder, _ = base
    adapter(tmp_path / "a")
    with pytest.raises(CheckpointError, match=r"only an adapter of 'org/base'; load that model with adapter="):
        load(tmp_path / "a")
    with pytest.raises(ModelUnavailableError, match=r"no adapter, which would be a folder with adapter_config.json"):
        load(folder, adapter=tmp_path / "nowhere")
    for words, why in (({"use_dora": True}, "use_dora is True"), ({"peft_type": "IA3"}, "peft_type is 'IA3'")):
        adapter(tmp_path / "a", **words)
        with pytest.raises(CheckpointError, match=why):
            load(folder, adapter=tmp_path / "a")
    adapter(tmp_path / "a")
    other = {"base_model.model.vit.layers.7.mlp.fc1.lora_A.weight": torch.ones(4, 24)}
    save_file(other, tmp_path / "a" / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=r"tensors for no part of the model: vit.layers.7"):
        load(folder, adapter=tmp_path / "a")
