"""minivit lens: what a model would answer if it stopped after each block."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minivit.cli.attention import class_name, find_class
from minivit.cli.console import add_hub_options, add_model_option, add_run_options, columns, load_model, printable
from minivit.cli.info import POOLED
from minivit.cli.picture import check_suffix, open_photo, pixels_for, say_notes, writing
from minivit.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from minivit.config import ImageSpec
    from minivit.model import ViT

SCHEMA = 1  # of the JSON record; a field is only ever added under the same number


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "lens",
        help="read every block by the final head",
        description="The logit lens: the final norm and head applied to what the head would read after every block, or "
        "with --patches to every patch alone. The head was trained for the last block; what it says of earlier ones "
        "shows what already stands in its own directions, not all that is known there.",
    )
    parser.add_argument("image", metavar="IMAGE", help="a picture file, or - for standard input")
    parser.add_argument("--patches", action="store_true", help="a label for every patch after every block")
    parser.add_argument("--class", metavar="NAME|INDEX", help="the class to follow (the final answer)")
    parser.add_argument("--json", action="store_true", help="write one JSON object")
    parser.add_argument("-o", "--out", metavar="FILE", help="draw it, FILE.png: probabilities, or maps of labels")
    add_model_option(parser)
    add_hub_options(parser)
    add_run_options(parser)
    parser.set_defaults(run=run)


@dataclass(kw_only=True)
class Reading:
    """What a lens read at T places, of R tokens: one, what the head reads, or all patches. In float64."""

    names: list[str]
    probs: Tensor  # (T, R, L)
    kl: Tensor  # (T, R), from the final answer, nats
    final: Tensor  # (L,), the model's own probabilities
    followed: int  # a class

    @property
    def tops(self) -> Tensor:
        return self.probs.argmax(dim=-1)


def run(args: argparse.Namespace) -> int:
    check_suffix(args.out, ".png")
    photo, notes = open_photo(args.image)
    say_notes(args.image, notes)
    model = load_model(args)
    if not model.config.classes:
        raise UsageError(f"{model.name}: has no classifier, so a lens has no labels to show; name a model with a head")
    pixels_BCHW, spec = pixels_for(model, photo)
    reading = read(model, pixels_BCHW, getattr(args, "class"), patches=args.patches)
    grid = model.layout_of(pixels_BCHW).grid if args.patches else None
    if args.json:
        about = {"model": model.name, "revision": model.revision, "device": str(pixels_BCHW.device)}
        warnings = {"warnings": notes} if notes else {}
        print(json.dumps({"schema": SCHEMA, "path": args.image, **record(model, reading, grid), **about, **warnings}))
    else:
        print(text(model, reading, args.image, patches=args.patches))
    if args.out:
        with writing(args.out):
            draw(model, reading, photo, spec, grid).save(args.out)
    return 0


def read(model: ViT, pixels_BCHW: Tensor, asked: str | None, *, patches: bool) -> Reading:
    """The lens after the embedding and after every block."""
    from minivit import study

    selector = "" if patches or model.config.pooling != "cls" else "[cls]"
    streams = ["embed.tokens", "blocks.*.resid_post"]
    trace = study.trace(model, pixels_BCHW, keep=[*(name + selector for name in streams), "logits"], limit=None)
    *tokens, logits_BL = trace.values()
    answers_TRL = study.lens(model, tokens, rows="patches" if patches else None)[:, 0].double()
    followed = int(logits_BL.argmax()) if asked is None else find_class(model, pixels_BCHW, asked)
    return Reading(
        names=["embedding", *(f"layer {i}" for i in range(model.config.depth))],
        probs=answers_TRL.softmax(dim=-1),
        kl=study.divergence(answers_TRL, logits_BL[0]),
        final=logits_BL[0].double().softmax(dim=-1),
        followed=followed,
    )


def text(model: ViT, reading: Reading, path: str, *, patches: bool) -> str:
    """The reading as a table for people."""
    best = int(reading.final.argmax())
    what = "every patch alone" if patches else f"the {POOLED[model.config.pooling]}"
    lines = [
        f"lens of {printable(model.name or 'the model')} on {printable(path)}, reading {what}",
        f"the answer is {class_name(model, best)}, p {float(reading.final[best]):.3f}; KL to it in nats",
    ]
    share = f"p of {class_name(model, reading.followed)}"
    followed_TR = reading.probs[:, :, reading.followed]
    if not patches:
        rows = [["after", "top label", "p", share, "KL"]]
        for name, top, probs, followed, kl in zip(
            reading.names, reading.tops[:, 0].tolist(), reading.probs[:, 0], followed_TR[:, 0], reading.kl[:, 0],
            strict=True,
        ):  # fmt: skip
            numbers = [f"{float(probs[top]):.3f}", f"{float(followed):.3f}", f"{float(kl):.3f}"]
            rows.append([name, class_name(model, top), *numbers])
        return "\n".join([*lines, columns(rows, left=2)])
    rows = [["after", "top labels, by number of patches", f"mean {share}", "mean KL"]]
    for name, tops, followed, kl in zip(reading.names, reading.tops, followed_TR, reading.kl, strict=True):
        index, count = tops.unique(return_counts=True)
        order = count.argsort(descending=True, stable=True)[:3].tolist()
        common = ", ".join(f"{int(count[i])} {class_name(model, int(index[i]))}" for i in order)
        rows.append([name, common, f"{float(followed.mean()):.3f}", f"{float(kl.mean()):.3f}"])
    return "\n".join([*lines, columns(rows, left=2)])


def record(model: ViT, reading: Reading, grid: tuple[int, int] | None) -> dict[str, Any]:
    """The reading as fields of the JSON record; maps of patches are lists of rows."""

    def label(index: int) -> str | None:
        return model.labels[index] if model.labels else None

    def named(index: int, score: float) -> dict[str, Any]:
        return {"index": index, "label": label(index), "score": score}

    best, k = int(reading.final.argmax()), reading.followed
    layers: list[dict[str, Any]] = []
    for name, tops, probs_RL, kl_R in zip(reading.names, reading.tops, reading.probs, reading.kl, strict=True):
        if grid is None:
            top = int(tops[0])
            facts = {"top": named(top, float(probs_RL[0, top])), "score": float(probs_RL[0, k]), "kl": float(kl_R[0])}
        else:
            maps = {"index": tops, "top_score": probs_RL.amax(dim=-1), "score": probs_RL[:, k], "kl": kl_R}
            facts = {name: values.unflatten(0, grid).tolist() for name, values in maps.items()}
        layers.append({"after": name, **facts})
    labels = {"labels": {str(i): label(i) for i in reading.tops.unique().tolist()}} if grid else {}
    about = {"final": named(best, float(reading.final[best])), "class": {"index": k, "label": label(k)}}
    return {"read": "patches" if grid else model.config.pooling, **about, "layers": layers, **labels}


def draw(model: ViT, reading: Reading, photo: Image.Image, spec: ImageSpec, grid: tuple[int, int] | None) -> Any:
    """Probabilities of classes by block as a table of cells, or a map of labels for every block."""
    from minivit import viz
    from minivit.preprocess import resize_and_crop

    title = f"lens of {printable(model.name or 'the model')}"
    if grid is not None:
        names = {index: class_name(model, index) for index in reading.tops.unique().tolist()}
        title += ": the most likely label of every patch alone, by the final norm and head"
        maps = reading.tops.unflatten(1, grid)
        return viz.label_maps(resize_and_crop(photo, spec), maps, reading.names, names, title=title)
    probs_TL = reading.probs[:, 0]
    # The model's five best, the class followed, and whatever was on top on the way; the final order.
    final = reading.final.argsort(descending=True).tolist()
    shown = {reading.followed, *final[:5], *reading.tops[:, 0].tolist()}
    classes = [index for index in final if index in shown]
    title += f", reading the {POOLED[model.config.pooling]}\nprobability by the final norm and head after every block"
    after = ["embed", *(str(i) for i in range(model.config.depth))]
    rows = [class_name(model, index) for index in classes]
    return viz.cells(probs_TL[:, classes].T, rows, after, bounds=(0, 1), colours="white-red", title=title)
