"""What a map is worth: curves, pointing, the randomisation check, ranks; and the command that prints them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy
import pytest
import torch
from helpers import fakes
from helpers.command import run
from PIL import Image
from torch import Tensor, nn

import minivit
from minivit import study
from minivit.errors import ShapeError, UsageError
from minivit.images.preprocess import box_on_grid
from minivit.images.spec import ImageSpec
from minivit.model.config import TokenLayout, ViTConfig
from minivit.model.vit import ViT
from minivit.study.maps.faithfulness import STAGES, ranks, replaced
from minivit.study.maps.table import METHODS


class OnePatchCounts(ViT):
    """A classifier by hand: the probability of class 0 is the brightness of one patch of a 2 x 3 grid, 0 to 1."""

    def __init__(self, patch: tuple[int, int]):
        super().__init__(ViTConfig(image_size=(8, 12), patch_size=4, width=4, depth=1, heads=1, mlp_width=4, classes=2))
        self.row, self.column = patch

    def forward(self, pixels_BCHW: Tensor, resample: bool = False) -> Tensor:
        rows, columns = slice(4 * self.row, 4 * self.row + 4), slice(4 * self.column, 4 * self.column + 4)
        p = pixels_BCHW[:, :, rows, columns].mean(dim=(1, 2, 3)).clamp(1e-6, 1 - 1e-6)
        return torch.stack([p.log(), (1 - p).log()], dim=1)


def one_bright_patch(row: int, column: int) -> Tensor:
    pixels = torch.zeros(1, 3, 8, 12)
    pixels[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] = 0.9
    return pixels


def test_deleting_and_inserting_the_only_patch_that_matters():
    """The bright patch is 0.9, the mean pixel 0.9 / 6 = 0.15: each curve is a step from one to the other, by hand."""
    model, pixels = OnePatchCounts((1, 2)), one_bright_patch(1, 2)
    first, last = torch.zeros(2, 3), torch.ones(2, 3)
    first[1, 2], last[1, 2] = 1, 0
    found = study.curves(model, pixels, torch.stack([first, last]), target=0, steps=6)
    close = {"rtol": 0, "atol": 1e-6}
    torch.testing.assert_close(found.shares, torch.arange(7) / 6, **close)
    high, low = 0.9, 0.15
    torch.testing.assert_close(found.deletion_curves[0], torch.tensor([high] + 6 * [low]), **close)
    torch.testing.assert_close(found.deletion_curves[1], torch.tensor(6 * [high] + [low]), **close)
    torch.testing.assert_close(found.insertion_curves[0], torch.tensor([low] + 6 * [high]), **close)
    torch.testing.assert_close(found.insertion_curves[1], torch.tensor(6 * [low] + [high]), **close)
    # One trapezoid of six lies between both levels, the others on one of them.
    between = (high + low) / 2 / 6
    torch.testing.assert_close(found.deletion, torch.tensor([between + low * 5 / 6, between + high * 5 / 6]), **close)
    torch.testing.assert_close(found.insertion, torch.tensor([between + high * 5 / 6, between + low * 5 / 6]), **close)


@pytest.mark.parametrize("steps", [1, 4, 6])
def test_steps_that_do_not_divide_the_patches_and_batches_change_nothing(steps):
    model, pixels = fakes.build(classes=5), fakes.pixels(batch=1)
    maps = study.random_maps(model.config.layout, 3, seed=4)
    found = study.curves(model, pixels, maps, target=2, steps=steps, batch_size=2)
    again = study.curves(model, pixels, maps, target=2, steps=steps, batch_size=99)
    torch.testing.assert_close(found.deletion_curves, again.deletion_curves)
    assert found.shares.tolist() == pytest.approx([(k * 15 // steps) / 15 for k in range(steps + 1)])
    # By the definition, one at a time.
    filler = pixels.mean(dim=(2, 3), keepdim=True)
    for m, values in enumerate(maps):
        order = numpy.argsort(-values.flatten().numpy(), kind="stable")
        for k in range(steps + 1):
            deleted, inserted = pixels.clone(), filler.expand_as(pixels).clone()
            for place in order[: k * 15 // steps]:
                r, c = divmod(int(place), 5)
                where = (slice(None), slice(None), slice(8 * r, 8 * r + 8), slice(8 * c, 8 * c + 8))
                deleted[where], inserted[where] = filler, pixels[where]
            for kind, changed in (("deletion", deleted), ("insertion", inserted)):
                expected = float(model(changed).detach().float().softmax(-1)[0, 2])
                assert float(getattr(found, f"{kind}_curves")[m, k]) == pytest.approx(expected, abs=1e-6)


def test_without_a_head_the_score_is_a_cosine():
    model, pixels = fakes.build(classes=0), fakes.pixels(batch=1)
    found = study.curves(model, pixels, study.random_maps(model.config.layout, 1), steps=3)
    with torch.no_grad():
        whole, empty = model(pixels), model(replaced(pixels, model.config.layout))
    assert float(found.deletion_curves[0, 0]) == pytest.approx(1)
    assert float(found.deletion_curves[0, -1]) == pytest.approx(float(torch.cosine_similarity(whole, empty)))
    with pytest.raises(UsageError, match="no classes"):
        study.curves(model, pixels, study.random_maps(model.config.layout, 1), target=0)


def test_replacements():
    layout = TokenLayout(grid=(2, 3))
    pixels = torch.randn(1, 3, 8, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = replaced(pixels, layout, "mean")
    torch.testing.assert_close(mean[0, :, 3, 7], pixels[0].flatten(1).mean(dim=1))
    assert mean.shape == pixels.shape
    blurred = replaced(pixels, layout, "blur")
    assert blurred.dtype == torch.float64
    assert blurred.std() < pixels.std() / 3
    flat = torch.full((1, 3, 8, 12), 0.7, dtype=torch.float64)
    torch.testing.assert_close(replaced(flat, layout, "blur"), flat)
    # A Gaussian of one patch, 4 pixels, cut off at 12: a single bright pixel, far from all borders, becomes its square.
    point = torch.zeros(1, 1, 40, 56, dtype=torch.float64)
    point[..., 20, 30] = 1
    spread = replaced(point, TokenLayout(grid=(10, 14)), "blur")[0, 0]
    weight = [math.exp(-0.5 * (d / 4) ** 2) for d in range(-12, 13)]
    assert float(spread[20, 30]) == pytest.approx(1 / sum(weight) ** 2)
    assert float(spread[17, 35]) == pytest.approx(weight[12 - 3] * weight[12 + 5] / sum(weight) ** 2)
    with pytest.raises(UsageError, match="must be one of mean, blur"):
        replaced(pixels, layout, "black")


def test_what_cannot_be_scored_is_refused():
    model, pixels = fakes.build(), fakes.pixels()
    maps = study.random_maps(model.config.layout, 2)
    with pytest.raises(ShapeError, match="2 image"):
        study.curves(model, pixels, maps)
    with pytest.raises(ShapeError, match=r"expected one image and \(M, 3, 5\)"):
        study.curves(model, pixels[:1], maps.transpose(1, 2))
    with pytest.raises(UsageError, match="1 to 15"):
        study.curves(model, pixels[:1], maps, steps=16)
    with pytest.raises(UsageError, match="classes 0 to 4"):
        study.curves(model, pixels[:1], maps, target=5)


def test_random_and_centre_baselines():
    layout = TokenLayout(grid=(3, 5))
    assert study.random_maps(layout, 4).shape == (4, 3, 5)
    assert torch.equal(study.random_maps(layout, 4, seed=1), study.random_maps(layout, 4, seed=1))
    assert not torch.equal(study.random_maps(layout, 4, seed=1), study.random_maps(layout, 4, seed=2))
    centre = study.centre_gaussian(layout)[0]
    assert centre[1, 2] == 1
    assert centre.argmax() == 7
    # The corner's centre lies 1/3 and 2/5 of the picture away, each in units of a quarter.
    assert float(centre[0, 0]) == pytest.approx(math.exp(-0.5 * ((4 / 3) ** 2 + (8 / 5) ** 2)))
    torch.testing.assert_close(centre, centre.flip(0, 1))


def test_spearman_by_hand_with_ties():
    """Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5)."""
    assert ranks(torch.tensor([1.0, 3, 3, 8])).tolist() == [1, 2.5, 2.5, 4]
    a, b = torch.tensor([1.0, 3, 3, 8]), torch.tensor([10.0, 20, 30, 40])
    assert float(study.spearman(a, b)) == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert float(study.spearman(b, -b)) == pytest.approx(-1)
    assert float(study.spearman(a, a.exp())) == pytest.approx(1)
    assert math.isnan(float(study.spearman(a, torch.ones(4))))
    maps = torch.stack([b.view(2, 2), a.view(2, 2), -b.view(2, 2)])
    matrix = study.agreement(maps)
    assert matrix.shape == (3, 3)
    assert float(matrix[0, 2]) == pytest.approx(-1)
    assert float(matrix[1, 0]) == float(matrix[0, 1]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        # 200 x 100 to 60 x 30 pixels, a grid of 3 rows x 5 columns of 12 x 10: a patch is 40 x 33.3 of the photo.
        ({"resize": (30, 60)}, (0.5, 0.6, 2.0, 2.1)),
        # The shorter edge to 50: 100 x 50, of which the middle 40 x 30, the photo's (60, 20) to (140, 80).
        ({"resize": 50, "crop": (30, 40)}, (0.0, 0.0, 1.25, 2.5)),
        # No resize, a crop wider than high from (70, 35) to (130, 65).
        ({"resize": None, "crop": (30, 60)}, (0.0, 0.0, 5 / 6, 3.0)),
    ],
)
def test_a_box_is_mapped_through_resize_and_crop_by_hand(spec, expected):
    found = box_on_grid((20, 20, 80, 70), (200, 100), ImageSpec(**spec), (3, 5))
    assert found == pytest.approx(expected)


def test_a_box_the_network_does_not_see_is_refused():
    spec = ImageSpec(resize=50, crop=(30, 40))
    with pytest.raises(UsageError, match=r"network receives, \(60, 20, 140, 80\) of 200 x 100"):
        box_on_grid((0, 0, 50, 100), (200, 100), spec, (3, 5))
    with pytest.raises(UsageError, match="left < right"):
        box_on_grid((30, 0, 20, 10), (200, 100), spec, (3, 5))


def test_pointing_by_hand():
    """A box over the right half of one patch and all of the next."""
    maps = torch.tensor([[[1.0, 5, 2], [0, 0, -4]], [[3, 3, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]])
    hit, inside = study.pointing(maps, (1.5, 0.0, 3.0, 1.0))
    assert hit.tolist() == pytest.approx([0.5, 0.25, 0.25])  # the greatest; the mean of two; of all six
    assert inside.tolist()[:2] == pytest.approx([(2.5 + 2) / 8, 1.5 / 6])
    assert math.isnan(inside[2])
    assert study.box_cover((0.25, 0.5, 2.0, 1.75), (2, 3)).tolist() == [[0.375, 0.5, 0], [0.5625, 0.75, 0]]


def edges(pixels_BCHW: Tensor, layout: TokenLayout) -> Tensor:
    """A plain edge detector that never saw a weight: mean magnitude of Sobel's gradient in each patch."""
    grey = pixels_BCHW.mean(dim=1, keepdim=True).double()
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], dtype=torch.float64)
    kernels = torch.stack([across, across.T])[:, None]
    strength = nn.functional.conv2d(grey, kernels, padding=1).norm(dim=1, keepdim=True)
    return nn.functional.adaptive_avg_pool2d(strength, layout.grid)[:, 0]


def test_the_randomisation_check_fails_an_edge_detector_and_no_honest_method():
    model, pixels = minivit.load("minivit/cifar10-vit"), torch.randn(2, 3, 32, 32)
    checked = study.randomisation_check(
        model,
        {
            "edges": lambda which: edges(pixels, which.config.layout),
            "relevance": lambda which: study.plain_map(which, pixels, "relevance", target=3),
            "raw": lambda which: study.plain_map(which, pixels, "raw"),
            "flat": lambda which: torch.ones(2, 8, 8),
        },
    )
    maps, correlations = checked["edges"]
    torch.testing.assert_close(maps, edges(pixels, model.config.layout))
    torch.testing.assert_close(correlations, torch.ones(len(STAGES), 2, dtype=torch.float64))
    assert study.survives(correlations).tolist() == [True, True]
    for name in ("relevance", "raw"):
        assert study.survives(checked[name][1]).tolist() == [False, False], name
    assert checked["raw"][1][0].tolist() == pytest.approx([1, 1])  # attention does not read the head
    assert bool(checked["flat"][1].isnan().all())
    assert not study.survives(checked["flat"][1]).any()


def test_randomising_goes_from_the_head_backwards_and_leaves_the_model_alone():
    model = fakes.build(depth=8)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    changed: dict[str, set[str]] = {}
    for stage, copy in study.randomised(model, seed=3):
        changed[stage] = {n for n, p in copy.named_parameters() if not torch.equal(p, before[n])}
        for name, parameter in copy.named_parameters():  # shuffled: the same numbers
            assert torch.equal(parameter.flatten().sort().values, before[name].flatten().sort().values)
    assert list(changed) == list(STAGES)
    blocks = {
        stage: {int(n.split(".")[1]) for n in names if n.startswith("blocks.")} for stage, names in changed.items()
    }
    assert list(blocks.values()) == [set(), {6, 7}, {4, 5, 6, 7}, set(range(8))]
    assert changed["head"] == {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert changed["all"] == before.keys()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_every_method_of_the_command_line_has_a_map():
    assert list(METHODS) == list(study.MAPS)
    model, pixels = fakes.build(pooling="map"), fakes.pixels()
    for name, method in METHODS.items():
        settings = {"target": 1} if "class" in method.takes else {}
        assert study.plain_map(model, pixels, name, **settings).shape == (2, 3, 5), name
    with pytest.raises(UsageError, match="no method 'lime'"):
        study.method_map(model, pixels, "lime")
    with pytest.raises(UsageError, match="layers 0 to 2"):
        study.method_map(model, pixels, "norms", layer=3)
    assert study.method_map(model, pixels, "raw", layer="all", head="all").shape == (2, 3, 3, 3, 5)


def test_pixels_that_make_no_whole_patch_are_in_no_map_and_no_curve():
    model = fakes.build(image_size=(27, 45), drop_rest=True)
    x = fakes.pixels(1, size=(27, 45))
    whole = fakes.build()
    whole.load_state_dict(model.state_dict())
    inside = x[:, :, :24, :40]
    for name in ("relevance", "gradients", "integrated-gradients"):
        settings = {"target": 1}
        found, expected = (study.method_map(m, p, name, **settings) for m, p in ((model, x), (whole, inside)))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    maps = study.random_maps(model.config.layout, 2)
    torch.testing.assert_close(model(x), whole(inside), rtol=0, atol=1e-12)
    curves = study.curves(model, x, maps, target=1, replacement="blur", steps=5)
    assert curves.deletion_curves.shape == (2, 6)
    assert curves.deletion_curves[0, 0] == curves.insertion_curves[0, -1]


# --- the command ----------------------------------------------------------------------------------------------


@pytest.fixture
def look(hf_checkpoint, capsys):
    return lambda *arguments, model=None: run(capsys, *arguments, "-m", str(model or hf_checkpoint()), "--offline")


FEW = "raw,relevance,norms"


def test_the_table_is_what_the_library_says(look, photo, hf_checkpoint, tmp_path):
    out = tmp_path / "curves.png"
    argv = ["faithfulness", photo, "--class", "4", "--steps", "5", "--random", "3", "--seed", "2", "--methods", FEW]
    code, text, talk = look(*argv, "--box", "10,10,60,40", "--json", "-o", str(out))
    report = json.loads(text)
    assert (code, talk) == (0, f"minivit: wrote {out}\n")
    assert report["schema"] == 1
    assert list(report["methods"]) == FEW.split(",")
    model = minivit.load(hf_checkpoint())
    pixels = minivit.preprocess(photo, model.image_spec)[None]
    maps = torch.cat(
        [
            study.method_map(model, pixels, "raw"),
            study.relevance(model, pixels, target=4),
            study.method_map(model, pixels, "norms"),
        ]
    )
    found = study.curves(model, pixels, maps, target=4, steps=5)
    hit, inside = study.pointing(maps, box_on_grid((10, 10, 60, 40), (100, 50), model.image_spec, (3, 5)))
    for i, scores in enumerate(report["methods"].values()):
        assert scores["deletion"] == pytest.approx(float(found.deletion[i]), abs=1e-6)
        assert scores["insertion"] == pytest.approx(float(found.insertion[i]), abs=1e-6)
        assert scores["pointing"] == pytest.approx(float(hit[i]))
        assert scores["in_box"] == pytest.approx(float(inside[i]))
        assert list(scores["randomised"]) == list(STAGES)
    random = study.curves(model, pixels, study.random_maps(model.config.layout, 3, seed=2), target=4, steps=5)
    assert report["random"]["deletion"]["mean"] == pytest.approx(float(random.deletion.mean()), abs=1e-6)
    assert report["random"]["deletion"]["std"] == pytest.approx(float(random.deletion.std(correction=0)), abs=1e-6)
    assert report["agreement"][0][1] == pytest.approx(float(study.spearman(maps[0], maps[1])))
    assert report["pictures"][0]["class"]["index"] == 4
    torch.testing.assert_close(
        torch.tensor(report["pictures"][0]["curves"]["raw"]["deletion"]), found.deletion_curves[0], rtol=0, atol=1e-6
    )
    with Image.open(out) as image:
        assert image.width == 2070
        assert {(0, 114, 178), (213, 94, 0)} <= {c for _, c in image.convert("RGB").getcolors(1 << 20)}
    code, text, _ = look(*argv)
    assert code == 0
    assert text.splitlines()[0].endswith("(4), " + f"{report['pictures'][0]['class']['score']:.3f}")
    row = next(line for line in text.splitlines() if line.startswith("relevance"))
    assert f"{report['methods']['relevance']['deletion']:.3f}" in row.split()
    assert "agreement: rank correlation" in text


def test_a_folder_gives_means_and_a_bad_picture_code_3(look, tmp_path_factory, tmp_path):
    for name, seed in (("a.png", 1), ("b.png", 2)):
        levels = torch.randint(0, 256, (40 * 24 * 3,), generator=torch.Generator().manual_seed(seed))
        Image.frombytes("RGB", (40, 24), bytes(levels.tolist())).save(tmp_path / name)
    (tmp_path / "c.png").write_bytes(b"no picture")
    out = tmp_path_factory.mktemp("out") / "curves.png"
    argv = ["faithfulness", str(tmp_path), "--steps", "3", "--methods", FEW]
    code, text, talk = look(*argv, "--json", "-o", str(out))
    report = json.loads(text)
    assert code == 3
    assert "c.png: not an image" in talk
    assert out.exists()
    assert [Path(picture["path"]).name for picture in report["pictures"]] == ["a.png", "b.png"]
    alone = [
        json.loads(look("faithfulness", str(tmp_path / name), *argv[2:], "--json")[1]) for name in ("a.png", "b.png")
    ]
    for name, scores in report["methods"].items():
        for kind in ("deletion", "insertion"):
            assert scores[kind] == pytest.approx(sum(one["methods"][name][kind] for one in alone) / 2, abs=1e-6)
    assert "means over 2 images" in look(*argv)[1]


def test_a_model_without_a_head_is_scored_by_what_it_can(look, photo, hf_checkpoint):
    folder = hf_checkpoint(head=False)
    code, text, talk = look("faithfulness", photo, "--steps", "3", model=folder)
    assert code == 0
    assert "relevance left out: the model has no head" in talk
    assert "cosine with the output" in text
    assert not any(line.startswith("legrad") for line in text.splitlines())
    code, _, talk = look("faithfulness", photo, "--steps", "3", "--methods", "legrad", model=folder)
    assert code == 2
    assert "--methods legrad: the model has no head" in talk


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", "16"], "reads 15 patches"),
        (["--box", "0,0,0.5,50", "--class", "11"], "classes 0 to 10"),
        (["--methods", "raw,magic"], "'magic' is no method"),
        (["--box", "5,5,1,9"], "left < right"),
        (["--box", "200,5,300,9", "--steps", "2", "--methods", "norms"], "outside of what the network receives"),
        (["-o", "curves.gif"], "must end in .png or .svg or .pdf"),
    ],
)
def test_what_cannot_be_honoured_is_code_2(options, words, look, photo):
    code, text, talk = look("faithfulness", photo, *options)
    assert code == 2
    assert text == ""
    assert words in talk.splitlines()[-1]


def test_an_overlay_carries_its_score(look, photo, hf_checkpoint, tmp_path):
    out = tmp_path / "map.json"
    argv = ["attention", photo, "--method", "rollout", "--class", "4", "--score"]
    code, _, talk = look(*argv, "-o", str(out))
    record = json.loads(out.read_text())
    assert (code, talk) == (0, f"minivit: wrote {out}\n")
    model = minivit.load(hf_checkpoint())
    pixels = minivit.preprocess(photo, model.image_spec)[None]
    maps = torch.cat([study.method_map(model, pixels, "rollout"), study.random_maps(model.config.layout, 5)])
    found = study.curves(model, pixels, maps, target=4, steps=15)
    assert record["score"]["class"] == 4
    assert record["score"]["steps"] == 15
    for kind in ("deletion", "insertion"):
        area = getattr(found, kind)
        assert record["score"][kind]["map"] == pytest.approx(float(area[0]), abs=1e-6)
        assert record["score"][kind]["random"] == pytest.approx(float(area[1:].mean()), abs=1e-6)
    line = look(*argv)[1].splitlines()[-1]
    assert line.startswith(f"deletion {float(found.deletion[0]):.3f} (random ")
    assert look(*argv, "-o", str(tmp_path / "map.png"))[0] == 0
    for wrong in (["--layer", "all", "--method", "raw"], ["-o", "map.npy"]):
        code, _, talk = look(*argv, *wrong)
        assert code == 2
        assert "score" in talk
