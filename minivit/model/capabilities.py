"""The models that `minivit.load` returns and what each of them can do; the checks that refuse a model stand here alone.

Two class attributes say what a model can do; other files test them, not the class:
    has_text   there is a text tower beside the image tower (CLIP, SigLIP)
    windowed   attention stays inside windows, and patches merge from stage to stage (Swin)
"""

from __future__ import annotations

from minivit.errors import UsageError
from minivit.model.clip import CLIP
from minivit.model.swin import Swin
from minivit.model.vit import ViT

ImageModel = ViT | Swin  # takes pixels_BCHW; returns logits_BL, or pooled_BD without a head
Model = ViT | Swin | CLIP

SUPPORTED = "a Swin supports classify, embed, eval, info, verify, convert, diff, heads and attention --method raw"


def image_model(model: Model) -> ImageModel:
    """Return the model that takes images: the image tower of a CLIP, else the model itself."""
    return model.image if isinstance(model, CLIP) else model


def require_vit(model: object, caller: str) -> ViT:
    """Return `model` if it is a ViT: it keeps the same tokens through all blocks, and each attends to all of them.

    Args:
        caller: the function or command that needs one, as the message names it.

    Raises:
        UsageError: another model, or no model of minivit.
    """
    if isinstance(model, ViT):
        return model
    raise UsageError(f"{_which(model)}; {caller} needs a minivit ViT, whose tokens attend to all tokens{_hint(model)}")


def require_windowed(model: object, caller: str) -> Swin:
    """Return `model` if it is a Swin; arguments and errors as `require_vit`."""
    if isinstance(model, Swin):
        return model
    raise UsageError(f"{_which(model)}; {caller} needs a minivit Swin, whose tokens attend inside windows")


def require_text(model: object) -> CLIP:
    """Return `model` if it has a text tower.

    Raises:
        UsageError: it has none.
    """
    if isinstance(model, CLIP):
        return model
    name = getattr(model, "name", None) or type(model).__name__
    raise UsageError(f"{name}: has no text tower; texts need one, as in openai/clip-vit-base-patch32")


def _which(model: object) -> str:
    """Return the model and its class, such as "microsoft/swin-tiny: is a Swin"."""
    kind = f"is a {type(model).__name__}"
    return f"{model.name}: {kind}" if isinstance(model, Model) and model.name else f"the model {kind}"


def _hint(model: object) -> str:
    """Return what works instead, for the end of the message."""
    if isinstance(model, Swin):
        return f"; {SUPPORTED}"
    return "; use its image tower, model.image" if isinstance(model, CLIP) else "; a compiled one is under ._orig_mod"
