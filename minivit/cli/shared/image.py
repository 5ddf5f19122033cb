"""The image and the model of a command that looks at one image."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minivit.cli.shared.console import printable, say
from minivit.cli.shared.files import pixels_for, read_image, say_notes
from minivit.cli.shared.models import load_image_model, load_model
from minivit.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from minivit.images.spec import ImageSpec


@dataclass(frozen=True, kw_only=True)
class OneImage:
    """An image, and the model that it goes through."""

    path: str  # as it was typed
    image: Image.Image  # upright RGB
    notes: list[str]  # what was done to make it that
    model: Any  # a ViT; or a Swin, where the command takes one
    spec: ImageSpec
    pixels_BCHW: Tensor  # B is 1; on the device and in the dtype of the weights

    def record(self, schema: int, fields: dict[str, Any]) -> dict[str, Any]:
        """Return `fields` as a JSON record: schema and path in front, model, revision, device and warnings behind."""
        return record(schema, self.path, fields, self.model, self.notes)


def one_image(
    args: argparse.Namespace,
    *,
    needs_classes: str | None = None,
    texts: bool = True,
    any_model: bool = False,
    quiet: bool = False,
) -> OneImage:
    """Return the image and the model that the arguments name; what was done to the image is said.

    Args:
        needs_classes: what the command would do with classes, for the error of a model that has none.
        texts: whether the command takes texts as classes, for the same error.
        any_model: whether the command takes a Swin as well.
        quiet: what was done to the image is not said.

    Raises:
        ImageError: the image cannot be read.
        UsageError: the model has no classifier, or is of a kind that the command does not take.
        ModelUnavailableError, CheckpointError: as `minivit.load`.
    """
    image, notes = read_image(args.image, icc=args.icc)
    if not quiet:
        say_notes(args.image, notes)
    model = load_image_model(args) if any_model else load_model(args)
    if needs_classes and not model.config.classes:
        hint = ", or --labels where it has a text tower" if texts else ""
        raise UsageError(f"{model.name}: has no classifier, so {needs_classes}; name a model with a head{hint}")
    pixels_BCHW, spec = pixels_for(model, image)
    return OneImage(path=args.image, image=image, notes=notes, model=model, spec=spec, pixels_BCHW=pixels_BCHW)


def record(schema: int, path: str, fields: dict[str, Any], model: Any, warnings: list[str]) -> dict[str, Any]:
    """Return `fields` as a JSON record: schema and path in front, model, revision, device and warnings behind."""
    about = {"model": model.name, "revision": model.revision, "device": str(model.patch_embed.weight.device)}
    return {"schema": schema, "path": path, **fields, **about, **({"warnings": warnings} if warnings else {})}


def pick_class(model: Any, pixels_BCHW: Tensor, asked: str | None) -> int:
    """Return the index of the class of --class, else the most likely one, which is said."""
    import torch

    from minivit.model.classes import find_class

    if asked is not None or not model.config.classes:
        return find_class(model, asked or "")
    with torch.inference_mode():
        best = int(model(pixels_BCHW).argmax())
    say(f"class: {shown_class(model, best)}")
    return best


def shown_class(model: Any, index: int) -> str:
    """Return a class as it is printed: its label and index."""
    from minivit.model.classes import class_name

    return printable(class_name(model, index))


def label_of(model: Any, index: int) -> dict[str, Any]:
    """Return a class as fields of a JSON record."""
    return {"index": index, "label": model.labels[index] if model.labels else None}
