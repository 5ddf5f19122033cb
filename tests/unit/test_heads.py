"""Statistics of heads on attention made by hand: distances, entropies and masses that can be counted."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.fakes import FAMILIES, build, pixels

import minivit
from minivit import study
from minivit.errors import ShapeError
from minivit.model.config import TokenLayout

CLOSE = {"rtol": 0, "atol": 1e-12}
LAYOUT = TokenLayout(dist=1, registers=2, grid=(2, 3))  # 4 prefix tokens, 6 patches
PATCH = 16


def looking(*targets: dict[int, float]) -> torch.Tensor:
    """Attention (1, A, N, N) of one head for each dictionary: every query looks at these places so much."""
    probs = torch.zeros(1, len(targets), LAYOUT.count, LAYOUT.count, dtype=torch.float64)
    for head, target in enumerate(targets):
        for place, share in target.items():
            probs[0, head, :, place] = share
    return probs


def test_every_head_at_one_corner():
    """All at the patch in row 0, column 0: patches are 0, 1, 2 columns and 0, 1 rows away."""
    far = [0, 1, 2, 1, math.sqrt(2), math.sqrt(5)]
    probs = looking({4: 1.0}, {4: 0.3, 0: 0.7})
    distance = study.attention_distance(probs, LAYOUT, PATCH)
    expected = PATCH * sum(far) / 6
    # What looks at CLS has no distance and does not count as near.
    torch.testing.assert_close(distance, torch.full((1, 2), expected, dtype=torch.float64), **CLOSE)


def test_itself_and_its_neighbours():
    itself = torch.eye(LAYOUT.count, dtype=torch.float64)[None, None]
    assert study.attention_distance(itself, LAYOUT, PATCH).item() == 0
    assert study.attention_entropy(itself).item() == 0
    right = torch.zeros(1, 1, LAYOUT.count, LAYOUT.count, dtype=torch.float64)
    for row in range(2):
        for column in range(3):
            right[0, 0, 4 + 3 * row + column, 4 + 3 * row + (column + 1) % 3] = 1
    right[0, 0, :4, 0] = 1
    # One column to the right twice, two columns back once, in either row.
    assert study.attention_distance(right, LAYOUT, PATCH).item() == pytest.approx(PATCH * (1 + 1 + 2) / 3)
    mass = study.attention_mass(right, LAYOUT)
    assert mass["neighbours"].item() == pytest.approx(2 / 3)
    assert mass["self"].item() == 0
    assert mass["patches"].item() == 1
    assert mass["cls"].item() == 0


def test_diagonal_patches_are_neighbours_and_rows_do_not_wrap():
    """From the patch in row 0, column 2, the next place in the sequence is row 1, column 0: no neighbour."""
    probs = torch.zeros(1, 2, LAYOUT.count, LAYOUT.count, dtype=torch.float64)
    probs[:, :, :, 0] = 1
    probs[0, :, 4 + 2] = 0
    probs[0, 0, 4 + 2, 4 + 3] = 1  # the next in the sequence
    probs[0, 1, 4 + 2, 4 + 4] = 1  # diagonally below
    mass = study.attention_mass(probs, LAYOUT)
    assert mass["neighbours"].tolist() == [[0, pytest.approx(1 / 6)]]


def test_even_attention():
    even = torch.full((2, 3, LAYOUT.count, LAYOUT.count), 0.1, dtype=torch.float64)
    torch.testing.assert_close(
        study.attention_entropy(even), torch.full((2, 3), math.log(10), dtype=torch.float64), **CLOSE
    )
    mass = study.attention_mass(even, LAYOUT)
    # Patches have 3, 5, 3, 3, 5, 3 neighbours in two rows of three.
    expected = {"cls": 0.1, "dist": 0.1, "registers": 0.2, "self": 0.1, "neighbours": 0.1 * 22 / 6, "patches": 0.6}
    assert list(mass) == list(expected)
    for name, value in expected.items():
        torch.testing.assert_close(mass[name], torch.full((2, 3), value, dtype=torch.float64), **CLOSE)


def test_prefix_tokens_are_no_queries_of_distance_and_mass():
    probs = looking({5: 0.5, 2: 0.5})
    other = probs.clone()
    other[:, :, :4] = other[:, :, :4].roll(3, dims=-1)
    assert torch.equal(study.attention_distance(probs, LAYOUT, 8), study.attention_distance(other, LAYOUT, 8))
    for name, mass in study.attention_mass(probs, LAYOUT).items():
        assert torch.equal(mass, study.attention_mass(other, LAYOUT)[name])
    assert study.attention_mass(probs, LAYOUT)["registers"].item() == 0.5


def test_a_head_that_looks_at_no_patch_has_distance_zero():
    assert study.attention_distance(looking({0: 1.0}), LAYOUT, PATCH).item() == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_statistics_of_every_head_of_every_family(family):
    model, x = build(**FAMILIES[family]), pixels()
    found = study.head_statistics(model, x)
    trace = minivit.trace(model, x, keep="blocks.*.attn.probs")
    heads = model.config.heads
    assert all(values.shape == (2, 3, heads) for values in found.values())
    for i in range(3):
        probs = trace[f"blocks.{i}.attn.probs"]
        one_by_one = [study.attention_distance(probs[b : b + 1], trace.layout, 8) for b in range(2)]
        torch.testing.assert_close(found["distance"][:, i], torch.cat(one_by_one), **CLOSE)
        torch.testing.assert_close(found["entropy"][:, i], study.attention_entropy(probs), **CLOSE)
    whole = sum(found[name] for name in ("cls", "dist", "registers", "patches"))
    torch.testing.assert_close(whole, torch.ones_like(whole), **CLOSE)
    assert (found["self"] + found["neighbours"] <= found["patches"] + 1e-12).all()
    assert (found["dist"] > 0).all() == bool(model.config.dist_token)


def test_half_precision_is_counted_in_float32():
    probs = looking({4: 0.25, 6: 0.75})
    half = study.attention_distance(probs.bfloat16(), LAYOUT, PATCH)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.double(), study.attention_distance(probs, LAYOUT, PATCH), rtol=0, atol=1e-4)


def test_other_shapes_are_refused():
    for function in (study.attention_mass, lambda p, layout: study.attention_distance(p, layout, PATCH)):
        with pytest.raises(ShapeError, match="all 10 tokens"):
            function(torch.rand(1, 2, 1, 10), LAYOUT)
        with pytest.raises(ShapeError, match="all 10 tokens"):
            function(torch.rand(1, 2, 6, 6), LAYOUT)
