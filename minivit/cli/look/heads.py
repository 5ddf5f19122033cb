"""minivit heads: statistics of every head, over a folder of images."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minivit.cli.shared.command import IMAGE_FOLDERS, IMAGE_SIZE, RUN, batch_size, chart_output, command
from minivit.cli.shared.console import printable, progress, say, say_failed, show_text, table
from minivit.cli.shared.files import writing
from minivit.cli.shared.inputs import find_images
from minivit.cli.shared.models import load_image_model
from minivit.errors import ImageError

if TYPE_CHECKING:
    from torch import Tensor

    from minivit.model.capabilities import ImageModel
    from minivit.study import HeadSummary


@command(
    "heads",
    help="how far every head attends, and to what",
    description="For every head, the mean over images of attention distance in pixels, entropy of attention in "
    "nats, and the attention of patches to CLS, distillation and register tokens, to themselves, to "
    "their up to eight neighbours and to all patches. The attended area by depth is figure 7 of the ViT paper.",
    options=[
        *IMAGE_FOLDERS,
        batch_size(8),
        chart_output(
            ".csv",
            action="append",
            default=[],
            help="heads.csv, a row for each head, or heads.png (.svg, .pdf), a dot for each by depth; may be repeated",
        ),
        IMAGE_SIZE,
        *RUN,
    ],
)
def run(args: argparse.Namespace) -> int:
    from minivit.errors import UsageError
    from minivit.study import summarise_heads
    from minivit.viz import save

    model = load_image_model(args)
    failures: list[str] = []
    try:
        found = summarise_heads(model, batches(model, args, failures))
    except UsageError:
        if failures:
            return say_failed(len(failures), len(failures))
        raise
    show_text(title(model, found))
    show_text(text(found))
    for path in args.out:
        with writing(path) as new:
            write_csv(new, found) if path.lower().endswith(".csv") else save(draw(model, found), new)
    return say_failed(len(failures), found.count + len(failures))


def batches(model: ImageModel, args: argparse.Namespace, failures: list[str]) -> Iterator[Tensor]:
    """The images that can be read, as batches of pixels; the others are reported and counted."""
    import torch

    pixels = progress(readable(model, args, failures), "images")
    while batch := list(islice(pixels, args.batch_size)):
        yield torch.stack(batch)


def readable(model: ImageModel, args: argparse.Namespace, failures: list[str]) -> Iterator[Tensor]:
    """pixels_CHW of every image that can be read."""
    from minivit.images.preprocess import preprocess
    from minivit.inference.predict import image_spec_of

    spec = image_spec_of(model)
    for name, image in find_images(args.images, recursive=args.recursive):
        try:
            if isinstance(image, ImageError):
                raise image
            yield preprocess(image, spec)
        except ImageError as error:
            failures.append(name)
            say(printable(str(error.named(name))))


def title(model: ImageModel, found: HeadSummary) -> str:
    """The first line."""
    return f"heads of {printable(model.name or 'the model')}, mean over {found.count} image{'s' * (found.count > 1)}"


def text(found: HeadSummary) -> str:
    """A row for each layer: the smallest, mean and largest distance of its heads, and the means of the rest."""
    names = [name for name in found.kinds if name != "distance"]
    rows = [["layer", "distance, pixels: min", "mean", "max", *names]]
    for layer, distance_A in enumerate(found.means["distance"]):
        there_A = distance_A[~distance_A.isnan()]  # a Swin has fewer heads in its first stages
        distances = [f"{float(value):.1f}" for value in (there_A.min(), there_A.mean(), there_A.max())]
        rows.append([str(layer), *distances, *(f"{float(found.means[name][layer].nanmean()):.3f}" for name in names)])
    return table(rows)


def write_csv(path: Path, found: HeadSummary) -> None:
    """A row for each head."""
    layers, heads = found.means["distance"].shape
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["layer", "head", *found.means, "pictures"])
        for layer in range(layers):
            for head in range(heads):
                if not found.means["distance"][layer, head].isnan():
                    numbers = [repr(float(values_LA[layer, head])) for values_LA in found.means.values()]
                    writer.writerow([layer, head, *numbers, found.count])


def draw(model: ImageModel, found: HeadSummary) -> Any:
    """A panel of dots for each statistic."""
    from minivit import viz

    meaning = {"distance": "mean attention distance, pixels", "entropy": "entropy of attention, nats"}
    # A head that is not there is drawn where the first is.
    drawn = {
        name: found.means[name].where(~found.means[name].isnan(), found.means[name][:, :1]) for name in found.kinds
    }
    panels = {
        meaning.get(name, f"attention of patches to {name}, fraction"): values_LA for name, values_LA in drawn.items()
    }
    return viz.dots_by_depth(panels, title=title(model, found))
