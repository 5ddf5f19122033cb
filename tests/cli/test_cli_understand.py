"""The commands that understand: lens, attribute, ablate, heads; each says what the library says."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.fakes import FAMILIES, build
from PIL import Image

import minivit
from minivit import study
from minivit.cli import main
from minivit.images.preprocess import preprocess
from minivit.images.spec import ImageSpec

CLOSE = {"rtol": 0, "atol": 1e-9}
SPEC = ImageSpec(resize=(24, 40))


@pytest.fixture
def look(capsys, monkeypatch):
    """Run a command on a model of a family, without files; returns exit code, output, talk and the model."""
    import minivit.weights

    def run(*argv, family="vit"):
        model = build(**FAMILIES[family])
        model.name, model.image_spec = "small", SPEC
        model.labels = {i: f"label {i}" for i in range(model.config.classes)} or None
        monkeypatch.setattr(minivit.weights, "load", lambda *args, **options: model)
        try:
            code = main([*argv, "-m", "small", "--dtype", "float64"])
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err, model

    return run


def pixels_of(photo):
    return preprocess(photo, SPEC)[None].double()


def close(values, expected):
    torch.testing.assert_close(torch.tensor(values, dtype=torch.float64), expected.double(), **CLOSE)


# Lens


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"in21k", "clip"}))
def test_lens_of_every_family(look, photo, family, tmp_path):
    code, text, talk, model = look("lens", photo, "--json", family=family)
    assert (code, talk) == (0, "")
    record = json.loads(text)
    with torch.no_grad():
        probs = model(pixels_of(photo))[0].softmax(-1)
    best = int(probs.argmax())
    assert record["schema"] == 1
    assert record["model"] == "small"
    assert record["read"] == model.config.pooling
    assert [layer["after"] for layer in record["layers"]] == ["embedding", "layer 0", "layer 1", "layer 2"]
    assert record["final"]["index"] == record["class"]["index"] == best
    assert record["final"]["label"] == f"label {best}"
    last = record["layers"][-1]
    assert last["top"] == record["final"]
    assert last["score"] == last["top"]["score"]
    assert last["score"] == pytest.approx(float(probs[best]), abs=1e-12)
    assert last["kl"] == pytest.approx(0, abs=1e-12)
    trace = minivit.trace(model, pixels_of(photo), keep="blocks.0.resid_post")
    first = study.lens(model, trace.values())[0, 0, 0]
    assert record["layers"][1]["score"] == pytest.approx(float(first.softmax(-1)[best]), abs=1e-12)
    assert record["layers"][1]["kl"] == pytest.approx(float((probs * (probs.log() - first.log_softmax(-1))).sum()))
    out = tmp_path / "lens.png"
    code, text, _, _ = look("lens", photo, "-o", str(out), family=family)
    lines = text.splitlines()
    assert code == 0
    assert len(lines) == 3 + 4
    assert lines[-1].startswith("layer 2")
    assert f"label {best} ({best})" in lines[-1]
    with Image.open(out) as image:
        assert image.width >= 420


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2-giant", "siglip"])
def test_lens_of_patches_is_a_map_of_labels(look, photo, family, tmp_path):
    out = tmp_path / "lens.png"
    code, text, _, model = look(
        "lens", photo, "--patches", "--class", "label 3", "--json", "-o", str(out), family=family
    )
    assert code == 0
    record = json.loads(text)
    trace = minivit.trace(model, pixels_of(photo), keep="blocks.*.resid_post")
    for i, stream in enumerate(trace.values()):
        probs = study.lens(model, [stream], rows="patches")[0, 0].softmax(-1).unflatten(0, (3, 5))
        layer = record["layers"][i + 1]
        assert layer["index"] == probs.argmax(-1).tolist()
        close(layer["score"], probs[..., 3])
        close(layer["top_score"], probs.amax(-1))
    assert record["class"] == {"index": 3, "label": "label 3"}
    assert record["read"] == "patches"
    used = {str(index) for layer in record["layers"] for row in layer["index"] for index in row}
    assert record["labels"] == {index: f"label {index}" for index in record["labels"]}
    assert set(record["labels"]) == used
    with Image.open(out) as image:
        assert image.width > 5 * 150
    code, text, _, _ = look("lens", photo, "--patches", family=family)
    assert code == 0
    assert "reading every patch alone" in text
    assert "mean KL" in text


# Attribution


@pytest.mark.parametrize("family", ["vit", "deit", "dinov2", "mae", "timm-clip", "dinov3"])
def test_attribute_prints_a_sum(look, photo, family, tmp_path):
    code, text, talk, model = look("attribute", photo, "--class", "2", "--json", family=family)
    assert (code, talk) == (0, "")
    record = json.loads(text)
    found = study.attribute(model, pixels_of(photo), target=2)
    close(record["heads"], found.heads[0])
    parts = record["embedding"] + record["norm_bias"] + record["head_bias"] + sum(map(sum, record["heads"]))
    parts += sum(record["mlps"]) + sum(record["proj_bias"])
    with torch.no_grad():
        assert parts == pytest.approx(float(model(pixels_of(photo))[0, 2]), abs=1e-9)
    assert abs(record["residual"]) < 1e-9
    assert record["class"] == {"index": 2, "label": "label 2"}
    out = tmp_path / "parts.png"
    code, text, talk, _ = look("attribute", photo, "-o", str(out), family=family)
    assert code == 0
    assert talk.startswith("minivit: class: label")
    assert out.stat().st_size > 1000
    rows = {line[:25].strip(): line[25:].strip() for line in text.splitlines()[-9:]}
    assert abs(float(rows["residual"])) < 1e-9
    assert rows["sum"] == rows["logit"]


# Ablation


@pytest.mark.parametrize("what", ["heads", "mlps", "patches"])
def test_ablate_scans(look, photo, what, tmp_path):
    out = tmp_path / "scan.png"
    options = ["--scan", what, "--how", "mean", "--class", "1", "-b", "4", "-o", str(out)]
    code, text, talk, model = look("ablate", photo, *options, "--json", family="dinov2-giant")
    assert (code, talk) == (0, f"minivit: wrote {out}\n")
    record = json.loads(text)
    pixels = pixels_of(photo)
    with torch.no_grad():
        whole = model(pixels)[0, 1]
    close(record["change"], study.scan(model, pixels, what, how="mean")[0, ..., 1] - whole)
    assert record["logit"] == float(whole)
    assert (record["scan"], record["how"]) == (what, "mean")
    with Image.open(out) as image:
        assert image.width == 1000 if what == "patches" else image.width >= 420
    code, text, _, _ = look("ablate", photo, "--scan", what)
    assert code == 0
    assert "strongest: " in text
    assert f"each of its {what} (zero)" in text


def test_where_nothing_changes_nothing_is_red():
    from minivit.cli.look.ablate import around_zero

    assert around_zero(torch.zeros(2, 3)) == (-1, 1)
    assert around_zero(torch.tensor([-3.0, 2.0])) == (-3, 3)


def test_ablate_of_named_parts(look, photo):
    options = ["--heads", "1.2,0.1", "--mlps", "2", "--tokens", "cls,(2,4)", "--class", "label 1"]
    code, text, talk, model = look("ablate", photo, *options, "--json")
    assert (code, talk) == (0, "")
    record = json.loads(text)
    pixels = pixels_of(photo)
    with torch.no_grad(), minivit.ablate(model, heads={(1, 2), (0, 1)}, mlps={2}, tokens=["cls", (2, 4)]):
        after = model(pixels)[0]
    with torch.no_grad():
        before = model(pixels)[0]
    assert record["change"] == pytest.approx(float(after[1] - before[1]), abs=1e-12)
    assert record["heads"] == [[1, 2], [0, 1]]
    assert record["tokens"] == ["cls", [2, 4]]
    assert record["how"] == "zero"
    row = next(row for row in record["top"] if row["index"] == 1)
    assert row["score_after"] == pytest.approx(float(after.softmax(-1)[1]), abs=1e-12)
    code, text, _, _ = look("ablate", photo, *options)
    assert code == 0
    assert "head 1.2, head 0.1, MLP 2, tokens cls,(2,4) replaced (zero)" in text
    assert "label 1 (1) *" in text


def test_ablate_from_another_picture(look, photo, tmp_path):
    other = tmp_path / "other.png"
    Image.new("RGB", (30, 30), (200, 10, 60)).save(other)
    options = ["--heads", "1.2", "--mlps", "0", "--tokens", "patches", "--class", "0", "--json"]
    code, text, _, model = look("ablate", photo, *options, "--from", str(other))
    assert code == 0
    keep = ["blocks.1.attn.mix[heads=2]", "blocks.0.mlp.out", "embed.tokens[patches]"]
    source = minivit.trace(model, pixels_of(other), keep=keep)
    with torch.no_grad(), study.patched(model, source):
        after = model(pixels_of(photo))[0, 0]
    record = json.loads(text)
    assert record["from"] == str(other)
    assert "how" not in record
    assert next(row for row in record["top"] if row["index"] == 0)["logit_after"] == pytest.approx(
        float(after), abs=1e-12
    )


# Heads


def test_heads_of_a_folder(look, photo, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    shutil.copy(photo, folder / "a.png")
    Image.new("RGB", (30, 30), (200, 10, 60)).save(folder / "b.png")
    Image.linear_gradient("L").save(folder / "c.png")
    table, picture = tmp_path / "heads.csv", tmp_path / "heads.png"
    code, text, talk, model = look(
        "heads", str(folder), "-b", "2", "-o", str(table), "-o", str(picture), family="dinov2-giant"
    )
    assert (code, talk) == (0, f"minivit: wrote {table}\nminivit: wrote {picture}\n")
    pixels = torch.cat([pixels_of(folder / name) for name in ("a.png", "b.png", "c.png")])
    expected = study.head_statistics(model, pixels)
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["layer"], row["head"]) for row in rows] == [(str(i), str(a)) for i in range(3) for a in range(3)]
    for name, values in expected.items():
        close([float(row[name]) for row in rows], values.mean(0).flatten())
    assert {row["pictures"] for row in rows} == {"3"}
    with Image.open(picture) as image:
        assert image.size == (
            2070,
            300 * (0.3 + 4 * 1.75),
        )  # distance, entropy, cls, registers, self, neighbours, patches
    lines = text.splitlines()
    assert lines[0] == "heads of small, mean over 3 images"
    assert len(lines) == 5
    assert f"{float(expected['distance'].mean(0)[2].max()):.1f}" in lines[-1]
    assert "registers" in lines[1]
    assert "dist " not in lines[1]


def test_heads_goes_on_past_what_is_no_picture(look, photo, tmp_path):
    shutil.copy(photo, tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no picture")
    code, text, talk, _ = look("heads", str(tmp_path))
    assert code == 3
    assert "mean over 1 image\n" in text
    assert "b.png" in talk
    assert talk.splitlines()[1:] == ["minivit: 1 of 2 images failed"]
    (tmp_path / "a.png").unlink()
    code, text, talk, _ = look("heads", str(tmp_path))
    assert code == 3
    assert text == ""
    (tmp_path / "b.png").unlink()
    code, text, talk, _ = look("heads", str(tmp_path))
    assert code == 2
    assert "no image to examine" in talk


# Refusals


@pytest.mark.parametrize(
    ("argv", "family", "words"),
    [
        (["lens", "PHOTO"], "in21k", "has no classifier, so a lens has no labels"),
        (["attribute", "PHOTO"], "clip", "has no classifier, so there is no logit"),
        (["attribute", "PHOTO"], "siglip", "an attention pool stands between"),
        (["ablate", "PHOTO", "--scan", "heads"], "clip", "has no classifier, so there is no logit"),
        (["lens", "PHOTO", "--class", "unicorn"], "vit", "no class of that name"),
        (["lens", "PHOTO", "-o", "lens.gif"], "vit", "must end in .png or .svg or .pdf"),
        (["lens", "PHOTO", "--patches", "-o", "lens.svg"], "vit", "must end in .png"),
        (["attribute", "PHOTO", "--class", "5"], "vit", "classes 0 to 4"),
        (["ablate", "PHOTO"], "vit", "either --scan or what to ablate"),
        (["ablate", "PHOTO", "--scan", "heads", "--mlps", "1"], "vit", "either --scan or what to ablate"),
        (["ablate", "PHOTO", "--scan", "heads", "--from", "x.png"], "vit", "--from goes with"),
        (["ablate", "PHOTO", "--mlps", "1", "--from", "x.png", "--how", "mean"], "vit", "give one"),
        (["ablate", "PHOTO", "--mlps", "1", "-o", "x.png"], "vit", "-o draws a scan"),
        (["ablate", "PHOTO", "--heads", "3.0"], "vit", "no head 3.0: there are blocks 0 to 2"),
        (["ablate", "PHOTO", "--heads", "3.0", "--from", "PHOTO"], "vit", "matches no step"),
        (["ablate", "PHOTO", "--heads", "1"], "vit", "is not BLOCK.HEAD"),
        (["ablate", "PHOTO", "--mlps", "a"], "vit", "is not BLOCK,BLOCK"),
        (["ablate", "PHOTO", "--mlps", "9"], "vit", "no block 9"),
        (["ablate", "PHOTO", "--tokens", "dist"], "vit", "no token dist"),
        (["ablate", "PHOTO", "--tokens", "sep"], "vit", "'sep' is no token"),
        (["ablate", "PHOTO", "--tokens", "heads=1"], "vit", "must name tokens and nothing else"),
        (["ablate", "PHOTO", "--tokens", "cls;heads=1"], "vit", "must name tokens and nothing else"),
        (["ablate", "PHOTO", "--scan", "heads", "-o", "missing/x.png"], "vit", "cannot be written"),
        (["heads", "PHOTO", "-o", "missing/heads.csv"], "vit", "cannot be written (no such folder)"),
        (["heads", "PHOTO", "-o", "heads.gif"], "vit", "must end in .csv or .png or .svg or .pdf"),
    ],
)
def test_one_clear_line(look, photo, argv, family, words):
    code, text, talk, _ = look(*(photo if word == "PHOTO" else word for word in argv), family=family)
    assert code == 2
    assert text == ""
    assert words in talk
    assert "Traceback" not in talk
    assert "unexpected" not in talk


def test_the_bundled_model_on_a_real_photo(shared, capsys, tmp_path):
    """The promise of the commands on trained weights: the lens ends in the answer, a scan finds what matters."""
    dog, model = str(shared / "dog.jpg"), ["-m", "minivit/cifar10-vit"]
    assert main(["lens", dog, *model, "--json"]) == 0
    lens = json.loads(capsys.readouterr().out)
    assert lens["final"]["label"] == "dog"
    assert lens["layers"][-1]["top"]["label"] == "dog"
    assert lens["layers"][0]["kl"] > 1 > lens["layers"][4]["kl"] > lens["layers"][5]["kl"] > 0
    assert main(["attribute", dog, *model, "--json", "--class", "dog", "--dtype", "float64"]) == 0
    assert abs(json.loads(capsys.readouterr().out)["residual"]) < 1e-9
    out = Path(tmp_path / "scan.png")
    assert main(["ablate", dog, *model, "--scan", "patches", "--class", "dog", "--json", "-o", str(out)]) == 0
    change = torch.tensor(json.loads(capsys.readouterr().out)["change"])
    assert change.shape == (8, 8)
    assert change.min() < -0.1
