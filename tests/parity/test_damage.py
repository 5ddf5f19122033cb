"""Damaged and dishonest checkpoints: one clear line, exit code 5, never a wrong answer."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SAFE_TO_UNPICKLE
from safetensors.torch import load_file, save_file
from torch import Tensor

import minivit
from minivit import CheckpointError, UsageError
from minivit.cli import main
from minivit.weights import describe

WEIGHTS = "model.safetensors"
CLS = "vit.embeddings.cls_token"
QUERY = "vit.encoder.layer.0.attention.attention.query"


@pytest.fixture
def copy(hf_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A small checkpoint of transformers in a folder of its own, to be damaged."""
    return Path(shutil.copytree(hf_checkpoint(), tmp_path / "copy"))


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def drop_config(folder: Path, *keys: str) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key not in keys}))


def edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> dict[str, Tensor]:
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / WEIGHTS).items()}
    edit(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
    return tensors


def copied(model: torch.nn.Module) -> dict[str, Tensor]:
    """The weights in memory of their own: a loaded model shares its memory with its file."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def refusal(folder: Path, **options: Any) -> str:
    """The message of the refusal, which is one line that names the model or its file."""
    with pytest.raises(CheckpointError) as caught:
        minivit.load(folder, **options)
    text = str(caught.value)
    assert str(folder) in text
    assert "\n" not in text
    assert caught.value.exit_code == 5
    return text


# --- bytes


def header_of(data: bytes) -> int:
    return 8 + struct.unpack("<Q", data[:8])[0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:5],
        lambda data: data[: header_of(data) // 2],
        lambda data: data[: header_of(data)],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: struct.pack("<Q", len(data) * 2) + data[8:],
        lambda data: struct.pack("<Q", 2**63) + data[8:],
        lambda data: b"\x89PNG\r\n\x1a\n" + data[8:],
        lambda data: data[:8] + b"[" + data[9:],
        lambda data: bytes(len(data)),
        lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    ],
    ids=[
        *("empty", "5 bytes", "half a header", "header alone", "last byte", "a byte more", "header longer than file"),
        *("header of 2**63", "magic of PNG", "list for header", "zeros", "pointer of git-lfs"),
    ],
)
def test_damaged_bytes(copy: Path, damage: Callable[[bytes], bytes]) -> None:
    path = copy / WEIGHTS
    path.write_bytes(damage(path.read_bytes()))
    assert "model.safetensors: not a whole safetensors file" in refusal(copy)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        describe(copy)


def raw_safetensors(entries: list[tuple[str, dict[str, Any]]], data: bytes) -> bytes:
    header = "{" + ",".join(f"{json.dumps(name)}:{json.dumps(entry)}" for name, entry in entries) + "}"
    return struct.pack("<Q", len(header)) + header.encode() + data


def test_a_name_twice_in_one_header(copy: Path) -> None:
    """JSON readers keep the last of two equal keys; the hole that leaves in the data is what gives it away."""
    entries = [
        (CLS, {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}),
        (CLS, {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}),
    ]
    (copy / WEIGHTS).write_bytes(raw_safetensors(entries, bytes(8)))
    assert "not a whole safetensors file" in refusal(copy)


def test_overlapping_tensors(copy: Path) -> None:
    entries = [(name, {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}) for name in ("a", "b")]
    (copy / WEIGHTS).write_bytes(raw_safetensors(entries, bytes(4)))
    assert "not a whole safetensors file" in refusal(copy)


# --- tensors


def test_every_fault_is_named_at_once(copy: Path) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        del tensors[f"{QUERY}.bias"], tensors["vit.layernorm.weight"]
        tensors["vit.encoder.layer.0.extra.weight"], tensors["scale"] = torch.ones(2), torch.ones(2)
        tensors[CLS] = torch.zeros(1, 1, 90)
        tensors["classifier.weight"] = tensors["classifier.weight"].T
        tensors["vit.layernorm.bias"] = tensors["vit.layernorm.bias"].to(torch.int32)

    edit_tensors(copy, edit)
    text = refusal(copy)
    for part in (
        "2 missing: ",
        "encoder.layer.0.attention.attention.query.bias",
        "layernorm.weight",
        "2 unexpected: scale, vit.encoder.layer.0.extra.weight",
        "3 mismatched: ",
        f"{CLS} is [1, 1, 90], expected [1, 1, 91]",
        "classifier.weight is [91, 11], expected [11, 91]",
        "vit.layernorm.bias is I32, expected F64/F32/F16/BF16",
    ):
        assert part in text


@pytest.mark.parametrize("part", [f"{QUERY}.weight", "vit.encoder.layer.1.attention.attention.value.bias", CLS])
def test_one_missing_tensor(copy: Path, part: str) -> None:
    edit_tensors(copy, lambda tensors: tensors.pop(part))
    text = refusal(copy)
    assert f"1 missing: {part.removeprefix('vit.')}" in text
    assert "unexpected" not in text
    assert "mismatched" not in text


def test_long_lists_are_cut(copy: Path) -> None:
    edit_tensors(copy, lambda tensors: tensors.update({f"extra.{i:02}": torch.ones(1) for i in range(20)}))
    text = refusal(copy)
    assert "20 unexpected: extra.00" in text
    assert "extra.11 and 8 more" in text
    assert "extra.12" not in text


def test_the_same_tensor_under_two_names(copy: Path) -> None:
    """With and without the prefix; in the old and in the new spelling."""
    edit_tensors(copy, lambda tensors: tensors.update({CLS.removeprefix("vit."): tensors[CLS].clone()}))
    assert "tensors with and without 'vit.': " in refusal(copy)
    edit_tensors(copy, lambda tensors: tensors.pop(CLS.removeprefix("vit.")))
    minivit.load(copy)
    new = "vit.layers.0.attention.q_proj.weight"
    edit_tensors(copy, lambda tensors: tensors.update({new: tensors[f"{QUERY}.weight"].clone()}))
    assert f"1 unexpected: {new}" in refusal(copy)


def test_the_order_of_the_names_in_the_file_means_nothing(copy: Path) -> None:
    before = copied(minivit.load(copy))
    tensors = load_file(copy / WEIGHTS)
    entries, data = [], b""
    for name in reversed(list(tensors)):
        part = bytes(tensors[name].flatten().view(torch.uint8).tolist())
        offsets = [len(data), len(data) + len(part)]
        entries.append((name, {"dtype": "F32", "shape": list(tensors[name].shape), "data_offsets": offsets}))
        data += part
    (copy / WEIGHTS).write_bytes(raw_safetensors(entries, data))
    after = minivit.load(copy).state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [f"{QUERY}.weight", "classifier.bias"])
def test_not_finite(copy: Path, name: str, value: float) -> None:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[name].view(-1)[-1] = value

    edit_tensors(copy, edit)
    text = refusal(copy)
    assert name in text
    assert "holds NaN or infinity; the file is damaged" in text


def test_too_large_for_half_precision(copy: Path) -> None:
    """70000 fits float32 and bfloat16; float16 ends at 65504."""

    def edit(tensors: dict[str, Tensor]) -> None:
        tensors["classifier.bias"][3] = 70000.0

    edit_tensors(copy, edit)
    text = refusal(copy, dtype=torch.float16)
    assert "classifier.bias is too large for torch.float16; load it as float32 or bfloat16" in text
    assert minivit.load(copy).head.bias[3] == 70000
    assert minivit.load(copy, dtype=torch.bfloat16).head.bias[3] == torch.tensor(70000.0, dtype=torch.bfloat16)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_load_as_their_rounded_weights(copy: Path, stored: torch.dtype) -> None:
    whole = copied(minivit.load(copy))
    edit_tensors(copy, lambda tensors: tensors.update({name: t.to(stored) for name, t in tensors.items()}))
    for asked in (torch.float32, stored):
        model = minivit.load(copy, dtype=asked)
        for name, tensor in model.state_dict().items():
            assert tensor.dtype == asked and torch.equal(tensor, whole[name].to(stored).to(asked)), name
    assert describe(copy)["weights"]["dtypes"] == [
        {"float16": "F16", "bfloat16": "BF16", "float64": "F64"}[str(stored)[6:]]
    ]


def test_parts_of_one_parameter_in_different_precisions(copy: Path) -> None:
    """Queries in half precision beside keys and values in full: each is taken as it is stored."""
    whole = copied(minivit.load(copy))["blocks.0.attn.qkv.weight"]
    edit_tensors(copy, lambda tensors: tensors.update({f"{QUERY}.weight": tensors[f"{QUERY}.weight"].half()}))
    mixed = minivit.load(copy).state_dict()["blocks.0.attn.qkv.weight"]
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed[:91], whole[:91].half().float())
    assert torch.equal(mixed[91:], whole[91:])


# --- config.json


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"hidden_size": 84}, "expected [1, 1, 84]"),
        ({"num_hidden_layers": 2}, "16 unexpected: vit.encoder.layer.2."),
        ({"num_hidden_layers": 4}, "16 missing: encoder.layer.3."),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000; the weights have only"),
        ({"num_hidden_layers": 0}, "depth is 0; it must be at least 1"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers = '3'; expected a value like 12"),
        ({"hidden_size": 7 * 10**15}, "config.json makes no ViT"),
        ({"num_attention_heads": 8}, "width 91 is not divisible by 8 heads"),
        ({"num_attention_heads": 7.0}, "num_attention_heads = 7.0; expected a value like 12"),
        ({"intermediate_size": 103}, "expected [103, 91]"),
        ({"patch_size": 4}, "expected [91, 3, 4, 4]"),
        ({"patch_size": 7}, "projection.weight is [91, 3, 8, 8], expected [91, 3, 7, 7]"),
        ({"patch_size": [8, 4]}, "patch_size = [8, 4]; patches must be square"),
        ({"patch_size": []}, "patch_size = []; expected pixels"),
        ({"patch_size": 0}, "patch_size is 0"),
        ({"image_size": 40}, "vit.embeddings.position_embeddings is [1, 16, 91], expected [1, 26, 91]"),
        ({"image_size": "24x40"}, "image_size = '24x40'; expected pixels"),
        ({"image_size": [24, 40, 3]}, "image_size = [24, 40, 3]; expected pixels"),
        ({"image_size": None}, "image_size = None; expected pixels"),
        ({"num_channels": 1}, "expected [91, 1, 8, 8]"),
        ({"num_channels": True}, "num_channels = True"),
        ({"layer_norm_eps": "1e-12"}, "layer_norm_eps = '1e-12'; expected a value like 1e-12"),
        ({"layer_norm_eps": 0}, "eps is 0; it must lie between 0 and 1"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps = nan"),
        ({"qkv_bias": False}, "unexpected: vit.encoder.layer.0.attention.attention.key.bias"),
        ({"qkv_bias": "no"}, "qkv_bias = 'no'; expected a value like true"),
        ({"hidden_act": "swish9"}, "hidden_act = 'swish9'; known are gelu"),
        ({"hidden_act": ["gelu"]}, "hidden_act = ['gelu']"),
        ({"model_type": "bert"}, "model_type 'bert'; known are clip, clip_vision_model, deit"),
        ({"model_type": None}, "model_type None"),
        ({"architectures": ["ViTForMaskedImageModeling"]}, "architectures = ['ViTForMaskedImageModeling']; known are"),
        ({"architectures": "ViTModel"}, "architectures = 'ViTModel'"),
        ({"architectures": {"a": 1}}, "architectures = {'a': 1}"),
        ({"architectures": [["ViTModel"]]}, "architectures = [['ViTModel']]"),
        ({"architectures": ["ViTModel"]}, "2 unexpected: classifier.bias, classifier.weight"),
        ({"id2label": {"0": "a", "1": "b"}}, "classifier.weight is [11, 91], expected [2, 91]"),
        ({"id2label": {}}, "2 unexpected: classifier.bias, classifier.weight"),
        ({"id2label": ["a"] * 11}, "an id2label that does not map numbers to names"),
        ({"id2label": dict.fromkeys(map(str, range(11)))}, "an id2label that does not map numbers to names"),
        (
            {"id2label": {str(i) if i < 10 else "ten": "x" for i in range(11)}},
            "the id2label key 'ten', expected numbers",
        ),
        ({"id2label": {str(i + (i > 4)): "x" for i in range(11)}}, "not 0 to 10; missing: 5"),
        ({"id2label": {str(i - 1): "x" for i in range(11)}}, "not 0 to 10; missing: 10"),
    ],
    ids=str,
)
def test_wrong_config(copy: Path, changes: dict[str, Any], message: str) -> None:
    edit_config(copy, **changes)
    assert message in refusal(copy)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '"vit"', "null", "\x00", "[" * 100_000, "\ufeff{}"])
def test_config_that_is_no_object(copy: Path, text: str) -> None:
    (copy / "config.json").write_text(text, encoding="utf-8")
    assert "config.json" in refusal(copy)
    (copy / "config.json").write_bytes(b"\xff\xfe{}")
    assert "config.json: not readable as JSON" in refusal(copy)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]"])
def test_preprocessor_that_is_no_object(copy: Path, text: str) -> None:
    (copy / "preprocessor_config.json").write_text(text)
    assert "preprocessor_config.json" in refusal(copy)


def test_preprocessor_that_cannot_be_honoured(copy: Path) -> None:
    (copy / "preprocessor_config.json").write_text(json.dumps({"size": "large"}))
    assert "preprocessor_config.json has size = 'large'" in refusal(copy)


def test_missing_keys_take_the_defaults_of_transformers(tmp_path: Path) -> None:
    """A config.json of one key: what transformers writes for its own defaults, shrunk by the two keys given."""
    from transformers import ViTConfig, ViTModel

    ViTModel(ViTConfig(num_hidden_layers=1, intermediate_size=5)).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit", "num_hidden_layers": 1, "intermediate_size": 5}')
    c = minivit.load(tmp_path).config
    assert (c.image_size, c.patch_size, c.channels, c.width, c.heads) == ((224, 224), 16, 3, 768, 12)
    assert (c.depth, c.mlp_width, c.eps, c.activation, c.qkv_bias, c.pooler) == (1, 5, 1e-12, "gelu", True, True)


def test_classes_without_id2label_are_counted_in_the_file(copy: Path) -> None:
    drop_config(copy, "id2label", "label2id", "architectures")
    model = minivit.load(copy)
    assert model.config.classes == 11
    assert model.labels is None


def test_placeholder_labels_are_no_labels(copy: Path) -> None:
    assert minivit.load(copy).labels is None  # transformers wrote LABEL_0 ... LABEL_10
    names = {str(index): f"LABEL_{index}" for index in reversed(range(11))}
    edit_config(copy, id2label={**names, "7": "heron"})
    labels = minivit.load(copy).labels
    assert labels is not None
    assert list(labels) == list(range(11))
    assert labels[7] == "heron"
    assert labels[0] == "LABEL_0"


# --- where the files should be


def test_missing_files(copy: Path) -> None:
    (copy / "config.json").rename(copy / "config.bak")
    assert "config.json: missing; it says what the tensors in model.safetensors are" in refusal(copy)
    with pytest.raises(CheckpointError, match=r"config\.json: missing"):
        minivit.load(copy / WEIGHTS)
    (copy / "config.bak").rename(copy / "config.json")
    (copy / WEIGHTS).unlink()
    assert "no weights in this folder; expected one of model.safetensors" in refusal(copy)


def test_an_unreadable_file(copy: Path) -> None:
    if not os.geteuid():
        pytest.skip("root may read everything")
    (copy / WEIGHTS).chmod(0)
    assert "model.safetensors: no permission to read it" in refusal(copy)


def shard(folder: Path, parts: int = 3) -> dict[str, str]:
    """Split model.safetensors into shards with an index; returns the weight map."""
    tensors = load_file(folder / WEIGHTS)
    names = sorted(tensors)
    weight_map = {name: f"model-{i % parts + 1:05}-of-{parts:05}.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(weight_map.values())):
        save_file({name: tensors[name] for name in names if weight_map[name] == file}, folder / file)
    (folder / WEIGHTS).unlink()
    write_index(folder, weight_map)
    return weight_map


def write_index(folder: Path, weight_map: object) -> None:
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_shards_are_one_checkpoint(copy: Path) -> None:
    whole = copied(minivit.load(copy))
    shard(copy)
    sharded = minivit.load(copy).state_dict()
    assert all(torch.equal(tensor, sharded[name]) for name, tensor in whole.items())
    by_index = minivit.load(copy / f"{WEIGHTS}.index.json")
    assert by_index.head is not None
    assert torch.equal(by_index.head.weight, whole["head.weight"])
    assert describe(copy)["weights"]["files"] == 3


def test_a_missing_shard(copy: Path) -> None:
    shard(copy)
    (copy / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors: missing, though the index lists it" in refusal(copy)


def test_a_shard_the_index_forgot(copy: Path) -> None:
    weight_map = shard(copy)
    write_index(copy, {name: file for name, file in weight_map.items() if "00002" not in file})
    assert "missing: " in refusal(copy)


def test_a_tensor_in_two_shards(copy: Path) -> None:
    weight_map = shard(copy)
    name = next(name for name, file in weight_map.items() if "00001" in file)
    other = copy / "model-00003-of-00003.safetensors"
    save_file({**load_file(other), name: torch.zeros(2)}, other)
    assert f"tensor {name} is in another shard too" in refusal(copy)


@pytest.mark.parametrize(
    "file", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "evil.bin", 7, None], ids=repr
)
def test_a_shard_that_is_no_file_of_the_folder(copy: Path, file: object) -> None:
    write_index(copy, {CLS: file})
    (copy / WEIGHTS).unlink()
    assert "is not the plain name of a .safetensors file" in refusal(copy)


@pytest.mark.parametrize("weight_map", [{}, [], None, "x"])
def test_an_index_without_a_map(copy: Path, weight_map: object) -> None:
    write_index(copy, weight_map)
    (copy / WEIGHTS).unlink()
    assert "no weight_map" in refusal(copy)


# --- pickles


def as_pickle(folder: Path, value: object | None = None, **options: Any) -> Path:
    """pytorch_model.bin in the place of model.safetensors."""
    path = folder / "pytorch_model.bin"
    torch.save(load_file(folder / WEIGHTS) if value is None else value, path, **options)
    (folder / WEIGHTS).unlink()
    return path


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_plain_pickle_loads(copy: Path, zipped: bool) -> None:
    whole = copied(minivit.load(copy))
    as_pickle(copy, _use_new_zipfile_serialization=zipped)
    loaded = minivit.load(copy).state_dict()
    assert all(torch.equal(tensor, loaded[name]) for name, tensor in whole.items())
    assert describe(copy)["weights"]["dtypes"] == ["F32"]


def test_safetensors_is_taken_before_a_pickle(copy: Path) -> None:
    (copy / "pytorch_model.bin").write_bytes(b"never read")
    minivit.load(copy)


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_malicious_pickle_does_not_run(copy: Path, tmp_path: Path, zipped: bool) -> None:
    sprung = tmp_path / "sprung"
    as_pickle(copy, {CLS: Trap(sprung)}, _use_new_zipfile_serialization=zipped)
    text = refusal(copy)
    assert not sprung.exists()
    assert "pytorch_model.bin: not a whole PyTorch file of plain tensors" in text
    assert "weights_only" not in text  # the advice to switch the safety off is not passed on
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(sprung)))
    assert "not a whole PyTorch file of plain tensors" in refusal(copy)
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists()  # the trap itself works


@pytest.mark.parametrize("version", ["2.6.0", "2.9.1+cu128", "2.9.0a0+git123"])
def test_pickles_are_refused_where_they_are_unsafe(copy: Path, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    as_pickle(copy)
    monkeypatch.setattr("minivit.weights.shards.SAFE_TO_UNPICKLE", SAFE_TO_UNPICKLE)
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("was read"))
    text = refusal(copy)
    assert f"a pickle is not safe to read with torch {version}" in text
    assert "update to torch 2.10" in text


@pytest.mark.parametrize(
    "value",
    [
        [torch.ones(2)],
        {"model": {CLS: torch.ones(2)}},
        {1: torch.ones(2)},
        {"step": 3},
        {CLS: torch.eye(3).to_sparse()},
    ],
    ids=["list", "nested", "number for name", "number for tensor", "sparse"],
)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_pickle_of_something_else(copy: Path, value: object) -> None:
    as_pickle(copy, value)
    assert "pytorch_model.bin" in refusal(copy)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_pickle_cut_off(copy: Path, share: float) -> None:
    path = as_pickle(copy)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert "pytorch_model.bin: not a whole PyTorch file" in refusal(copy)


# --- the call


def test_an_unknown_family(copy: Path) -> None:
    with pytest.raises(UsageError, match="no family 'resnet'; known are "):
        minivit.load(copy, family="resnet")


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: (folder / WEIGHTS).write_bytes(b"PK"), "not a whole safetensors file"),
        (lambda folder: edit_config(folder, num_hidden_layers=2), "the tensors do not fit config.json"),
        (lambda folder: (folder / "config.json").write_text("[]"), "holds a list, expected an object"),
        (lambda folder: (folder / WEIGHTS).unlink(), "no weights in this folder"),
    ],
    ids=["bytes", "tensors", "config", "files"],
)
def test_exit_code_and_one_line(
    copy: Path, damage: Callable[[Path], object], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(copy)
    for arguments in (["info", str(copy)], ["classify", "--model", str(copy), "a.jpg"]):
        assert main(arguments) == 5
        out, err = capsys.readouterr()
        assert not out
        assert err.startswith("minivit: ")
        assert err.count("\n") == 1
        assert message in err


def test_exit_code_and_one_line_from_the_whole_program(copy: Path) -> None:
    (copy / WEIGHTS).write_bytes((copy / WEIGHTS).read_bytes()[:-7])
    command = [sys.executable, "-m", "minivit", "classify", "--model", str(copy), "a.jpg"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr.startswith("minivit: ")
    assert done.stderr.count("\n") == 1
    assert "not a whole safetensors file" in done.stderr
