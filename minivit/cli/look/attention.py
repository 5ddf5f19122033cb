"""minivit attention: what a model attends to, over the image."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minivit.cli.shared.command import A_CLASS, IMAGE_SIZE, LABELS, ONE_IMAGE, RUN, command, option, output
from minivit.cli.shared.console import fraction, passes, positive, printable, show_text, whole
from minivit.cli.shared.drawing import add_map_options
from minivit.cli.shared.files import show, writing
from minivit.cli.shared.image import OneImage, label_of, one_image, pick_class
from minivit.cli.shared.models import labels_of
from minivit.errors import UsageError
from minivit.study.maps.table import METHODS, SETTINGS

if TYPE_CHECKING:
    from torch import Tensor

    from minivit.study.maps.faithfulness import MapScore
    from minivit.study.maps.methods import Maps

SCHEMA = 1  # of the JSON record; a field is only ever added under the same number


def layer(text: str) -> int | str:
    """An argparse type: the number of a layer, or "all"."""
    return text if text == "all" else whole(text)


def head(text: str) -> int | str:
    """An argparse type: the number of a head, or how all are fused."""
    return text if text in ("mean", "max", "min") else whole(text)


def query(text: str) -> str | tuple[int, int]:
    """An argparse type: a token by its kind, or a patch by its row and column."""
    if text in ("cls", "dist", "mean", "pool"):
        return text
    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not cls, dist, mean, pool or ROW,COL")
    return int(parts[0]), int(parts[1])


def flags(names: frozenset[str]) -> str:
    """The options of some settings."""
    return ", ".join("--" + name.replace("_", "-") for name in SETTINGS if name in names)


@command(
    "attention",
    help="draw what a model attends to",
    description="Draw a map of one image: attention, rollout, the evidence for a class, or properties of the tokens. "
    "Layers and heads are numbered from 0. An option that a method does not take is refused.",
    epilog="; ".join(f"{name}: {flags(method.takes)}" for name, method in METHODS.items()),
    options=[
        ONE_IMAGE,
        option("--method", choices=METHODS, default="raw", help="the method (raw)"),
        option("--layer", metavar="N|all", type=layer, help="block to read (the last), or each on one sheet"),
        option("--head", metavar="N|mean|max|min", type=head, help="one head, or how all are fused (mean)"),
        option(
            "--query",
            metavar="TOKEN",
            type=query,
            help="the token that attends: cls, dist, mean (of the patches), ROW,COL of a patch, or for rollout pool, "
            "the attention pool's query (cls where there is one, else mean; the head's input for methods of a class)",
        ),
        A_CLASS,
        option("--start-layer", metavar="N", type=whole, help="first layer that takes part (0)"),
        option("--residual", metavar="FRACTION", type=fraction, help="weight of the residual connection (0.5)"),
        option("--discard", metavar="FRACTION", type=fraction, help="fraction of the attention to leave out (0)"),
        option("--steps", metavar="N", type=positive, help="points on the way from the baseline (32)"),
        option("--grid", action="store_true", default=None, help="layers x heads on one sheet"),
        option(
            "--scale",
            choices=("each", "shared"),
            help="colour scale of a sheet: one for each map (each) or one for all",
        ),
        add_map_options,
        option("--opacity", metavar="FRACTION", type=fraction, default=0.5, help="of the map over the image (0.5)"),
        option(
            "--score",
            action="store_true",
            help="write the score of the map beside it: deletion and insertion of the class, as minivit faithfulness",
        ),
        output(".png", ".npy", ".json", help="map.png, map.npy or map.json; else text on the terminal"),
        LABELS,
        IMAGE_SIZE,
        *RUN,
    ],
)
def run(args: argparse.Namespace) -> int:
    from minivit import study

    settings = settings_of(args)
    one = one_image(args, any_model=args.method == "raw")
    if one.model.windowed and args.score:
        raise UsageError("--score deletes patches of a ViT; a Swin has other windows in every stage")
    asked = settings.pop("class", None)
    scale = settings.pop("scale", "each")
    if "class" in METHODS[args.method].takes:
        settings["target"] = pick_class(one.model, one.pixels_BCHW, asked)
    score = None
    with passes(one.model):
        maps = study.maps.compute(one.model, one.pixels_BCHW, args.method, **settings)
    if args.score:
        target = maps.target
        if target is None and (asked is not None or one.model.config.classes):
            target = pick_class(one.model, one.pixels_BCHW, asked)
        score = study.map_score(one.model, one.pixels_BCHW, maps.one(), target=target)
    found = Found(one=one, maps=maps, score=score)
    if args.out:
        with writing(args.out) as path:
            write(found, path, args, scale)
    else:
        print_maps(found, args)
    return 0


@dataclass(frozen=True, kw_only=True)
class Found:
    """The maps of an image, and the score of a single one."""

    one: OneImage
    maps: Maps
    score: MapScore | None

    @property
    def box(self) -> tuple[float, float, float, float]:
        """What the network sees of the image, in its pixels; a Swin pads what makes no whole patch."""
        from minivit.images.preprocess import seen_box

        patch = 1 if self.one.model.windowed else self.one.model.config.patch_size
        return seen_box(self.one.image.size, self.one.spec, patch=patch)

    def score_line(self) -> str:
        """The score as a line, or nothing."""
        if self.score is None:
            return ""
        s, name = self.score, ""
        parts = [f"{kind} {getattr(s, kind):.3f} (random {getattr(s, 'random_' + kind):.3f})"
                 for kind in ("deletion", "insertion")]  # fmt: skip
        if s.target is not None:
            name = f" of {printable(label_of(self.one.model, s.target)['label'] or 'class')} ({s.target})"
        return f"{', '.join(parts)}{name}, in {s.steps} steps"


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that were given; refuses those that the method does not take."""
    takes = METHODS[args.method].takes | ({"class"} if args.score else set())
    given = {name: getattr(args, name) for name in SETTINGS if getattr(args, name) is not None}
    if useless := sorted(given.keys() - takes):
        users = [name for name, method in METHODS.items() if useless[0] in method.takes]
        option = useless[0].replace("_", "-")
        raise UsageError(f"--method {args.method} does not take --{option}; it belongs to {', '.join(users)}")
    if "class" not in takes and labels_of(args) is not None:
        raise UsageError(f"--method {args.method} does not take --labels; they are the classes of other methods")
    if given.get("query") == "pool" and args.method in ("raw", "similarity"):
        raise UsageError("--query pool is where rollout may begin; --method pool draws what the pool attends to")
    if args.grid and args.head is not None:
        raise UsageError("--grid draws every head; leave --head out")
    if args.method == "pca" and args.layer == "all":
        raise UsageError("--method pca draws one layer at a time; give --layer a number")
    sheet = args.grid or args.layer == "all"
    if "scale" in given and not sheet:
        raise UsageError("--scale is for sheets: with --grid or --layer all")
    if args.score and sheet:
        raise UsageError("--score is for one map, not for a sheet of them")
    if args.score and str(args.out).lower().endswith(".npy"):
        raise UsageError("-o FILE.npy has no place for a score; write .json or .png")
    return given


def write(found: Found, path: Path, args: argparse.Namespace, scale: str) -> None:
    """The maps as -o FILE, by its suffix."""
    maps, suffix = found.maps, path.suffix.lower()
    values = maps.one() if maps.single else maps.values
    if suffix == ".png":
        draw(found, args, scale).save(path)
    elif suffix == ".npy":
        import numpy
        import torch

        numpy.save(path, values.to(torch.promote_types(values.dtype, torch.float32)).cpu().numpy())
    else:
        names = {} if maps.single else {"rows": maps.rows, "columns": maps.columns}
        fields = {"method": maps.method, "title": printable(maps.title), **names, "map": values.tolist()}
        score = {"score": score_record(found)} if found.score else {}
        text = json.dumps(found.one.record(SCHEMA, {**fields, **score}))
        path.write_text(text + "\n", encoding="utf-8")


def score_record(found: Found) -> dict[str, Any]:
    """The score as fields of the JSON record."""
    s = found.score
    assert s is not None
    label = None if s.target is None else label_of(found.one.model, s.target)["label"]
    return {
        "class": s.target,
        "label": label,
        "deletion": {"map": s.deletion, "random": s.random_deletion},
        "insertion": {"map": s.insertion, "random": s.random_insertion},
        "steps": s.steps,
        "replacement": s.replacement,
    }


def draw(found: Found, args: argparse.Namespace, scale: str) -> Any:
    """The maps as an image: over the photo, or on one sheet."""
    from minivit import viz

    maps, method = found.maps, METHODS[args.method]
    heading = printable(maps.title).replace(f"{args.method} of", f"{method.title} in", 1)
    patch = args.query if isinstance(args.query, tuple) else None
    looks = {"cmap": args.cmap, "smooth": args.smooth, "query": patch}
    if not maps.single:
        title = f"{heading}: {maps.unit}"
        return viz.sheet(maps.values, maps.rows, maps.columns, scale=scale, title=title, **looks)
    title = f"{heading}\n{maps.unit}" + ("" if maps.values.ndim == 3 else ", from the min to the max of this map")
    title += f"\n{found.score_line()}" if found.score else ""
    return viz.overlay(found.one.image, maps.one(), box=found.box, opacity=args.opacity, title=title, **looks)


def print_maps(found: Found, args: argparse.Namespace) -> None:
    """The maps on the terminal, one below the other."""
    from minivit import viz

    maps = found.maps

    def bounds(values: Tensor) -> str:
        return f"{float(values.min()):.4g} to {float(values.max()):.4g}"

    if maps.single:
        values = maps.one()
        looks = {"cmap": args.cmap, "opacity": args.opacity, "smooth": args.smooth}
        image = viz.paint(found.one.image, values, box=found.box, **looks)
        show_text(printable(maps.title))
        print(show(image, None if values.ndim == 3 else values))
        if values.ndim == 2:
            show_text(f"{maps.unit} from {bounds(values)}")
        if found.score:
            show_text(found.score_line())
        return
    show_text(f"{printable(maps.title)}: {maps.unit}")
    for row, name in zip(maps.values, maps.rows, strict=True):
        for values, column in zip(row, maps.columns, strict=True):
            show_text(f"{' '.join(part for part in (name, column) if part)}: {bounds(values)}")
            coloured = viz.image_from_rgb(viz.apply_colormap(viz.to_unit(values)[0], args.cmap))
            print(show(coloured, values, columns=2 * values.shape[1]))
