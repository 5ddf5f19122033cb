"""minivit eval: how well a classifier does on labelled images."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from minivit.cli.shared.command import HUB, JSON, MODEL_ARGUMENT, batch_size, command, folder_output, option
from minivit.cli.shared.console import printable, say, show_text, whole
from minivit.cli.shared.models import add_run_options, load_image_model

if TYPE_CHECKING:
    from minivit.training.evaluation import Evaluation


@command(
    "eval",
    help="measure a classifier on labelled images",
    description="Top-1, top-5, accuracy per class, confusion matrix, calibration error and speed of a classifier "
    "on a folder of class folders, or a tar of one, named as the model's labels.",
    options=[
        MODEL_ARGUMENT,
        option("data", metavar="DATA", help="folder of class folders (cat/1.jpg), or a tar of one"),
        batch_size(64),
        option("--workers", type=whole, default=1, metavar="N", help="processes that read images ahead (1)"),
        JSON,
        folder_output("confusion.csv", "confusion.svg", help="write confusion.csv and confusion.svg into this folder"),
        HUB,
        add_run_options,
    ],
)
def run(args: argparse.Namespace) -> int:
    from minivit.training.dataset import find_images
    from minivit.training.evaluation import evaluate
    from minivit.viz.style import require_matplotlib
    from minivit.weights.replacing import replacing_files

    if args.out:
        require_matplotlib()
    images = find_images(args.data)
    for line in images.skipped:
        say(f"{printable(args.data)}: {printable(line)}")
    model = load_image_model(args)

    def report(done: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done}/{len(images)} images", end="\n" if done == len(images) else "", file=sys.stderr)

    result = evaluate(model, images, batch_size=args.batch_size, workers=args.workers, report=report)
    if args.out:
        with replacing_files(args.out, ["confusion.csv", "confusion.svg"]) as (table, chart):
            result.write_confusion(table)
            draw(result, f"{model.name}: {result.images} images", chart)
    if args.json:
        facts = {"model": model.name, "revision": model.revision, "data": args.data, **asdict(result)}
        show_text(json.dumps({**facts, "per_class": result.per_class}, indent=2))
        return 0
    show_text(f"{model.name} on {result.images} images of {args.data}")
    show_text(f"  top-1              {result.top1:.4f}")
    show_text(f"  top-5              {result.top5:.4f}")
    show_text(f"  calibration error  {result.calibration_error:.4f}")
    show_text(f"  images/s           {result.images_per_second:.1f}")
    for name, accuracy in result.per_class.items():
        show_text(f"  {accuracy:.3f}  {printable(name)}")
    return 0


def draw(result: Evaluation, title: str, path: Path) -> None:
    """Draw the confusion matrix."""
    from minivit.viz import confusion_chart, save

    save(confusion_chart(title, result.classes, result.confusion), path)
