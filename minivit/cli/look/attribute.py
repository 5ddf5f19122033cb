"""minivit attribute: which heads and MLPs wrote a class's logit."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from minivit.cli.look.attention import class_name, find_class
from minivit.cli.shared.console import columns, printable
from minivit.cli.shared.drawing import check_chart
from minivit.cli.shared.models import add_hub_options, add_model_option, add_run_options, load_model
from minivit.cli.shared.picture import open_photo, pixels_for, say_notes, writing
from minivit.errors import UsageError

if TYPE_CHECKING:
    from minivit.model.vit import ViT
    from minivit.study import Attribution

SCHEMA = 1  # of the JSON record; a field is only ever added under the same number
STRONGEST = 8  # parts named below the table


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "attribute",
        help="which heads and MLPs wrote a class's logit",
        description="Direct logit attribution: the logit as a sum of what embedding, heads and MLPs wrote into "
        "the residual stream, with the final norm at the scale it had; the constant terms stand by themselves. "
        "Direct effects only: what a part changes in later ones counts there. The residual is what rounding leaves; "
        "--dtype float64 brings it below 1e-9.",
    )
    parser.add_argument("image", metavar="IMAGE", help="a picture file, or - for standard input")
    parser.add_argument("--class", metavar="NAME|INDEX", help="the class whose logit it is (the most likely)")
    parser.add_argument("--json", action="store_true", help="write one JSON object")
    parser.add_argument("-o", "--out", metavar="FILE", help="draw the table as PNG, SVG or PDF")
    add_model_option(parser)
    add_hub_options(parser)
    add_run_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from minivit import study

    check_chart(args.out)
    photo, notes = open_photo(args.image)
    say_notes(args.image, notes)
    model = load_model(args)
    if not model.config.classes:
        raise UsageError(
            f"{model.name}: has no classifier, so there is no logit to take apart; name a model with a head"
        )
    pixels_BCHW, _ = pixels_for(model, photo)
    target = find_class(model, pixels_BCHW, getattr(args, "class"))
    found = study.attribute(model, pixels_BCHW, target=target)
    if args.json:
        print(json.dumps(record(model, found, args.image, notes, str(pixels_BCHW.device))))
    else:
        print(text(model, found, args.image))
    if args.out:
        from minivit import viz

        names, rows = table(found)
        title = (
            f"what adds to the logit of {class_name(model, target)}, {printable(model.name or 'the model')}\n"
            f"embedding {float(found.embedding):+.3f}, norm bias {float(found.norm_bias):+.3f}, head bias "
            f"{float(found.head_bias):+.3f}, logit {float(found.logits):.3f}"
        )
        with writing(args.out):
            chart = viz.cells(rows, [f"layer {i}" for i in range(len(rows))], names, title=title, label="logit")
            viz.save(chart, args.out)
    return 0


def table(found: Attribution) -> tuple[list[str], Any]:
    """Layers x (heads, bias of the projection, MLP) of the one picture."""
    import torch

    names = [*(f"head {a}" for a in range(found.heads.shape[2])), "bias", "mlp"]
    return names, torch.cat([found.heads[0], found.proj_bias[0, :, None], found.mlps[0, :, None]], dim=1)


def text(model: ViT, found: Attribution, path: str) -> str:
    """The sum as a table for people."""
    names, rows_LX = table(found)
    rows = [["layer", *(name.removeprefix("head ") for name in names), "sum"]]
    for layer, row in enumerate(rows_LX):
        rows.append([str(layer), *(f"{value:+.3f}" for value in [*row.tolist(), float(row.sum())])])
    parts = [(f"{name} of layer {layer}", float(rows_LX[layer, column]))
             for layer in range(len(rows_LX)) for column, name in enumerate(names)]  # fmt: skip
    strongest = sorted(parts, key=lambda part: -abs(part[1]))[:STRONGEST]
    sums = [
        ["embedding", f"{float(found.embedding):+.6f}"],
        ["heads", f"{float(found.heads.sum()):+.6f}"],
        ["biases of the projections", f"{float(found.proj_bias.sum()):+.6f}"],
        ["MLPs", f"{float(found.mlps.sum()):+.6f}"],
        ["bias of the final norm", f"{float(found.norm_bias):+.6f}"],
        ["bias of the head", f"{float(found.head_bias):+.6f}"],
        ["sum", f"{float(found.total):+.6f}"],
        ["logit", f"{float(found.logits):+.6f}"],
        ["residual", f"{float(found.residual):+.1e}"],
    ]
    target = class_name(model, int(found.classes))
    return "\n".join(
        [
            f"what adds to the logit of {target}: {printable(model.name or 'the model')} on {printable(path)}",
            "heads by number, bias of the projection, MLP",
            columns(rows),
            "strongest: " + ", ".join(f"{name} {value:+.3f}" for name, value in strongest),
            columns(sums),
        ]
    )


def record(model: ViT, found: Attribution, path: str, notes: list[str], device: str) -> dict[str, Any]:
    """The sum as a JSON record, unrounded."""
    index = int(found.classes)
    label = model.labels[index] if model.labels else None
    return {
        "schema": SCHEMA,
        "path": path,
        "class": {"index": index, "label": label},
        "logit": float(found.logits),
        "embedding": float(found.embedding),
        "heads": found.heads[0].tolist(),
        "proj_bias": found.proj_bias[0].tolist(),
        "mlps": found.mlps[0].tolist(),
        "norm_bias": float(found.norm_bias),
        "head_bias": float(found.head_bias),
        "residual": float(found.residual),
        "model": model.name,
        "revision": model.revision,
        "device": device,
        **({"warnings": notes} if notes else {}),
    }
