"""Optimizers, and what changes from step to step: the learning rate and, in progressive resizing, the image size."""

from __future__ import annotations

import math

import torch
from torch import nn

from minivit.model.vit import ViT
from minivit.training.recipe import Recipe


def learning_rate(step: int, steps: int, recipe: Recipe) -> float:
    """Return the factor on the peak learning rate: linear warm-up, then a cosine down to `final_lr`."""
    warmup = max(1, round(recipe.warmup * steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return recipe.final_lr + (1 - recipe.final_lr) * (1 + math.cos(math.pi * progress)) / 2


def optimizers(model: ViT, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return AdamW for all parameters, or Muon for the matrices of the blocks and AdamW for the rest.

    Weight decay is on matrices only. The learning rate of a block is `layer_decay` times that of the next block.
    Muon's update is scaled to the RMS of AdamW's, so that one `lr` suits both.
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
    """Return how many layers lie between a parameter and the head: 0 for norm and head, depth + 1 for the embedding."""
    if name.startswith("blocks."):
        return depth - int(name.split(".")[1])
    return 0 if name.startswith(("norm.", "attn_pool.", "pooler.", "proj.", "head.", "head_dist.")) else depth + 1


def image_size_at(step: int, steps: int, model: ViT, recipe: Recipe) -> tuple[int, int]:
    """Return the (height, width) of the images of a step under progressive resizing, a whole number of patches."""
    full = model.config.image_size
    progress = min(1.0, step / max(1.0, recipe.full_size_from * steps))
    if not recipe.start_size or progress == 1:
        return full
    patch = model.config.patch_size
    factor = recipe.start_size / min(full)
    factor += (1 - factor) * progress
    return tuple(max(patch, int(side * factor) // patch * patch) for side in full)  # type: ignore[return-value]
