"""minivit faithfulness: what the maps of `minivit attention` are worth."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minivit.cli.look.attention import METHODS
from minivit.cli.shared.console import positive, printable, say, whole
from minivit.cli.shared.drawing import add_map_options, check_chart
from minivit.cli.shared.image import shown_class
from minivit.cli.shared.inputs import find_pictures
from minivit.cli.shared.models import add_hub_options, add_model_option, add_run_options, load_model
from minivit.cli.shared.picture import open_photo, pixels_for, say_notes, writing
from minivit.errors import ImageError, UsageError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from minivit.model.vit import ViT

SCHEMA = 1  # of the JSON record; a field is only ever added under the same number
Box = tuple[float, float, float, float]


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "faithfulness",
        help="score the maps of a picture",
        description="One table for the maps of every method: what becomes of the class when a map's patches are "
        "deleted from the picture, or inserted into an empty one (area under the curve, beside random maps and a map "
        "of the centre); whether the map changes when the model's late weights are randomised; how much methods agree.",
        epilog="deletion: lower is better; insertion: higher is better; randomised: rank correlation of the map with "
        "that of a model whose head, last quarter, last half or all of whose weights are shuffled; a method fails that "
        "keeps more than 0.71 of it at the last half, for it shows the picture and not the model",
    )
    parser.add_argument(
        "image", metavar="IMAGE|FOLDER", help="a picture, - for standard input, or a folder of pictures"
    )
    parser.add_argument("--class", metavar="NAME|INDEX", help="the class to follow (the most likely of each picture)")
    parser.add_argument("--methods", metavar="NAME,...", type=methods, help=f"of {', '.join(METHODS)} (all)")
    parser.add_argument(
        "--box",
        metavar="X,Y,X,Y",
        type=box,
        help="where the thing is, left, upper, right and lower pixels of the photo, for the pointing score",
    )
    parser.add_argument(
        "--replacement",
        choices=("mean", "blur"),
        default="mean",
        help="what stands where a patch is gone: the picture's mean pixel (mean), or its blur",
    )
    parser.add_argument("--steps", metavar="N", type=positive, help="steps of a curve (16, or as many as patches)")
    parser.add_argument("--random", metavar="N", type=positive, default=5, help="random maps to compare with (5)")
    parser.add_argument("--seed", metavar="N", type=whole, default=0, help="of the random maps and weights (0)")
    parser.add_argument("-b", "--batch-size", metavar="N", type=positive, default=32, help="pictures in a forward (32)")
    parser.add_argument("--json", action="store_true", help="write one JSON object, curves included")
    parser.add_argument(
        "-o", "--out", metavar="FILE", help="draw the curves as PNG, SVG or PDF; for one image with its maps"
    )
    add_map_options(parser)
    add_model_option(parser)
    add_hub_options(parser)
    add_run_options(parser)
    parser.set_defaults(run=run)


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


def run(args: argparse.Namespace) -> int:
    check_chart(args.out)
    folder = args.image != "-" and Path(args.image).is_dir()
    if folder and args.box:
        raise UsageError("--box says where a thing is in one picture, not in a folder of them")
    model = load_model(args)
    names: list[str] = []
    pixels: list[Tensor] = []
    failed = 0
    for name in [name for name, _ in find_pictures([args.image], recursive=False)] if folder else [args.image]:
        try:
            photo, notes = open_photo(name)
            pixels.append(pixels_for(model, photo)[0])
        except ImageError as error:
            if not folder:
                raise
            say(str(error))
            failed += 1
            continue
        say_notes(name, notes)
        names.append(name)
    if not names:
        say(f"{printable(args.image)}: no picture in it can be read")
        return 3
    report, maps_BMhw, curves = judge(model, names, pixels, photo.size, args)
    if args.out:
        from minivit.viz import save

        with writing(args.out):
            save(draw(report, maps_BMhw, curves, None if folder else photo, model, args), args.out)
    print(json.dumps(report) if args.json else text(report))
    return 3 if failed else 0


def judge(
    model: ViT, names: list[str], pixels: list[Tensor], size: tuple[int, int], args: argparse.Namespace
) -> tuple[dict[str, Any], Tensor, list[Any]]:
    """Everything the table says, JSON-ready; the maps (B, M, h, w); the study.Curves of every picture.

    The curves are of M methods, of the centre, and of the random maps, in this order.

    Args:
        pixels: (1, C, H, W) of every picture.
        size: (width, height) of the last picture, whose box is asked for.
    """
    import torch

    from minivit import study
    from minivit.images.preprocess import box_on_grid
    from minivit.inference.predict import image_spec_of
    from minivit.study.maps.faithfulness import STAGES, SURVIVES

    layout = model.layout_of(pixels[0])
    if args.steps and args.steps > layout.patches:
        raise UsageError(f"--steps {args.steps}: {model.name} reads {layout.patches} patches, so at most as many steps")
    where = None
    if args.box:
        where = box_on_grid(args.box, size, image_spec_of(model), layout.grid, patch=model.config.patch_size)
    targets = [target_of(model, pixels_1CHW, getattr(args, "class")) for pixels_1CHW in pixels]
    first, left_out = first_maps(model, pixels[0], targets[0], args.methods)

    def maker(name: str) -> Any:
        """The maps of all pictures as a function of the model; the first picture's own map is there already."""

        def make(which: ViT) -> Tensor:
            known = [first[name]] if which is model else []
            rest = range(len(known), len(pixels))
            return torch.cat(known + [map_of(which, pixels[i], name, targets[i]) for i in rest])

        return make

    checked = study.randomisation_check(model, {name: maker(name) for name in first}, seed=args.seed)
    maps_BMhw = torch.stack([maps.float().cpu() for maps, _ in checked.values()], dim=1)
    correlations_MSB = torch.stack([rows for _, rows in checked.values()]).cpu()
    others_Rhw = torch.cat([study.centre_gaussian(layout), study.random_maps(layout, args.random, seed=args.seed)])
    settings = {"replacement": args.replacement, "steps": args.steps, "batch_size": args.batch_size}
    curves = [
        study.curves(model, x, torch.cat([maps_Mhw, others_Rhw]), target=target, **settings)
        for x, maps_Mhw, target in zip(pixels, maps_BMhw, targets, strict=True)
    ]
    pointed = [share[None] for share in study.pointing(torch.cat([maps_BMhw[0], others_Rhw]), where)] if where else None
    agreed_BMM = torch.stack([study.agreement(maps_Mhw) for maps_Mhw in maps_BMhw])

    def scores(chosen: slice) -> dict[str, Any]:
        """Means over some pictures, by method."""
        areas = {kind: torch.stack([getattr(c, kind) for c in curves[chosen]]).mean(dim=0) for kind in AREAS}
        values = areas | ({"pointing": pointed[0][0], "in_box": pointed[1][0]} if pointed else {})
        count = len(first)
        kept_MS = correlations_MSB[:, :, chosen].nanmean(dim=2)
        return {
            "methods": {
                name: {kind: number(value[i]) for kind, value in values.items()}
                | {"randomised": dict(zip(STAGES, map(number, kept_MS[i]), strict=True))}
                | {"fails": bool(study.survives(kept_MS[i]))}
                for i, name in enumerate(first)
            },
            "centre": {kind: number(value[count]) for kind, value in values.items()},
            "random": {
                kind: {"mean": number(value[count + 1 :].mean()), "std": number(value[count + 1 :].std(correction=0))}
                for kind, value in values.items()
            },
            "agreement": [[number(rho) for rho in row] for row in agreed_BMM[chosen].nanmean(dim=0)],
        }

    about = {"model": model.name, "revision": model.revision, "device": str(pixels[0].device)}
    how = {
        "replacement": args.replacement,
        "steps": len(curves[0].shares) - 1,
        "random_maps": args.random,
        "seed": args.seed,
    }
    pictures = []
    for i, path in enumerate(names):
        record: dict[str, Any] = {"path": path, "class": class_of(model, pixels[i], targets[i])}
        lines = {kind: getattr(curves[i], f"{kind}_curves")[: len(first)].tolist() for kind in AREAS}
        drawn = {name: {kind: lines[kind][m] for kind in AREAS} for m, name in enumerate(first)}
        pictures.append({**record, **scores(slice(i, i + 1)), "curves": drawn})
    boxed = {"box": args.box, "box_share": float(study.box_cover(where, layout.grid).mean())} if where else {}
    report = {"schema": SCHEMA, **about, **how, **boxed, "shares": curves[0].shares.tolist(), "fails_above": SURVIVES}
    return {**report, "left_out": left_out, **scores(slice(None)), "pictures": pictures}, maps_BMhw, curves


AREAS = ("deletion", "insertion")


def number(value: Any) -> float | None:
    """A number for JSON, which has no nan."""
    return None if math.isnan(value) else float(value)


def target_of(model: ViT, pixels_1CHW: Tensor, asked: str | None) -> int | None:
    """The class to follow in a picture: the one asked for, else the most likely; None without a head."""
    import torch

    from minivit.model.classes import find_class

    if asked is not None:
        return find_class(model, asked)
    with torch.inference_mode():
        return int(model(pixels_1CHW).argmax()) if model.config.classes else None


def class_of(model: ViT, pixels_1CHW: Tensor, target: int | None) -> dict[str, Any] | None:
    """A picture's class for the record, with its probability."""
    import torch

    if target is None:
        return None
    with torch.inference_mode():
        score = float(model(pixels_1CHW).float().softmax(dim=-1)[0, target])
    return {"index": target, "label": model.labels[target] if model.labels else None, "score": score}


def map_of(model: ViT, pixels_1CHW: Tensor, method: str, target: int | None) -> Tensor:
    """A method's map with its own settings, for the class where it follows one: (1, h, w)."""
    from minivit.study import plain_map

    settings = {"target": target} if "class" in METHODS[method][0] else {}
    return plain_map(model, pixels_1CHW, method, **settings)


def first_maps(
    model: ViT, pixels_1CHW: Tensor, target: int | None, asked: list[str] | None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The first picture's maps, and which methods this model cannot have, with the reason.

    Raises:
        UsageError: a method that was asked for by name cannot be had.
    """
    maps, left_out = {}, {}
    for name in asked or (name for name in METHODS if name != "pool" or model.attn_pool is not None):
        try:
            maps[name] = map_of(model, pixels_1CHW, name, target)
        except UsageError as error:
            if asked:
                raise UsageError(f"--methods {name}: {error}") from None
            say(f"{name} left out: {error}")
            left_out[name] = str(error)
    return maps, left_out


def text(report: dict[str, Any]) -> str:
    """The table for people."""
    from minivit.study.maps.faithfulness import LATE, STAGES

    pictures = report["pictures"]
    found = pictures[0]["class"]
    what = "cosine with the output for the whole picture"
    if found:
        what = "probability of the class"
        found = f"{printable(found['label'] or 'class')} ({found['index']}), {found['score']:.3f}"
    if len(pictures) == 1:
        lines = [printable(pictures[0]["path"]) + (f": {found}" if found else "")]
    else:
        lines = [f"means over {len(pictures)} pictures" + (", each for its class" if found else "")]
    filler = {"mean": "the picture's mean pixel", "blur": "the picture blurred by one patch"}[report["replacement"]]
    lines.append(f"{what}, patches replaced by {filler} in {report['steps']} steps; area under the curve")
    columns = [*AREAS, *(["pointing", "in_box"] if "box" in report else [])]
    header = ["", *(name.replace("_", " ") for name in columns), *STAGES, ""]

    def cell(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    rows = [["", *[""] * len(columns), "randomised:", *[""] * (len(STAGES) - 1), ""], header]
    for name, scores in report["methods"].items():
        kept = [cell(scores["randomised"][stage]) for stage in STAGES]
        rows.append([name, *(cell(scores[c]) for c in columns), *kept, "fails" if scores["fails"] else ""])
    blank = [""] * (len(STAGES) + 1)
    rows.append(["centre Gaussian", *(cell(report["centre"][c]) for c in columns), *blank])
    rows.append(
        [f"random, {report['random_maps']} maps", *(cell(report["random"][c]["mean"]) for c in columns), *blank]
    )
    rows.append(["  spread", *(cell(report["random"][c]["std"]) for c in columns), *blank])
    lines += table(rows)
    if "box" in report:
        lines.append(f"the box is {report['box_share']:.3f} of what the network sees: pointing and in box by chance")
    failed = [name for name, scores in report["methods"].items() if scores["fails"]]
    verdict = f"fails: {', '.join(failed)}" if failed else "none fails"
    lines.append(
        f"randomised: rank correlation with the map after shuffling weights; above {report['fails_above']:.2f} at "
        f"{LATE} a map shows the picture, not the model; {verdict}"
    )
    names = list(report["methods"])
    lines += ["", "agreement: rank correlation between maps"]
    matrix = [["", *(str(i + 1) for i in range(len(names)))]]
    for i, (name, row) in enumerate(zip(names, report["agreement"], strict=True)):
        matrix.append([f"{i + 1} {name}", *("-" if rho is None else f"{rho:.2f}" for rho in row[: i + 1])])
        matrix[-1] += [""] * (len(names) - i - 1)
    return "\n".join(lines + table(matrix))


def table(rows: list[list[str]]) -> list[str]:
    """Rows as lines, the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]


def draw(
    report: dict[str, Any],
    maps_BMhw: Tensor,
    curves: list[Any],
    photo: Image.Image | None,
    model: ViT,
    args: argparse.Namespace,
) -> Any:
    """A tile for every method: its map over the photo where there is one photo, its curves, its areas."""
    import torch

    from minivit import viz
    from minivit.images.preprocess import seen_box
    from minivit.inference.predict import image_spec_of

    names, pictures = list(report["methods"]), report["pictures"]
    deletion, insertion = (torch.stack([getattr(c, f"{kind}_curves") for c in curves]).mean(dim=0) for kind in AREAS)
    painted = []
    if photo:
        where = seen_box(photo.size, image_spec_of(model), patch=model.config.patch_size)
        painted = [viz.paint(photo, values, box=where, cmap=args.cmap, smooth=args.smooth) for values in maps_BMhw[0]]
    count = len(names)
    found = pictures[0]["class"]
    title = printable(Path(pictures[0]["path"]).name) if photo else f"{len(pictures)} pictures"
    title += f", {shown_class(model, found['index'])}" if found and photo else ""
    title += f": {model.name}, patches replaced by {report['replacement']}, {report['steps']} steps"
    return viz.curve_sheet(
        names,
        curves[0].shares,
        deletion[:count],
        insertion[:count],
        random=(deletion[count + 1 :].mean(dim=0), insertion[count + 1 :].mean(dim=0)),
        pictures=painted,
        title=title,
        y_label="probability of the class" if found else "cosine with the output for the whole image",
    )
