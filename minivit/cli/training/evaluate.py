"""minivit eval: how good a classifier is on labelled pictures."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minivit.cli.shared.console import positive, printable
from minivit.cli.shared.models import add_hub_options, add_run_options, load_image_model


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "eval",
        help="measure a classifier on labelled pictures",
        description="Top-1, top-5, accuracy per class, confusion matrix, calibration error and speed of a classifier "
        "on a folder of class folders, or a tar of one, named as the model's labels.",
    )
    parser.add_argument("model", metavar="MODEL", help="hub id, folder or weights file")
    parser.add_argument("data", metavar="DATA", help="folder of class folders (cat/1.jpg), or a tar of one")
    parser.add_argument("-b", "--batch-size", type=positive, default=64, metavar="B", help="pictures at once (64)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes that read pictures ahead (1)")
    parser.add_argument("--json", action="store_true", help="write one JSON object")
    parser.add_argument("-o", "--out", metavar="FOLDER", help="write confusion.csv and confusion.svg there")
    add_hub_options(parser)
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from minivit.training.dataset import find_photos
    from minivit.training.evaluate import evaluate
    from minivit.viz import confusion_chart, save
    from minivit.viz.style import require_matplotlib

    if args.out:
        require_matplotlib()
    photos = find_photos(args.data)
    model = load_image_model(args)

    def report(done: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done}/{len(photos)} pictures", end="\n" if done == len(photos) else "", file=sys.stderr)

    result = evaluate(model, photos, batch_size=args.batch_size, workers=args.workers, report=report)
    if args.out:
        folder = Path(args.out)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "confusion.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["true \\ predicted", *result.classes])
            writer.writerows([name, *row] for name, row in zip(result.classes, result.confusion, strict=True))
        title = f"{model.name}: {result.images} images"
        save(confusion_chart(title, result.classes, result.confusion), folder / "confusion.svg")
    if args.json:
        facts = {"model": model.name, "revision": model.revision, "data": args.data, **asdict(result)}
        print(json.dumps({**facts, "per_class": result.per_class}, indent=2))
        return 0
    print(f"{model.name} on {result.images} pictures of {args.data}")
    print(f"  top-1              {result.top1:.4f}")
    print(f"  top-5              {result.top5:.4f}")
    print(f"  calibration error  {result.calibration_error:.4f}")
    print(f"  images/s           {result.images_per_second:.1f}")
    for name, share in result.per_class.items():
        print(f"  {share:.3f}  {printable(name)}")
    return 0
