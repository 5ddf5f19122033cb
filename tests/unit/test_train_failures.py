"""Training that fails says so, in one line, and keeps the last good checkpoint."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.command import own_signals, run
from PIL import Image

import minivit
from minivit.errors import ImageError, TrainingError, WriteError
from minivit.training.dataset import find_images
from minivit.training.loop import train
from minivit.training.models import new_model
from minivit.training.recipe import Recipe

SIZES = {"image_size": 8, "patch_size": 4, "width": 8, "depth": 1, "heads": 2, "mlp_width": 12}
OPTIONS = [word for name in SIZES for word in (f"--{name.replace('_', '-')}", str(SIZES[name]))]
OPTIONS += ["--batch-size", "4", "--epochs", "2"]


@pytest.fixture
def images(tmp_path) -> Path:
    """Two class folders of six images, 10 x 9: three steps an epoch."""
    for place, name in enumerate(("cat", "dog")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (10, 9), (40 * i, 255 * place, 9)).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path / "images"


def model_of(images: Path, seed: int = 0):
    torch.manual_seed(seed)
    return new_model(find_images(images).classes, **SIZES)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (0, "the loss is nan in step 2 of 12; no checkpoint was saved yet"),
        (2, "the outputs are no finite numbers after step 3 of 12; no checkpoint was saved yet"),
        (6, "the loss is nan in step 8 of 12; .*checkpoint.pt is as it was before"),
        (8, "the outputs are no finite numbers after step 9 of 12; .*checkpoint.pt is as it was before"),
    ],
)
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_what_is_not_finite_stops_and_the_last_good_checkpoint_stays(images, tmp_path, step, message, ema):
    """The weights break after `step`; the loss tells in the next step, a checkpoint before it is written."""
    model, out = model_of(images), tmp_path / "out"

    def report(line):
        if line["step"] == step:
            with torch.no_grad():
                model.head.bias.fill_(float("nan"))

    with pytest.raises(TrainingError, match=message):
        train(model, find_images(images), Recipe(epochs=4, batch_size=4, ema=ema), out, report=report)
    losses = [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == step + 1
    if step < 6:
        assert not (out / "checkpoint.pt").exists()
        return
    saved = torch.load(out / "checkpoint.pt", weights_only=True)
    assert saved["step"] == 6
    assert all(tensor.isfinite().all() for tensor in saved["model"].values())
    # What is there goes on as if nothing had been.
    whole = train(model_of(images), find_images(images), Recipe(epochs=4, batch_size=4, ema=ema), tmp_path / "whole")
    again = train(model_of(images, 1), find_images(images), Recipe(epochs=4, batch_size=4, ema=ema), out, resume=True)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in whole.state_dict().items())


@pytest.mark.parametrize("epochs", ["1", "4"])
def test_a_run_that_diverges_is_no_success(capsys, images, tmp_path, epochs):
    code, out, err = run(
        capsys, "train", str(images), "-o", str(tmp_path / "out"), *OPTIONS[:-1], epochs, "--lr", "1e30"
    )
    assert (code, out) == (1, "")
    assert "try a smaller --lr" in err.splitlines()[-1]
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize("workers", ["0", "1", "2"])
def test_a_broken_image_is_the_same_line_with_and_without_workers(capsys, images, tmp_path, workers):
    (images / "cat" / "3.png").write_bytes(b"broken")
    train_it = ["train", str(images), "-o", str(tmp_path / "out"), *OPTIONS, "--workers", workers]
    code, _, err = run(capsys, *train_it)
    assert code == 3
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith(f"minivit: {images}/cat/3.png: ")
    (images / "cat" / "3.png").unlink()
    assert run(capsys, *train_it, "--overwrite")[0] == 0
    (images / "cat" / "4.png").write_bytes(b"broken")
    code, _, err = run(capsys, "eval", str(tmp_path / "out"), str(images), "--workers", workers)
    assert code == 3
    assert err.splitlines()[-1] == last.replace("3.png", "4.png")
    assert err.count("\n") == 1


def test_an_image_error_survives_the_way_from_a_worker():
    error = pickle.loads(pickle.dumps(ImageError("empty", "a.png: empty")))
    assert (error.code, str(error)) == ("empty", "a.png: empty")


@pytest.mark.parametrize("fault", ["class", "image"])
def test_validation_images_are_checked_before_the_first_step(capsys, images, tmp_path, fault):
    held_out = tmp_path / "val"
    shutil.copytree(images, held_out)
    if fault == "class":
        (held_out / "dog").rename(held_out / "wolf")
    else:
        (held_out / "dog" / "2.png").write_bytes(b"broken")
    code, _, err = run(capsys, "train", str(images), "-o", str(tmp_path / "out"), "--val", str(held_out), *OPTIONS)
    assert code == (2 if fault == "class" else 3)
    assert ("wolf" if fault == "class" else "val/dog/2.png") in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_run_is_continued_or_replaced_only_as_asked(capsys, images, tmp_path):
    out = tmp_path / "out"
    command = ["train", str(images), "-o", str(out), *OPTIONS]
    assert run(capsys, *command)[0] == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    code, _, err = run(capsys, *command, "--seed", "9")
    assert code == 2
    assert "has checkpoint.pt already; --resume continues that run, --overwrite replaces it" in err
    code, _, err = run(capsys, "train", str(images), "-o", str(out), "--init", str(out), "--epochs", "1", "--overwrite")
    assert code == 2
    assert "checkpoint.pt in it is also an input" in err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert run(capsys, *command, "--seed", "9", "--overwrite")[0] == 0
    assert (out / "model.safetensors").read_bytes() != before["model.safetensors"]


@pytest.mark.parametrize("error", [RuntimeError("file write failed"), OSError(28, "No space left on device")])
def test_a_full_disk_leaves_the_last_checkpoint(images, tmp_path, monkeypatch, error):
    out, two, steps = tmp_path / "out", Recipe(epochs=2, batch_size=4), []
    with pytest.raises(KeyboardInterrupt):  # after the third of six steps
        train(model_of(images), find_images(images), two, out, stop=lambda: len(steps) == 3, report=steps.append)
    kept = (out / "checkpoint.pt").read_bytes()

    def full(what, path):
        Path(path).write_bytes(b"half")
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(WriteError, match=r"checkpoint\.pt: .*unchanged"):
        train(model_of(images), find_images(images), two, out, resume=True)
    assert {path.name for path in out.iterdir()} == {"checkpoint.pt", "metrics.jsonl"}
    assert (out / "checkpoint.pt").read_bytes() == kept
    monkeypatch.undo()
    (out / "metrics.jsonl").write_bytes((out / "metrics.jsonl").read_bytes()[:-9])  # as a full disk leaves it
    train(model_of(images), find_images(images), two, out, resume=True)
    assert torch.load(out / "checkpoint.pt", weights_only=True)["step"] == 6


def start(*arguments: str, **settings) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(Path(minivit.__file__).parents[1])}
    command = [sys.executable, "-m", "minivit", *arguments]
    pipes: dict[str, Any] = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment, **pipes, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "eval", "convert", "explore"])
def test_a_full_disk_is_one_line_and_what_was_there_stays(capsys, images, tmp_path, hf_checkpoint, command):
    """The limit on the size of a file stands for the disk."""

    def small_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

    run_folder, out = tmp_path / "run", tmp_path / "out"
    assert run(capsys, "train", str(images), "-o", str(run_folder), *OPTIONS)[0] == 0
    model = str(hf_checkpoint())
    arguments = {
        "train": ["train", str(images), "-o", str(out), *OPTIONS, "--overwrite"],
        "eval": ["eval", str(run_folder), str(images), "-o", str(out), "--overwrite"],
        "convert": ["convert", model, str(out)],
        "explore": ["explore", str(images / "cat" / "1.png"), "-m", model, "-o", str(out / "x.html"), "--overwrite"],
    }[command]
    out.mkdir()
    assert run(capsys, *arguments)[0] == 0
    if command == "train":
        arguments = [*arguments[:-1], "--resume", "--epochs", "2"]
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    process = start(*arguments, preexec_fn=small_disk)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 1, err
    assert "Traceback" not in err
    assert err.splitlines()[-1].endswith("what was there before is unchanged"), err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("group", [False, True])
def test_a_signal_saves_and_says_how_to_go_on(images, tmp_path, number, group):
    """Also a signal to the workers, as Ctrl-C and schedulers send it. The run has no end before it."""
    out = tmp_path / "out"
    command = ["train", str(images), "-o", str(out), *OPTIONS[:-1], "20000", "--workers", "2"]
    with start(*command, preexec_fn=own_signals, start_new_session=True) as process:
        assert process.stderr is not None
        assert "epoch 1/20000" in process.stderr.readline()
        (os.killpg if group else os.kill)(process.pid, number)
        err = process.stderr.read()
        assert process.wait(timeout=600) == 130, err
    assert f"interrupted; continue with: minivit train ... -o {out} --resume" in err.splitlines()[-1]
    assert "Traceback" not in err
    saved = torch.load(out / "checkpoint.pt", weights_only=True)
    assert saved["step"] == len((out / "metrics.jsonl").read_text().splitlines()) > 0
