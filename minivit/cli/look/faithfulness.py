"""minivit faithfulness: the scores of the maps of `minivit attention`."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minivit.cli.shared.command import IMAGE_SIZE, JSON, RUN, chart_output, command, option
from minivit.cli.shared.console import passes, positive, printable, say, say_failed, show_text, table, whole
from minivit.cli.shared.drawing import add_map_options
from minivit.cli.shared.files import pixels_for, read_image, say_notes, writing
from minivit.cli.shared.image import label_of, shown_class
from minivit.cli.shared.inputs import find_images
from minivit.cli.shared.models import load_model
from minivit.errors import ImageError, UsageError
from minivit.study.maps.table import METHODS

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from minivit.model.vit import ViT
    from minivit.study import Faithfulness

SCHEMA = 1  # of the JSON record; a field is only ever added under the same number
AREAS = ("deletion", "insertion")
Box = tuple[float, float, float, float]


def methods(text: str) -> list[str]:
    """An argparse type: names of methods with commas between them, each once."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in METHODS:
            raise argparse.ArgumentTypeError(f"{name!r} is no method; known are {', '.join(METHODS)}")
    return names


def box(text: str) -> Box:
    """An argparse type: four numbers with commas between them."""
    try:
        left, upper, right, lower = (float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not X,Y,X,Y") from None
    if not (left < right and upper < lower and all(math.isfinite(x) for x in (left, upper, right, lower))):
        raise argparse.ArgumentTypeError(f"{text!r} is not left,upper,right,lower with left < right, upper < lower")
    return left, upper, right, lower


@command(
    "faithfulness",
    help="score the maps of an image",
    description="One table for the maps of every method: the score of the class while a map's patches are deleted from "
    "the image, or inserted into an empty one (area under the curve, beside random maps and a map of the centre); "
    "whether the map changes when the model's late weights are randomised; how much methods agree.",
    epilog="deletion: lower is better; insertion: higher is better; randomised: rank correlation of the map with "
    "that of a model whose head, last quarter, last half or all of whose weights are shuffled; a method fails that "
    "keeps more than 0.71 of it at the last half, because it shows the image and not the model",
    options=[
        option("image", metavar="IMAGE|FOLDER", help="an image, - for standard input, or a folder of images"),
        option("--class", metavar="NAME|INDEX", help="the class to follow (default: the most likely of each image)"),
        option("--methods", metavar="NAME,...", type=methods, help=f"of {', '.join(METHODS)} (all)"),
        option(
            "--box",
            metavar="X,Y,X,Y",
            type=box,
            help="where the object is, left, upper, right and lower pixels of the image, for the pointing score",
        ),
        option(
            "--replacement",
            choices=("mean", "blur"),
            default="mean",
            help="what replaces a patch: the image's mean pixel (mean), or its blur",
        ),
        option("--steps", metavar="N", type=positive, help="steps of a curve (16, or as many as patches)"),
        option("--random", metavar="N", type=positive, default=5, help="random maps to compare with (5)"),
        option("--seed", metavar="N", type=whole, default=0, help="of the random maps and weights (0)"),
        option("-b", "--batch-size", metavar="N", type=positive, default=32, help="batch size (32)"),
        JSON,
        chart_output(help="draw the curves as PNG, SVG or PDF; for one image with its maps"),
        add_map_options,
        IMAGE_SIZE,
        *RUN,
    ],
)
def run(args: argparse.Namespace) -> int:
    from minivit import study
    from minivit.model.classes import find_class

    folder = args.image != "-" and Path(args.image).is_dir()
    if folder and args.box:
        raise UsageError("--box is of one image, not of a folder of them")
    model = load_model(args)
    images = read(model, args, folder)
    if not images.names:
        say(f"{printable(args.image)}: no image in it can be read")
        return say_failed(images.failed, images.failed)
    asked = getattr(args, "class")
    with passes(model):
        found = study.faithfulness(
            model,
            images.pixels,
            methods=args.methods,
            target=None if asked is None else find_class(model, asked),
            box=images.box,
            replacement=args.replacement,
            steps=args.steps,
            random=args.random,
            seed=args.seed,
            batch_size=args.batch_size,
        )
    for name, reason in found.left_out.items():
        say(f"{name} left out: {reason}")
    report = record(model, images, found, args.box)
    if args.out:
        from minivit.viz import save

        with writing(args.out) as path:
            save(draw(model, images, found, args), path)
    show_text(json.dumps(report) if args.json else text(report))
    return say_failed(images.failed, len(images.names) + images.failed)


@dataclass(kw_only=True)
class Images:
    """The images that could be read."""

    names: list[str]
    pixels: list[Tensor]  # (1, C, H, W) each
    only: Image.Image | None = None  # where there is one image, not a folder
    box: Box | None = None  # in patches
    failed: int = 0


def read(model: ViT, args: argparse.Namespace, folder: bool) -> Images:
    """The images of the argument; of a folder those that can be read, the others are reported."""
    from minivit.images.preprocess import box_on_grid

    images = Images(names=[], pixels=[])
    for name in [name for name, _ in find_images([args.image], recursive=False)] if folder else [args.image]:
        try:
            image, notes = read_image(name)
            pixels_1CHW, spec = pixels_for(model, image)
        except ImageError as error:
            if not folder:
                raise
            say(str(error))
            images.failed += 1
            continue
        say_notes(name, notes)
        images.names.append(name)
        images.pixels.append(pixels_1CHW)
        if not folder:
            images.only = image
        if args.box:
            grid, patch = model.layout_of(pixels_1CHW).grid, model.config.patch_size
            images.box = box_on_grid(args.box, image.size, spec, grid, patch=patch)
    return images


def record(model: ViT, images: Images, found: Faithfulness, box: Box | None) -> dict[str, Any]:
    """The scores as a JSON record."""
    pictures = []
    for i, path in enumerate(images.names):
        target, curves = found.targets[i], found.curves[i]
        kept = None if target is None else {**label_of(model, target), "score": found.probabilities[i]}
        lines = {kind: getattr(curves, f"{kind}_curves").tolist() for kind in AREAS}
        drawn = {name: {kind: lines[kind][m] for kind in AREAS} for m, name in enumerate(found.methods)}
        pictures.append({"path": path, "class": kept, **found.scores(slice(i, i + 1)), "curves": drawn})
    shares = found.curves[0].shares
    return {
        "schema": SCHEMA,
        "model": model.name,
        "revision": model.revision,
        "device": str(images.pixels[0].device),
        "replacement": found.replacement,
        "steps": len(shares) - 1,
        "random_maps": found.random,
        "seed": found.seed,
        **({"box": box, "box_share": found.box_fraction} if box else {}),
        "shares": shares.tolist(),
        "fails_above": found.threshold,
        "left_out": found.left_out,
        **found.scores(),
        "pictures": pictures,
    }


def text(report: dict[str, Any]) -> str:
    """The table for people."""
    pictures, stages = report["pictures"], list(next(iter(report["methods"].values()))["randomised"])
    found = pictures[0]["class"]
    what = "cosine with the output for the whole image"
    if found:
        what = "probability of the class"
        found = f"{printable(found['label'] or 'class')} ({found['index']}), {found['score']:.3f}"
    if len(pictures) == 1:
        lines = [printable(pictures[0]["path"]) + (f": {found}" if found else "")]
    else:
        lines = [f"means over {len(pictures)} images" + (", each for its class" if found else "")]
    filler = {"mean": "the image's mean pixel", "blur": "the image blurred by one patch"}[report["replacement"]]
    lines.append(f"{what}, patches replaced by {filler} in {report['steps']} steps; area under the curve")
    columns = [*AREAS, *(["pointing", "in_box"] if "box" in report else [])]

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    rows = [["", *[""] * len(columns), "randomised:", *[""] * (len(stages) - 1), ""]]
    rows.append(["", *(name.replace("_", " ") for name in columns), *stages, ""])
    for name, scores in report["methods"].items():
        kept = [cell(scores["randomised"][stage]) for stage in stages]
        rows.append([name, *(cell(scores[c]) for c in columns), *kept, "fails" if scores["fails"] else ""])
    blank = [""] * (len(stages) + 1)
    rows.append(["centre Gaussian", *(cell(report["centre"][c]) for c in columns), *blank])
    for name, key in ((f"random, {report['random_maps']} maps", "mean"), ("  spread", "std")):
        rows.append([name, *(cell(report["random"][c][key]) for c in columns), *blank])
    lines.append(table(rows))
    if "box" in report:
        lines.append(f"the box is {report['box_share']:.3f} of what the network sees: pointing and in box by chance")
    failed = [name for name, scores in report["methods"].items() if scores["fails"]]
    lines.append(
        f"randomised: rank correlation with the map after shuffling weights; above {report['fails_above']:.2f} at "
        f"last half a map shows the image, not the model; {'fails: ' + ', '.join(failed) if failed else 'none fails'}"
    )
    names = list(report["methods"])
    matrix = [["", *(str(i + 1) for i in range(len(names)))]]
    for i, (name, row) in enumerate(zip(names, report["agreement"], strict=True)):
        known = ["-" if rho is None else f"{rho:.2f}" for rho in row[: i + 1]]
        matrix.append([f"{i + 1} {name}", *known, *[""] * (len(names) - i - 1)])
    return "\n".join([*lines, "", "agreement: rank correlation between maps", table(matrix)])


def draw(model: ViT, images: Images, found: Faithfulness, args: argparse.Namespace) -> Any:
    """A tile for every method: its map over the image where there is one image, its curves, its areas."""
    import torch

    from minivit import viz
    from minivit.images.preprocess import seen_box
    from minivit.inference.predict import image_spec_of

    curves = {kind: torch.stack([getattr(c, f"{kind}_curves") for c in found.curves]).mean(dim=0) for kind in AREAS}
    painted, title, count = [], f"{len(images.names)} images", len(found.methods)
    target = found.targets[0]
    if images.only:
        where = seen_box(images.only.size, image_spec_of(model), patch=model.config.patch_size)
        looks = {"cmap": args.cmap, "smooth": args.smooth}
        painted = [viz.paint(images.only, values, box=where, **looks) for values in found.maps[0]]
        title = printable(Path(images.names[0]).name)
        title += f", {shown_class(model, target)}" if target is not None else ""
    steps = len(found.curves[0].shares) - 1
    return viz.curve_sheet(
        found.methods,
        found.curves[0].shares,
        curves["deletion"][:count],
        curves["insertion"][:count],
        random=(curves["deletion"][count + 1 :].mean(dim=0), curves["insertion"][count + 1 :].mean(dim=0)),
        pictures=painted,
        title=f"{title}: {model.name}, patches replaced by {found.replacement}, {steps} steps",
        y_label="probability of the class" if target is not None else "cosine with the output for the whole image",
    )
