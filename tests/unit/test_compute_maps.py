"""study.maps.compute: the maps of any method with their names; the score of a map; faithfulness as a function."""

from __future__ import annotations

import pytest
import torch
from helpers.fakes import build, pixels

from minivit import study
from minivit.errors import UsageError
from minivit.study.maps.table import METHODS


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_one_map_with_a_title(method):
    model, x = build(pooling="map"), pixels(1)
    found = study.maps.compute(model, x, method)
    settings = {"target": found.target} if "class" in METHODS[method].takes else {}
    expected = study.method_map(model, x, method, **settings)[0]
    assert found.single
    torch.testing.assert_close(found.one(), expected)
    assert found.title.startswith(f"{method} of the model")
    assert found.unit == METHODS[method].unit


def test_a_sheet_has_layers_and_heads():
    model, x = build(), pixels(1)
    grid = study.maps.compute(model, x, "raw", grid=True, query=(1, 2))
    assert grid.values.shape == (3, 3, 3, 5)
    assert (grid.rows, grid.columns) == (["layer 0", "layer 1", "layer 2"], ["head 0", "head 1", "head 2"])
    one = study.maps.compute(model, x, "raw", layer=1, head=2, query=(1, 2))
    assert one.title == "raw of the model, of the patch in row 1, column 2, head 2, layer 1"
    torch.testing.assert_close(grid.values[1, 2], one.one())
    layers = study.maps.compute(model, x, "norms", layer="all")
    assert layers.values.shape == (1, 3, 3, 5)
    assert layers.columns == ["layer 0", "layer 1", "layer 2"]


def test_a_class_is_followed_and_named():
    model, x = build(), pixels(1)
    model.labels = {i: f"name {i}" for i in range(5)}
    found = study.maps.compute(model, x, "relevance", target=3)
    assert found.target == 3
    assert found.title == "relevance of the model, for name 3 (3), start layer 0"
    with torch.no_grad():
        best = int(model(x).argmax())
    assert study.maps.compute(model, x, "legrad").target == best


def test_what_a_method_does_not_take_is_refused():
    model, x = build(), pixels(1)
    with pytest.raises(UsageError, match="rollout does not take layer; it takes discard, head, query, residual"):
        study.maps.compute(model, x, "rollout", layer=1)
    with pytest.raises(UsageError, match="no method 'lime'"):
        study.maps.compute(model, x, "lime")
    with pytest.raises(UsageError, match="layers 0 to 2"):
        study.maps.compute(model, x, "raw", layer=3)


def test_the_score_of_a_map_is_that_of_its_curves():
    model, x = build(), pixels(1)
    values = study.maps.compute(model, x, "pca").one()
    found = study.map_score(model, x, values, target=2, random=3)
    maps = torch.cat([values.norm(dim=-1)[None], study.random_maps(model.config.layout, 3)])
    curves = study.curves(model, x, maps, target=2)
    assert found.deletion == pytest.approx(float(curves.deletion[0]))
    assert found.random_insertion == pytest.approx(float(curves.insertion[1:].mean()))
    assert (found.target, found.steps) == (2, len(curves.shares) - 1)


def test_faithfulness_of_two_images_is_the_mean_of_each():
    model, (a, b) = build(), (pixels(1), pixels(1, seed=5))
    settings = {"methods": ["raw", "norms"], "steps": 4, "random": 2, "seed": 3}
    both, one, two = (study.faithfulness(model, x, **settings) for x in ([a, b], [a], [b]))
    for name in ("raw", "norms"):
        means = [found.scores()["methods"][name]["deletion"] for found in (one, two)]
        assert both.scores()["methods"][name]["deletion"] == pytest.approx(sum(means) / 2)
    assert both.scores(slice(0, 1))["agreement"] == one.scores()["agreement"]
    assert both.maps.shape == (2, 2, 3, 5)
    assert len(both.curves[0].deletion) == 2 + 1 + 2
    assert both.pointing is None


def test_a_method_without_what_it_needs_is_left_out_or_refused():
    model, x = build(classes=0), pixels(1)
    found = study.faithfulness(model, [x], steps=2, random=1)
    assert "relevance" in found.left_out
    assert found.targets == [None]
    with pytest.raises(UsageError, match="--methods relevance"):
        study.faithfulness(model, [x], methods=["relevance"], steps=2)


def test_former_names_say_where_they_are():
    from minivit import parity

    with pytest.warns(DeprecationWarning, match=r"minivit\.parity\.diff now"):
        assert study.diff is parity.diff
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        study.nothing  # noqa: B018
