"""The commands that look inside: attention, trace, preprocess."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

import minivit
from minivit import study
from minivit.cli import main
from minivit.images.preprocess import preprocess


@pytest.fixture(scope="module")
def folder(hf_checkpoint):
    return str(hf_checkpoint())


@pytest.fixture
def look(folder, capsys):
    """Run a command on the small model; returns exit code, output, talk."""

    def run(*argv):
        try:
            code = main([*argv, "-m", folder, "--offline"])
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def expected(folder, photo):
    model = minivit.load(folder)
    return model, preprocess(photo, model.image_spec)[None]


METHODS = {
    "raw": lambda m, x, t: study.attention_map(t.attention[2], t.layout),
    "rollout": lambda m, x, t: study.rollout(t.attention, t.layout),
    "grad-rollout": lambda m, x, t: study.grad_rollout(m, x, target=4),
    "relevance": lambda m, x, t: study.relevance(m, x, target=4),
    "legrad": lambda m, x, t: study.legrad(m, x, target=4),
    "gradients": lambda m, x, t: study.per_patch(study.input_gradients(m, x, target=4), t.layout),
    "integrated-gradients": lambda m, x, t: study.per_patch(
        study.integrated_gradients(m, x, target=4, steps=3), t.layout
    ),
    "similarity": lambda m, x, t: study.similarity(t["norm"], t.layout),
    "norms": lambda m, x, t: study.norms(t["blocks.2.resid_post"], t.layout),
    "pca": lambda m, x, t: study.pca(t["norm"], t.layout),
}
OF_A_CLASS = ("grad-rollout", "relevance", "legrad", "gradients", "integrated-gradients")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_writes_the_map_of_the_library(method, look, folder, photo, tmp_path):
    options = ["--class", "4"] if method in OF_A_CLASS else []
    options += ["--steps", "3"] if method == "integrated-gradients" else []
    model, pixels = expected(folder, photo)
    trace = minivit.trace(model, pixels, keep=["norm", "blocks.*.q", "blocks.*.k", "blocks.2.resid_post"])
    answer = METHODS[method](model, pixels, trace)[0]
    out = tmp_path / "map.npy"
    code, text, talk = look("attention", photo, "--method", method, *options, "-o", str(out))
    assert (code, text, talk) == (0, "", f"minivit: wrote {out}\n")
    written = numpy.load(out)
    assert written.dtype == numpy.float32
    assert written.shape == ((3, 5, 3) if method == "pca" else (3, 5))
    torch.testing.assert_close(torch.from_numpy(written), answer, rtol=0, atol=1e-6)
    out = tmp_path / "map.png"
    assert look("attention", photo, "--method", method, *options, "--opacity", "1", "-o", str(out))[0] == 0
    with Image.open(out) as image:
        assert image.width == 1000  # ten times the image, so that the title can be read
        assert image.height > 500
        if method != "pca" and answer.max() > answer.min():
            row, column = divmod(int(answer.argmax()), 5)
            assert image.getpixel((column * 200 + 50, row * 500 // 3 + 40)) == (122, 4, 3)  # turbo's max


def test_layers_heads_and_queries(look, folder, photo, tmp_path):
    model, pixels = expected(folder, photo)
    trace = minivit.trace(model, pixels, keep=["blocks.*.q", "blocks.*.k"])
    out = str(tmp_path / "map.json")
    code, _, _ = look("attention", photo, "--layer", "1", "--head", "3", "--query", "2,4", "-o", out, "--overwrite")
    record = json.loads(Path(out).read_text())
    answer = study.attention_map(trace.attention[1], trace.layout, query=(2, 4), head=3)[0]
    torch.testing.assert_close(torch.tensor(record["map"]), answer, rtol=0, atol=1e-6)
    assert code == 0
    assert record["schema"] == 1
    assert record["method"] == "raw"
    assert record["model"] == folder
    assert "of the patch in row 2, column 4" in record["title"]
    assert "head 3" in record["title"]
    code, _, _ = look("attention", photo, "--layer", "all", "--head", "max", "-o", out, "--overwrite")
    record = json.loads(Path(out).read_text())
    answer = torch.stack([study.attention_map(probs, trace.layout, head="max")[0] for probs in trace.attention])
    torch.testing.assert_close(torch.tensor(record["map"])[0], answer, rtol=0, atol=1e-6)
    assert record["columns"] == ["layer 0", "layer 1", "layer 2"]


def test_the_grid_is_layers_by_heads(look, folder, photo, tmp_path):
    out = tmp_path / "grid.npy"
    assert look("attention", photo, "--grid", "-o", str(out))[0] == 0
    model, pixels = expected(folder, photo)
    trace = minivit.trace(model, pixels, keep="blocks.*.attn.probs[cls]")
    answer = torch.stack([trace[f"blocks.{i}.attn.probs"][0, :, 0, 1:].unflatten(1, (3, 5)) for i in range(3)])
    torch.testing.assert_close(torch.from_numpy(numpy.load(out)), answer, rtol=0, atol=1e-6)
    picture = tmp_path / "grid.png"
    assert look("attention", photo, "--grid", "--scale", "shared", "-o", str(picture))[0] == 0
    with Image.open(picture) as image:
        colours = {colour for _, colour in image.getcolors(1 << 20)}
        assert (122, 4, 3) in colours
        assert (48, 18, 59) in colours
        assert image.width >= 2000


def test_the_colormap_by_its_name_and_by_its_former_name(look, photo, tmp_path):
    def pixels_of(*options):
        out = tmp_path / "map.png"
        assert look("attention", photo, "-o", str(out), "--overwrite", *options)[0] == 0
        with Image.open(out) as image:
            return image.tobytes()

    turbo, viridis = pixels_of(), pixels_of("--cmap", "viridis")
    assert turbo != viridis
    assert pixels_of("--colours", "blue-red") == turbo
    assert pixels_of("--colours", "cubehelix") == viridis
    assert pixels_of("--smooth") != turbo
    assert pixels_of("--query", "1,2") != pixels_of("--query", "1,3")
    code, _, talk = look("attention", photo, "--colours", "jet")
    assert code == 2
    assert "'jet' is not one of blue-red, cubehelix, turbo, viridis, inferno" in talk


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "rollout", "--layer", "1"], "does not take --layer; it belongs to raw, similarity, norms, pca"),
        (["--class", "3"], "does not take --class"),
        (["--method", "legrad", "--query", "cls"], "does not take --query"),
        (["--method", "norms", "--grid"], "does not take --grid"),
        (["--query", "pool"], "--method pool draws what the pool attends to"),
        (["--grid", "--head", "2"], "leave --head out"),
        (["--method", "pca", "--layer", "all"], "one layer at a time"),
        (["--scale", "shared"], "--scale is for sheets"),
        (["--layer", "3"], "there are layers 0 to 2"),
        (["--head", "7"], "there are heads 0 to 6"),
        (["--query", "dist"], "no token dist"),
        (["--query", "3,0"], "no token (3, 0)"),
        (["--method", "rollout", "--start-layer", "3"], "layers 0 to 2"),
        (["--method", "relevance", "--class", "11"], "classes 0 to 10"),
        (["--method", "relevance", "--class", "cat"], "no class of that name"),
        (["-o", "map.svg"], "must end in .png or .npy or .json"),
        (["-o", "no/such/folder/map.npy"], "cannot be written"),
    ],
)
def test_what_cannot_be_honoured_is_one_line_and_code_2(options, words, look, photo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, text, talk = look("attention", photo, *options)
    assert code == 2
    assert text == ""
    assert words in talk.splitlines()[-1]
    assert "Traceback" not in talk
    assert len(talk.splitlines()) == 1


@pytest.mark.parametrize(
    "options", [["--query", "up"], ["--layer", "-1"], ["--residual", "1.5"], ["--method", "magic"]]
)
def test_what_is_no_value_is_a_usage_error(options, look, photo):
    code, _, talk = look("attention", photo, *options)
    assert code == 2
    assert "usage: minivit attention" in talk


def test_a_missing_photo_is_code_3(look, tmp_path):
    for command in (["attention"], ["trace", "--keep", "norm"], ["preprocess"]):
        code, _, talk = look(command[0], str(tmp_path / "none.jpg"), *command[1:])
        assert code == 3
        assert "no such file" in talk


def test_classes_go_by_name(hf_checkpoint, photo, tmp_path, capsys):
    names = ["tabby, tabby cat", "tiger cat", "cat", "dog", "hot dog", "fox", "owl", "ox", "ant", "bee", "yak"]
    folder = str(hf_checkpoint(id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)}))
    out = str(tmp_path / "map.json")

    def title(*options):
        code = main(["attention", photo, "-m", folder, "--method", "legrad", *options, "-o", out, "--overwrite"])
        return json.loads(Path(out).read_text())["title"] if code == 0 else capsys.readouterr().err

    assert "for tabby, tabby cat (0)" in title("--class", "Tabby Cat")
    assert "for cat (2)" in title("--class", "cat")  # the whole name, though three contain it
    assert "for hot dog (4)" in title("--class", "hot")
    assert "classes have that name" in title("--class", "t")
    capsys.readouterr()
    best = title()
    said = capsys.readouterr().err
    assert said.startswith("minivit: class: ")
    assert said.splitlines()[0].removeprefix("minivit: class: ") in best


class Terminal(io.StringIO):
    def __init__(self, encoding):
        super().__init__()
        self.code = encoding

    encoding = property(lambda self: self.code)

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("encoding", "environment", "inside", "absent"),
    [
        ("utf-8", {"COLORTERM": "truecolor"}, "\x1b[38;2;", "  \x1b"),
        ("utf-8", {"TERM": "xterm-256color"}, "\x1b[38;5;", "38;2;"),
        ("latin-1", {"COLORTERM": "truecolor"}, "\x1b[48;2;", "\u2580"),
        ("utf-8", {"NO_COLOR": "1"}, "\u2588\u2588", "\x1b"),
        ("ascii", {"NO_COLOR": "1"}, "@@", "\x1b"),
        ("utf-8", {"TERM": "dumb"}, "\u2588\u2588", "\x1b"),
    ],
)
def test_terminals(encoding, environment, inside, absent, folder, photo, monkeypatch):
    for name in ("NO_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    terminal = Terminal(encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    assert main(["attention", photo, "-m", folder]) == 0
    text = terminal.getvalue()
    assert inside in text
    assert absent not in text
    text.encode(encoding)
    assert text.splitlines()[-1].startswith("attention probability from ")


def test_off_a_terminal_maps_are_plain_text(look, photo):
    code, text, _ = look("attention", photo, "--layer", "all")
    lines = text.splitlines()
    assert code == 0
    assert "\x1b" not in text
    assert [line for line in lines if line.startswith("layer ")] == [
        line for i in range(3) for line in lines if line.startswith(f"layer {i}: ")
    ]
    assert len(lines) == 1 + 3 * 4  # a title, and each layer's name above its three rows
    code, _, talk = look("attention", photo, "--method", "pca")
    assert code == 2
    assert "-o FILE.png" in talk


def test_trace_prints_the_table_and_writes_the_tensors(look, folder, photo, tmp_path):
    out = tmp_path / "t.safetensors"
    code, text, talk = look("trace", photo, "--keep", "blocks.*.attn.probs[cls]", "--keep", "logits", "-o", str(out))
    assert code == 0
    assert talk == f"minivit: wrote {out}\n"
    model, pixels = expected(folder, photo)
    trace = minivit.trace(model, pixels, keep=["blocks.*.attn.probs[cls]", "logits"])
    assert text == f"{trace}\n"
    back = study.Trace.load(out)
    assert list(back) == list(trace)
    assert all(torch.equal(back[name], trace[name]) for name in trace)
    code, text, talk = look("trace", photo, "--keep", "*", "--limit", "1K")
    assert code == 2
    assert text == ""
    assert "more than the limit of 1,000" in talk
    code, _, talk = look("trace", photo, "--keep", "block")
    assert code == 2
    assert "matches no step" in talk
    assert look("trace", photo, "--keep", "norm", "-o", "t.pt")[0] == 2


def test_preprocess_writes_what_the_network_sees(look, folder, photo, tmp_path):
    out = tmp_path / "seen.png"
    code, text, talk = look("preprocess", photo, "-o", str(out))
    assert code == 0
    assert text == ""
    assert "aspect squashed: 100 x 50 becomes 40 x 24, 1.20 times narrower" in talk
    _, pixels = expected(folder, photo)
    with Image.open(out) as image:
        levels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(24, 40, 3).permute(2, 0, 1)
    torch.testing.assert_close((levels / 255 - 0.5) / 0.5, pixels[0], rtol=0, atol=1e-6)


def test_preprocess_explains_every_step_and_where_it_stands(look, photo):
    code, text, talk = look("preprocess", photo, "--explain")
    assert code == 0
    assert talk == ""
    rows = {line[2:13].strip(): line for line in text.splitlines()[1:]}
    assert "100 x 50 to 40 x 24" in rows["resize"]
    assert rows["resize"].endswith("preprocessor_config.json: size")
    assert "bilinear" in rows["filter"]
    assert rows["filter"].endswith("preprocessor_config.json: resample")
    assert "none" in rows["centre crop"]
    assert "do_center_crop" in rows["centre crop"]
    assert "x 1/255" in rows["rescale"]
    assert rows["rescale"].endswith("rescale_factor")
    assert "- (0.5, 0.5, 0.5)" in rows["mean"]
    assert rows["mean"].endswith("preprocessor_config.json: image_mean")
    assert "3 x 24 x 40 float32, from -" in rows["result"]
    assert "  warning: aspect squashed" in text


def test_preprocess_warns_of_all_it_does(folder, tmp_path, capsys):
    """A small picture with transparency, on its side by its EXIF."""
    path = tmp_path / "odd.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGBA", (20, 11), (200, 10, 10, 90)).save(path, exif=exif)
    assert main(["preprocess", str(path), "-m", folder, "--explain"]) == 0
    text = capsys.readouterr().out
    assert "11 x 20 upright RGB" in text
    for words in ("turned upright by its EXIF", "transparency flattened on white", "upscaled 3.64 times", "3.03 times"):
        assert words in text, words


def test_where_each_value_of_a_spec_was_read():
    from minivit.weights.preprocessing import read_image_spec

    given = {"size": 24, "do_normalize": False, "do_center_crop": True, "crop_size": {"height": 20, "width": 16}}
    source = read_image_spec(given, "model").source
    assert source["resize"] == "preprocessor_config.json: size"
    assert source["crop"] == "preprocessor_config.json: crop_size"
    assert source["mean"] == source["std"] == "preprocessor_config.json: do_normalize"
    assert source["resample"] == "default of ViTImageProcessor: resample"
    assert read_image_spec({**given, "resample": 2}, "model") == read_image_spec(
        given, "model"
    )  # only what it does counts


@pytest.mark.parametrize("command", ["lens", "attribute", "trace", "heads"])
def test_image_size_runs_the_model_on_images_of_another_size(command, capsys):
    cat = str(Path(minivit.__file__).parent / "pretrained" / "cat.jpg")
    more = ["--keep", "norm"] if command == "trace" else []
    assert main([command, cat, "-m", "minivit/cifar10-vit", "--image-size", "48x40", *more]) == 0
    other = capsys.readouterr().out
    assert main([command, cat, "-m", "minivit/cifar10-vit", *more]) == 0
    assert other != capsys.readouterr().out
    assert command != "trace" or "1 x 121 x 192" in other  # 12 x 10 patches and CLS
    assert main([command, cat, "-m", "minivit/cifar10-vit", "--image-size", "47", *more]) == 2
    assert "47 x 47 is not a whole number of patches" in capsys.readouterr().err
