"""minivit lens: the answer of the final norm and head after every block."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from minivit.cli.shared.command import (
    A_CLASS,
    CHARTS,
    IMAGE_SIZE,
    JSON,
    LABELS,
    ONE_IMAGE,
    RUN,
    command,
    option,
    output,
)
from minivit.cli.shared.console import printable, show_text, table
from minivit.cli.shared.drawing import check_drawing
from minivit.cli.shared.files import writing
from minivit.cli.shared.image import OneImage, label_of, one_image, shown_class
from minivit.model.config import POOLING_WORDS

if TYPE_CHECKING:
    from minivit.model.vit import ViT
    from minivit.study import LensReading

SCHEMA = 1  # of the JSON record; a field is only ever added under the same number


@command(
    "lens",
    help="read every block by the final head",
    description="The logit lens: the final norm and head applied to what the head would read after every block, or "
    "with --patches to every patch alone. The head was trained for the last block; of earlier ones it shows "
    "what is already written in its own directions, not all that is known there.",
    options=[
        ONE_IMAGE,
        option("--patches", action="store_true", help="a label for every patch after every block"),
        A_CLASS,
        JSON,
        output(*CHARTS, help="draw it: probabilities as PNG, SVG or PDF, or maps of labels as PNG"),
        LABELS,
        IMAGE_SIZE,
        *RUN,
    ],
)
def run(args: argparse.Namespace) -> int:
    from minivit.model.classes import find_class
    from minivit.study import lens_reading

    check_drawing(args.out, maps=args.patches)
    one = one_image(args, needs_classes="a lens has no labels to show")
    asked = getattr(args, "class")
    target = None if asked is None else find_class(one.model, asked)
    reading = lens_reading(one.model, one.pixels_BCHW, target=target, patches=args.patches)
    if args.json:
        show_text(json.dumps(one.record(SCHEMA, record(one.model, reading))))
    else:
        show_text(text(one.model, reading, args.image))
    if args.out:
        from minivit.viz import save

        with writing(args.out) as path:
            save(draw(one, reading), path)
    return 0


def text(model: ViT, reading: LensReading, path: str) -> str:
    """The reading as a table for people."""
    patches = reading.grid is not None
    what = "every patch alone" if patches else f"the {POOLING_WORDS[model.config.pooling]}"
    lines = [
        f"lens of {printable(model.name or 'the model')} on {printable(path)}, reading {what}",
        f"the answer is {shown_class(model, reading.best)}, p {float(reading.final.max()):.3f}; KL to it in nats",
    ]
    fraction = f"p of {shown_class(model, reading.followed)}"
    if patches:
        rows = [["after", "top labels, by number of patches", f"mean {fraction}", "mean KL"]]
        for name, tops, score, kl in zip(reading.names, reading.top, reading.score, reading.kl, strict=True):
            index, count = tops.unique(return_counts=True)
            order = count.argsort(descending=True, stable=True)[:3].tolist()
            common = ", ".join(f"{int(count[i])} {shown_class(model, int(index[i]))}" for i in order)
            rows.append([name, common, f"{float(score.mean()):.3f}", f"{float(kl.mean()):.3f}"])
    else:
        rows = [["after", "top label", "p", fraction, "KL"]]
        numbers = [values[:, 0].tolist() for values in (reading.top_score, reading.score, reading.kl)]
        for name, top, *values in zip(reading.names, reading.top[:, 0].tolist(), *numbers, strict=True):
            rows.append([name, shown_class(model, top), *(f"{value:.3f}" for value in values)])
    return "\n".join([*lines, table(rows, left=2)])


def record(model: ViT, reading: LensReading) -> dict[str, Any]:
    """The reading as fields of the JSON record; maps of patches are lists of rows."""

    def named(index: int, score: float) -> dict[str, Any]:
        return {**label_of(model, index), "score": score}

    grid = reading.grid
    layers: list[dict[str, Any]] = []
    for name, top, top_score, score, kl in zip(
        reading.names, reading.top, reading.top_score, reading.score, reading.kl, strict=True
    ):
        if grid is None:
            facts: dict[str, Any] = {"top": named(int(top), float(top_score)), "score": float(score), "kl": float(kl)}
        else:
            maps = {"index": top, "top_score": top_score, "score": score, "kl": kl}
            facts = {key: values.unflatten(0, grid).tolist() for key, values in maps.items()}
        if kl.isnan().any():  # scores that are no probabilities; JSON has no nan
            facts["kl"] = None
        layers.append({"after": name, **facts})
    labels = {"labels": {str(i): label_of(model, i)["label"] for i in reading.top.unique().tolist()}} if grid else {}
    final = named(reading.best, float(reading.final[reading.best]))
    followed = label_of(model, reading.followed)
    return {"read": "patches" if grid else model.config.pooling, "final": final, "class": followed, "layers": layers,
            **labels}  # fmt: skip


def draw(one: OneImage, reading: LensReading) -> Any:
    """Probabilities of classes by block as a table of cells, or a map of labels for every block."""
    from minivit import viz
    from minivit.images.preprocess import resize_and_crop
    from minivit.model.classes import score_of

    model, grid = one.model, reading.grid
    title = f"lens of {printable(model.name or 'the model')}"
    if reading.probs is None:
        assert grid is not None
        names = {index: shown_class(model, index) for index in reading.top.unique().tolist()}
        title += ": the most likely label of every patch alone, by the final norm and head"
        rows, columns = (side * model.config.patch_size for side in grid)
        seen = resize_and_crop(one.image, one.spec).crop((0, 0, columns, rows))
        maps, always = reading.top.unflatten(1, grid), [reading.best, reading.followed]
        return viz.label_maps(seen, maps, reading.names, names, always=always, title=title)
    # The model's five best, the class followed, and whatever was on top on the way; the final order.
    final = reading.final.argsort(descending=True).tolist()
    shown = {reading.followed, *final[:5], *reading.top[:, 0].tolist()}
    classes = [index for index in final if index in shown]
    what = "logit" if score_of(model) == "none" else "probability"
    title += f", reading the {POOLING_WORDS[model.config.pooling]}\n{what} by the final norm and head after every block"
    after = ["embed", *(str(i) for i in range(model.config.depth))]
    labels = [shown_class(model, index) for index in classes]
    bounds, cmap = (None, "RdBu_r") if what == "logit" else ((0, 1), "Reds")
    return viz.cells(reading.probs[:, classes].T, labels, after, bounds=bounds, cmap=cmap, title=title, label=what)
