"""Training: it learns, repeats, resumes to the bit, spreads over processes, and transformers reads the result."""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tarfile
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import minivit
from minivit.cli import main
from minivit.cli.training.train import add_recipe_options, recipe_of
from minivit.errors import CheckpointError, ImageError, UsageError
from minivit.images.preprocess import pixels_from_image
from minivit.images.spec import ImageSpec
from minivit.model.attention import attend_reference
from minivit.model.config import ViTConfig
from minivit.model.vit import ViT
from minivit.training.augment import OPERATIONS, augment, mix
from minivit.training.dataset import find_images
from minivit.training.evaluation import calibration_error, evaluate, match_classes
from minivit.training.loop import curves, train
from minivit.training.models import new_model as new_model_of
from minivit.training.models import with_new_head
from minivit.training.optimizer import image_size_at, learning_rate, optimizers
from minivit.training.recipe import Augmentation, Recipe
from minivit.training.step import draw_depth, stochastic_depth

CLASSES = ("bottom", "left", "right", "top")  # the half of the picture that is bright


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 4 class folders of 24 noisy pictures, 12 x 8; the class is where the light is."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = torch.Generator().manual_seed(1)
    for name in CLASSES:
        (folder / name).mkdir()
        for i in range(24):
            levels = torch.randint(160, (12, 8, 3), generator=generator)
            half = {"top": (slice(0, 6),), "bottom": (slice(6, 12),)}
            half |= {"left": (slice(None), slice(0, 4)), "right": (slice(None), slice(4, 8))}
            levels[half[name]] += 80
            Image.frombytes("RGB", (8, 12), bytes(levels.flatten().tolist())).save(folder / name / f"{i}.png")
    return folder


def new_model(seed: int = 0, **changes) -> ViT:
    torch.manual_seed(seed)
    sizes = {"image_size": (12, 8), "patch_size": 4, "width": 24, "depth": 3, "heads": 3, "mlp_width": 40}
    model = ViT(ViTConfig(**{**sizes, "classes": 4, **changes}), attend=attend_reference)
    model.image_spec = ImageSpec(resize=model.config.image_size)
    model.labels = dict(enumerate(CLASSES))
    return model


EVERYTHING = Recipe(
    epochs=2,
    batch_size=16,
    lr=2e-3,
    mixup=0.8,
    cutmix=1.0,
    drop_path=0.2,
    ema=0.9,
    start_size=4,
    optimizer="muon" if hasattr(torch.optim, "Muon") else "adamw",
    augmentation=Augmentation(crop="resized", flip=True, operations=2, magnitude=0.5),
)


def metrics(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def same_weights(a: ViT, b: ViT) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_it_overfits_32_pictures(pictures, tmp_path):
    photos = find_images(pictures)
    few = replace(photos, names=photos.names[::3], labels=photos.labels[::3])
    assert len(few) == 32
    recipe = Recipe(epochs=60, batch_size=32, lr=5e-3, label_smoothing=0.0, weight_decay=0.0)
    trained = train(new_model(), few, recipe, tmp_path)
    assert evaluate(trained, few).top1 == 1.0


def test_one_epoch_beats_chance_by_far(pictures, tmp_path):
    """Chance is 0.25; one pass over 768 pictures with this seed must reach 0.7."""
    photos = find_images(pictures)
    many = replace(photos, names=photos.names * 8, labels=photos.labels * 8)
    trained = train(new_model(), many, Recipe(epochs=1, batch_size=8, lr=5e-3), tmp_path)
    assert evaluate(trained, photos).top1 >= 0.7


@pytest.mark.slow
def test_one_epoch_on_real_photos_beats_chance(shared, tmp_path):
    """2,000 CIFAR-10 photos, one epoch: chance is 0.10, and 500 test photos must come out at 0.2 or more."""
    photos = find_images(shared / "cifar10-train.tar")
    few = replace(photos, names=photos.names[::25], labels=photos.labels[::25], spans=photos.spans[::25])
    test = find_images(shared / "cifar10-test.tar")
    test = replace(test, names=test.names[::20], labels=test.labels[::20], spans=test.spans[::20])
    model = new_model(image_size=(32, 32), patch_size=8, width=48, classes=10)
    model.labels = dict(enumerate(photos.classes))
    trained = train(model, few, Recipe(epochs=1, batch_size=16, lr=2e-3), tmp_path)
    assert evaluate(trained, test).top1 >= 0.2


def test_the_seed_decides_everything(pictures, tmp_path):
    photos = find_images(pictures)
    runs = [train(new_model(), photos, EVERYTHING, tmp_path / name, workers=w) for name, w in (("a", 0), ("b", 2))]
    other = train(new_model(), photos, replace(EVERYTHING, seed=1), tmp_path / "c")
    assert same_weights(*runs)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert not same_weights(runs[0], other)


@pytest.mark.parametrize("stop_after", [1, 6, 9])
def test_an_interrupted_run_resumes_bit_for_bit(pictures, tmp_path, stop_after):
    """Within the first epoch, at its end, within the second: 6 steps an epoch."""
    photos = find_images(pictures)
    whole = train(new_model(), photos, EVERYTHING, tmp_path / "whole")
    steps = []
    with pytest.raises(KeyboardInterrupt):
        train(
            new_model(),
            photos,
            EVERYTHING,
            tmp_path / "cut",
            report=steps.append,
            stop=lambda: len(steps) >= stop_after,
        )
    assert len(steps) == stop_after
    # The new process starts from other random weights: all must come from the checkpoint.
    resumed = train(new_model(seed=9), photos, EVERYTHING, tmp_path / "cut", resume=True)
    assert same_weights(whole, resumed)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")


def test_metrics_after_the_last_checkpoint_are_not_counted_twice(pictures, tmp_path):
    """A kill between two checkpoints leaves lines of steps that will be taken again."""
    photos = find_images(pictures)
    steps = []
    with pytest.raises(KeyboardInterrupt):
        train(new_model(), photos, EVERYTHING, tmp_path, report=steps.append, stop=lambda: len(steps) >= 7)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**metrics(tmp_path)[-1], "step": 7}) + "\n")
    train(new_model(), photos, EVERYTHING, tmp_path, resume=True)
    assert [line["step"] for line in metrics(tmp_path)] == list(range(12))


def test_resuming_another_run_is_refused(pictures, tmp_path):
    photos = find_images(pictures)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: nothing to resume"):
        train(new_model(), photos, EVERYTHING, tmp_path, resume=True)
    train(new_model(), photos, EVERYTHING, tmp_path)
    with pytest.raises(CheckpointError, match=r"lr was 0\.002, is 0\.5; width was 24, is 48"):
        train(new_model(width=48), photos, replace(EVERYTHING, lr=0.5), tmp_path, resume=True)


@pytest.mark.slow
def test_two_processes_have_the_loss_curve_of_one(pictures, tmp_path):
    """DistributedDataParallel on gloo: each process takes half of every batch; float32 sums differ in order only.

    No thread of gloo's is left when the command returns: one that outlives Python can abort the process.
    """
    script = tmp_path / "train.py"
    script.write_text(
        "import pathlib, sys\n"
        "from minivit.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "threads = [path.read_text() for path in pathlib.Path('/proc/self/task').glob('*/comm')]\n"
        "assert not any('gloo' in name for name in threads), threads\n"
        "sys.exit(code)\n"
    )
    options = ["--epochs", "1", "--batch-size", "16", "--lr", "2e-3", "--mixup", "0.8", "--drop-path", "0.2"]
    options += ["--patch-size", "4", "--image-size", "16", "--width", "24", "--depth", "2", "--workers", "0"]
    options += ["--device", "cpu", "--crop", "padded", "--ema", "0.9"]
    environment = {**os.environ, "PYTHONPATH": str(Path(minivit.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, start in (("two", launcher), ("one", [sys.executable])):
        command = [*start, str(script), "train", str(pictures), "-o", str(tmp_path / name), *options]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
    one, two = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert len(one) == 6
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], abs=2e-5)
    assert [line["accuracy"] for line in two] == [line["accuracy"] for line in one]
    a, b = minivit.load(tmp_path / "one"), minivit.load(tmp_path / "two")
    for name, tensor in a.state_dict().items():
        torch.testing.assert_close(b.state_dict()[name], tensor, rtol=0, atol=1e-4, msg=name)


def test_the_command_writes_what_transformers_loads_and_agrees_with(pictures, tmp_path, capsys):
    from transformers import ViTForImageClassification, ViTImageProcessorPil

    out = tmp_path / "out"
    options = ["--epochs", "4", "--batch-size", "8", "--lr", "5e-3", "--image-size", "16", "--width", "24"]
    assert main(["train", str(pictures), "-o", str(out), "--val", str(pictures), "--depth", "2", *options]) == 0
    assert {path.name for path in out.iterdir()} == {
        "checkpoint.pt", "config.json", "curve.svg", "metrics.jsonl", "model.safetensors", "preprocessor_config.json",
        "training.json",
    }  # fmt: skip
    facts = json.loads((out / "training.json").read_text())
    assert facts["recipe"]["lr"] == 5e-3
    assert facts["evaluation"]["images"] == 96
    assert ">loss (nats), accuracy (fraction)<" in (out / "curve.svg").read_text()

    ours, theirs = minivit.load(out), ViTForImageClassification.from_pretrained(out).eval()
    assert ours.labels == dict(enumerate(CLASSES)) == theirs.config.id2label
    picture = Image.open(pictures / "top" / "3.png")
    pixels = minivit.preprocess(picture, ours.image_spec)[None]
    assert torch.equal(ViTImageProcessorPil.from_pretrained(out)(picture, return_tensors="pt").pixel_values, pixels)
    with torch.no_grad():
        torch.testing.assert_close(ours(pixels), theirs(pixels).logits, rtol=0, atol=1e-5)

    # Fine-tuning from it: a new head, everything else as it was; then only the head is trained.
    capsys.readouterr()
    probe = tmp_path / "probe"
    options = ["--epochs", "8", "--batch-size", "8", "--freeze", "--lr", "3e-2"]
    assert main(["train", str(pictures), "-o", str(probe), "--init", str(out), *options]) == 0
    probed = minivit.load(probe)
    changed = {name for name, tensor in probed.state_dict().items() if not torch.equal(tensor, ours.state_dict()[name])}
    assert changed == {"head.weight", "head.bias"}
    assert evaluate(probed, find_images(pictures)).top1 > 0.5
    assert main(["train", str(pictures), "-o", str(tmp_path / "no"), "--init", str(out), "--width", "48"]) == 2
    assert "--init brings its own sizes" in capsys.readouterr().err


def test_learning_rate_by_hand():
    recipe = Recipe(warmup=0.1, final_lr=0.2)
    assert learning_rate(0, 100, recipe) == pytest.approx(0.1)
    assert learning_rate(9, 100, recipe) == pytest.approx(1.0)
    assert learning_rate(10, 100, recipe) == pytest.approx(1.0)
    assert learning_rate(55, 100, recipe) == pytest.approx(0.6)  # half way down from 1 to 0.2
    assert learning_rate(100, 100, recipe) == pytest.approx(0.2)


def test_weight_decay_is_on_matrices_only_and_layer_decay_counts_from_the_head():
    model = new_model()
    (adamw,) = optimizers(model, Recipe(weight_decay=0.5, layer_decay=0.1))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {names[id(p)]: group for group in adamw.param_groups for p in group["params"]}
    assert groups.keys() == set(names.values())
    for name, group in groups.items():
        is_matrix = name.endswith("weight") and "norm" not in name
        assert group["weight_decay"] == (0.5 if is_matrix else 0), name
    scales = {name: group["scale"] for name, group in groups.items()}
    assert scales["head.weight"] == scales["norm.bias"] == 1
    assert scales["blocks.2.mlp.fc1.weight"] == pytest.approx(0.1)
    assert scales["blocks.0.norm1.bias"] == pytest.approx(0.1**3)
    assert scales["pos_embed"] == scales["patch_embed.weight"] == pytest.approx(0.1**4)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_takes_the_matrices_of_the_blocks():
    muon, adamw = optimizers(new_model(), Recipe(optimizer="muon"))
    assert sum(len(group["params"]) for group in muon.param_groups) == 3 * 4
    assert all(p.ndim == 2 for group in muon.param_groups for p in group["params"])
    assert sum(len(group["params"]) for group in adamw.param_groups) == len(list(new_model().parameters())) - 12


def test_mixup_and_cutmix_mix_neighbours_and_targets_alike():
    pixels = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 8, 12)
    targets = torch.eye(4)
    for recipe in (Recipe(mixup=1.0), Recipe(cutmix=1.0)):
        for seed in range(20):
            mixed, soft = mix(pixels, targets, recipe, torch.Generator().manual_seed(seed))
            torch.testing.assert_close(soft.sum(-1), torch.ones(4))
            assert soft[0, 2:].sum() == 0  # pairs are (0, 1) and (2, 3)
            # Every picture is the constant of its number, so its mean tells the share of its partner.
            torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), soft @ torch.arange(4.0))
    untouched, hard = mix(pixels, targets, Recipe(), torch.Generator())
    assert untouched is pixels
    assert hard is targets


def test_stochastic_depth_keeps_the_expectation_and_leaves_nothing_behind():
    drawn = draw_depth(3, 0.5, 4000, torch.Generator().manual_seed(0))
    assert [sorted(factor.unique().tolist()) for factor in drawn] == [
        [1], [1], [0, pytest.approx(4 / 3)], [0, pytest.approx(4 / 3)], [0, 2], [0, 2],
    ]  # fmt: skip
    assert [factor.mean().item() for factor in drawn] == pytest.approx([1] * 6, abs=0.05)

    model, pixels = new_model(depth=1), torch.randn(2, 3, 12, 8)
    plain = model(pixels)
    with pytest.raises(RuntimeError, match="planted"), stochastic_depth(model, 0.5) as factors:
        assert torch.equal(model(pixels), plain)
        factors[:] = [torch.zeros(2, 1, 1), torch.zeros(2, 1, 1)]
        tokens = model.embed(pixels)
        assert torch.equal(model.blocks[0](tokens), tokens)  # both branches skipped: only the residual is left
        raise RuntimeError("planted")
    assert torch.equal(model(pixels), plain)
    assert not any(module._forward_hooks for module in model.modules())


def test_image_size_grows_by_whole_patches():
    recipe = Recipe(start_size=8, full_size_from=0.5)
    model = new_model(image_size=(24, 16))
    sizes = [image_size_at(step, 100, model, recipe) for step in (0, 24, 26, 49, 50, 99)]
    # 24 x 16 in patches of 4, from a factor of 8 / 16 to 1.
    assert sizes == [(12, 8), (16, 8), (16, 12), (20, 12), (24, 16), (24, 16)]
    assert image_size_at(0, 100, model, Recipe()) == (24, 16)


def test_a_new_head_leaves_the_pooler_behind():
    model = new_model(classes=0, pooler=True)
    fresh = with_new_head(model, ["a", "b"])
    assert fresh.pooler is None
    assert fresh.labels == {0: "a", 1: "b"}
    pixels = torch.randn(2, 3, 12, 8)
    torch.testing.assert_close(fresh.features(pixels), model.features(pixels))
    assert fresh(pixels).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 200}, "96 images, fewer than a batch of 200"),
        ({"batch_size": 15, "mixup": 0.5}, "batch_size is 15.*even"),
        ({"optimizer": "sgd"}, "'sgd'.*adamw or muon"),
        ({"ema": 1.0}, r"ema is 1\.0"),
        ({"lr": 0.0}, r"lr is 0\.0"),
        ({"augmentation": {"crop": "square"}}, "'square'.*none, padded or resized"),
    ],
)
def test_recipes_that_cannot_run_are_refused(pictures, tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        augmentation = Augmentation(**changes.pop("augmentation", {}))
        train(new_model(), find_images(pictures), Recipe(augmentation=augmentation, **changes), tmp_path)


def test_photos_come_from_folders_and_tars_alike(pictures, tmp_path):
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        tar.add(pictures, arcname="set/train")
    folder, tar = find_images(pictures), find_images(tmp_path / "all.tar")
    assert folder.classes == tar.classes == list(CLASSES)
    assert folder.labels == tar.labels
    assert len(folder) == 96
    assert [folder.open(i).tobytes() for i in (0, 50)] == [tar.open(i).tobytes() for i in (0, 50)]


def test_photos_without_a_clear_class_are_refused(pictures, tmp_path):
    with pytest.raises(UsageError, match="no such folder or tar"):
        find_images(tmp_path / "gone")
    with pytest.raises(UsageError, match="no images"):
        find_images(tmp_path)
    (tmp_path / "a.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(UsageError, match="not an uncompressed tar"):
        find_images(tmp_path / "a.tar")
    Image.new("RGB", (2, 2)).save(tmp_path / "loose.png")
    with pytest.raises(UsageError, match=r"loose\.png lies in no class folder"):
        find_images(tmp_path)
    (tmp_path / "loose.png").unlink()
    for place in ("train/cat", "test/cat"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(tmp_path / place / "1.png")
    with pytest.raises(UsageError, match=r"several parents \(test, train\)"):
        find_images(tmp_path)


def test_a_damaged_training_picture_is_named(pictures, tmp_path):
    for name in CLASSES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(
            (pictures / name / "1.png").read_bytes()[: 300 if name == "left" else None]
        )
    with pytest.raises(ImageError, match=r"left/1\.png"):
        train(new_model(), find_images(tmp_path), Recipe(epochs=1, batch_size=4), tmp_path / "out")


def test_augmentation_is_decided_by_its_generator_and_keeps_the_size():
    spec = ImageSpec(resize=(24, 16))
    levels = torch.randint(256, (40 * 30 * 3,), generator=torch.Generator().manual_seed(2))
    image = Image.frombytes("RGB", (30, 40), bytes(levels.tolist()))
    for crop in ("none", "padded", "resized"):
        how = Augmentation(crop=crop, flip=True, operations=3, magnitude=1.0)
        a, b, c = (augment(image, spec, how, random.Random(seed)) for seed in (1, 1, 2))
        assert a.size == (16, 24)
        assert a.mode == "RGB"
        assert a.tobytes() == b.tobytes() != c.tobytes()
    for name, operation in OPERATIONS.items():
        for strength in (-1.0, 0.0, 1.0):
            assert operation(image, strength).size == image.size, name
    assert OPERATIONS["rotate"](image, 0.0).tobytes() == image.tobytes()
    plain = augment(image, spec, Augmentation(), random.Random(0))
    assert torch.equal(pixels_from_image(plain, spec), minivit.preprocess(image, spec))


def test_evaluation_by_hand(pictures):
    """A model whose head answers `right` for all but what it is told: counts, not learning, are tested here."""
    photos = find_images(pictures)
    model = new_model()
    with torch.no_grad():
        model.head.weight.zero_()
        model.head.bias.copy_(torch.tensor([0.0, 1.0, 3.0, 2.0]))
    result = evaluate(model, photos, batch_size=7)
    assert result.top1 == 0.25
    assert result.top5 == 1.0
    assert result.per_class == {"bottom": 0, "left": 0, "right": 1, "top": 0}
    assert result.confusion == [[0, 0, 24, 0]] * 4
    score = torch.tensor([0.0, 1.0, 3.0, 2.0]).softmax(-1).max().item()
    assert result.calibration_error == pytest.approx(score - 0.25)
    assert asdict(result)["images"] == 96


def test_calibration_error_by_hand():
    # Bins of 1/15: the first two scores share one (mean 0.95, accuracy 1/2), the third is alone and right.
    scores, correct = torch.tensor([0.94, 0.96, 0.5]), torch.tensor([True, False, True])
    assert calibration_error(scores, correct) == pytest.approx((2 * abs(0.95 - 0.5) + abs(0.5 - 1)) / 3)


def test_class_folders_are_matched_by_any_of_a_labels_names(pictures):
    photos = find_images(pictures)
    labels = {0: "TOP, summit", 1: "right", 2: "the bottom, bottom", 3: "left"}
    assert match_classes(photos, labels, 4) == [2, 3, 1, 0]
    assert match_classes(photos, None, 4) == [0, 1, 2, 3]
    with pytest.raises(UsageError, match="4 class folders for 5 unnamed"):
        match_classes(photos, None, 5)
    with pytest.raises(UsageError, match="no labels of the model: bottom, left"):
        match_classes(photos, {0: "top", 1: "right"}, 2)


def test_eval_writes_the_confusion_matrix(pictures, tmp_path, capsys):
    minivit.save(new_model(), tmp_path / "model")
    out = tmp_path / "out"
    assert main(["eval", str(tmp_path / "model"), str(pictures), "--json", "-o", str(out), "--workers", "0"]) == 0
    facts = json.loads(capsys.readouterr().out)
    rows = (out / "confusion.csv").read_text().splitlines()
    assert rows[0] == "true \\ predicted,bottom,left,right,top"
    assert [[int(n) for n in row.split(",")[1:]] for row in rows[1:]] == facts["confusion"]
    numbers = re.findall(r">(\d+)</text>", (out / "confusion.svg").read_text())
    assert sorted(map(int, numbers)) == sorted(n for row in facts["confusion"] for n in row)


def test_without_matplotlib_training_goes_on_and_the_confusion_chart_is_refused(
    pictures, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("minivit.viz.style.find_spec", lambda name: None)
    out = tmp_path / "out"
    sizes = ["--image-size", "16", "--width", "24", "--depth", "1"]
    assert main(["train", str(pictures), "-o", str(out), "--epochs", "1", "--batch-size", "8", *sizes]) == 0
    assert "curve.svg will not be drawn: charts need matplotlib" in capsys.readouterr().err
    assert (out / "model.safetensors").exists()
    assert not (out / "curve.svg").exists()
    assert main(["eval", str(out), str(pictures), "-o", str(tmp_path / "eval")]) == 2
    assert "pip install 'minivit[plot]'" in capsys.readouterr().err


def test_an_option_with_an_odd_name_has_a_better_one():
    parser = argparse.ArgumentParser()
    add_recipe_options(parser)
    new = ["--max-grad-norm", "2", "--min-scale", "0.5", "--randaugment-n", "3", "--randaugment-m", "0.7"]
    old = ["--clip", "2", "--smallest", "0.5", "--operations", "3", "--magnitude", "0.7"]
    recipe = recipe_of(parser.parse_args(new))
    assert recipe == recipe_of(parser.parse_args(old))
    assert recipe == Recipe(clip=2, augmentation=Augmentation(smallest=0.5, operations=3, magnitude=0.7))


def test_a_new_model_has_an_output_and_a_label_for_each_class():
    model = new_model_of(["a", "b"], image_size=8, patch_size=4, width=24, depth=2, heads=3, mlp_width=20)
    assert model(torch.zeros(1, 3, 8, 8)).shape == (1, 2)
    assert model.labels == {0: "a", 1: "b"}
    assert model.image_spec.size == (8, 8)
    preset = new_model_of(["a"], preset="Ti/16", image_size=32)
    assert (preset.config.width, preset.config.depth, preset.config.image_size) == (192, 12, (32, 32))


def test_curves_are_means_over_groups_of_steps():
    """Four steps, two an epoch, into two points: each at its last step, in epochs."""
    metrics = [
        {"step": i, "epoch": i // 2, "loss": loss, "accuracy": 0.25 * i} for i, loss in enumerate((4.0, 2.0, 1.0, 0.0))
    ]
    assert curves(metrics, points=2) == {"loss": [(0.5, 3.0), (1.5, 0.5)], "accuracy": [(0.5, 0.125), (1.5, 0.625)]}
