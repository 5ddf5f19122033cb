"""Training on labelled images: recipe, dataset, augmentation, train, evaluate. Torch is imported on first use."""

from importlib import import_module
from typing import TYPE_CHECKING

from minivit.training.recipe import Augmentation, Recipe

if TYPE_CHECKING:
    from minivit.training.dataset import LabelledImages, find_images
    from minivit.training.evaluation import Evaluation, evaluate
    from minivit.training.loop import curves, read_metrics, train
    from minivit.training.models import new_model, with_new_head

__all__ = [
    "Augmentation",
    "Evaluation",
    "LabelledImages",
    "Recipe",
    "curves",
    "evaluate",
    "find_images",
    "new_model",
    "read_metrics",
    "train",
    "with_new_head",
]

_MODULES = {
    "dataset": ("LabelledImages", "find_images"),
    "evaluation": ("Evaluation", "evaluate"),
    "loop": ("curves", "read_metrics", "train"),
    "models": ("new_model", "with_new_head"),
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
