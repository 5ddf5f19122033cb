"""The model in the box: it loads without a network, answers as it did, and stands in only where it may."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import minivit
from minivit.cli import main
from minivit.training.dataset import find_photos
from minivit.training.evaluate import evaluate
from minivit.weights import BUNDLED

NAME = "minivit/cifar10-vit"
FOLDER = BUNDLED[NAME]
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]

# The best class of 24 generated pictures, see `generated`. The least margin was 0.047, wide enough for any rounding.
ANSWERS = [2, 4, 0, 6, 2, 8, 2, 2, 3, 8, 8, 2, 2, 8, 3, 2, 0, 4, 2, 8, 4, 4, 4, 3]


def generated() -> list[Image.Image]:
    """Nine random colours, 3 x 3, blurred up to 32 x 32: the same on every machine."""
    generator = torch.Generator().manual_seed(7)
    levels = torch.randint(256, (24, 3 * 3 * 3), generator=generator)
    seeds = [Image.frombytes("RGB", (3, 3), bytes(row.tolist())) for row in levels]
    return [seed.resize((32, 32), Image.Resampling.BICUBIC) for seed in seeds]


def test_it_is_small_complete_and_named():
    assert (FOLDER / "model.safetensors").stat().st_size <= 6_000_000
    model = minivit.load(NAME)
    assert model.name == NAME
    assert list(model.labels.values()) == CLASSES
    assert model.image_spec.size == model.config.image_size == (32, 32)
    card = (FOLDER / "README.md").read_text()
    assert "minivit train" in card
    assert "--seed 0" in card


def test_its_answers_to_generated_pictures_are_those_it_was_shipped_with():
    predictions = minivit.classify(generated(), model=NAME, top_k=2)
    assert min(best.score - second.score for best, second in predictions) > 0.02
    assert [best.index for best, _ in predictions] == ANSWERS


@pytest.mark.slow
def test_its_accuracy_on_the_test_photos_is_the_one_its_card_states(shared: Path):
    """10,000 photos; one borderline photo more or less may fall the other way on another machine."""
    stated = json.loads((FOLDER / "evaluation.json").read_text())
    result = evaluate(minivit.load(NAME), find_photos(shared / "cifar10-test.tar"), batch_size=250)
    assert result.images == stated["images"] == 10_000
    assert abs(result.top1 - stated["top1"]) <= 2e-4
    assert result.top1 >= 0.8


def classify(cache: Path, *arguments: str) -> subprocess.CompletedProcess:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(minivit.__file__).parents[1]),
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "minivit", "classify", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_auto_falls_back_to_it_aloud_and_a_named_model_never_does(tmp_path):
    picture = tmp_path / "a.png"
    generated()[0].save(picture)
    result = classify(tmp_path, str(picture), "--jsonl")
    assert result.returncode == 0
    record = json.loads(result.stdout)
    assert record["model"] == NAME
    assert record["top"][0]["index"] == ANSWERS[0]
    assert "google/vit-base-patch16-224: config.json is not cached" in result.stderr
    assert f"using the bundled {NAME} instead" in result.stderr

    result = classify(tmp_path, str(picture), "--jsonl", "--model", "google/vit-base-patch16-224")
    assert result.returncode == 4
    assert result.stdout == ""
    assert "hf download google/vit-base-patch16-224" in result.stderr
    assert "Traceback" not in result.stderr


EXTRAS = ("torchvision", "transformers", "timm", "tokenizers", "pyarrow", "ray", "scipy", "pandas")


@pytest.mark.slow
def test_nothing_needs_an_extra(tmp_path):
    """As after a plain installation: commands that need no extra run without all of them."""
    picture = tmp_path / "a.png"
    generated()[0].save(picture)
    for word in ("cat", "dog"):
        (tmp_path / "photos" / word).mkdir(parents=True)
        for number, image in enumerate(generated()[:4]):
            image.save(tmp_path / "photos" / word / f"{number}.png")
    lines = f"""
        convert {NAME} new
        classify a.png -m new
        embed a.png -m new -o a.npy
        embed a.png -m new -o a.safetensors
        similar a.png a.safetensors
        trace a.png -m new --keep *.resid_post -o trace.safetensors
        attention a.png -m new -o map.npy
        attention a.png -m new --method relevance -o map.png
        explore a.png -m new -o page.html
        train photos -o trained --epochs 1 --batch-size 4 --init new --device cpu
        eval trained photos
    """
    code = (
        f"import sys\nsys.modules |= dict.fromkeys({EXTRAS})\nfrom minivit.cli import main\n"
        f"for line in {lines!r}.strip().splitlines(): assert main(line.split()) == 0, line"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(minivit.__file__).parents[1])}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_the_same_answers(dtype):
    pictures = generated()
    exact = minivit.classify(pictures, model=minivit.load(NAME, dtype=torch.float64), top_k=2)
    half = minivit.classify(pictures, model=minivit.load(NAME, dtype=dtype), top_k=1)
    for (best, second), (other,) in zip(exact, half, strict=True):
        assert other.index == best.index or best.score - second.score < 0.05


def test_attention_of_trained_weights_is_a_map_on_the_picture(tmp_path, capsys):
    """The command's numbers are the library's, and a trained head is far from looking everywhere alike."""
    picture = generated()[5]
    picture.save(tmp_path / "a.png")
    command = ["attention", str(tmp_path / "a.png"), "--model", NAME, "--layer", "5", "--head", "0"]
    assert main([*command, "-o", str(tmp_path / "map.json")]) == 0
    told = torch.tensor(json.loads((tmp_path / "map.json").read_text())["map"])
    model = minivit.load(NAME)
    trace = minivit.trace(model, minivit.preprocess(picture, model.image_spec)[None], keep="blocks.5.attn.probs[cls]")
    probs_N = trace["blocks.5.attn.probs"][0, 0, 0]
    torch.testing.assert_close(told, model.config.layout.to_grid(probs_N, dim=0), rtol=1e-5, atol=1e-7)
    assert told.max() > 4 * told.mean()
