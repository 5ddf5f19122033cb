"""minivit: a Vision Transformer written by hand in PyTorch that loads the published weights exactly.

Shape letters, the same in the whole package. A name carries its shape where the shape changes:
`q_BANK`, `probs_BANM`, `tokens_BND`.

    B  batch                      A  attention heads
    C  colour channels            K  size of one head, D / A
    H  image height, pixels       N  tokens: prefix + P
    W  image width, pixels        M  tokens that are keys
    P  patches                    D  width: size of a token
    L  classes                    F  hidden size of the MLP
    T  tokens of a text           E  size of the embedding space of images and texts

Prefix tokens are the class, distillation and register tokens, which come before the patches.
Reading order: model/config, images/spec, images/preprocess, model/embed, model/attention, model/block, model/vit;
then weights, inference and study. Each folder has a README.md.
`import minivit` is light: torch is imported when a name that needs it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from minivit.errors import CheckpointError, ImageError, MinivitError, ModelUnavailableError, ShapeError, UsageError
from minivit.images.spec import ImageSpec
from minivit.model.config import CLIPConfig, TextConfig, TokenLayout, ViTConfig

if TYPE_CHECKING:
    from minivit import bench, parity, study, viz, weights
    from minivit.images.decode import open_image
    from minivit.images.preprocess import preprocess
    from minivit.inference.optimize import optimize
    from minivit.inference.predict import classify, embed, iter_classify
    from minivit.inference.predictions import Prediction
    from minivit.model.capabilities import Model
    from minivit.model.clip import CLIP
    from minivit.model.vit import ViT
    from minivit.study import ablate, explore, trace
    from minivit.weights import load, save, verify

__version__ = "0.1.0"

__all__ = [
    "CLIP",
    "CLIPConfig",
    "CheckpointError",
    "ImageError",
    "ImageSpec",
    "MinivitError",
    "Model",
    "ModelUnavailableError",
    "Prediction",
    "ShapeError",
    "TextConfig",
    "TokenLayout",
    "UsageError",
    "ViT",
    "ViTConfig",
    "ablate",
    "bench",
    "classify",
    "embed",
    "explore",
    "iter_classify",
    "load",
    "open_image",
    "optimize",
    "parity",
    "preprocess",
    "save",
    "study",
    "trace",
    "verify",
    "viz",
    "weights",
]

# Where each name is defined that is imported on first use.
_HOME = {
    "CLIP": "model.clip",
    "Model": "model.capabilities",
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
_PACKAGES = ("bench", "parity", "study", "viz", "weights")


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
