"""minivit ablate: the answer without a head, an MLP or a patch."""

from __future__ import annotations

import argparse
import json
import re
from typing import TYPE_CHECKING, Any

from minivit.cli.shared.command import (
    A_CLASS,
    CHARTS,
    IMAGE_SIZE,
    JSON,
    LABELS,
    ONE_IMAGE,
    RUN,
    batch_size,
    command,
    option,
    output,
)
from minivit.cli.shared.console import counter, printable, show_text, table
from minivit.cli.shared.drawing import check_drawing
from minivit.cli.shared.files import pixels_for, read_image, say_notes, show, writing
from minivit.cli.shared.image import OneImage, label_of, one_image, pick_class, shown_class
from minivit.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from minivit.study import AblationEffect, ScanEffect

SCHEMA = 1  # of the JSON record; a field is only ever added under the same number
STRONGEST = 8  # named below the table of a scan
CMAP = "RdBu"  # red: the logit falls without it, so it speaks for the class


def head_list(text: str) -> list[tuple[int, int]]:
    """An argparse type: heads as BLOCK.HEAD with commas between them."""
    found = [re.fullmatch(r"\s*(\d+)\.(\d+)\s*", part) for part in text.split(",")]
    if None in found:
        raise argparse.ArgumentTypeError(f"{text!r} is not BLOCK.HEAD,BLOCK.HEAD,... such as 10.3,4.1")
    return [(int(match[1]), int(match[2])) for match in found if match]


def block_list(text: str) -> list[int]:
    """An argparse type: blocks with commas between them."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not BLOCK,BLOCK,... such as 4,5")
    return [int(part) for part in parts]


def token_list(text: str | None) -> list[Any]:
    """Tokens in the spelling of `minivit trace --keep 'name[...]'`."""
    from minivit.study.selectors import read_pattern

    if not text:
        return []
    selector = read_pattern(f"embed.tokens[{text}]")[1]
    if selector.tokens is None or selector.heads is not None:
        raise UsageError(f"--tokens {text!r} must name tokens and nothing else, such as cls,5 or '(3,7)'")
    return list(selector.tokens)


@command(
    "ablate",
    help="the answer without a head, an MLP or a patch",
    description="Remove parts of a model for one image, those named, or with --scan each in turn, and show the change "
    "of a class's logit. Blocks and heads are numbered from 0.",
    epilog="of a head the attention output is replaced, of an MLP its output, of a token the input of the first block, "
    "its position included; other tokens can still attend to an ablated token",
    options=[
        ONE_IMAGE,
        option("--scan", choices=("heads", "mlps", "patches"), help="each of them in turn"),
        option("--heads", metavar="BLOCK.HEAD,...", type=head_list, default=[], help="heads to ablate: 10.3,4.1"),
        option("--mlps", metavar="BLOCK,...", type=block_list, default=[], help="MLPs to ablate: 4,5"),
        option(
            "--tokens",
            metavar="TOKEN,...",
            help="tokens to ablate: cls, dist, registers, patches, 5 for token 5, '(3,7)' for the patch in row 3, "
            "column 7",
        ),
        option(
            "--how",
            choices=("zero", "mean"),
            help="the replacement: zero, or the mean over the tokens of this image (zero)",
        ),
        option("--from", metavar="IMAGE", dest="source", help="replace by what this other image has at these places"),
        A_CLASS,
        batch_size(8),
        JSON,
        output(*CHARTS, help="draw a scan: heads and mlps as PNG, SVG or PDF, patches as PNG"),
        LABELS,
        IMAGE_SIZE,
        *RUN,
    ],
)
def run(args: argparse.Namespace) -> int:
    named = args.heads or args.mlps or args.tokens
    if bool(args.scan) == bool(named):
        raise UsageError("give either --scan or what to ablate: --heads, --mlps or --tokens")
    if args.scan and args.source:
        raise UsageError("--from goes with --heads, --mlps or --tokens; a scan removes parts")
    if args.source and args.how:
        raise UsageError("--from and --how both name the replacement; give one")
    if args.out and not args.scan:
        raise UsageError("-o draws a scan; without --scan there is a table of a few numbers")
    check_drawing(args.out, maps=args.scan == "patches")
    one = one_image(args, needs_classes="there is no logit to follow")
    target = pick_class(one.model, one.pixels_BCHW, getattr(args, "class"))
    return run_scan(one, target, args) if args.scan else run_named(one, target, args)


def run_scan(one: OneImage, target: int, args: argparse.Namespace) -> int:
    """Each part in turn."""
    from minivit import study

    settings = {"how": args.how or "zero", "batch_size": args.batch_size, "report": counter(args.scan)}
    found = study.scan_effect(one.model, one.pixels_BCHW, target, args.scan, **settings)
    if args.out:
        from minivit.viz import save

        with writing(args.out) as path:
            save(draw(one, found), path)
    if args.json:
        fields = {"scan": found.what, "how": found.how, "logit": found.logit.tolist(), "change": found.change.tolist()}
        show_text(json.dumps(one.record(SCHEMA, {"class": label_of(one.model, target), **fields})))
    else:
        show_text(scan_text(one, found))
    return 0


def run_named(one: OneImage, target: int, args: argparse.Namespace) -> int:
    """Some parts together."""
    from minivit import study

    source = None
    if args.source:
        other, notes = read_image(args.source, icc=args.icc)
        say_notes(args.source, notes)
        source = pixels_for(one.model, other)[0]
    gone = {"heads": args.heads, "mlps": args.mlps, "tokens": token_list(args.tokens)}
    how = args.how or "zero"
    found = study.ablation_effect(one.model, one.pixels_BCHW, target, **gone, how=how, source=source)
    if args.json:
        keys = ("score", "score_after", "logit", "logit_after")
        top = [{**label_of(one.model, i), **dict(zip(keys, numbers, strict=True))} for i, numbers in found.rows()]
        by = {"from": args.source} if args.source else {"how": how}
        fields = {"class": label_of(one.model, target), **gone, **by, "change": found.change, "top": top}
        show_text(json.dumps(one.record(SCHEMA, fields)))
    else:
        show_text(named_text(one, found, args))
    return 0


def title_of(one: OneImage, found: ScanEffect) -> str:
    """A scan in words."""
    return (
        f"change of the logit of {shown_class(one.model, found.target)} without each of its {found.what} ({found.how})"
    )


def scan_text(one: OneImage, found: ScanEffect) -> str:
    """The changes as a table, or as a map of patches in shades, and the largest ones."""
    change = found.change
    about = f"{printable(one.model.name or 'the model')} on {printable(one.path)}, logit {float(found.logit):.3f}"
    lines = [title_of(one, found), about]
    if found.what == "patches":
        from minivit import viz

        image = viz.image_from_rgb(viz.apply_colormap(viz.to_unit(change, *around_zero(change))[0], CMAP))
        lines.append(show(image, -change, columns=2 * change.shape[1]))
        lines.append("full, or red: the logit falls without this patch")
    elif found.what == "heads":
        rows = [[str(layer), *(f"{value:+.3f}" for value in row)] for layer, row in enumerate(change.tolist())]
        lines.append(table([["layer", *map(str, range(change.shape[1]))], *rows]))
    else:
        lines.append(table([["layer", "change"], *([str(i), f"{x:+.3f}"] for i, x in enumerate(change.tolist()))]))
    lines.append("strongest: " + ", ".join(f"{name} {value:+.3f}" for name, value in found.strongest(STRONGEST)))
    return "\n".join(lines)


def named_text(one: OneImage, found: AblationEffect, args: argparse.Namespace) -> str:
    """Both answers beside each other."""
    gone = [f"head {block}.{head}" for block, head in args.heads]
    gone += [f"MLP {block}" for block in args.mlps] + ([f"tokens {args.tokens}"] if args.tokens else [])
    by = f"from {printable(args.source)}" if args.source else args.how or "zero"
    rows = [["class", "p", "p after", "logit", "logit after", "change"]]
    for index, (p, p_after, logit, logit_after) in found.rows():
        numbers = [f"{p:.3f}", f"{p_after:.3f}", f"{logit:+.3f}", f"{logit_after:+.3f}", f"{logit_after - logit:+.3f}"]
        rows.append([shown_class(one.model, index) + (" *" if index == found.target else ""), *numbers])
    title = f"{printable(one.model.name or 'the model')} on {printable(one.path)}, {', '.join(gone)} replaced ({by})"
    return f"{title}\n{table(rows)}"


def around_zero(values: Tensor) -> tuple[float, float]:
    """The numbers of the first and last colour, so that white is 0."""
    largest = float(values.abs().max()) or 1.0
    return -largest, largest


def draw(one: OneImage, found: ScanEffect) -> Any:
    """Heads and MLPs as a table of cells, patches over the image."""
    from minivit import viz
    from minivit.images.preprocess import seen_box

    change = found.change
    about = f"{printable(one.model.name or 'the model')}, logit {float(found.logit):.3f}"
    title = f"{title_of(one, found)}\n{about}; red: it falls without it"
    if found.what == "patches":
        box = seen_box(one.image.size, one.spec, patch=one.model.config.patch_size)
        return viz.overlay(one.image, change, box=box, cmap=CMAP, bounds=around_zero(found.change), title=title)
    cells = change if change.ndim == 2 else change[:, None]
    names = [f"head {a}" for a in range(change.shape[1])] if found.what == "heads" else ["mlp"]
    return viz.cells(
        cells, [f"layer {i}" for i in range(len(cells))], names, cmap=CMAP, title=title, label="change of the logit"
    )
