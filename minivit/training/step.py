"""One training step: forward, loss, backward, update. All its random choices are drawn from (seed, step)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from minivit.images.preprocess import normalize
from minivit.model.vit import ViT
from minivit.training.augment import mix
from minivit.training.optimizer import image_size_at, learning_rate
from minivit.training.recipe import Recipe
from minivit.training.state import TrainingState


@dataclass(frozen=True, kw_only=True)
class StepMetrics:
    """The metrics of one step, over all processes."""

    loss: float
    accuracy: float  # fraction of images whose most likely class is that of the (mixed) target
    lr: float


@dataclass(frozen=True, kw_only=True)
class Stepper:
    """Takes the steps of one run.

    Attributes:
        runner: the model as it runs: itself, compiled, or in DistributedDataParallel.
        steps: of the whole run.
        rows: this process's part of every batch.
        factors: what `stochastic_depth` yields.
    """

    state: TrainingState
    recipe: Recipe
    runner: nn.Module
    steps: int
    rows: slice
    factors: list[Tensor]

    def __call__(self, levels: Tensor, labels: Tensor) -> StepMetrics:
        """Take one step on levels (B, C, H, W), uint8, and labels (B), and count it."""
        state, recipe, model, step = self.state, self.recipe, self.state.model, self.state.step
        device = model.patch_embed.weight.device
        generator = torch.Generator().manual_seed(spread_seed(recipe.seed, step))
        assert model.image_spec is not None
        pixels, labels = normalize(levels.to(device), model.image_spec), labels.to(device)
        size = image_size_at(step, self.steps, model, recipe)
        if size != tuple(pixels.shape[2:]):
            pixels = F.interpolate(pixels, size=size, mode="bilinear", antialias=True)
        targets = F.one_hot(labels, model.config.classes).to(pixels.dtype)
        pixels, targets = mix(pixels, targets, recipe, generator)
        if recipe.drop_path:
            # Drawn for the whole batch, so that the factors of a row do not depend on the number of processes.
            drawn = draw_depth(len(model.blocks), recipe.drop_path, recipe.batch_size, generator)
            self.factors[:] = [factor[self.rows].to(device) for factor in drawn]

        lr = recipe.lr * learning_rate(step, self.steps, recipe)
        for group in (group for optimizer in state.optimizers for group in optimizer.param_groups):
            group["lr"] = lr * group["scale"]
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bfloat16):
            logits = self.runner(pixels, resample=True)
            loss = F.cross_entropy(logits, targets, label_smoothing=recipe.label_smoothing)
        loss.backward()
        if recipe.clip:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        for optimizer in state.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        state.update_average(recipe)
        state.step += 1
        correct = (logits.argmax(-1) == targets.argmax(-1)).float().mean()
        mean_loss, accuracy = mean_over_processes(torch.stack([loss.detach().float(), correct]))
        return StepMetrics(loss=mean_loss, accuracy=accuracy, lr=lr)

    @torch.no_grad()
    def is_finite(self, levels: Tensor) -> bool:
        """Return whether the weights, of the model and its average, give finite logits in every process.

        The loss of a step tells of the weights before it; this is asked of those that are about to be saved.
        """
        self.factors.clear()
        state = self.state
        assert state.model.image_spec is not None
        pixels = normalize(levels.to(state.model.patch_embed.weight.device), state.model.image_spec)
        models = [state.model] if state.averaged is state.model else [state.model, state.averaged]
        finite = all(bool(model(pixels).isfinite().all()) for model in models)
        return mean_over_processes(torch.tensor([float(finite)]))[0] == 1


@contextmanager
def stochastic_depth(model: ViT, rate: float) -> Iterator[list[Tensor]]:
    """Skip residual branches while training, by hooks that are removed at the end; the model's code is unchanged.

    Yields a list to fill before every forward pass with the factors of `draw_depth`: one (B, 1, 1) for attention and
    for MLP of every block. While it is empty, nothing is skipped.
    """
    factors: list[Tensor] = []
    branches = [block.get_submodule(name) for block in model.blocks for name in ("attn", "mlp")] if rate else []
    hooks = [
        branch.register_forward_hook(lambda module, inputs, out, i=i: out * factors[i] if factors else out)
        for i, branch in enumerate(branches)
    ]
    try:
        yield factors
    finally:
        for hook in hooks:
            hook.remove()


def draw_depth(depth: int, rate: float, batch: int, generator: torch.Generator) -> list[Tensor]:
    """Return which branches a batch keeps: 2 * depth factors (B, 1, 1), 0 or 1 / probability of being kept.

    The rate rises linearly from 0 in the first block to `rate` in the last (arXiv:1603.09382, section 3).
    """
    factors = []
    for i in range(2 * depth):
        skip = rate * (i // 2) / max(1, depth - 1)
        factors.append((torch.rand(batch, 1, 1, generator=generator) >= skip) / (1 - skip))
    return factors


def spread_seed(seed: int, step: int) -> int:
    """Return one well-spread seed for two small numbers."""
    return random.Random(f"{seed}/{step}").getrandbits(62)


def mean_over_processes(values: Tensor) -> list[float]:
    """Return the mean of each value over the processes of torch.distributed."""
    if dist.is_initialized():
        dist.all_reduce(values)
        values = values / dist.get_world_size()
    return values.tolist()
