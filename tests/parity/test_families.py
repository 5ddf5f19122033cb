"""Every family of published checkpoints against the library that defines it."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path

import pytest
import torch
from helpers import references
from helpers.references import (
    CASES,
    Case,
    Reference,
    blocks_of,
    differences,
    ids_of,
    pixels_of,
    run_minivit,
    run_reference,
)
from safetensors.torch import load_file, save_file

import minivit
from minivit.errors import CheckpointError, UsageError
from minivit.model.clip import CLIP
from minivit.model.config import TokenLayout, ViTConfig
from minivit.model.embed import resample_positions
from minivit.weights.families.registry import FAMILIES, LAYOUTS
from minivit.weights.operations import OPERATIONS

SMALL = [case for case in CASES if not case.full_size]

# Every reference keeps its float64 results in the same places; where it differs, it means something else.
EXACT = 1e-9


def by_id(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.id)


_made: dict[str, Reference] = {}


@pytest.fixture
def reference(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    if case.id not in _made:
        _made[case.id] = case.make(tmp_path_factory.mktemp("reference"))
    return _made[case.id]


def test_every_family_has_a_case():
    assert {case.family for case in CASES} == set(FAMILIES)


NEW_FAMILY = """
from dataclasses import replace
from minivit.weights.families.transformers.vit import VIT

REGISTER = (replace(VIT, name="{name}", saved=False, steps={{"a library": {{"norm": "last_norm"}}}}),)
"""


def test_a_new_family_is_one_new_file(hf_checkpoint, tmp_path, monkeypatch):
    """A file beside the others is found, named by config.json's model_type, and loads."""
    from minivit.weights import families
    from minivit.weights.families import registry

    (tmp_path / "families").mkdir()
    (tmp_path / "families" / "invented.py").write_text(NEW_FAMILY.format(name="invented"))
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path / "families")])
    known = registry.collect()
    assert set(known) == {*FAMILIES, "invented"}
    assert list(known) == sorted(known)
    monkeypatch.setitem(registry.FAMILIES, "invented", known["invented"])
    monkeypatch.setitem(registry.BY_MODEL_TYPE, "invented", known["invented"])
    folder = Path(shutil.copytree(hf_checkpoint(), tmp_path / "copy"))
    whole = minivit.load(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "invented"}))
    assert torch.equal(minivit.load(folder).norm.weight, whole.norm.weight)
    assert minivit.weights.verify(folder)["family"] == "invented"


def test_two_families_of_one_name_are_refused(tmp_path, monkeypatch):
    from minivit.weights import families
    from minivit.weights.families import registry

    (tmp_path / "again.py").write_text(NEW_FAMILY.format(name="vit"))
    monkeypatch.setattr(families, "__path__", [*families.__path__, str(tmp_path)])
    with pytest.raises(ValueError, match="two checkpoint families have the same name: vit"):
        registry.collect()


@by_id(SMALL)
def test_every_output_equals_the_reference_in_float64(case, reference):
    model = minivit.load(reference.path, family=reference.family, dtype=torch.float64)
    pixels = pixels_of(reference.size)
    theirs = run_reference(reference, pixels, torch.float64)
    assert {f"block {i}" for i in range(blocks_of(model))} < set(theirs)
    worst = differences(run_minivit(model, pixels), theirs)
    assert max(worst.values()) <= EXACT, worst
    # The comparison can fail: other pixels are far away.
    elsewhere = differences(run_minivit(model, pixels_of(reference.size, seed=2)), theirs)
    assert min(elsewhere.values()) > 1e-3


@by_id([case for case in CASES if case.full_size])
@pytest.mark.slow
def test_the_smallest_published_size_equals_the_reference_in_float64(case, tmp_path):
    reference = case.make(tmp_path)
    model = minivit.load(reference.path, family=reference.family, dtype=torch.float64)
    pixels = pixels_of(reference.size, batch=1)
    worst = differences(run_minivit(model, pixels), run_reference(reference, pixels, torch.float64))
    assert len(worst) >= blocks_of(model) + 2 and max(worst.values()) <= EXACT, worst


@by_id([case for case in SMALL if case.family != "facebook"])
def test_other_picture_sizes_equal_the_reference_in_float64(case, reference):
    if not reference.other_sizes:
        pytest.skip("this reference is for one size, another configuration of the family for several")
    model = minivit.load(reference.path, family=reference.family, dtype=torch.float64)
    for size in reference.other_sizes:
        pixels = pixels_of(size)
        theirs = run_reference(reference, pixels, torch.float64, resized=True)
        worst = differences(run_minivit(model, pixels, resized=True), theirs)
        assert max(worst.values()) <= EXACT, (size, worst)


@by_id(SMALL)
def test_bfloat16_is_within_twice_the_error_of_the_reference_in_bfloat16(case, reference):
    model = minivit.load(reference.path, family=reference.family, dtype=torch.bfloat16)
    # Pixels that bfloat16 holds, so that only the model rounds.
    pixels = pixels_of(reference.size, batch=8).bfloat16().double()
    exact = run_reference(reference, pixels, torch.float64)
    rounded = differences(run_reference(reference, pixels, torch.bfloat16), exact)
    ours = differences(run_minivit(model, pixels), exact)
    for name in ("tokens", "pooled", "logits"):
        if name in exact:
            assert ours[name] <= 2 * rounded[name], (name, ours[name], rounded[name])


# --- writing --------------------------------------------------------------------------------------------------


@by_id([case for case in SMALL if case.layout])
def test_a_saved_model_gives_transformers_the_same_numbers(case, reference, tmp_path):
    import transformers

    model = minivit.load(reference.path, family=reference.family, dtype=torch.float64)
    # Files of a few pixels; preprocessing has tests of its own.
    (model.image if isinstance(model, CLIP) else model).image_spec = None
    minivit.save(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == case.layout
    transformers.utils.logging.set_verbosity_error()
    kind = getattr(transformers, config["architectures"][0])
    bare = kind.__name__ in ("ViTModel", "DeiTModel") and not model.pooler
    extra = {"add_pooling_layer": False} if bare else {}  # else it is made up
    theirs, found = kind.from_pretrained(tmp_path, dtype=torch.float64, output_loading_info=True, **extra)
    assert not found["unexpected_keys"]
    assert not found["mismatched_keys"]
    assert {name.rpartition(".")[2] for name in found["missing_keys"]} <= {"mask_token"}
    if case.family == case.layout:  # their own files: every number as it was
        state = {n.removeprefix("vision_model."): t for n, t in reference.model.double().state_dict().items()}
        written = {n: tensor for n, tensor in theirs.state_dict().items() if not n.endswith("mask_token")}
        assert all(torch.equal(tensor, state[n.removeprefix("vision_model.")]) for n, tensor in written.items())
    pixels = pixels_of(reference.size)
    ids = {"input_ids": ids_of(pixels)} if isinstance(model, CLIP) else {}
    with torch.no_grad():
        out = theirs.eval()(pixel_values=pixels, **ids)
        ours = model(pixels, *ids.values())
    answers = ("logits", "logits_per_image", "image_embeds", "pooler_output")
    expected = out.last_hidden_state[:, 0] if bare else next(out[key] for key in answers if out.get(key) is not None)
    assert (ours - expected).abs().max() <= EXACT
    # Not to the last bit: the same numbers at other addresses may go through other instructions, and round otherwise.
    again = minivit.load(tmp_path, dtype=torch.float64)
    with torch.no_grad():
        assert (again(pixels, *ids.values()) - ours).abs().max() <= EXACT


@by_id([case for case in SMALL if not case.layout])
def test_a_model_no_layout_has_a_place_for_is_refused(case, reference, tmp_path):
    model = minivit.load(reference.path, family=reference.family)
    with pytest.raises(UsageError, match="none of transformers' layouts"):
        minivit.save(model, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_layout_of_a_file_has_an_inverse(name):
    shape = {"hwio": (14, 3, 5, 7), "flat": (1, 1, 11), "heads_bias": (14,), "scalar": (1,)}.get(name, (14, 11))
    shape = (11, 14) if name == "heads_in" else shape
    tensor = torch.randn(shape)
    operation = OPERATIONS[name]
    stored = operation.save(tensor, 7)
    assert tuple(stored.shape) == operation.file_shape(shape, 7)
    assert torch.equal(operation.load(stored).reshape(shape), tensor)


# --- damage ---------------------------------------------------------------------------------------------------


def weights_of(path: Path) -> Path:
    """The one weights file of a reference."""
    return next(file for file in [path, *path.glob("*model.*")] if file.is_file())


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    path = weights_of(path)
    if path.suffix == ".npz":
        import numpy as np

        with np.load(path) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays}
    return load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)


def write_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    path = weights_of(path)
    if path.suffix == ".npz":
        import numpy as np

        np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})
    elif path.suffix == ".safetensors":
        save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata={"format": "pt"})
    else:
        torch.save(tensors, path)


def one_per_family() -> list[Case]:
    chosen: dict[str, Case] = {}
    for case in SMALL:
        chosen.setdefault(case.family, case)
    return list(chosen.values())


@pytest.mark.parametrize("damage", ["rename", "drop", "duplicate", "reshape"])
@by_id(one_per_family())
def test_one_damaged_tensor_is_named_in_one_error(case, damage, reference, tmp_path):
    import fnmatch

    path = tmp_path / reference.path.name
    if reference.path.is_dir():
        shutil.copytree(reference.path, path)
    else:
        shutil.copytree(reference.path.parent, tmp_path, dirs_exist_ok=True)
    whole = tensors_of(path)
    table = FAMILIES[case.family]

    def short(name: str) -> str:
        return next((name.removeprefix(prefix) for prefix in table.prefixes if name.startswith(prefix)), name)

    used = [n for n in sorted(whole) if not any(fnmatch.fnmatchcase(short(n), pattern) for pattern in table.dropped)]
    chance = random.Random(f"{case.id} {damage}")
    for name in chance.sample(used, 6):
        tensors = dict(whole)
        named = name
        if damage == "drop":
            del tensors[name]
        elif damage == "rename":
            named = name + "x"
            tensors[named] = tensors.pop(name)
        elif damage == "duplicate":
            named = f"copy.{name}"
            tensors[named] = tensors[name].clone()
        else:
            tensors[name] = torch.cat([tensors[name], tensors[name]])
        write_tensors(tensors, path)
        with pytest.raises(CheckpointError) as raised:
            minivit.load(path, family=reference.family)
        message = str(raised.value)
        assert "\n" not in message
        assert short(named) in message or name in message, (name, message)
        if damage == "rename" and "config.json makes no" not in message:
            assert "missing" in message and "unexpected" in message, message


def test_a_tensor_of_numbers_that_are_no_floats_is_named(tmp_path):
    reference = next(case for case in CASES if case.id == "vit-classifier").make(tmp_path)
    tensors = tensors_of(reference.path)
    tensors["vit.layernorm.weight"] = tensors["vit.layernorm.weight"].to(torch.int64)
    write_tensors(tensors, reference.path)
    with pytest.raises(CheckpointError, match=r"vit\.layernorm\.weight is I64, expected F64/F32/F16/BF16"):
        minivit.load(reference.path)


@pytest.mark.parametrize("key, value", [("key_bias", True), ("query_bias", False), ("proj_bias", False)])
def test_dinov3_switches_this_model_has_not_are_refused(key, value, tmp_path):
    next(case for case in CASES if case.id == "dinov3_vit-registers").make(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(CheckpointError, match=key):
        minivit.load(tmp_path)


def test_dinov3_keeps_no_bias_of_the_keys(tmp_path):
    reference = next(case for case in CASES if case.id == "dinov3_vit-registers").make(tmp_path)
    model = minivit.load(reference.path)
    bias = model.blocks[0].attn.qkv.bias.detach()
    queries, keys, values = bias.chunk(3)
    assert queries.any()
    assert values.any()
    assert not keys.any()


# --- names of architectures -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_timm_architecture_has_timms_own_shapes():
    import timm

    from minivit.model.vit import ViT
    from minivit.weights.configs import read_config
    from minivit.weights.convert import rows_for, spellings
    from minivit.weights.families.timm.architectures import ARCHITECTURES
    from minivit.weights.files import Source

    table = FAMILIES["timm"]
    for name in ARCHITECTURES:
        with torch.device("meta"):
            theirs = timm.create_model(name, num_classes=7)
        config = {"architecture": name, "num_classes": 7}
        source = Source(name=name, revision=None, config=config, preprocessor=None, shards=())
        read, kind = read_config(source, table, {})
        with torch.device("meta"):
            ours = ViT(read)
        rows = rows_for(table, kind, read)
        wanted = {part: tuple(p.shape) for part, p in theirs.named_parameters()}
        found: dict[str, tuple[int, ...]] = {}
        for target, parameter in ours.named_parameters():
            spelling = spellings(rows, target)[0]
            shares = spelling.shares or (1,) * len(spelling.parts)
            for part, share in zip(spelling.parts, shares, strict=True):
                found[part] = (parameter.shape[0] * share // sum(shares), *parameter.shape[1:])
        assert found == wanted, name
        assert read.image_size == theirs.patch_embed.img_size, name
        assert read.eps == theirs.blocks[0].norm1.eps, name
        act = {"gelu": "GELU", "gelu_tanh": "GELUTanh", "quick_gelu": "QuickGELU", "silu": "SiLU"}[read.activation]
        assert type(theirs.blocks[0].mlp.act).__name__.lower() == act.lower(), name
        assert read.heads == theirs.blocks[0].attn.num_heads


def test_timms_architectures_cover_what_its_factories_of_the_families_offer():
    import timm

    from minivit.weights.families.timm.architectures import ARCHITECTURES

    wanted = [
        name
        for size in ("tiny", "small", "base", "large")
        for patch in (8, 14, 16, 32)
        for name in timm.list_models(f"vit_{size}_patch{patch}_[0-9][0-9][0-9]")
    ]
    wanted += timm.list_models("deit_*") + timm.list_models("vit_*_dinov2")
    assert len(wanted) > 25
    assert not set(wanted) - set(ARCHITECTURES)


@pytest.mark.parametrize("args, said", [({"qk_norm": True}, "qk_norm"), ({"global_pool": "avgmax"}, "avgmax")])
def test_a_timm_model_with_a_part_this_one_has_not_is_refused(args, said, tmp_path):
    reference = next(case for case in CASES if case.id == "timm-vit").make(tmp_path)
    config = json.loads((reference.path / "config.json").read_text())
    config["model_args"].update(args)
    (reference.path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=said):
        minivit.load(reference.path)


# --- position resampling --------------------------------------------------------------------------------------


@pytest.mark.parametrize("new", [(4, 9), (11, 3)])
def test_jaxs_own_stretching_of_positions_is_scipys_zoom(new):
    zoom = pytest.importorskip("scipy.ndimage").zoom
    positions = torch.randn(1, 1 + 5 * 7, 3, dtype=torch.float64)
    grid = positions[0, 1:].unflatten(0, (5, 7)).numpy()
    expected = torch.from_numpy(zoom(grid, (new[0] / 5, new[1] / 7, 1), order=1)).flatten(0, 1)
    ours = resample_positions(positions, TokenLayout(grid=(5, 7)), TokenLayout(grid=new), "jax")
    assert (ours[0, 1:] - expected).abs().max() <= 1e-12
    assert torch.equal(ours[:, 0], positions[:, 0])


def test_dinos_offset_moves_every_sample_by_the_scale_it_is_told():
    # One row of 8 numbers, the same in all 8 rows: sample i of n new ones lies at (i + 0.5) * 8 / (n + 0.1) - 0.5,
    # not at (i + 0.5) * 8 / n - 0.5, and Keys' cubic kernel with PyTorch's a = -0.75 weighs its four neighbours.
    line = torch.tensor([0.0, 3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0], dtype=torch.float64)
    ramp = line.repeat(8).view(1, 64, 1)

    def cubic(x: float, a: float = -0.75) -> float:
        x = abs(x)
        return (a + 2) * x**3 - (a + 3) * x**2 + 1 if x <= 1 else a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a

    old, new = TokenLayout(cls=0, grid=(8, 8)), TokenLayout(cls=0, grid=(8, 12))
    rows = resample_positions(ramp, old, new, "dino").view(8, 12)
    places = (torch.arange(12, dtype=torch.float64) + 0.5) * 8 / 12.1 - 0.5
    inner = (places > 1) & (places < 6)
    assert inner.sum() >= 7
    for i in inner.nonzero().flatten().tolist():
        left = math.floor(places[i])
        expected = sum(line[left + k].item() * cubic(places[i].item() - left - k) for k in (-1, 0, 1, 2))
        assert rows[4, i].item() == pytest.approx(expected, abs=1e-6)
    plain = resample_positions(ramp, old, new, "hf").view(8, 12)
    assert (plain[4, inner] - rows[4, inner]).abs().max() > 0.02


def test_the_rules_of_stretching_positions_differ_from_each_other():
    from minivit.model.config import POSITION_RESAMPLINGS

    positions = torch.randn(1, 26, 3)
    old, new = TokenLayout(grid=(5, 5)), TokenLayout(grid=(3, 4))
    results = {rule: resample_positions(positions, old, new, rule) for rule in POSITION_RESAMPLINGS}
    results.pop("dinov2")  # differs from hf only where the model is not float32
    for i, (a, x) in enumerate(results.items()):
        for b, y in list(results.items())[i + 1 :]:
            assert (x - y).abs().max() > 1e-3, (a, b)


# --- the switches themselves ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"pooling": "cls", "cls_token": False}, "class token"),
        ({"pooling": "cls&dist"}, "distillation token"),
        ({"positions": "rope", "width": 90, "heads": 9}, "divisible by 4"),
        ({"classes": 10, "projection": 5}, "exclude each other"),
        ({"positions": "sincos"}, "learned, learned_all, learned_patches, rope"),
        ({"mlp": "moe"}, "plain, swiglu"),
        ({"registers": -1}, "registers"),
    ],
)
def test_switches_that_contradict_each_other_are_refused(changes, said):
    with pytest.raises(UsageError, match=said):
        ViTConfig(**changes)


def test_layout_counts_every_kind_of_prefix_token():
    config = ViTConfig(image_size=(32, 48), dist_token=True, registers=4)
    assert (config.layout.cls, config.layout.dist, config.layout.registers) == (1, 1, 4)
    assert config.layout.prefix == 6
    assert config.layout.count == 12
    assert config.positioned_prefix == 2
    bare = ViTConfig(image_size=(32, 48), cls_token=False, pooling="mean")
    assert bare.layout.prefix == 0
    assert bare.layout.count == 6


def test_every_written_layout_is_one_of_the_families():
    assert set(LAYOUTS) <= set(FAMILIES)
    assert {case.layout for case in CASES if case.layout} == set(LAYOUTS)


def test_rotation_keeps_the_prefix_and_depends_on_distance_alone():
    from minivit.model.attention import rotate
    from minivit.model.embed import rope_angles

    x = torch.nn.functional.normalize(torch.randn(1, 1, 1, 8, dtype=torch.float64), dim=-1).expand(1, 2, 2 + 5 * 7, 8)
    rope = rope_angles((5, 7), 8, 100.0, like=x)
    q = rotate(x, rope)
    assert torch.equal(q[:, :, :2], x[:, :, :2])
    patches = q[0, 0, 2:].unflatten(0, (5, 7))
    # The same step in the grid gives the same product, wherever it is taken (equation 16 of arXiv:2104.09864), but for
    # centres in float32: each is off by up to 1.2e-7, an angle by 2 pi times that.
    step = (patches[:-1, :-2] * patches[1:, 2:]).sum(-1)
    assert (step - step[0, 0]).abs().max() <= 1e-6
    assert references.differences({"x": patches[0, 0]}, {"x": patches[1, 1]})["x"] > 1e-3
