"""A Swin beside other libraries, step by step, and what a port of one may do differently."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from helpers.fakes import build_swin
from helpers.references import CASES
from safetensors.torch import save_file
from torch import nn

import minivit
from minivit import parity
from minivit.cli import main
from minivit.errors import UsageError
from minivit.model.swin import Windows
from minivit.parity.libraries import load_reference
from minivit.parity.swin import PLACES, swin_place
from minivit.weights import find

PIXELS = torch.randn(1, 3, 40, 56, generator=torch.Generator().manual_seed(3)).double()


@pytest.mark.parametrize(
    ("id", "library"),
    [
        ("swin-classifier", "transformers"),
        ("swin-backbone-no-qkv-bias", "transformers"),
        ("torchvision_swin-swin", "torchvision"),
        ("timm_swin-tiny", "timm"),
        ("timm_swin-stages-of-their-own-window", "timm"),
    ],
)
def test_parity_holds_with_every_library(id, library, tmp_path, capsys):
    reference = next(case for case in CASES if case.id == id).make(tmp_path)
    assert main(["diff", str(reference.path), "--against", library, "--json", "--offline"]) == 0
    record = json.loads(capsys.readouterr().out)
    names = parity.swin_step_names(minivit.load(reference.path).config)
    assert record["equal"]
    assert record["absent"] == []
    assert [step["name"] for step in record["steps"]] == names
    assert all("float64" in step and "float32" in step for step in record["steps"])
    other = next(name for name in ("timm", "torchvision", "transformers") if name != library)
    assert main(["diff", str(reference.path), "--against", other, "--offline"]) == 2
    assert f"compare with --against {library}" in capsys.readouterr().err


def test_a_fault_in_the_reference_is_named(tmp_path):
    reference = next(case for case in CASES if case.id == "swin-classifier").make(tmp_path)
    model = minivit.load(reference.path)
    library = load_reference("transformers", find(reference.path), model.config)
    with torch.no_grad():
        # The first block that is shifted has learned nothing of places.
        library.module.get_submodule(
            "swin.encoder.layers.0.blocks.1.attention.relative_position_bias"
        ).relative_position_bias_table.zero_()
    names = parity.swin_step_names(model.config)
    rows, causes = parity.diff_swin(model, PIXELS.float(), {"float64": library.steps(PIXELS, names)})
    assert rows[-1].name == "blocks.1.resid_mid"
    assert causes[0].says == "no bias is added for positions"


def seeded():
    """A Swin of float32 numbers, in float64: no bias of 0, no norm of weights 1, which would hide a fault."""
    model, generator = build_swin(), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.LayerNorm)):
                for parameter in module.parameters():
                    parameter.add_(torch.randn(parameter.shape, generator=generator).double())
    return model.float().double()


def planted(fault: str):
    """Steps of a Swin that does one thing differently."""
    model = seeded()
    stage, block = model.stages[0], model.blocks[1]
    if fault == "eps":
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = 1e-3
    elif fault == "GELU form":
        for each in model.blocks:
            each.mlp.act = nn.GELU(approximate="tanh")
    elif fault == "mask":
        own = block.forward
        block.forward = lambda x, windows, mask: own(x, windows, None)
    elif fault == "shift":
        own = block.forward
        block.forward = lambda x, windows, mask: own(x, Windows(grid=windows.grid, window=3), None)
    elif fault == "qkv order":
        qkv = block.attn.qkv
        q, k, v = qkv.weight.detach().chunk(3)
        qkv.weight.data = torch.cat([k, q, v])
        q, k, v = qkv.bias.detach().chunk(3)
        qkv.bias.data = torch.cat([k, q, v])
    elif fault == "windows":
        for each in model.stages:
            each.config = replace(each.config, windowing="timm")
    elif fault == "merge order":
        own = stage.merge.forward

        def by_rows(x, grid):
            merge, x = stage.merge, nn.functional.pad(x.unflatten(1, grid), (0, 0, 0, grid[1] % 2, 0, grid[0] % 2))
            parts = [x[:, a::2, b::2] for a in (0, 1) for b in (0, 1)]
            return merge.reduction(merge.norm(torch.cat(parts, dim=-1).flatten(1, 2)))

        stage.merge.forward = by_rows
    elif fault == "missing bias":
        block.mlp.fc2.bias.data.zero_()
    return parity.swin_steps(model, PIXELS)


@pytest.mark.parametrize(
    ("fault", "step", "words"),
    [
        ("eps", "embed.tokens", "eps of the LayerNorm is 0.001, here 1e-05"),
        ("GELU form", "blocks.0.mlp.act", "the activation of the MLP is gelu_tanh"),
        ("windows", "blocks.1.resid_mid", "padded and rolled as timm does, here as hf"),
        ("mask", "blocks.1.resid_mid", "shifted windows have no mask"),
        ("shift", "blocks.1.resid_mid", "the windows are not shifted"),
        ("qkv order", "blocks.1.resid_mid", "taken as k, q, v, here as q, k, v"),
        ("missing bias", "blocks.1.mlp.out", "mlp.fc2 has no bias"),
        ("merge order", "stages.0.merge", "neighbours are taken as upper left, upper right, lower left, lower right"),
    ],
)
def test_the_fault_of_a_port_is_named(fault, step, words):
    rows, causes = parity.diff_swin(seeded().float(), PIXELS.float(), {"float64": planted(fault)})
    assert rows[-1].name == step and causes[0].cause == fault, (rows[-1].name, causes)
    assert words in causes[0].says


@pytest.mark.parametrize("faulty", [[3], [0, 1, 2, 3]], ids=["one block", "every block"])
def test_a_sparse_trace_is_enough(faulty):
    """Only what block 3 returns: a fault of that block alone and a fault of every block are both named."""
    port = seeded()
    for i in faulty:
        port.blocks[i].mlp.act = nn.GELU(approximate="tanh")
    name = "blocks.3.resid_post"
    theirs = {name: parity.swin_steps(port, PIXELS, [name])[name]}
    rows, causes = parity.diff(seeded().float(), PIXELS.float(), {"float64": theirs})
    assert [row.name for row in rows] == [name]
    assert [cause.cause for cause in causes] == ["GELU form"]
    assert causes[0].after == 0


def test_what_is_no_step_is_not_compared():
    steps = parity.swin_steps(seeded(), PIXELS)
    rows, causes = parity.diff_swin(seeded().float(), PIXELS.float(), {"float64": {"pixels": PIXELS, **steps}})
    assert [row.name for row in rows] == list(steps)
    assert rows[-1].equal
    assert causes == []


def test_a_rule_that_makes_nothing_of_a_picture_is_no_cause():
    """8 x 40 pixels: 2 x 10 tokens, less than a window, which torchvision alone pads."""
    model, pixels = build_swin(windowing="torchvision").float(), PIXELS[:, :, :8, :40].float()
    steps = parity.swin_steps(model, pixels)
    assert parity.diff_swin(model, pixels, {"float32": steps})[0][-1].equal
    steps["blocks.0.resid_mid"] = steps["blocks.0.resid_mid"].sin()
    rows, causes = parity.diff_swin(model, pixels, {"float32": steps})
    assert rows[-1].name == "blocks.0.resid_mid"
    assert causes == []


def test_steps_and_places_of_a_swin(tmp_path, capsys):
    model = seeded()
    with torch.no_grad():
        before = model(PIXELS)
    steps = parity.swin_steps(model, PIXELS)
    assert torch.equal(steps["logits"], before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert list(steps) == parity.swin_step_names(model.config)
    assert len(steps) == 1 + 7 * 7 + 2 + 3
    assert torch.equal(
        steps["blocks.4.resid_post"], parity.swin_steps(model, PIXELS, ["blocks.4.resid_post"])["blocks.4.resid_post"]
    )
    assert swin_place(model.config, "blocks.4.norm1", "torchvision") == "features.3.2.norm1"
    assert swin_place(model.config, "stages.1.merge", "timm") == "layers.2.downsample"
    assert len({frozenset(places) for places in PLACES.values()}) == 1
    with pytest.raises(UsageError, match="needs a minivit Swin"):
        parity.swin_steps(nn.Identity(), PIXELS)
    for name in ("blocks.7.norm1", "stages.2.merge", "blocks.0.q"):
        with pytest.raises(UsageError, match="no step of this Swin"):
            parity.swin_steps(model, PIXELS, [name])
    minivit.save(model, tmp_path)
    port = {name: tensor.contiguous() for name, tensor in steps.items() if name != "norm"}
    save_file({**port, "pixels": PIXELS, "blocks.0.q": PIXELS + 1}, tmp_path / "port.safetensors")
    assert main(["diff", str(tmp_path), "--against", str(tmp_path / "port.safetensors"), "--offline"]) == 0
    out, err = capsys.readouterr()
    assert "equal: 54 steps within tolerance" in out
    assert "not compared, because the other side does not have it: norm" in out
    assert "blocks.0.q is no step" in err
    port["blocks.3.mlp.out"] = 2 * port["blocks.3.mlp.out"]
    save_file({**port, "pixels": PIXELS}, tmp_path / "port.safetensors")
    assert main(["diff", str(tmp_path), "--against", str(tmp_path / "port.safetensors"), "--offline"]) == 1
    assert "parity breaks at blocks.3.mlp.out" in capsys.readouterr().out
