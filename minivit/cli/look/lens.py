"""minivit lens: what a model would answer if it stopped after each block."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from minivit.cli.checkpoints.info import POOLED
from minivit.cli.look.attention import class_name, find_class
from minivit.cli.shared.command import A_CLASS, JSON, LABELS, ONE_IMAGE, RUN, command, option, output
from minivit.cli.shared.console import columns, printable
from minivit.cli.shared.drawing import check_chart
from minivit.cli.shared.image import one_image
from minivit.cli.shared.picture import check_suffix, writing

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from minivit.images.spec import ImageSpec
    from minivit.model.vit import ViT

SCHEMA = 1  # of the JSON record; a field is only ever added under the same number


@command(
    "lens",
    help="read every block by the final head",
    description="The logit lens: the final norm and head applied to what the head would read after every block, or "
    "with --patches to every patch alone. The head was trained for the last block; what it says of earlier ones "
    "shows what already stands in its own directions, not all that is known there.",
    options=[
        ONE_IMAGE,
        option("--patches", action="store_true", help="a label for every patch after every block"),
        A_CLASS,
        JSON,
        output(help="draw the probabilities as PNG, SVG or PDF; with --patches maps of labels as PNG"),
        LABELS,
        *RUN,
    ],
)
def run(args: argparse.Namespace) -> int:
    if args.patches:
        check_suffix(args.out, ".png")
    else:
        check_chart(args.out)
    one = one_image(args, needs_classes="a lens has no labels to show")
    reading = read(one.model, one.pixels_BCHW, getattr(args, "class"), patches=args.patches)
    grid = one.model.layout_of(one.pixels_BCHW).grid if args.patches else None
    if args.json:
        print(json.dumps(one.record(SCHEMA, record(one.model, reading, grid))))
    else:
        print(text(one.model, reading, args.image))
    if args.out:
        from minivit.viz import save

        with writing(args.out):
            save(draw(one.model, reading, one.image, one.spec, grid), args.out)
    return 0


@dataclass(kw_only=True)
class Reading:
    """What a lens read at T places, of R tokens: one, what the head reads, or all patches."""

    names: list[str]  # of the T places
    final: Tensor  # (L,), the model's own probabilities
    followed: int  # a class
    top: Tensor  # (T, R), the most likely class
    top_score: Tensor  # (T, R), its probability
    score: Tensor  # (T, R), the probability of the class followed
    kl: Tensor  # (T, R), from the final answer, nats
    probs: Tensor | None  # (T, L), all probabilities where R is 1

    @property
    def best(self) -> int:
        return int(self.final.argmax())


def read(model: ViT, pixels_BCHW: Tensor, asked: str | None, *, patches: bool) -> Reading:
    """The lens after the embedding and after every block."""
    import torch

    from minivit import study

    selector = "" if patches or model.config.pooling != "cls" else "[cls]"
    streams = ["embed.tokens", "blocks.*.resid_post"]
    trace = study.trace(model, pixels_BCHW, keep=[*(name + selector for name in streams), "logits"], limit=None)
    *tokens, logits_BL = trace.values()
    followed = int(logits_BL.argmax()) if asked is None else find_class(model, pixels_BCHW, asked)
    found: dict[str, list[Tensor]] = {"top": [], "top_score": [], "score": [], "kl": []}
    probs = []
    for stream_BND in tokens:  # one at a time: with many classes, the answers of all patches are large
        answers_RL = study.lens(model, [stream_BND], rows="patches" if patches else None)[0, 0].double()
        probs_RL = answers_RL.softmax(dim=-1)
        top_score, top = probs_RL.max(dim=-1)
        numbers = (top, top_score, probs_RL[:, followed], study.divergence(answers_RL, logits_BL[0]))
        for values, number in zip(found.values(), numbers, strict=True):
            values.append(number.cpu())
        probs += [] if patches else [probs_RL[0].cpu()]
    return Reading(
        names=["embedding", *(f"layer {i}" for i in range(model.config.depth))],
        final=logits_BL[0].double().softmax(dim=-1).cpu(),
        followed=followed,
        probs=torch.stack(probs) if probs else None,
        **{name: torch.stack(values) for name, values in found.items()},
    )


def text(model: ViT, reading: Reading, path: str) -> str:
    """The reading as a table for people."""
    patches = reading.probs is None
    what = "every patch alone" if patches else f"the {POOLED[model.config.pooling]}"
    lines = [
        f"lens of {printable(model.name or 'the model')} on {printable(path)}, reading {what}",
        f"the answer is {class_name(model, reading.best)}, p {float(reading.final.max()):.3f}; KL to it in nats",
    ]
    share = f"p of {class_name(model, reading.followed)}"
    if patches:
        rows = [["after", "top labels, by number of patches", f"mean {share}", "mean KL"]]
        for name, tops, score, kl in zip(reading.names, reading.top, reading.score, reading.kl, strict=True):
            index, count = tops.unique(return_counts=True)
            order = count.argsort(descending=True, stable=True)[:3].tolist()
            common = ", ".join(f"{int(count[i])} {class_name(model, int(index[i]))}" for i in order)
            rows.append([name, common, f"{float(score.mean()):.3f}", f"{float(kl.mean()):.3f}"])
    else:
        rows = [["after", "top label", "p", share, "KL"]]
        numbers = [values[:, 0].tolist() for values in (reading.top_score, reading.score, reading.kl)]
        for name, top, *values in zip(reading.names, reading.top[:, 0].tolist(), *numbers, strict=True):
            rows.append([name, class_name(model, top), *(f"{value:.3f}" for value in values)])
    return "\n".join([*lines, columns(rows, left=2)])


def record(model: ViT, reading: Reading, grid: tuple[int, int] | None) -> dict[str, Any]:
    """The reading as fields of the JSON record; maps of patches are lists of rows."""

    def label(index: int) -> str | None:
        return model.labels[index] if model.labels else None

    def named(index: int, score: float) -> dict[str, Any]:
        return {"index": index, "label": label(index), "score": score}

    layers: list[dict[str, Any]] = []
    for name, top, top_score, score, kl in zip(
        reading.names, reading.top, reading.top_score, reading.score, reading.kl, strict=True
    ):
        if grid is None:
            facts: dict[str, Any] = {"top": named(int(top), float(top_score)), "score": float(score), "kl": float(kl)}
        else:
            maps = {"index": top, "top_score": top_score, "score": score, "kl": kl}
            facts = {key: values.unflatten(0, grid).tolist() for key, values in maps.items()}
        layers.append({"after": name, **facts})
    labels = {"labels": {str(i): label(i) for i in reading.top.unique().tolist()}} if grid else {}
    final = named(reading.best, float(reading.final[reading.best]))
    followed = {"index": reading.followed, "label": label(reading.followed)}
    return {"read": "patches" if grid else model.config.pooling, "final": final, "class": followed, "layers": layers,
            **labels}  # fmt: skip


def draw(model: ViT, reading: Reading, photo: Image.Image, spec: ImageSpec, grid: tuple[int, int] | None) -> Any:
    """Probabilities of classes by block as a table of cells, or a map of labels for every block."""
    from minivit import viz
    from minivit.images.preprocess import resize_and_crop

    title = f"lens of {printable(model.name or 'the model')}"
    if reading.probs is None:
        assert grid is not None
        names = {index: class_name(model, index) for index in reading.top.unique().tolist()}
        title += ": the most likely label of every patch alone, by the final norm and head"
        rows, columns = (side * model.config.patch_size for side in grid)
        seen = resize_and_crop(photo, spec).crop((0, 0, columns, rows))
        maps, always = reading.top.unflatten(1, grid), [reading.best, reading.followed]
        return viz.label_maps(seen, maps, reading.names, names, always=always, title=title)
    # The model's five best, the class followed, and whatever was on top on the way; the final order.
    final = reading.final.argsort(descending=True).tolist()
    shown = {reading.followed, *final[:5], *reading.top[:, 0].tolist()}
    classes = [index for index in final if index in shown]
    title += f", reading the {POOLED[model.config.pooling]}\nprobability by the final norm and head after every block"
    after = ["embed", *(str(i) for i in range(model.config.depth))]
    labels = [class_name(model, index) for index in classes]
    return viz.cells(
        reading.probs[:, classes].T, labels, after, bounds=(0, 1), cmap="Reds", title=title, label="probability"
    )
