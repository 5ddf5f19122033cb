"""What the scores of a checkpoint mean: as transformers' pipeline answers, or as the options say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import minivit
from minivit.cli import main
from minivit.errors import CheckpointError, UsageError
from minivit.inference.predictions import top_k
from minivit.weights.families.labels import read_class_names

PICTURE = Image.fromarray(np.random.default_rng(3).integers(0, 256, (37, 53, 3), dtype=np.uint8))
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
SIZES |= {"image_size": 24, "patch_size": 8}


def saved(folder, model_class, config, **words):
    """A checkpoint of transformers with values that matter, and its own words in config.json."""
    torch.manual_seed(4)
    model = model_class(config).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    model.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**written, **words}))
    size = {"height": config.image_size, "width": config.image_size}
    processor = {"image_processor_type": "ViTImageProcessor", "size": size}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def vit(folder, **words):
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(**SIZES, **words)
    return saved(folder, ViTForImageClassification, config)


def by_pipeline(folder):
    from transformers import AutoImageProcessor, pipeline

    processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
    found = pipeline("image-classification", model=str(folder), image_processor=processor, device="cpu")(PICTURE)
    return [(one["label"], one["score"]) for one in found]


@pytest.mark.parametrize(
    ("problem", "classes", "score"),
    [
        (None, 5, "softmax"),
        (None, 1, "sigmoid"),
        ("single_label_classification", 4, "softmax"),
        ("multi_label_classification", 3, "sigmoid"),
        ("regression", 1, "none"),
        ("regression", 2, "none"),
    ],
)
def test_scores_are_those_of_transformers_pipeline(tmp_path, problem, classes, score):
    folder = vit(tmp_path, problem_type=problem, num_labels=classes)
    model = minivit.load(folder)
    assert model.config.score == score
    (found,) = minivit.classify(PICTURE, model=model)
    expected = by_pipeline(folder)
    assert [p.label or f"LABEL_{p.index}" for p in found] == [name for name, _ in expected]
    assert [p.score for p in found] == pytest.approx([value for _, value in expected], abs=1e-5)


@pytest.mark.parametrize(("problem", "classes"), [("multi_label_classification", 3), ("regression", 2), (None, 1)])
def test_saved_scores_mean_the_same(tmp_path, problem, classes):
    model = minivit.load(vit(tmp_path / "a", problem_type=problem, num_labels=classes))
    minivit.weights.save(model, tmp_path / "b")
    assert minivit.load(tmp_path / "b").config == model.config
    (ours,) = minivit.classify(PICTURE, model=model)
    assert [p.score for p in ours] == pytest.approx([value for _, value in by_pipeline(tmp_path / "b")], abs=1e-5)


def test_a_swin_has_scores_too(tmp_path):
    from transformers import SwinConfig, SwinForImageClassification

    sizes = {
        "embed_dim": 12,
        "depths": [1, 2],
        "num_heads": [2, 3],
        "window_size": 3,
        "patch_size": 2,
        "image_size": 24,
    }
    config = SwinConfig(**sizes, num_labels=3, problem_type="multi_label_classification")
    folder = saved(tmp_path, SwinForImageClassification, config)
    (found,) = minivit.classify(PICTURE, model=folder)
    assert [p.score for p in found] == pytest.approx([value for _, value in by_pipeline(folder)], abs=1e-5)


def test_an_unknown_problem_is_refused(tmp_path):
    folder = vit(tmp_path, num_labels=3)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**written, "problem_type": "ranking"}))
    with pytest.raises(CheckpointError, match="problem_type is 'ranking'; known are regression"):
        minivit.load(folder)


# --- thresholds and names -------------------------------------------------------------------------------------

LOGITS = torch.tensor([[0.0, 2.0, -1.0, 2.0 - 1e-9]], dtype=torch.float64)


def test_a_threshold_keeps_all_classes_at_or_above_it():
    def kept(threshold, score):
        return [p.index for p in top_k(LOGITS, None, 1, score, threshold=threshold)[0]]

    assert kept(0.5, "sigmoid") == [1, 3, 0]  # sigmoid(0) is 0.5, which counts
    assert kept(0.500001, "sigmoid") == [1, 3]
    assert kept(0.99, "sigmoid") == []
    assert kept(-1.0, "none") == [1, 3, 0, 2]
    assert kept(2.0, "none") == [1]


def test_a_threshold_that_no_score_can_reach_is_refused(tmp_path):
    model = minivit.load(vit(tmp_path, num_labels=3))
    for threshold in (1.5, -0.1, float("nan")):
        with pytest.raises(UsageError, match="softmax scores lie between 0 and 1"):
            minivit.classify(PICTURE, model=model, threshold=threshold)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("names.txt", "\ufeffsky\n tree \n\ncat, small\n"),
        ("names.json", '["sky", "tree", "cat, small"]'),
        ("names.json", '{"2": "cat, small", "0": "sky", "1": "tree"}'),
        ("names.csv", 'tag_id,name,category\n7,sky,9\n8,tree,0\n9,"cat, small",9\n'),
    ],
)
def test_class_names_from_a_file(tmp_path, name, text):
    (tmp_path / name).write_text(text, encoding="utf-8")
    found = read_class_names(tmp_path / name, 3)
    assert found.labels == {0: "sky", 1: "tree", 2: "cat, small"}
    assert found.categories == ({0: "9", 1: "0", 2: "9"} if name.endswith("csv") else None)


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.txt", "one\ntwo\n", "2 class names; the model has 3 outputs"),
        ("a.json", '{"1": "a", "2": "b", "3": "c"}', "keys 0 to 2"),
        ("a.json", "[1, 2, 3]", "expected a list of names"),
        ("a.json", "[", "no class names can be read"),
        ("a.csv", "label\na\nb\nc\n", "one must be called name"),
        ("a.csv", "name,category\na,1\nb\nc,1\n", "fewer values"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(tmp_path, name, text, why):
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=why):
        read_class_names(tmp_path / name, 3)


# --- the command ----------------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path):
    PICTURE.save(tmp_path / "a.png")
    return str(tmp_path / "a.png")


def run(capsys, *arguments):
    code = main([*arguments, "--device", "cpu"])
    return code, *capsys.readouterr()


def test_options_of_the_command_override_the_checkpoint_and_the_record_says_so(tmp_path, capsys, image):
    folder = str(vit(tmp_path / "m", num_labels=3))
    model = minivit.load(folder)
    logits = model(minivit.preprocess(PICTURE, model.image_spec)[None])[0].detach()
    (tmp_path / "names.csv").write_text("name,category\nsky,x\ntree,y\ncat,x\n")
    for score, values in (("none", logits), ("sigmoid", logits.sigmoid()), ("softmax", logits.softmax(-1))):
        options = ["--scores", score, "--class-names", str(tmp_path / "names.csv"), "--jsonl"]
        code, out, err = run(capsys, "classify", image, "-m", folder, *options)
        record = json.loads(out)
        assert (code, err, record["scores"]) == (0, "", score)
        order = logits.argsort(descending=True).tolist()
        assert [p["label"] for p in record["top"]] == [("sky", "tree", "cat")[i] for i in order]
        assert [p["category"] for p in record["top"]] == [("x", "y", "x")[i] for i in order]
        assert [p["score"] for p in record["top"]] == pytest.approx([values[i].item() for i in order], abs=1e-5)
    least = float(logits.sigmoid().sort().values[1])
    options = ["--scores", "sigmoid", "--threshold", str(least - 1e-6), "--jsonl"]
    code, out, _ = run(capsys, "classify", image, "-m", folder, *options)
    assert len(json.loads(out)["top"]) == 2
    code, _, err = run(capsys, "classify", image, "-m", folder, "--threshold", "7")
    assert code == 2
    assert "softmax scores lie between 0 and 1" in err


def test_text_groups_the_classes_by_category(tmp_path, capsys, image):
    folder = str(vit(tmp_path / "m", num_labels=3))
    best, middle, last = (p.index for p in minivit.classify(PICTURE, model=folder)[0])
    category = {best: "things", last: "things", middle: "places"}
    rows = "".join(f"c{index},{category[index]}\n" for index in range(3))
    (tmp_path / "names.csv").write_text("name,category\n" + rows)
    _, out, _ = run(capsys, "classify", image, "-m", folder, "--class-names", str(tmp_path / "names.csv"))
    words = [line.split()[-2] if "(" in line else line.strip() for line in out.splitlines()[1:]]
    assert words == ["things:", f"c{best}", f"c{last}", "places:", f"c{middle}"]


def test_a_tagger_of_timm_has_its_tags_and_sigmoids(tmp_path, capsys, image):
    import timm

    args = {"img_size": 24, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    model = timm.create_model("vit_base_patch16_224", num_classes=4, **args)
    config = {"architecture": "vit_base_patch16_224", "num_classes": 4, "model_args": args}
    config["pretrained_cfg"] = {"input_size": [3, 24, 24], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 1.0}
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "selected_tags.csv").write_text("tag_id,name,category\n1,sky,0\n2,tree,0\n3,cat,4\n4,dog,4\n")
    ours = minivit.load(folder)
    assert ours.config.score == "sigmoid"
    assert list(ours.labels.values()) == ["sky", "tree", "cat", "dog"]
    assert list(ours.categories.values()) == ["0", "0", "4", "4"]
    assert "tagger" in ours.notes[0]
    assert "selected_tags.csv" in run(capsys, "classify", image, "-m", str(folder))[2]  # it is said
    assert minivit.weights.describe(folder)["scores"] == "sigmoid"
    (folder / "selected_tags.csv").write_text("tag_id,name\n1,sky\n")
    with pytest.raises(CheckpointError, match=r"selected_tags.csv: has 1 class names; the model has 4 outputs"):
        minivit.load(folder)
