"""What the commands lens, ablate, attribute and heads compute, as functions that return data."""

from __future__ import annotations

import pytest
import torch
from helpers.fakes import build, pixels

import minivit
from minivit import study
from minivit.errors import UsageError


def test_a_scan_effect_is_the_change_of_one_logit():
    model, x = build(), pixels(1)
    found = study.scan_effect(model, x, 3, "heads", how="mean")
    assert found.change.shape == (3, 3)
    with torch.no_grad(), minivit.ablate(model, heads={(2, 1)}, how="mean"):
        changed = model(x)[0, 3]
    with torch.no_grad():
        whole = model(x)[0, 3]
    torch.testing.assert_close(found.logit, whole)
    torch.testing.assert_close(found.change[2, 1], changed - whole)
    name, value = found.strongest(1)[0]
    block, head = map(int, name.split("."))
    assert value == found.change[block, head]
    assert abs(value) == found.change.abs().max()


def test_the_parts_of_a_scan_are_named_as_the_command_line_takes_them():
    change = torch.tensor([[0.0, -3.0, 1.0], [2.0, 0.5, 0.0]])
    settings = {"how": "zero", "target": 0, "logit": torch.tensor(1.0)}
    patches = study.ScanEffect(what="patches", change=change, **settings)
    assert patches.strongest(2) == [("(0,1)", -3.0), ("(1,0)", 2.0)]
    mlps = study.ScanEffect(what="mlps", change=change[:, 0], **settings)
    assert mlps.strongest(1) == [("1", 2.0)]


def test_an_ablation_effect_is_both_answers():
    model, x = build(), pixels(1)
    found = study.ablation_effect(model, x, 2, mlps=[1], tokens=[(1, 3)])
    with torch.no_grad(), minivit.ablate(model, mlps=[1], tokens=[(1, 3)]):
        assert found.after.equal(model(x)[0])
    assert found.change == float(found.after[2] - found.before[2])
    (first, (p, _, logit, _)), *_ = found.rows()
    assert first == int(found.before.argmax())
    assert logit == float(found.before[first])
    assert p == pytest.approx(float(found.before.softmax(0)[first]))


def test_a_source_takes_the_place_of_the_replacement():
    model, x, other = build(), pixels(1), pixels(1, seed=7)
    found = study.ablation_effect(model, x, 0, heads=[(1, 2)], source=other)
    with torch.no_grad(), study.patched(model, minivit.trace(model, other, keep="blocks.1.attn.mix[heads=2]")):
        assert found.after.equal(model(x)[0])
    same = study.ablation_effect(model, x, 0, heads=[(1, 2)], tokens=["cls", (0, 4)], source=x)
    torch.testing.assert_close(same.after, same.before)


def test_a_lens_reading_ends_with_the_models_answer():
    model, x = build(), pixels(1)
    found = study.lens_reading(model, x, target=4)
    with torch.no_grad():
        expected = model(x)[0].softmax(0)
    assert found.names == ["embedding", "layer 0", "layer 1", "layer 2"]
    torch.testing.assert_close(found.probs[-1], expected)
    assert (found.best, found.followed) == (int(expected.argmax()), 4)
    assert float(found.score[-1, 0]) == pytest.approx(float(expected[4]))
    patches = study.lens_reading(model, x, patches=True)
    assert patches.grid == (3, 5)
    assert patches.top.shape == (4, 15)
    assert patches.probs is None
    with pytest.raises(UsageError, match="has no classifier"):
        study.lens_reading(build(classes=0), x)


def test_heads_are_summarised_in_batches_of_any_size():
    model, x = build(), pixels(5)
    whole, parts = study.summarise_heads(model, [x]), study.summarise_heads(model, [x[:2], x[2:]])
    assert (whole.count, parts.count) == (5, 5)
    for name, values in study.head_statistics(model, x).items():
        torch.testing.assert_close(whole.means[name], values.double().mean(dim=0))
        torch.testing.assert_close(parts.means[name], whole.means[name])
    assert whole.kinds == ["distance", "entropy", "cls", "self", "neighbours", "patches"]
    with pytest.raises(UsageError, match="no image"):
        study.summarise_heads(model, [])


def test_an_attribution_lists_its_parts():
    model, x = build(), pixels(2)
    found = study.attribute(model, x, target=1)
    names, values = found.by_layer(1)
    assert names == ["head 0", "head 1", "head 2", "bias", "mlp"]
    assert values[2].tolist() == [*found.heads[1, 2].tolist(), float(found.proj_bias[1, 2]), float(found.mlps[1, 2])]
    name, value = found.strongest(1, image=1)[0]
    assert abs(value) == values.abs().max()
    assert name.endswith(("of layer 0", "of layer 1", "of layer 2"))
