"""minivit heads: what kind of head each head is, over a folder of pictures."""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minivit.cli.shared.console import columns, positive, printable, say
from minivit.cli.shared.inputs import find_pictures
from minivit.cli.shared.models import add_hub_options, add_model_option, add_run_options, load_image_model
from minivit.cli.shared.picture import check_suffix, writing
from minivit.errors import ImageError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from minivit.model.capabilities import ImageModel


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "heads",
        help="how far every head looks, and at whom",
        description="For every head, the mean over pictures of attention distance in pixels, entropy of attention in "
        "nats, and the attention patches pay to CLS, distillation and register tokens, to themselves, to "
        "their up to eight neighbours and to all patches. The attended area by depth is figure 7 of the ViT paper.",
    )
    parser.add_argument("images", nargs="+", metavar="FOLDER", help="folder, file, pattern, or - for standard input")
    parser.add_argument("-r", "--recursive", action="store_true", help="look into folders of folders")
    parser.add_argument("-b", "--batch-size", type=positive, default=8, metavar="B", help="pictures at once (8)")
    parser.add_argument(
        "-o",
        "--out",
        action="append",
        default=[],
        metavar="FILE",
        help="heads.csv, a row for each head, or heads.png, a dot for each head by depth; may be repeated",
    )
    add_model_option(parser)
    add_hub_options(parser)
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from minivit.study import head_statistics

    for path in args.out:
        check_suffix(path, ".csv", ".png")
    model = load_image_model(args)
    sums: dict[str, Tensor] = {}
    failures: list[str] = []
    count = 0
    pictures = readable(model, args, failures)
    while batch := list(islice(pictures, args.batch_size)):
        import torch

        for name, values_BLA in head_statistics(model, torch.stack(batch).to(model.patch_embed.weight)).items():
            total = values_BLA.double().sum(dim=0)
            sums[name] = sums[name] + total if name in sums else total
        count += len(batch)
        if sys.stderr.isatty():
            print(f"\r{count} pictures", end="", file=sys.stderr)
    if sys.stderr.isatty() and count:
        print(file=sys.stderr)
    if not count:
        if failures:
            return 3
        raise UsageError("there is no picture to look at")
    means = {name: total.cpu() / count for name, total in sums.items()}
    print(f"heads of {printable(model.name or 'the model')}, mean over {count} picture{'s' * (count > 1)}")
    print(text(model, means))
    for path in args.out:
        with writing(path):
            write_csv(path, means, count) if path.lower().endswith(".csv") else draw(model, means, count).save(path)
    return 3 if failures else 0


def readable(model: ImageModel, args: argparse.Namespace, failures: list[str]) -> Iterator[Tensor]:
    """pixels_CHW of every picture that can be read; what cannot is said and counted."""
    from minivit.images.preprocess import preprocess
    from minivit.inference.predict import image_spec_of

    spec = image_spec_of(model)
    for name, picture in find_pictures(args.images, recursive=args.recursive):
        try:
            if isinstance(picture, ImageError):
                raise picture
            yield preprocess(picture, spec)
        except ImageError as error:
            failures.append(name)
            say(printable(str(error).replace("the picture:", f"{name}:", 1)))


def kinds(model: ImageModel) -> list[str]:
    """The statistics that mean something to a model's tokens."""
    from minivit.study.circuits.heads import STATISTICS

    layout = model.config.layout
    absent = {"cls": not layout.cls, "dist": not layout.dist, "registers": not layout.registers}
    return [name for name in STATISTICS if not absent.get(name)]


def text(model: ImageModel, means: dict[str, Tensor]) -> str:
    """A row for each layer: the least, mean and greatest distance of its heads, and the means of the rest."""
    names = [name for name in kinds(model) if name != "distance"]
    rows = [["layer", "distance, pixels: least", "mean", "most", *names]]
    for layer, distance_A in enumerate(means["distance"]):
        there_A = distance_A[~distance_A.isnan()]  # a Swin has fewer heads in its first stages
        distances = [f"{float(value):.1f}" for value in (there_A.min(), there_A.mean(), there_A.max())]
        rows.append([str(layer), *distances, *(f"{float(means[name][layer].nanmean()):.3f}" for name in names)])
    return columns(rows)


def write_csv(path: str, means: dict[str, Tensor], count: int) -> None:
    layers, heads = means["distance"].shape
    with Path(path).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["layer", "head", *means, "pictures"])
        for layer in range(layers):
            for head in range(heads):
                if means["distance"][layer, head].isnan():
                    continue
                numbers = [repr(float(values_LA[layer, head])) for values_LA in means.values()]
                writer.writerow([layer, head, *numbers, count])


def draw(model: ImageModel, means: dict[str, Tensor], count: int) -> Any:
    """A panel of dots for each statistic."""
    from minivit import viz

    meaning = {"distance": "mean attention distance, pixels", "entropy": "entropy of attention, nats"}
    # A head that is not there is drawn where the first is.
    drawn = {name: means[name].where(~means[name].isnan(), means[name][:, :1]) for name in kinds(model)}
    panels = {meaning.get(name, f"attention of patches to {name}"): values_LA for name, values_LA in drawn.items()}
    title = f"heads of {printable(model.name or 'the model')}, mean over {count} picture{'s' * (count > 1)}"
    return viz.dots_by_depth(panels, title=title)
