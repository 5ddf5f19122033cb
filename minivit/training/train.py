"""Train a ViT, from scratch or from a loaded checkpoint, on a folder of class folders.

One file in the spirit of nanoGPT: the recipe is data (recipe.py), the loop is `train`. Every random
choice is drawn from (seed, step) or (seed, epoch, picture), so a run that is interrupted and resumed,
or spread over several processes, takes the same steps as one that is not.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from minivit.errors import CheckpointError, UsageError
from minivit.images.preprocess import normalize
from minivit.model.vit import ViT
from minivit.training.dataset import AugmentedPhotos, Photos
from minivit.training.recipe import Recipe


def learning_rate(step: int, steps: int, recipe: Recipe) -> float:
    """The factor on the peak learning rate: linear warm-up, then a cosine down to `final_lr`."""
    warmup = max(1, round(recipe.warmup * steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return recipe.final_lr + (1 - recipe.final_lr) * (1 + math.cos(math.pi * progress)) / 2


def optimizers(model: ViT, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the matrices of the blocks and AdamW for the rest.

    Weight decay touches matrices only; every block's learning rate is `layer_decay` times that of
    the block above it. Muon's update is scaled to the size of AdamW's, so one `lr` serves both.
    """
    groups: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            matrix = parameter.ndim >= 2 and name.endswith("weight")
            muon = recipe.optimizer == "muon" and matrix and name.startswith("blocks.")
            scale = recipe.layer_decay ** _layers_above(name, len(model.blocks))
            groups.setdefault((muon, matrix, scale), []).append(parameter)
    result: list[torch.optim.Optimizer] = []
    for muon in (True, False):
        rows = [
            {"params": parameters, "weight_decay": recipe.weight_decay * matrix, "lr": recipe.lr, "scale": scale}
            for (is_muon, matrix, scale), parameters in groups.items()
            if is_muon is muon
        ]
        if rows and muon:
            result.append(torch.optim.Muon(rows, adjust_lr_fn="match_rms_adamw"))
        elif rows:
            result.append(torch.optim.AdamW(rows, betas=(0.9, 0.98)))
    return result


def _layers_above(name: str, depth: int) -> int:
    """How far a parameter lies below the head: 0 for norm and head, depth + 1 for the embedding."""
    if name.startswith("blocks."):
        return depth - int(name.split(".")[1])
    return 0 if name.startswith(("norm.", "attn_pool.", "pooler.", "proj.", "head.", "head_dist.")) else depth + 1


@contextmanager
def stochastic_depth(model: ViT, rate: float) -> Iterator[list[Tensor]]:
    """Skip residual branches while training, by hooks that leave the model's code alone and go at the end.

    Yields a list to fill before every forward pass: for attention and MLP of every block in turn, a
    factor (B, 1, 1) on the branch, as `draw_depth` makes it. Left empty, nothing is skipped.
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
    """Which branches a batch keeps: 2 * depth factors (B, 1, 1), 0 or 1 / chance to be kept.

    The rate rises linearly from 0 in the first block to `rate` in the last (arXiv:1603.09382, section 3).
    """
    factors = []
    for i in range(2 * depth):
        skip = rate * (i // 2) / max(1, depth - 1)
        factors.append((torch.rand(batch, 1, 1, generator=generator) >= skip) / (1 - skip))
    return factors


def mix(pixels: Tensor, targets: Tensor, recipe: Recipe, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mixup or cutmix of neighbours in the batch: pixels (B, C, H, W) and targets (B, L), B even.

    Pairing neighbours of an already shuffled batch needs no exchange between processes.
    """
    alpha = recipe.mixup
    cut = bool(recipe.cutmix) and (not alpha or torch.rand((), generator=generator).item() < 0.5)
    alpha = recipe.cutmix if cut else alpha
    if not alpha:
        return pixels, targets
    share = random.Random(int(torch.randint(2**62, (), generator=generator))).betavariate(alpha, alpha)
    partner = pixels.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    if cut:
        height, width = pixels.shape[2:]
        box_height, box_width = (round(side * math.sqrt(1 - share)) for side in (height, width))
        top = int(torch.randint(height - box_height + 1, (), generator=generator))
        left = int(torch.randint(width - box_width + 1, (), generator=generator))
        pixels = pixels.clone()
        box = (..., slice(top, top + box_height), slice(left, left + box_width))
        pixels[box] = partner[box]
        share = 1 - box_height * box_width / (height * width)
    else:
        pixels = share * pixels + (1 - share) * partner
    return pixels, share * targets + (1 - share) * targets.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


def with_new_head(model: ViT, classes: list[str]) -> ViT:
    """A copy of a loaded model with one fresh head for other classes; pooler and projection are left behind.

    Section 3.2 of arXiv:2010.11929 fine-tunes with a head that is zero at first.
    """
    pooling = "cls" if model.config.pooling == "cls&dist" else model.config.pooling
    config = replace(model.config, classes=len(classes), pooling=pooling, pooler=False, projection=0)
    copy = ViT(config, attend=model.attend)
    left = ("head.", "head_dist.", "pooler.", "proj.")
    kept = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(left)}
    head = {name: torch.zeros_like(tensor) for name, tensor in copy.head.state_dict(prefix="head.").items()}
    copy.load_state_dict({**kept, **head})
    copy.image_spec, copy.labels = model.image_spec, dict(enumerate(classes))
    return copy.to(model.patch_embed.weight)


def picture_size(step: int, steps: int, model: ViT, recipe: Recipe) -> tuple[int, int]:
    """Progressive resizing: the (height, width) of this step's pictures, a whole number of patches."""
    full = model.config.image_size
    progress = min(1.0, step / max(1.0, recipe.full_size_from * steps))
    if not recipe.start_size or progress == 1:
        return full
    patch = model.config.patch_size
    factor = recipe.start_size / min(full)
    factor += (1 - factor) * progress
    return tuple(max(patch, int(side * factor) // patch * patch) for side in full)  # type: ignore[return-value]


def train(
    model: ViT,
    photos: Photos,
    recipe: Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    workers: int = 0,
    report: Callable[[dict], None] = lambda metrics: None,
    stop: Callable[[], bool] = lambda: False,
) -> ViT:
    """Train `model` in place and return the weights to use: the averaged ones under `ema`, else the model.

    Writes `out`/checkpoint.pt after every epoch and when stopped, and `out`/metrics.jsonl, one line a step.
    Under torch.distributed every process calls this and takes its share of each batch.

    Args:
        model: a ViT with a head of len(photos.classes) outputs and an image_spec of fixed size.
        resume: go on from `out`/checkpoint.pt, to the bit as if never interrupted.
        workers: processes that read pictures ahead.
        report: called after every step with what stands in metrics.jsonl, plus the speed.
        stop: asked after every step; when true, the state is saved and KeyboardInterrupt is raised.

    Raises:
        UsageError: head, pictures, recipe and number of processes do not fit together.
        CheckpointError: `resume` finds no checkpoint, or one of another recipe.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    out = Path(out)
    _check(model, photos, recipe, world)
    assert model.image_spec is not None

    device = model.patch_embed.weight.device
    per_epoch = len(photos) // recipe.batch_size
    steps = per_epoch * recipe.epochs
    share = recipe.batch_size // world
    rows = slice(rank * share, (rank + 1) * share)  # this process's part of every batch

    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not recipe.freeze or name.startswith("head."))
    averaged = _copy(model) if recipe.ema else model
    opts = optimizers(model, recipe)
    runner: nn.Module = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    if recipe.compile:
        runner = torch.compile(runner)  # type: ignore[assignment]

    first = 0
    state = {"recipe": asdict(recipe), "config": asdict(model.config), "pictures": len(photos)}
    if resume:
        first = _restore(out, state, model, averaged, opts)
    if rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        _drop_metrics_from(out / "metrics.jsonl", first)

    dataset = AugmentedPhotos(photos, model.image_spec, recipe.augmentation, recipe.seed)
    loader: torch.utils.data.DataLoader = torch.utils.data.DataLoader(
        dataset,  # type: ignore[arg-type]
        batch_sampler=list(_batches(len(photos), recipe, first, steps, rows)),
        num_workers=workers,
    )
    model.train()
    started = time.perf_counter()
    with stochastic_depth(model, recipe.drop_path) as factors:
        for step, (levels, labels) in enumerate(loader, start=first):
            generator = torch.Generator().manual_seed(_mix_seed(recipe.seed, step))
            pixels, labels = normalize(levels.to(device), model.image_spec), labels.to(device)
            size = picture_size(step, steps, model, recipe)
            if size != tuple(pixels.shape[2:]):
                pixels = F.interpolate(pixels, size=size, mode="bilinear", antialias=True)
            targets = F.one_hot(labels, len(photos.classes)).to(pixels.dtype)
            pixels, targets = mix(pixels, targets, recipe, generator)
            if recipe.drop_path:
                # Drawn for the whole batch, so that each process finds the same factors in its rows.
                drawn = draw_depth(len(model.blocks), recipe.drop_path, recipe.batch_size, generator)
                factors[:] = [factor[rows].to(device) for factor in drawn]

            rate = recipe.lr * learning_rate(step, steps, recipe)
            for group in (group for opt in opts for group in opt.param_groups):
                group["lr"] = rate * group["scale"]
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.bfloat16):
                logits = runner(pixels, resample=True)
                loss = F.cross_entropy(logits, targets, label_smoothing=recipe.label_smoothing)
            loss.backward()
            if recipe.clip:
                nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            for opt in opts:
                opt.step()
                opt.zero_grad()
            if recipe.ema:
                _average(averaged, model, min(recipe.ema, (step + 1) / (step + 10)))

            done = step + 1
            pace = (time.perf_counter() - started) / (done - first)  # seconds per step
            correct = (logits.argmax(-1) == targets.argmax(-1)).float().mean()
            mean_loss, accuracy = _mean_over_processes(torch.stack([loss.detach().float(), correct]))
            line = {"step": step, "epoch": step // per_epoch, "loss": mean_loss, "accuracy": accuracy, "lr": rate}
            if rank == 0:
                with (out / "metrics.jsonl").open("a") as file:
                    file.write(json.dumps(line) + "\n")
            report({**line, "images_per_second": recipe.batch_size / pace, "seconds_left": (steps - done) * pace})
            stopped = bool(_mean_over_processes(torch.tensor([float(stop())]))[0])
            if rank == 0 and (stopped or done % per_epoch == 0):
                _save(out, {**state, "step": done}, model, averaged, opts)
            if stopped and done < steps:
                raise KeyboardInterrupt
    return averaged.eval()


def _check(model: ViT, photos: Photos, recipe: Recipe, world: int) -> None:
    if recipe.optimizer == "muon" and not hasattr(torch.optim, "Muon"):
        raise UsageError(f"torch {torch.__version__} has no Muon; it needs torch 2.9 or newer, or optimizer adamw")
    if model.config.classes != len(photos.classes):
        raise UsageError(
            f"the head has {model.config.classes} outputs, {photos.source} has {len(photos.classes)} classes"
        )
    if model.image_spec is None or model.image_spec.size != model.config.image_size:
        raise UsageError(f"pictures come as {model.image_spec}, the model reads {model.config.image_size}")
    if model.image_spec.float_resize:
        raise UsageError(f"pictures are varied as bytes, and this model resizes them as floats: {model.image_spec}")
    if len(photos) < recipe.batch_size:
        raise UsageError(f"{photos.source} has {len(photos)} pictures, fewer than a batch of {recipe.batch_size}")
    if recipe.batch_size % (2 * world if recipe.mixup or recipe.cutmix else world):
        raise UsageError(f"a batch of {recipe.batch_size} cannot be shared by {world} processes; pairs stay together")


def _mix_seed(seed: int, step: int) -> int:
    """One well-spread seed from two small numbers."""
    return random.Random(f"{seed}/{step}").getrandbits(62)


def _batches(pictures: int, recipe: Recipe, first: int, steps: int, rows: slice) -> Iterator[list[tuple[int, int]]]:
    """This process's (epoch, picture) keys of every step from `first` on; each epoch is its own permutation."""
    per_epoch = pictures // recipe.batch_size
    order: Tensor | None = None
    for step in range(first, steps):
        epoch, place = divmod(step, per_epoch)
        if order is None or place == 0:
            order = torch.randperm(
                pictures, generator=torch.Generator().manual_seed(_mix_seed(recipe.seed, -1 - epoch))
            )
        batch = order[place * recipe.batch_size : (place + 1) * recipe.batch_size].tolist()
        yield [(epoch, index) for index in batch[rows]]


def _copy(model: ViT) -> ViT:
    copy = ViT(model.config, attend=model.attend).to(model.patch_embed.weight)
    copy.load_state_dict(model.state_dict())
    copy.image_spec, copy.labels = model.image_spec, model.labels
    return copy.requires_grad_(False)


@torch.no_grad()
def _average(averaged: ViT, model: ViT, decay: float) -> None:
    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)


def _mean_over_processes(values: Tensor) -> list[float]:
    if dist.is_initialized():
        dist.all_reduce(values)
        values = values / dist.get_world_size()
    return values.tolist()


def _save(out: Path, state: dict, model: ViT, averaged: ViT, opts: list[torch.optim.Optimizer]) -> None:
    """Write checkpoint.pt beside the old one and put it in its place, so that a kill leaves one of the two."""
    tensors = {
        "model": model.state_dict(),
        "averaged": averaged.state_dict(),
        "optimizers": [o.state_dict() for o in opts],
    }
    torch.save({**state, **tensors}, out / "checkpoint.tmp")
    (out / "checkpoint.tmp").replace(out / "checkpoint.pt")


def _restore(out: Path, state: dict, model: ViT, averaged: ViT, opts: list[torch.optim.Optimizer]) -> int:
    """Load checkpoint.pt into everything; returns the number of steps already taken."""
    path = out / "checkpoint.pt"
    if not path.is_file():
        raise CheckpointError(f"{path}: nothing to resume; leave out --resume to start anew")
    saved = torch.load(path, map_location=model.patch_embed.weight.device, weights_only=True)
    before, now = ({**made["recipe"], **made["config"], "pictures": made["pictures"]} for made in (saved, state))
    changed = [f"{key} was {before.get(key)}, is {now[key]}" for key in now if before.get(key) != now[key]]
    if changed:
        raise CheckpointError(f"{path}: made by another run ({'; '.join(changed)})")
    model.load_state_dict(saved["model"])
    averaged.load_state_dict(saved["averaged"])
    for opt, saved_opt in zip(opts, saved["optimizers"], strict=True):
        opt.load_state_dict(saved_opt)
    return saved["step"]


def _drop_metrics_from(path: Path, first: int) -> None:
    """Keep the lines of steps before `first`; the rest, of an old run or after the checkpoint, is taken anew."""
    lines = path.read_text().splitlines(keepends=True) if first else []
    path.write_text("".join(line for line in lines if json.loads(line)["step"] < first))
