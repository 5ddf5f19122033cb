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

from importlib import import_module
from typing import TYPE_CHECKING

from minivit.errors import CheckpointError, ImageError, MinivitError, ModelUnavailableError, ShapeError, UsageError
from minivit.images.spec import ImageSpec
from minivit.model.config import CLIPConfig, TextConfig, TokenLayout, ViTConfig

if TYPE_CHECKING:
    from minivit import study, viz
    from minivit.images.preprocess import preprocess
    from minivit.inference.optimize import optimize
    from minivit.inference.predict import classify, embed, iter_classify
    from minivit.inference.predictions import Prediction
    from minivit.model.clip import CLIP
    from minivit.model.vit import ViT
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
    "explore",
    "iter_classify",
    "load",
    "open_image",
    "optimize",
    "preprocess",
    "save",
    "study",
    "trace",
    "verify",
    "viz",
]

_HOME = {
    "CLIP": "model.clip",
    "Prediction": "inference.predictions",
    "ViT": "model.vit",
    "ablate": "study",
    "classify": "inference.predict",
    "embed": "inference.predict",
    "explore": "study",
    "iter_classify": "inference.predict",
    "load": "weights",
    "open_image": "images.decode",
    "optimize": "inference.optimize",
    "preprocess": "images.preprocess",
    "save": "weights",
    "trace": "study",
    "verify": "weights",
}
_PACKAGES = ("bench", "inference", "parity", "study", "training", "viz", "weights")


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
