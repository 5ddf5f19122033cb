"""minivit: a Vision Transformer written by hand in PyTorch that loads the published weights exactly.

The legend of shapes, everywhere in the package. A name carries its shape where the shape changes:
`q_BANK`, `probs_BANM`, `tokens_BND`.

    B  batch                      A  attention heads
    C  colour channels            K  size of one head, D / A
    H  image height, pixels       N  tokens: prefix + P
    W  image width, pixels        M  tokens where they are keys
    P  patches                    D  width: size of a token
    L  classes                    F  hidden size of the MLP
    T  tokens of a text           E  size of the space that pictures and texts share

Reading order: config, preprocess, embed, attention, block, model, labels; then weights. Beside it: text, clip, swin.
`import minivit` is light: torch is imported when a name that needs it is first used.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from minivit.config import CLIPConfig, ImageSpec, TextConfig, TokenLayout, ViTConfig
from minivit.errors import CheckpointError, ImageError, MinivitError, ModelUnavailableError, ShapeError, UsageError

if TYPE_CHECKING:
    from minivit import study, viz
    from minivit.clip import CLIP
    from minivit.fast import optimize
    from minivit.labels import Prediction
    from minivit.model import ViT
    from minivit.predict import classify, embed, iter_classify
    from minivit.preprocess import preprocess
    from minivit.study import ablate, trace
    from minivit.weights import load, save

__version__ = "0.1.0"

__all__ = [
    "CLIP",
    "CLIPConfig",
    "CheckpointError",
    "ImageError",
    "ImageSpec",
    "MinivitError",
    "ModelUnavailableError",
    "Prediction",
    "ShapeError",
    "TextConfig",
    "TokenLayout",
    "UsageError",
    "ViT",
    "ViTConfig",
    "ablate",
    "classify",
    "embed",
    "iter_classify",
    "load",
    "optimize",
    "preprocess",
    "save",
    "study",
    "trace",
    "viz",
]

_HOME = {
    "CLIP": "clip",
    "Prediction": "labels",
    "ViT": "model",
    "ablate": "study",
    "classify": "predict",
    "embed": "predict",
    "iter_classify": "predict",
    "load": "weights",
    "optimize": "fast",
    "preprocess": "preprocess",
    "save": "weights",
    "trace": "study",
}


_PACKAGES = ("study", "viz", "weights")


def __getattr__(name: str) -> object:
    if name in _PACKAGES:
        return import_module(f"minivit.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'minivit' has no attribute {name!r}")
    value = getattr(import_module(f"minivit.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Keeps `minivit.preprocess` and `minivit.embed` the functions: importing the modules of these names,
    which hold one stage of the way each, would otherwise bind the modules here."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
