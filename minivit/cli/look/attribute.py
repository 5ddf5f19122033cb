"""minivit attribute: what every head and MLP adds to a class's logit."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from minivit.cli.shared.command import A_CLASS, IMAGE_SIZE, JSON, ONE_IMAGE, RUN, chart_output, command
from minivit.cli.shared.console import printable, show_text, table
from minivit.cli.shared.files import writing
from minivit.cli.shared.image import label_of, one_image, pick_class, shown_class

if TYPE_CHECKING:
    from minivit.model.vit import ViT
    from minivit.study import Attribution

SCHEMA = 1  # of the JSON record; a field is only ever added under the same number
STRONGEST = 8  # parts named below the table


@command(
    "attribute",
    help="what every head and MLP adds to a class's logit",
    description="Direct logit attribution: the logit as the sum of what the embedding, the heads and the MLPs write "
    "into the residual stream, with the final norm at the scale it had; the constant terms are listed separately. "
    "Direct effects only: what a part changes in later ones counts there. The residual is rounding; "
    "--dtype float64 brings it below 1e-9.",
    options=[ONE_IMAGE, A_CLASS, JSON, chart_output(help="draw the table as PNG, SVG or PDF"), IMAGE_SIZE, *RUN],
)
def run(args: argparse.Namespace) -> int:
    from minivit import study

    one = one_image(args, needs_classes="there is no logit to take apart", texts=False)
    target = pick_class(one.model, one.pixels_BCHW, getattr(args, "class"))
    found = study.attribute(one.model, one.pixels_BCHW, target=target)
    if args.json:
        show_text(json.dumps(one.record(SCHEMA, record(one.model, found))))
    else:
        show_text(text(one.model, found, args.image))
    if args.out:
        from minivit.viz import save

        with writing(args.out) as path:
            save(draw(one.model, found), path)
    return 0


def text(model: ViT, found: Attribution, path: str) -> str:
    """The sum as a table for people."""
    names, values_LX = found.by_layer()
    rows = [["layer", *(name.removeprefix("head ") for name in names), "sum"]]
    for layer, row in enumerate(values_LX):
        rows.append([str(layer), *(f"{value:+.3f}" for value in [*row.tolist(), float(row.sum())])])
    sums = {
        "embedding": found.embedding,
        "heads": found.heads.sum(),
        "biases of the projections": found.proj_bias.sum(),
        "MLPs": found.mlps.sum(),
        "bias of the final norm": found.norm_bias,
        "bias of the head": found.head_bias,
        "sum": found.total,
        "logit": found.logits,
    }
    strongest = ", ".join(f"{name} {value:+.3f}" for name, value in found.strongest(STRONGEST))
    return "\n".join(
        [
            f"what adds to the logit of {shown_class(model, int(found.classes))}: "
            f"{printable(model.name or 'the model')} on {printable(path)}",
            "heads by number, bias of the projection, MLP",
            table(rows),
            f"strongest: {strongest}",
            table(
                [
                    *([name, f"{float(value):+.6f}"] for name, value in sums.items()),
                    ["residual", f"{float(found.residual):+.1e}"],
                ]
            ),
        ]
    )


def record(model: ViT, found: Attribution) -> dict[str, Any]:
    """The sum as fields of the JSON record, unrounded."""
    return {
        "class": label_of(model, int(found.classes)),
        "logit": float(found.logits),
        "embedding": float(found.embedding),
        "heads": found.heads[0].tolist(),
        "proj_bias": found.proj_bias[0].tolist(),
        "mlps": found.mlps[0].tolist(),
        "norm_bias": float(found.norm_bias),
        "head_bias": float(found.head_bias),
        "residual": float(found.residual),
    }


def draw(model: ViT, found: Attribution) -> Any:
    """The table as cells."""
    from minivit import viz

    names, values_LX = found.by_layer()
    title = (
        f"what adds to the logit of {shown_class(model, int(found.classes))}, {printable(model.name or 'the model')}\n"
        f"embedding {float(found.embedding):+.3f}, norm bias {float(found.norm_bias):+.3f}, head bias "
        f"{float(found.head_bias):+.3f}, logit {float(found.logits):.3f}"
    )
    return viz.cells(values_LX, [f"layer {i}" for i in range(len(values_LX))], names, title=title, label="logit")
