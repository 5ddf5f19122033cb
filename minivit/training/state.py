"""What changes while a model is trained: its weights, their moving average, the optimizers, and the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from minivit.model.vit import ViT
from minivit.training.optimizer import optimizers
from minivit.training.recipe import Recipe


@dataclass(kw_only=True)
class TrainingState:
    """The whole state of a run; a run that starts from it takes the same steps as the one that saved it."""

    model: ViT
    averaged: ViT  # exponential moving average of the model; the model itself when the recipe has no ema
    optimizers: list[torch.optim.Optimizer]
    step: int = 0  # steps taken

    @classmethod
    def start(cls, model: ViT, recipe: Recipe) -> TrainingState:
        """Return the state before the first step; parameters that the recipe freezes need no gradient from now on."""
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not recipe.freeze or name.startswith("head."))
        return cls(model=model, averaged=_copy(model) if recipe.ema else model, optimizers=optimizers(model, recipe))

    @torch.no_grad()
    def update_average(self, recipe: Recipe) -> None:
        """Move the average towards the model; the decay grows from 0.1 to the recipe's `ema`."""
        if recipe.ema:
            decay = min(recipe.ema, (self.step + 1) / (self.step + 10))
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), 1 - decay)

    def tensors(self) -> dict[str, Any]:
        """Return the state as `torch.save` writes it, and `load` reads it."""
        return {
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
        }

    def load(self, saved: dict[str, Any]) -> None:
        """Set the state to what `tensors` returned."""
        self.model.load_state_dict(saved["model"])
        self.averaged.load_state_dict(saved["averaged"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step = saved["step"]


def _copy(model: ViT) -> ViT:
    copy = ViT(model.config, attend=model.attend).to(model.patch_embed.weight)
    copy.load_state_dict(model.state_dict())
    copy.image_spec, copy.labels = model.image_spec, model.labels
    return copy.requires_grad_(False)
