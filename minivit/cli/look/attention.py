"""minivit attention: where a model looks, over the photo."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minivit.cli.shared.console import fraction, positive, printable, whole
from minivit.cli.shared.drawing import add_map_options
from minivit.cli.shared.image import pick_class, shown_class
from minivit.cli.shared.models import (
    add_hub_options,
    add_label_options,
    add_model_option,
    add_run_options,
    labels_of,
    load_image_model,
    load_model,
)
from minivit.cli.shared.picture import check_suffix, open_photo, pixels_for, say_notes, show, writing
from minivit.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from minivit.model.swin import Swin
    from minivit.model.vit import ViT

SCHEMA = 1  # of the JSON record; a field is only ever added under the same number

# Every method, the options that mean something to it, and what its numbers are.
METHODS: dict[str, tuple[set[str], str]] = {
    "raw": ({"layer", "head", "query", "grid", "scale"}, "attention probability"),
    "pool": ({"head"}, "attention probability of the pool's query"),
    "rollout": ({"head", "query", "start_layer", "residual", "discard"}, "share of the query after all layers"),
    "grad-rollout": ({"head", "query", "class", "start_layer", "residual"}, "share, weighed by gradients"),
    "relevance": ({"query", "class", "start_layer"}, "relevance"),
    "legrad": ({"class", "start_layer"}, "mean positive gradient of attention"),
    "gradients": ({"class"}, "sum of |gradient| in a patch"),
    "integrated-gradients": ({"class", "steps"}, "sum of |contribution| in a patch"),
    "similarity": ({"layer", "query", "scale"}, "cosine with the query"),
    "norms": ({"layer", "scale"}, "length of the token"),
    "pca": ({"layer"}, "principal components as red, green, blue"),
}
# The methods in the title of an image.
TITLES = {
    "raw": "Attention",
    "pool": "Attention of the attention pool",
    "rollout": "Attention rollout",
    "grad-rollout": "Gradient attention rollout",
    "relevance": "Relevance (Chefer et al. 2021)",
    "legrad": "LeGrad",
    "gradients": "Gradients",
    "integrated-gradients": "Integrated gradients",
    "similarity": "Cosine similarity of the tokens",
    "norms": "L2 norm of the tokens",
    "pca": "Principal components of the tokens",
}
OPTIONS = ("layer", "head", "query", "class", "start_layer", "residual", "discard", "steps", "grid", "scale")
DEFAULTS = {"start_layer": 0, "residual": 0.5, "discard": 0.0, "steps": 32, "scale": "each"}


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "attention",
        help="draw where a model looks",
        description="Draw a map of one picture: attention, rollout, what speaks for a class, or what its tokens hold. "
        "Layers and heads are numbered from 0. An option that a method has no use for is refused.",
        epilog="; ".join(f"{name}: {', '.join('--' + o.replace('_', '-') for o in OPTIONS if o in takes)}"
                         for name, (takes, _) in METHODS.items()),
    )  # fmt: skip
    parser.add_argument("image", metavar="IMAGE", help="a picture file, or - for standard input")
    parser.add_argument("--method", choices=METHODS, default="raw", help="what to map (raw)")
    parser.add_argument("--layer", metavar="N|all", type=layer, help="block to read (the last), or each on one sheet")
    parser.add_argument("--head", metavar="N|mean|max|min", type=head, help="one head, or how all are fused (mean)")
    parser.add_argument(
        "--query",
        metavar="TOKEN",
        type=query,
        help="the token that looks: cls, dist, mean (of the patches), ROW,COL of a patch, or for rollout pool, the "
        "attention pool's query (cls where there is one, else mean; what the head reads for methods of a class)",
    )
    parser.add_argument("--class", metavar="NAME|INDEX", help="the class to follow back (the most likely)")
    parser.add_argument("--start-layer", metavar="N", type=whole, help="first layer that takes part (0)")
    parser.add_argument("--residual", metavar="SHARE", type=fraction, help="weight of the residual connection (0.5)")
    parser.add_argument("--discard", metavar="SHARE", type=fraction, help="smallest attention to leave out (0)")
    parser.add_argument("--steps", metavar="N", type=positive, help="points on the way from the baseline (32)")
    parser.add_argument("--grid", action="store_true", default=None, help="layers x heads on one sheet")
    parser.add_argument(
        "--scale", choices=("each", "shared"), help="colour scale of a sheet: one for each map (each) or one for all"
    )
    add_map_options(parser)
    parser.add_argument(
        "--opacity", metavar="SHARE", type=fraction, default=0.5, help="of the map over the image (0.5)"
    )
    parser.add_argument(
        "--score",
        action="store_true",
        help="write what the map is worth beside it: deletion and insertion of the class, as minivit faithfulness",
    )
    parser.add_argument("-o", "--out", metavar="FILE", help="map.png, map.npy or map.json; else text on the terminal")
    add_label_options(parser)
    add_model_option(parser)
    add_hub_options(parser)
    add_run_options(parser)
    parser.set_defaults(run=run)


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


@dataclass(kw_only=True)
class Maps:
    """What was asked for: one map or a sheet of them."""

    values: Tensor  # (rows, columns, h, w); of pca (h, w, 3)
    rows: list[str]
    columns: list[str]
    title: str
    target: int | None = None  # the class that was followed back
    score: dict[str, Any] | None = None  # what a single map is worth, for the record

    @property
    def single(self) -> bool:
        return self.values.ndim == 3 or self.values.shape[:2] == (1, 1)

    def one(self) -> Tensor:
        return self.values if self.values.ndim == 3 else self.values[0, 0]


def run(args: argparse.Namespace) -> int:
    from minivit.images.preprocess import seen_box

    check_suffix(args.out, ".png", ".npy", ".json")
    settings = settings_of(args)
    photo, notes = open_photo(args.image)
    say_notes(args.image, notes)
    model = load_image_model(args) if args.method == "raw" else load_model(args)
    pixels_BCHW, spec = pixels_for(model, photo)
    if model.windowed:
        if args.score:
            raise UsageError("--score takes patches away from a ViT; a Swin has other windows in every stage")
        maps = swin_map(model, pixels_BCHW, settings)
    else:
        maps = compute(model, pixels_BCHW, args.method, settings)
        if args.score:
            maps.score = score(model, pixels_BCHW, maps, getattr(args, "class"))
    # A Swin pads what makes no whole patch.
    box = seen_box(photo.size, spec, patch=1 if model.windowed else model.config.patch_size)
    if not args.out:
        write_text(maps, photo, box, args)
    elif args.out.lower().endswith(".png"):
        with writing(args.out):
            draw(maps, photo, box, args, settings).save(args.out)
    elif args.out.lower().endswith(".npy"):
        write_npy(args.out, maps.one() if maps.single else maps.values)
    else:
        values = (maps.one() if maps.single else maps.values).tolist()
        record = {"schema": SCHEMA, "path": args.image, "method": args.method, "title": maps.title}
        names = {} if maps.single else {"rows": maps.rows, "columns": maps.columns}
        about = {"model": model.name, "revision": model.revision, "device": str(pixels_BCHW.device)}
        worth = {"score": maps.score} if maps.score else {}
        warnings = {"warnings": notes} if notes else {}
        text = json.dumps({**record, **names, "map": values, **worth, **about, **warnings})
        with writing(args.out):
            Path(args.out).write_text(text + "\n", encoding="utf-8")
    return 0


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a method, defaults filled in; refuses those it has no use for."""
    takes = METHODS[args.method][0] | ({"class"} if args.score else set())
    given = {name: getattr(args, name) for name in OPTIONS if getattr(args, name) is not None}
    useless = sorted(given.keys() - takes)
    if useless:
        users = [name for name, (options, _) in METHODS.items() if useless[0] in options]
        raise UsageError(
            f"--method {args.method} has no use for --{useless[0].replace('_', '-')}; it belongs to {', '.join(users)}"
        )
    if "class" not in takes and labels_of(args) is not None:
        raise UsageError(f"--method {args.method} has no use for --labels; they are the classes of other methods")
    if given.get("query") == "pool" and args.method in ("raw", "similarity"):
        raise UsageError("--query pool is where rollout may begin; --method pool draws where the pool looks")
    if args.grid and args.head is not None:
        raise UsageError("--grid draws every head; leave --head out")
    if args.method == "pca" and args.layer == "all":
        raise UsageError("--method pca draws one layer at a time; give --layer a number")
    if "scale" in given and not (args.grid or args.layer == "all"):
        raise UsageError("--scale is for sheets: with --grid or --layer all")
    if args.score and (args.grid or args.layer == "all"):
        raise UsageError("--score is for one map, not for a sheet of them")
    if args.score and str(args.out).lower().endswith(".npy"):
        raise UsageError("-o FILE.npy has no place for a score; write .json or .png")
    return {**{name: value for name, value in DEFAULTS.items() if name in takes}, **given}


def compute(model: ViT, pixels_BCHW: Tensor, method: str, settings: dict[str, Any]) -> Maps:
    """The maps of one picture, and what they are called."""
    from minivit.study import method_map

    config = model.config
    takes, grid = METHODS[method][0], settings.get("grid")
    arguments = {name: value for name, value in settings.items() if name not in ("class", "grid", "scale", "layer")}
    title = [f"{method} of {printable(model.name or 'the model')}"]
    if "class" in takes:
        arguments["target"] = pick_class(model, pixels_BCHW, settings.get("class"))
        title.append(f"for {shown_class(model, arguments['target'])}")
    asked = settings.get("query")
    if asked is None and "query" in takes and "class" not in takes:
        asked = arguments["query"] = "cls" if config.cls_token else "mean"
    if asked is not None:
        title.append("of the patch in row {}, column {}".format(*asked) if isinstance(asked, tuple) else f"of {asked}")
    if grid:
        arguments["head"] = "all"
    elif "head" in takes:
        fused = settings.get("head", "mean")
        title.append(f"head {fused}" if isinstance(fused, int) else f"{fused} over heads")
    title += [f"{name.replace('_', ' ')} {arguments[name]:g}" for name in DEFAULTS if name in arguments]
    if "layer" not in takes:
        maps = one_map(method_map(model, pixels_BCHW, method, **arguments)[0], title)
        maps.target = arguments.get("target")
        return maps

    chosen = settings.get("layer", "all" if grid else None)
    if isinstance(chosen, int) and chosen >= config.depth:
        raise UsageError(f"--layer {chosen}: there are layers 0 to {config.depth - 1}")
    values = method_map(model, pixels_BCHW, method, layer=chosen, **arguments)[0]
    layers = range(config.depth) if chosen == "all" else [config.depth - 1 if chosen is None else chosen]
    names = [f"layer {i}" for i in layers]
    if grid or len(names) > 1:
        heads = [f"head {a}" for a in range(config.heads)]
        rows, columns = (names, heads) if grid else ([""], names)
        values = values.reshape(len(rows), len(columns), *values.shape[-2:])
        return Maps(values=values, rows=rows, columns=columns, title=", ".join(title))
    final = chosen is None and method in ("similarity", "pca")
    values = values[0] if chosen == "all" else values
    return one_map(values, [*title, "after the final norm" if final else names[0]])


def one_map(values: Tensor, title: list[str]) -> Maps:
    """A single map, (h, w), or (h, w, 3) of pca."""
    values = values if values.ndim == 3 else values[None, None]
    return Maps(values=values, rows=[""], columns=[""], title=", ".join(title))


def swin_map(model: Swin, pixels_BCHW: Tensor, settings: dict[str, Any]) -> Maps:
    """The raw attention of one block of a Swin, its windows stitched to the picture."""
    from minivit import study

    asked, fused = settings.get("query"), settings.get("head", "mean")
    layer = settings.get("layer", model.config.depth - 1)
    if settings.get("grid") or layer == "all" or isinstance(asked, str):
        raise UsageError(
            "a Swin has another grid in every stage and no token but its patches: give --layer one number, --query a "
            "ROW,COL of its grid or nothing, and leave --grid out"
        )
    found = study.window_attention(model, pixels_BCHW, layer)
    values = study.window_map(found, query=asked, head=fused)
    whose = "of the token in row {}, column {}".format(*asked) if asked else "received by each token"
    title = [f"raw of {printable(model.name or 'the model')}", whose]
    title.append(f"head {fused}" if isinstance(fused, int) else f"{fused} over heads")
    side, shift = found.windows.window, found.windows.shift
    windows = f"windows of {side} x {side}" + (f" shifted by {shift[0]}, {shift[1]}" if any(shift) else "")
    return Maps(values=values[None], rows=[""], columns=[""], title=", ".join([*title, f"layer {layer}", windows]))


def score(model: ViT, pixels_BCHW: Tensor, maps: Maps, asked: str | None) -> dict[str, Any]:
    """What a single map is worth: areas of its deletion and insertion curves, beside those of five random maps."""
    import torch

    from minivit import study

    values = maps.one()
    map_1hw = (values.norm(dim=-1) if values.ndim == 3 else values)[None].float().cpu()
    target = maps.target
    if target is None and (asked is not None or model.config.classes):
        target = pick_class(model, pixels_BCHW, asked)
    drawn = torch.cat([map_1hw, study.random_maps(model.layout_of(pixels_BCHW), 5)])
    curves = study.curves(model, pixels_BCHW, drawn, target=target)
    areas = {"deletion": curves.deletion.tolist(), "insertion": curves.insertion.tolist()}
    return {
        "class": target,
        "label": model.labels[target] if model.labels and target is not None else None,
        **{kind: {"map": mine, "random": sum(others) / len(others)} for kind, (mine, *others) in areas.items()},
        "steps": len(curves.shares) - 1,
        "replacement": "mean",
    }


def score_line(score: dict[str, Any]) -> str:
    """A score as one line beside a map."""
    parts = [
        f"{kind} {score[kind]['map']:.3f} (random {score[kind]['random']:.3f})" for kind in ("deletion", "insertion")
    ]
    name = "" if score["class"] is None else f" of {printable(score['label'] or 'class')} ({score['class']})"
    return f"{', '.join(parts)}{name}, in {score['steps']} steps"


def draw(maps: Maps, photo: Any, box: Any, args: argparse.Namespace, settings: dict[str, Any]) -> Any:
    """The maps as a picture: over the photo, or on one sheet."""
    from minivit import viz

    meaning = METHODS[args.method][1]
    heading = maps.title.replace(f"{args.method} of", f"{TITLES[args.method]} in", 1)
    patch = args.query if isinstance(args.query, tuple) else None
    if maps.single:
        title = f"{heading}\n{meaning}" + ("" if maps.values.ndim == 3 else ", from the min to the max of this map")
        title += f"\n{score_line(maps.score)}" if maps.score else ""
        return viz.overlay(
            photo,
            maps.one(),
            box=box,
            cmap=args.cmap,
            opacity=args.opacity,
            smooth=args.smooth,
            query=patch,
            title=title,
        )
    title = f"{heading}: {meaning}"
    return viz.sheet(
        maps.values,
        maps.rows,
        maps.columns,
        cmap=args.cmap,
        scale=settings["scale"],
        smooth=args.smooth,
        query=patch,
        title=title,
    )


def write_text(maps: Maps, photo: Any, box: Any, args: argparse.Namespace) -> None:
    """The maps on the terminal, one below the other."""
    from minivit import viz

    if maps.single:
        values = maps.one()
        image = viz.paint(photo, values, box=box, cmap=args.cmap, opacity=args.opacity, smooth=args.smooth)
        print(maps.title)
        if values.ndim == 3:
            print(show(image, None))
        else:
            print(show(image, values))
            print(f"{METHODS[args.method][1]} from {float(values.min()):.4g} to {float(values.max()):.4g}")
        if maps.score:
            print(score_line(maps.score))
        return
    print(f"{maps.title}: {METHODS[args.method][1]}")
    for row, name in zip(maps.values, maps.rows, strict=True):
        for values, column in zip(row, maps.columns, strict=True):
            label = " ".join(part for part in (name, column) if part)
            print(f"{label}: {float(values.min()):.4g} to {float(values.max()):.4g}")
            colored = viz.image_from_rgb(viz.apply_colormap(viz.to_unit(values)[0], args.cmap))
            print(show(colored, values, columns=2 * values.shape[1]))


def write_npy(path: str, values: Tensor) -> None:
    """A float tensor as a NumPy file of at least float32."""
    import torch

    from minivit.inference.embeddings import npy_header, vector_bytes

    values = values.to(torch.promote_types(values.dtype, torch.float32))
    with writing(path):
        Path(path).write_bytes(npy_header(tuple(values.shape), values.dtype) + vector_bytes(values))
