"""Swin: windows, their shift and their mask by hand; what kernels it takes; what commands make of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.fakes import SMALL_SWIN, build_swin
from PIL import Image

import minivit
from minivit import ShapeError, UsageError
from minivit.cli import main
from minivit.model.attention import attend_reference, attend_sdpa, takes_bias
from minivit.model.config import SwinConfig
from minivit.model.swin import MASKED, PatchMerging, Swin, Windows, windows_of
from minivit.weights import describe, verify


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    from transformers import SwinConfig as Config
    from transformers import SwinForImageClassification

    path = tmp_path_factory.mktemp("swin")
    sizes = {"embed_dim": 14, "depths": [2, 3, 2], "num_heads": [2, 7, 4], "window_size": 3, "mlp_ratio": 1.5}
    names = dict(enumerate(["cat", "dog", "bird", "horse", "fish"]))
    torch.manual_seed(0)
    SwinForImageClassification(Config(image_size=56, patch_size=4, id2label=names, **sizes)).save_pretrained(path)
    processor = {"image_processor_type": "ViTImageProcessor", "size": {"height": 56, "width": 56}, "resample": 3}
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photo.png"
    Image.effect_noise((64, 48), 60).convert("RGB").save(path)
    return path


# --- windows


def numbered(rows: int, columns: int) -> torch.Tensor:
    """Tokens of one channel that hold their number, from 1: (1, rows * columns, 1)."""
    return torch.arange(1.0, rows * columns + 1)[None, :, None]


def test_windows_by_hand():
    # A grid of 2 x 4 in windows of 2: columns 0 and 1, then 2 and 3.
    windows = Windows(grid=(2, 4), window=2)
    cut = windows.cut(numbered(2, 4))
    assert cut[:, :, 0].tolist() == [[1, 2, 5, 6], [3, 4, 7, 8]]
    assert torch.equal(windows.stitch(cut), numbered(2, 4))


@pytest.mark.parametrize("pad_first, expected", [
    # 2 x 3 in windows of 2, rolled left by 1. Padded first: 1 2 3 0 / 4 5 6 0 -> 2 3 0 1 / 5 6 0 4.
    (True, [[2, 3, 5, 6], [0, 1, 0, 4]]),
    # Rolled first: 2 3 1 / 5 6 4 -> 2 3 1 0 / 5 6 4 0.
    (False, [[2, 3, 5, 6], [1, 0, 4, 0]]),
])  # fmt: skip
def test_padding_before_and_after_the_roll_by_hand(pad_first, expected):
    windows = Windows(grid=(2, 3), window=2, shift=(0, 1), pad_first=pad_first)
    cut = windows.cut(numbered(2, 3))
    assert cut[:, :, 0].tolist() == expected
    assert torch.equal(windows.stitch(cut), numbered(2, 3))


def test_the_mask_keeps_apart_what_the_roll_brought_together():
    # One row of 4 tokens twice, windows of 2, rolled left by 1: 2 3 | 4 1. 4 and 1 are no neighbours.
    mask = Windows(grid=(2, 4), window=2, shift=(0, 1)).mask(torch.zeros(1))
    assert mask.shape == (2, 1, 4, 4)
    assert not mask[0].any()
    apart = torch.tensor([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]])
    assert torch.equal(mask[1, 0], apart * MASKED)
    assert Windows(grid=(2, 4), window=2).mask(torch.zeros(1)) is None


@pytest.mark.parametrize(
    "rule, grid, shift",
    [
        ("hf", (7, 10), (1, 1)),
        ("hf", (3, 10), (0, 0)),  # transformers: one side is a window, so neither is rolled
        ("torchvision", (3, 10), (0, 1)),
        ("torchvision", (2, 3), (0, 0)),
        ("timm", (7, 10), (1, 1)),
    ],
)
def test_how_far_a_grid_is_rolled(rule, grid, shift):
    config = SwinConfig(**SMALL_SWIN, windowing=rule)
    windows = windows_of(config, 0, grid, shifted=True)
    assert windows.shift == shift
    assert windows.pad_first is (rule != "timm")
    assert windows_of(config, 0, grid, shifted=False).shift == (0, 0)


def test_timm_rolls_by_the_image_size_it_was_made_for():
    config = SwinConfig(**{**SMALL_SWIN, "image_size": (12, 56)}, windowing="timm")  # 3 x 14 tokens
    assert windows_of(config, 0, (16, 22), shifted=True).shift == (0, 1)


def test_less_than_a_window_is_refused_where_the_reference_has_no_answer():
    for rule in ("hf", "timm"):
        with pytest.raises(ShapeError, match="stage 0 has 2 x 9 tokens, less than a window of 3"):
            windows_of(SwinConfig(**SMALL_SWIN, windowing=rule), 0, (2, 9), shifted=False)


def test_the_bias_depends_on_the_difference_of_two_places_alone():
    attn = build_swin().blocks[0].attn
    bias = attn.bias()[0, 0]  # (9, 9), of a window of 3 x 3
    assert bias[0, 0] == bias[4, 4] == bias[8, 8]  # a token and itself
    assert bias[0, 1] == bias[3, 4] == bias[7, 8]
    assert bias[0, 1] != bias[1, 0]
    # A key one down and one to the left of its query: steps (-1, 1), row (-1 + 2) * 5 + (1 + 2) of the table.
    assert bias[1, 3] == attn.bias_table[1 * 5 + 3, 0]


def test_four_neighbours_merge_in_the_order_of_the_files():
    merge = PatchMerging(1, 1e-5)
    with torch.no_grad():
        merge.norm = torch.nn.Identity()
        merge.reduction.weight.copy_(torch.tensor([[1.0, 10, 100, 1000], [0, 0, 0, 1]]))
        # 1 2 3 / 4 5 6, padded to 1 2 3 0 / 4 5 6 0 / : upper left, lower left, upper right, lower right.
        assert merge(numbered(2, 3), (2, 3)).tolist() == [[[5241, 5], [63, 0]]]


# --- kernels


def test_kernels_with_a_bias_run_and_others_are_refused_by_name():
    calls = []

    def biased(q, k, v, *, scale, bias):
        calls.append((tuple(q.shape), tuple(bias.shape)))
        return attend_reference(q, k, v, scale=scale, bias=bias)

    def plain_kernel(q, k, v, *, scale):
        return attend_reference(q, k, v, scale=scale)

    def swallows(q, k, v, **anything):
        return attend_reference(q, k, v, scale=anything["scale"])

    class Module(torch.nn.Module):
        def forward(self, q, k, v, *, scale, bias):
            return attend_reference(q, k, v, scale=scale, bias=bias)

    pixels = torch.randn(2, 3, 40, 56, dtype=torch.float64)
    expected = build_swin()(pixels)
    assert (build_swin(biased)(pixels) - expected).abs().max() <= 1e-12
    assert (build_swin(Module())(pixels) - expected).abs().max() <= 1e-12
    # 10 x 14 tokens are 4 x 5 windows of 9; those of a shifted block have a mask of their own.
    assert calls[:2] == [((40, 2, 9, 7), (1, 2, 9, 9)), ((40, 2, 9, 7), (40, 2, 9, 9))]
    for kernel in (plain_kernel, swallows):
        with pytest.raises(UsageError, match=f"attention {kernel.__name__} accepts no bias"):
            build_swin(kernel)
    assert takes_bias(attend_sdpa)
    assert not takes_bias(max)


def test_load_refuses_a_kernel_without_a_bias(checkpoint):
    def my_kernel(q, k, v, *, scale):
        return attend_reference(q, k, v, scale=scale)

    with pytest.raises(UsageError, match="attention my_kernel accepts no bias"):
        minivit.load(checkpoint, attend=my_kernel)


def test_the_bias_and_the_mask_count():
    """Planted faults: without the bias, or without the mask, the logits are others."""

    def unbiased(q, k, v, *, scale, bias):
        return attend_reference(q, k, v, scale=scale)

    def unmasked(q, k, v, *, scale, bias):
        opened = torch.where(bias < MASKED / 2, bias - MASKED, bias)
        return attend_reference(q, k, v, scale=scale, bias=opened)

    pixels = torch.randn(2, 3, 40, 56, dtype=torch.float64)
    expected = build_swin()(pixels)
    assert (build_swin(unbiased)(pixels) - expected).abs().max() > 1e-4
    assert (build_swin(unmasked)(pixels) - expected).abs().max() > 1e-4


# --- the model and the commands


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"heads": (2, 7)}, "have 3, 2, 3 stages"),
        ({"heads": (3, 7, 4)}, "width 14 is not divisible by 3 heads"),
        ({"window": (3, 0, 3)}, "must be at least 1"),
        ({"windowing": "swin"}, "hf, torchvision, timm"),
        ({"eps": 0.0}, "between 0 and 1"),
    ],
)
def test_configurations_that_make_no_swin(changes, said):
    with pytest.raises(UsageError, match=said):
        SwinConfig(**{**SMALL_SWIN, **changes})


def test_pixels_that_make_no_grid_are_refused():
    with pytest.raises(ShapeError, match=r"expected \(B, 3, H, W\)"):
        build_swin()(torch.zeros(1, 1, 40, 56, dtype=torch.float64))
    with pytest.raises(ShapeError, match="not a whole number of patches of 4"):
        build_swin(windowing="torchvision")(torch.zeros(1, 3, 41, 56, dtype=torch.float64))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"use_absolute_embeddings": True}, "use_absolute_embeddings = True; only False is known"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps = 1e-06; only 1e-05 is known"),
        ({"depths": [2, 2, 2]}, "unexpected: swin.encoder.layers.1.blocks.2"),
        ({"depths": [2, 10**9, 2]}, "the weights have only"),
        ({"depths": "2,2"}, "expected a list of whole numbers"),
        ({"window_size": 4}, r"relative_position_bias_table is \[25, 2\], expected \[49, 2\]"),
        ({"window_size": [3, 3]}, "window_size is"),
        ({"num_heads": [2, 7]}, "stages"),
        ({"architectures": ["SwinForMaskedImageModeling"]}, "known are SwinForImageClassification, SwinModel"),
    ],
)
def test_config_json_that_does_not_fit_is_refused(checkpoint, tmp_path, change, said):
    import shutil

    shutil.copytree(checkpoint, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(minivit.CheckpointError, match=said) as raised:
        minivit.load(tmp_path)
    assert "\n" not in str(raised.value)


def test_torchvisions_names_are_known():
    from torchvision.models import get_model_weights

    from minivit.weights.families.registry import FAMILIES, family_of
    from minivit.weights.families.torchvision.models import WEIGHTS, named

    for name in ("swin_t", "swin_s", "swin_b"):
        (weights,) = get_model_weights(name)
        file, size, edge, resample = WEIGHTS[name][weights.name]
        transform = weights.transforms()
        assert weights.url.endswith("/" + file)
        assert resample == 3
        assert transform.interpolation.value == "bicubic"
        assert (transform.crop_size, transform.resize_size) == ([size], [edge])
        config = named(name).config
        assert family_of(name, config, f"torchvision/{name}") is FAMILIES["torchvision_swin"]


@pytest.mark.slow
def test_every_timm_swin_has_timms_own_shapes():
    import timm

    from minivit.weights.configs import read_config
    from minivit.weights.convert import rows_for, spellings
    from minivit.weights.families.registry import FAMILIES
    from minivit.weights.families.timm.swin import ARCHITECTURES
    from minivit.weights.files import Source

    assert set(ARCHITECTURES) == set(timm.list_models("swin_*", module="swin_transformer"))
    for name in ARCHITECTURES:
        with torch.device("meta"):
            theirs = timm.create_model(name, num_classes=7)
        config = {"architecture": name, "num_classes": 7}
        source = Source(name=name, revision=None, config=config, preprocessor=None, shards=())
        wanted = {part: tuple(p.shape) for part, p in theirs.named_parameters()}
        read, kind = read_config(source, FAMILIES["timm_swin"], wanted)
        assert isinstance(read, SwinConfig)
        with torch.device("meta"):
            ours = Swin(read)
        rows = rows_for(FAMILIES["timm_swin"], kind, read)
        found = {spellings(rows, t)[0].parts[0]: tuple(p.shape) for t, p in ours.named_parameters()}
        assert found == wanted, name
        assert read.image_size == theirs.patch_embed.img_size
        assert read.eps == theirs.norm.eps


def test_classify_embed_info_and_verify(checkpoint, photo, capsys):
    assert main(["classify", str(photo), "--model", str(checkpoint), "--jsonl"]) == 0
    record = json.loads(capsys.readouterr().out)
    model = minivit.load(checkpoint)
    with torch.no_grad():
        logits = model(minivit.preprocess(photo, model.image_spec)[None])[0].double()
    assert [p["score"] for p in record["top"]] == sorted(logits.softmax(0).tolist(), reverse=True)
    assert {p["label"] for p in record["top"]} == {"cat", "dog", "bird", "horse", "fish"}
    assert main(["embed", str(photo), "--model", str(checkpoint), "--pool", "mean"]) == 0
    embedding = json.loads(capsys.readouterr().out)["embedding"]
    assert torch.allclose(torch.tensor(embedding), minivit.embed(photo, model=model, pool="mean")[0])
    assert len(embedding) == 56
    assert describe(checkpoint)["parameters"] == sum(p.numel() for p in model.parameters())
    assert verify(checkpoint)["good"]
    assert verify(checkpoint)["head"] == {"outputs": 5, "labels": 5}
    assert main(["info", str(checkpoint)]) == 0
    out = capsys.readouterr().out
    assert "stages of 2 / 3 / 2 blocks" in out
    assert "16 = 4 x 4 in the last stage" in out


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["trace", "PHOTO", "--keep", "norm"], "is a Swin"),
        (["attention", "PHOTO", "--method", "rollout"], "is a Swin"),
        (["embed", "PHOTO", "--pool", "cls"], "pool mean or tokens"),
        (["embed", "PHOTO", "--pool", "mean", "--layer", "1"], "pool mean or tokens"),
    ],
)
def test_what_a_swin_has_not_is_one_line(checkpoint, photo, capsys, arguments, said):
    arguments = [str(photo) if part == "PHOTO" else part for part in arguments]
    assert main([*arguments, "--model", str(checkpoint)]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert said in err
    assert err.count("\n") == 1


def test_python_functions_refuse_a_swin(checkpoint):
    model = minivit.load(checkpoint)
    pixels = torch.zeros(1, 3, 56, 56)
    with pytest.raises(UsageError, match="is a Swin; trace needs a minivit ViT"):
        minivit.trace(model, pixels)
    with pytest.raises(UsageError, match="not a Swin"):
        minivit.optimize(model)


# --- writing


@pytest.mark.parametrize("rule", ["torchvision", "timm"])
def test_windows_that_fit_are_written_as_transformers_cuts_them(rule, tmp_path):
    # 12, 6 and 3 patches in windows of 3
    model = build_swin(image_size=(48, 48), windowing=rule, any_size=rule == "torchvision")
    minivit.save(model, tmp_path / "out")
    again = minivit.load(tmp_path / "out", dtype=torch.float64)
    pixels = torch.randn(2, 3, *model.config.image_size, dtype=torch.float64)
    assert again.config.windowing == "hf"
    assert (again(pixels) - model(pixels)).abs().max() <= 1e-12
    # The last stage of 3 x 6 tokens: transformers rolls neither side, the others the longer one.
    for changes in ({"image_size": (48, 96)}, {"image_size": (48, 48), "window": (3, 6, 3)}):
        with pytest.raises(UsageError, match="none of transformers' layouts"):
            minivit.save(build_swin(windowing=rule, **changes), tmp_path / "no")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# --- where windows look


@pytest.mark.parametrize("layer, rows, columns", [(0, 10, 14), (1, 10, 14), (3, 5, 7), (6, 3, 4)])
def test_maps_of_windows_are_stitched_to_the_image(layer, rows, columns):
    model = build_swin()
    pixels = torch.randn(2, 3, 40, 56, dtype=torch.float64)
    before = model(pixels)
    found = minivit.study.window_attention(model, pixels, layer)
    assert torch.equal(model(pixels), before)
    assert model.blocks[layer].attn.attend is attend_sdpa
    probs, windows = found
    assert windows.grid == (rows, columns)
    assert probs.shape[-2:] == (9, 9)
    assert (probs.sum(-1) - 1).abs().max() <= 1e-12
    received = minivit.study.window_map(found)
    assert received.shape == (2, rows, columns)
    # By the definition: of every token, the row of its window that the mean over queries and heads gives.
    expected = windows.stitch(probs.mean(dim=(2, 3)).flatten(0, 1)[:, :, None])[:, :, 0].unflatten(1, windows.grid)
    assert (received - expected).abs().max() <= 1e-12
    looks = minivit.study.window_map(found, query=(rows - 1, 0), head=1)
    assert (looks.sum(dim=(1, 2)) <= 1 + 1e-12).all()
    assert int((looks[0] > 0).sum()) <= 9
    assert looks[0, rows - 1, 0] > 0  # a token sees itself


def test_a_query_sees_its_window_and_nothing_else():
    # The second block of 10 x 14 tokens in windows of 3, rolled by 1: the token in row 4, column 5 is in row 3,
    # column 4 of the rolled image, in the window of rows 3 to 5, which are rows 4 to 6 of the image.
    model = build_swin()
    found = minivit.study.window_attention(model, torch.randn(1, 3, 40, 56, dtype=torch.float64), 1)
    looks = minivit.study.window_map(found, query=(4, 5))[0]
    seen = looks.nonzero()
    assert seen.amin(0).tolist() == [4, 4]
    assert seen.amax(0).tolist() == [6, 6]
    assert looks.sum() == pytest.approx(1)


def test_maps_that_are_not_there_are_refused():
    model, pixels = build_swin(), torch.zeros(1, 3, 40, 56, dtype=torch.float64)
    with pytest.raises(UsageError, match="layers 0 to 6"):
        minivit.study.window_attention(model, pixels, 7)
    with pytest.raises(UsageError, match="no token in row 10, column 0"):
        minivit.study.window_map(minivit.study.window_attention(model, pixels, 0), query=(10, 0))
    with pytest.raises(UsageError, match="is a Swin; relevance needs a minivit ViT"):
        minivit.study.relevance(model, pixels)


def test_heads_of_windows_by_hand():
    """40 x 56 pixels: 10 x 14 tokens of 4 pixels, in windows of 3 with zeros to 12 x 15; then of 8 and of 16 pixels."""
    model, pixels = build_swin(), torch.randn(2, 3, 40, 56, dtype=torch.float64)
    statistics = minivit.study.head_statistics(model, pixels)
    heads = [2, 2, 7, 7, 7, 4, 4]
    assert set(statistics) == {"distance", "entropy", "self", "neighbours", "patches"}
    for values in statistics.values():
        assert values.shape == (2, 7, 7)
        assert [(~row.isnan()).sum().item() for row in values[0]] == heads
    for layer, size in ((0, 4), (1, 4), (3, 8), (6, 16)):
        probs, windows = minivit.study.window_attention(model, pixels, layer)
        rows, columns = windows.grid
        place = windows.cut(torch.arange(1.0, rows * columns + 1)[None, :, None])[:, :, 0].long() - 1  # -1: padding
        apart = entropy = near = own = seen = 0.0
        head = heads[layer] - 1
        for window in range(len(place)):
            for n, query in enumerate(place[window].tolist()):
                row = probs[1, window, head, n]
                entropy -= float((row * row.clamp(min=1e-300).log()).sum()) if query >= 0 else 0
                for m, key in enumerate(place[window].tolist()):
                    if query >= 0 and key >= 0:
                        down, across = query // columns - key // columns, query % columns - key % columns
                        ring = max(abs(down), abs(across))
                        apart += float(row[m]) * size * (down**2 + across**2) ** 0.5
                        seen, own, near = (
                            seen + float(row[m]),
                            own + float(row[m] * (ring == 0)),
                            near + float(row[m] * (ring == 1)),
                        )
        expected = {"distance": apart / seen, "entropy": entropy / rows / columns, "self": own / rows / columns}
        expected |= {"neighbours": near / rows / columns, "patches": seen / rows / columns}
        found = {name: float(values[1, layer, head]) for name, values in statistics.items()}
        assert found == pytest.approx(expected, abs=1e-9), layer


def test_the_heads_command_accepts_a_swin(checkpoint, photo, tmp_path, capsys):
    table, picture = tmp_path / "heads.csv", tmp_path / "heads.png"
    assert main(["heads", str(photo), "--model", str(checkpoint), "-o", str(table), "-o", str(picture)]) == 0
    out = capsys.readouterr().out
    model = minivit.load(checkpoint)
    expected = minivit.study.head_statistics(model, minivit.preprocess(photo, model.image_spec)[None])["distance"][0]
    lines = table.read_text().splitlines()
    assert lines[0] == "layer,head,distance,entropy,self,neighbours,patches,pictures"
    assert "nan" not in out
    there = expected[~expected.isnan()]
    assert len(lines) == 1 + len(there)
    assert [float(line.split(",")[2]) for line in lines[1:]] == pytest.approx(there.tolist(), rel=1e-5)
    with Image.open(picture) as image:
        assert image.width > 400


def test_the_attention_command_draws_windows(checkpoint, photo, tmp_path, capsys):
    out = tmp_path / "map.json"
    options = ["attention", str(photo), "--model", str(checkpoint), "-o", str(out), "--overwrite"]
    assert main([*options, "--layer", "1", "--query", "2,3"]) == 0
    record = json.loads(out.read_text())
    assert "windows of 3 x 3 shifted by 1, 1" in record["title"]
    assert len(record["map"]) == 14
    for wrong in (["--grid"], ["--layer", "all"], ["--query", "cls"]):
        assert main([*options, *wrong]) == 2
        assert "another grid in every stage" in capsys.readouterr().err


def test_eval_scores_a_swin(checkpoint, tmp_path, capsys):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.effect_noise((60, 60), 50).convert("RGB").save(tmp_path / name / "a.png")
    assert main(["eval", str(checkpoint), str(tmp_path)]) == 0
    assert "on 2 images" in capsys.readouterr().out
