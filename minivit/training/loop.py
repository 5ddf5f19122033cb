"""The training loop: batches through a Stepper, the state into a Checkpointer.

Every random choice is drawn from (seed, step) or (seed, epoch, image), so that a run which is interrupted and
resumed, or divided among several processes, takes the same steps as one which is not.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from minivit.errors import TrainingError, UsageError
from minivit.model.vit import ViT
from minivit.training.checkpointer import Checkpointer
from minivit.training.dataset import LabelledImages, TrainingImages
from minivit.training.loader import load_batches
from minivit.training.recipe import Recipe
from minivit.training.state import TrainingState
from minivit.training.step import Stepper, mean_over_processes, spread_seed, stochastic_depth


def train(
    model: ViT,
    images: LabelledImages,
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    workers: int = 0,
    report: Callable[[dict[str, Any]], object] = lambda metrics: None,
    stop: Callable[[], bool] = lambda: False,
) -> ViT:
    """Train `model` in place and return the model to use: the averaged one with `ema`, else the model itself.

    Writes `out`/checkpoint.pt after every epoch and when stopped, and `out`/metrics.jsonl, one line per step.
    Under torch.distributed every process calls this and takes its part of each batch.

    Args:
        model: a ViT with a head of len(images.classes) outputs and an image_spec of fixed size.
        resume: continue from `out`/checkpoint.pt, bit for bit as if never interrupted.
        workers: processes that read images ahead.
        report: called after every step with its line of metrics.jsonl, images_per_second and seconds_left.
        stop: called after every step; when it returns True, the state is saved and KeyboardInterrupt raised.

    Raises:
        UsageError: head, images, recipe and number of processes do not fit together.
        CheckpointError: `resume` finds no checkpoint, or one of another run.
        ImageError: an image cannot be read.
        TrainingError: the loss, or the outputs before a checkpoint, are no finite numbers; the last checkpoint stays.
        WriteError: the disk is full; the last checkpoint stays.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    _check(model, images, recipe, world)
    assert model.image_spec is not None
    per_epoch = len(images) // recipe.batch_size
    steps = per_epoch * recipe.epochs
    part = recipe.batch_size // world
    rows = slice(rank * part, (rank + 1) * part)

    state = TrainingState.start(model, recipe)
    runner: nn.Module = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    if recipe.compile:
        runner = torch.compile(runner)  # type: ignore[assignment]
    files = Checkpointer(out, state, recipe, len(images), writes=rank == 0)
    files.begin(resume=resume)
    first = state.step
    loader = load_batches(
        TrainingImages(images, model.image_spec, recipe.augmentation, recipe.seed),
        list(_batches(len(images), recipe, first, steps, rows)),
        workers=workers,
    )
    model.train()
    started = time.perf_counter()
    with stochastic_depth(model, recipe.drop_path) as factors:
        take_step = Stepper(state=state, recipe=recipe, runner=runner, steps=steps, rows=rows, factors=factors)
        for step, (levels, labels) in enumerate(loader, start=first):
            line = {"step": step, "epoch": step // per_epoch, **asdict(take_step(levels, labels))}
            if not math.isfinite(line["loss"]):
                raise TrainingError(f"the loss is {line['loss']} in step {step + 1} of {steps}; {files.kept()}")
            files.log(line)
            pace = (time.perf_counter() - started) / (state.step - first)  # seconds per step
            left = (steps - state.step) * pace
            report({**line, "images_per_second": recipe.batch_size / pace, "seconds_left": left})
            stopped = bool(mean_over_processes(torch.tensor([float(stop())]))[0])
            if stopped or state.step % per_epoch == 0:
                if not take_step.is_finite(levels):
                    reason = f"the outputs are no finite numbers after step {step + 1} of {steps}"
                    raise TrainingError(f"{reason}; {files.kept()}")
                files.save()
            if stopped and state.step < steps:
                raise KeyboardInterrupt
    return state.averaged.eval()


def read_metrics(out: str | Path) -> list[dict[str, Any]]:
    """Return the lines of `out`/metrics.jsonl: step, epoch, loss, accuracy and lr of every step."""
    return [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]


def curves(metrics: list[dict[str, Any]], points: int = 200) -> dict[str, list[tuple[float, float]]]:
    """Return "loss" and "accuracy" as (epoch, value), averaged to about `points` points."""
    size = max(1, len(metrics) // points)
    groups = [metrics[i : i + size] for i in range(0, len(metrics), size)]
    per_epoch = len(metrics) / (metrics[-1]["epoch"] + 1)
    return {
        name: [(group[-1]["step"] / per_epoch, sum(line[name] for line in group) / len(group)) for group in groups]
        for name in ("loss", "accuracy")
    }


def _check(model: ViT, images: LabelledImages, recipe: Recipe, world: int) -> None:
    if recipe.optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        raise UsageError(f"torch {torch.__version__} has no Muon; it needs torch 2.9 or newer, or optimizer adamw")
    if model.config.classes != len(images.classes):
        raise UsageError(
            f"the head has {model.config.classes} outputs, {images.source} has {len(images.classes)} classes"
        )
    if model.image_spec is None or model.image_spec.size != model.config.image_size:
        raise UsageError(f"images come as {model.image_spec}, the model takes {model.config.image_size}")
    if model.image_spec.float_resize:
        raise UsageError(f"images are augmented as bytes, but this model resizes them as floats: {model.image_spec}")
    if len(images) < recipe.batch_size:
        raise UsageError(f"{images.source} has {len(images)} images, fewer than a batch of {recipe.batch_size}")
    if recipe.batch_size % (2 * world if recipe.mixup or recipe.cutmix else world):
        raise UsageError(
            f"a batch of {recipe.batch_size} cannot be divided among {world} processes; mixed pairs stay together"
        )


def _batches(images: int, recipe: Recipe, first: int, steps: int, rows: slice) -> Iterator[list[tuple[int, int]]]:
    """Yield this process's (epoch, image) keys of every step from `first` on; each epoch has its own permutation."""
    per_epoch = images // recipe.batch_size
    order: Tensor | None = None
    for step in range(first, steps):
        epoch, place = divmod(step, per_epoch)
        if order is None or place == 0:
            order = torch.randperm(
                images, generator=torch.Generator().manual_seed(spread_seed(recipe.seed, -1 - epoch))
            )
        batch = order[place * recipe.batch_size : (place + 1) * recipe.batch_size].tolist()
        yield [(epoch, index) for index in batch[rows]]
