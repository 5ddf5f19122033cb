"""minivit ablate: what the answer is without a head, an MLP or a patch."""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import TYPE_CHECKING, Any

from minivit.cli.look.attention import class_name, find_class
from minivit.cli.shared.console import columns, positive, printable
from minivit.cli.shared.drawing import check_chart
from minivit.cli.shared.models import add_hub_options, add_label_options, add_model_option, add_run_options, load_model
from minivit.cli.shared.picture import check_suffix, open_photo, pixels_for, say_notes, show, writing
from minivit.errors import UsageError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import Tensor

    from minivit.model.vit import ViT

SCHEMA = 1  # of the JSON record; a field is only ever added under the same number
STRONGEST = 8  # named below the table of a scan
CMAP = "RdBu"  # red: the logit falls without it, so it speaks for the class


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "ablate",
        help="the answer without a head, an MLP or a patch",
        description="Take parts of a model away for one picture, those named, or with --scan each in turn, and show "
        "what becomes of a class's logit. Blocks and heads are numbered from 0.",
        epilog="a head loses what it hands to the output projection, an MLP what it adds, a token what the first block "
        "reads of it, position included; a token that is ablated can still be looked at",
    )
    parser.add_argument("image", metavar="IMAGE", help="a picture file, or - for standard input")
    parser.add_argument("--scan", choices=("heads", "mlps", "patches"), help="each of them in turn")
    parser.add_argument("--heads", metavar="BLOCK.HEAD,...", type=head_list, help="heads to ablate: 10.3,4.1")
    parser.add_argument("--mlps", metavar="BLOCK,...", type=block_list, help="MLPs to ablate: 4,5")
    parser.add_argument(
        "--tokens",
        metavar="TOKEN,...",
        help="tokens to ablate: cls, dist, registers, patches, 5 for token 5, '(3,7)' for the patch in row 3, column 7",
    )
    parser.add_argument(
        "--how",
        choices=("zero", "mean"),
        help="what stands there instead: zero, or the mean over the tokens of this picture (zero)",
    )
    parser.add_argument(
        "--from", metavar="IMAGE", dest="source", help="put there what this other picture has at the same places"
    )
    parser.add_argument("--class", metavar="NAME|INDEX", help="the class whose logit is watched (the most likely)")
    parser.add_argument("-b", "--batch-size", type=positive, default=8, metavar="B", help="parts of a scan at once (8)")
    parser.add_argument("--json", action="store_true", help="write one JSON object")
    parser.add_argument(
        "-o", "--out", metavar="FILE", help="draw a scan: heads and mlps as PNG, SVG or PDF, patches as PNG"
    )
    add_label_options(parser)
    add_model_option(parser)
    add_hub_options(parser)
    add_run_options(parser)
    parser.set_defaults(run=run)


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


def token_list(text: str) -> list[Any]:
    """Tokens in the spelling of `minivit trace --keep 'name[...]'`."""
    from minivit.study.selectors import read_pattern

    pick = read_pattern(f"embed.tokens[{text}]")[1]
    if pick.tokens is None or pick.heads is not None:
        raise UsageError(f"--tokens {text!r} must name tokens and nothing else, such as cls,5 or '(3,7)'")
    return list(pick.tokens)


def run(args: argparse.Namespace) -> int:
    if args.scan == "patches":
        check_suffix(args.out, ".png")
    else:
        check_chart(args.out)
    named = args.heads or args.mlps or args.tokens
    if bool(args.scan) == bool(named):
        raise UsageError("give either --scan or what to ablate: --heads, --mlps or --tokens")
    if args.scan and args.source:
        raise UsageError("--from goes with --heads, --mlps or --tokens; a scan takes parts away")
    if args.source and args.how:
        raise UsageError("--from and --how both say what stands there instead; give one")
    if args.out and not args.scan:
        raise UsageError("-o draws a scan; without --scan there is a table of a few numbers")
    photo, notes = open_photo(args.image)
    say_notes(args.image, notes)
    model = load_model(args)
    if not model.config.classes:
        raise UsageError(
            f"{model.name}: has no classifier, so there is no logit to watch; name a model with a head, "
            "or --labels where it has a text tower"
        )
    pixels_BCHW, spec = pixels_for(model, photo)
    target = find_class(model, pixels_BCHW, getattr(args, "class"))
    about = {"model": model.name, "revision": model.revision, "device": str(pixels_BCHW.device)}
    warnings = {"warnings": notes} if notes else {}
    label = model.labels[target] if model.labels else None
    first = {"schema": SCHEMA, "path": args.image, "class": {"index": target, "label": label}}
    if args.scan:
        result = scan(model, pixels_BCHW, target, args)
        if args.out:
            from minivit.viz import save

            with writing(args.out):
                save(draw_scan(model, result, target, photo, spec, args), args.out)
        facts = {"scan": args.scan, "how": args.how or "zero", **{key: value.tolist() for key, value in result.items()}}
        print(
            json.dumps({**first, **facts, **about, **warnings}) if args.json else scan_text(model, result, target, args)
        )
        return 0
    logits = whole_and_ablated(model, pixels_BCHW, args)
    if args.json:
        gone = {
            "heads": args.heads or [],
            "mlps": args.mlps or [],
            "tokens": token_list(args.tokens) if args.tokens else [],
        }
        how = {"from": args.source} if args.source else {"how": args.how or "zero"}
        print(json.dumps({**first, **gone, **how, **direct_record(model, logits, target), **about, **warnings}))
    else:
        print(direct_text(model, logits, target, args))
    return 0


def scan(model: ViT, pixels_BCHW: Tensor, target: int, args: argparse.Namespace) -> dict[str, Tensor]:
    """The class's logit with everything there, and its change without each part."""
    import torch

    from minivit import study

    with torch.inference_mode():
        whole = model(pixels_BCHW)[0, target].double()

    def report(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done}/{total} {args.scan}", end="\n" if done == total else "", file=sys.stderr)

    logits = study.scan(
        model, pixels_BCHW, args.scan, how=args.how or "zero", batch_size=args.batch_size, report=report
    )
    return {"logit": whole.cpu(), "change": (logits[0, ..., target].double() - whole).cpu()}


def what_of(model: ViT, target: int, args: argparse.Namespace) -> str:
    """A scan in words."""
    return f"change of the logit of {class_name(model, target)} without each of its {args.scan} ({args.how or 'zero'})"


def scan_text(model: ViT, result: dict[str, Tensor], target: int, args: argparse.Namespace) -> str:
    """The changes as a table, a map of patches in shades, and the strongest."""
    change = result["change"]
    lines = [
        what_of(model, target, args),
        f"{printable(model.name or 'the model')} on {printable(args.image)}, logit {float(result['logit']):.3f}",
    ]
    if args.scan == "patches":
        from minivit import viz

        picture = viz.image_from_rgb(viz.apply_colormap(viz.to_unit(change, *around_zero(change))[0], CMAP))
        lines += [
            show(picture, -change, columns=2 * change.shape[1]),
            "full, or red: the logit falls without this patch",
        ]
        names = {f"({r},{c})": change[r, c] for r in range(change.shape[0]) for c in range(change.shape[1])}
    elif args.scan == "heads":
        rows = [["layer", *(str(a) for a in range(change.shape[1]))]]
        rows += [[str(layer), *(f"{value:+.3f}" for value in row.tolist())] for layer, row in enumerate(change)]
        lines.append(columns(rows))
        names = {f"{i}.{a}": change[i, a] for i in range(change.shape[0]) for a in range(change.shape[1])}
    else:
        lines.append(columns([["layer", "change"], *([str(i), f"{float(x):+.3f}"] for i, x in enumerate(change))]))
        names = {str(i): x for i, x in enumerate(change)}
    strongest = sorted(names.items(), key=lambda item: -abs(float(item[1])))[:STRONGEST]
    return "\n".join([*lines, "strongest: " + ", ".join(f"{name} {float(x):+.3f}" for name, x in strongest)])


def around_zero(values: Tensor) -> tuple[float, float]:
    """The numbers of the first and last colour, so that white is 0."""
    most = float(values.abs().max()) or 1.0
    return -most, most


def draw_scan(
    model: ViT, result: dict[str, Tensor], target: int, photo: Any, spec: Any, args: argparse.Namespace
) -> Any:
    """Heads and MLPs as a table of cells, patches over the photo."""
    from minivit import viz
    from minivit.images.preprocess import seen_box

    change = result["change"]
    whole = f"{printable(model.name or 'the model')}, logit {float(result['logit']):.3f}"
    title = f"{what_of(model, target, args)}\n{whole}; red: it falls without it"
    if args.scan == "patches":
        box, bounds = seen_box(photo.size, spec, patch=model.config.patch_size), around_zero(change)
        return viz.overlay(photo, change, box=box, cmap=CMAP, bounds=bounds, title=title)
    table = change if change.ndim == 2 else change[:, None]
    names = [f"head {a}" for a in range(change.shape[1])] if args.scan == "heads" else ["mlp"]
    return viz.cells(
        table, [f"layer {i}" for i in range(len(table))], names, cmap=CMAP, title=title, label="change of the logit"
    )


def whole_and_ablated(model: ViT, pixels_BCHW: Tensor, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Logits (L,) of the whole model and of what is left."""
    import torch

    from minivit import study

    tokens = token_list(args.tokens) if args.tokens else []
    context: AbstractContextManager[None]
    if args.source:
        other, notes = open_photo(args.source)
        say_notes(args.source, notes)
        keep = [f"blocks.{block}.attn.mix[heads={head}]" for block, head in args.heads or []]
        keep += [f"blocks.{block}.mlp.out" for block in args.mlps or []]
        keep += [f"embed.tokens[{args.tokens}]"] if tokens else []
        source = study.trace(model, pixels_for(model, other)[0], keep=keep, limit=None)
        context = study.patched(model, source)
    else:
        context = study.ablate(
            model, heads=args.heads or [], mlps=args.mlps or [], tokens=tokens, how=args.how or "zero"
        )
    with torch.inference_mode():
        whole_L = model(pixels_BCHW)[0].double()
        with context:
            return whole_L, model(pixels_BCHW)[0].double()


def rows_of(logits: tuple[Tensor, Tensor], target: int) -> list[tuple[int, list[float]]]:
    """The class watched and the five best of either answer: probabilities before and after, logits before and after."""
    whole_L, left_L = logits
    before_L, after_L = whole_L.softmax(dim=0), left_L.softmax(dim=0)
    shown = {target, *before_L.topk(min(5, len(before_L))).indices.tolist(), int(after_L.argmax())}
    order = [index for index in before_L.argsort(descending=True).tolist() if index in shown]
    return [(i, [float(x[i]) for x in (before_L, after_L, whole_L, left_L)]) for i in order]


def direct_text(model: ViT, logits: tuple[Tensor, Tensor], target: int, args: argparse.Namespace) -> str:
    """Both answers beside each other."""
    gone = [f"head {block}.{head}" for block, head in args.heads or []]
    gone += [f"MLP {block}" for block in args.mlps or []] + ([f"tokens {args.tokens}"] if args.tokens else [])
    way = f"from {printable(args.source)}" if args.source else args.how or "zero"
    rows = [["class", "p", "p after", "logit", "logit after", "change"]]
    for index, (before, after, whole, left) in rows_of(logits, target):
        numbers = [f"{before:.3f}", f"{after:.3f}", f"{whole:+.3f}", f"{left:+.3f}", f"{left - whole:+.3f}"]
        rows.append([class_name(model, index) + (" *" if index == target else ""), *numbers])
    title = f"{printable(model.name or 'the model')} on {printable(args.image)}, {', '.join(gone)} replaced ({way})"
    return f"{title}\n{columns(rows)}"


def direct_record(model: ViT, logits: tuple[Tensor, Tensor], target: int) -> dict[str, Any]:
    """Both answers as fields of the JSON record."""
    keys = ("score", "score_after", "logit", "logit_after")
    classes = [
        {
            "index": index,
            "label": model.labels[index] if model.labels else None,
            **dict(zip(keys, numbers, strict=True)),
        }
        for index, numbers in rows_of(logits, target)
    ]
    whole_L, left_L = logits
    return {"change": float(left_L[target] - whole_L[target]), "top": classes}
