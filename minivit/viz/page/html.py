"""The explorer: one HTML file that opens a ViT, without a server, a network or a library."""

from __future__ import annotations

import base64
import ctypes
import hashlib
import html
import json
import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from io import BytesIO
from string import Template

import torch
from PIL import Image
from torch import Tensor

from minivit.errors import UsageError
from minivit.study.exploration import Exploration
from minivit.viz.maps import Box

SOURCES = files("minivit.viz") / "page"
SCRIPTS = ("data.js", "paint.js", "parts.js", "way.js", "views.js", "app.js")
MAPS = ("all", "cls")

# One byte of an attention map: 0 is less than 2^-15.9, c from 1 to 255 is 2^((c - 255) / STEPS).
STEPS = 16
LEVELS = 8191  # of a packed query or key on either side of 0, a scale for each head: 14 bits
PHOTO_SIDE = 960  # pixels of the photo's longer side in the page


def explorer(
    exploration: Exploration,
    photo: Image.Image,
    seen: Image.Image,
    *,
    box: Box | None = None,
    labels: Mapping[int, str] | None = None,
    maps: str = "all",
    title: str = "photo",
    model: str = "a model",
    revision: str | None = None,
    preprocessing: str = "",
    notes: Sequence[str] = (),
) -> str:
    """One self-contained page, to be written as UTF-8; its content security policy forbids it the network.

    Attention is packed in the smaller of two ways. As maps: a byte for each probability, sixteen steps for every
    factor of two, so that it is off by at most 2.2%, and what is below 0.0000163 is 0. As queries and keys of
    14 bits, from which the browser makes the rows: a bound of its relative error is computed and stands in the page.
    All other numbers are float32. The photo becomes a JPEG of at most 960 pixels, what the network sees a PNG.

    Args:
        exploration: as `study.explore` gathers it.
        photo: upright RGB.
        seen: the very pixels the network reads, as a picture.
        box: where in the photo the patches lie (left, upper, right, lower); None is the whole photo.
        labels: names of the classes; without them their numbers stand.
        maps: "all" queries, or "cls": those of the prefix tokens only, for a small page.
        title, model, revision: the photo's name, the model's, and its commit.
        preprocessing, notes: how the photo was prepared, and what is to be said of it, a sentence each without its dot.

    Raises:
        UsageError: maps is neither, or "cls" of a model without prefix tokens.
    """
    layout, config = exploration.layout, exploration.config
    if maps not in MAPS:
        raise UsageError(f"maps is {maps!r}; it must be {' or '.join(MAPS)}")
    if maps == "cls" and not layout.prefix:
        raise UsageError("maps 'cls' keeps what the class token sees, and this model has none; use maps 'all'")
    queries = layout.count if maps == "all" else layout.prefix
    as_maps = queries * layout.count <= 2 * (queries + layout.count) * config.head_dim
    blocks, more = _maps(exploration, queries) if as_maps else _queries_and_keys(exploration, queries)
    tensors = {**_tensors(exploration), **more}
    left, upper, right, lower = box or (0, 0, photo.width, photo.height)
    best = [] if exploration.best_T is None else exploration.best_T.tolist()
    named = set(best)
    if exploration.lens_labels_SNJ is not None:
        named |= set(exploration.lens_labels_SNJ.unique().tolist())
    about = {
        "title": title,
        "model": model,
        "revision": revision,
        "preprocessing": preprocessing,
        "notes": list(notes),
        "imageSize": [side * config.patch_size for side in layout.grid],
        "channels": config.channels,
        "patch": config.patch_size,
        "width": config.width,
        "depth": config.depth,
        "heads": config.heads,
        "headDim": config.head_dim,
        "mlpWidth": config.mlp_width,
        "classes": config.classes,
        "pooling": config.pooling,
        "cls": layout.cls,
        "dist": layout.dist,
        "registers": layout.registers,
        "grid": layout.grid,
        "maps": maps,
        "queries": queries,
        "packing": {"kind": "maps", "steps": STEPS} if as_maps else {"kind": "qk"},
        "error": 2 ** (0.5 / STEPS) - 1 if as_maps else float(more["error"]),
        "photoSize": photo.size,
        "box": [left / photo.width, upper / photo.height, right / photo.width, lower / photo.height],
        "photo": _data_url(photo, "JPEG"),
        "seen": _data_url(seen, "PNG"),
        "best": best,
        "labels": {index: labels[index] for index in sorted(named)} if labels else {},
        "tensors": {name: {"shape": list(x.shape), "type": _kind(x)} for name, x in tensors.items()},
    }
    style = _source("style.css")
    script = '"use strict";\n' + "\n".join(_source(name) for name in SCRIPTS)
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    # The first map needs the tensors and the last block: they stand before the program, the rest of the blocks behind.
    *rest, last = (_element(f"attention-{i}", block) for i, block in enumerate(blocks))
    return Template(_source("page.html")).substitute(
        policy=policy,
        title=html.escape(f"{title} in {model}"),
        style=style,
        # Inside a script element only "</script" and "<!--" mean anything to HTML; without "<" neither can stand.
        about=json.dumps(about, allow_nan=False).replace("<", "\\u003c"),
        first=_element("tensors", b"".join(_bytes(x) for x in tensors.values())) + last,
        script=script,
        rest="".join(rest),
    )


def _tensors(exploration: Exploration) -> dict[str, Tensor]:
    """The small tensors by the names the page's scripts use."""
    named = {
        "distance": exploration.distance_LA,
        "entropy": exploration.entropy_LA,
        "greatest": exploration.greatest_N,
        "rollout": exploration.rollout_Lhw,
        "norms": exploration.norms_SN,
        "pca": exploration.pca_Shw3,
        "pcaShare": exploration.pca_share_S,
        "scores": exploration.scores_T,
        "relevance": exploration.relevance_TLhw,
        "lens": exploration.lens_SNT,
        "lensLabels": exploration.lens_labels_SNJ,
        "lensScores": exploration.lens_scores_SNJ,
    }
    return {
        name: x.to(torch.int32 if x.dtype == torch.int64 else torch.float32)
        for name, x in named.items()
        if x is not None
    }


def _maps(exploration: Exploration, queries: int) -> tuple[Iterator[bytes], dict[str, Tensor]]:
    """Every block's attention, (A, queries, N), as bytes of logarithms."""

    def pack(probs_BANM: Tensor) -> bytes:
        codes = (255 + STEPS * probs_BANM[0, :, :queries].cpu().double().log2()).round().clamp(0, 255)
        return _bytes(codes.to(torch.uint8))

    return (pack(probs_BANM) for probs_BANM in exploration.trace.attention), {}


def _queries_and_keys(exploration: Exploration, queries: int) -> tuple[Iterator[bytes], dict[str, Tensor]]:
    """Every block's q (A, queries, K) and k (A, N, K) as two planes of bytes, low and high, and what undoes it.

    `factor` (depth, A) turns the product of a packed query and key into a score. `error` is a bound of the relative
    error of every probability: where no score is off by more than e, no softmax is by more than exp(2 e) - 1.
    """
    trace, factors, bounds, blocks = exploration.trace, [], [], []
    for i in range(exploration.config.depth):
        sides, steps = [], []
        for x_ANK in (trace[f"blocks.{i}.q"][0, :, :queries], trace[f"blocks.{i}.k"][0]):
            x_ANK = x_ANK.double().cpu()
            step_A11 = x_ANK.abs().amax(dim=(1, 2), keepdim=True).clamp(min=1e-30) / LEVELS
            sides.append((x_ANK / step_A11).round())
            steps.append(step_A11)
        (q_ANK, k_ANK), (q_step, k_step), scale = sides, steps, trace.scales[i]
        longest_q, longest_k = ((x.abs().sum(dim=-1) + x.shape[-1] / 2).amax(dim=-1) for x in (q_ANK, k_ANK))
        factors.append((q_step * k_step)[:, 0, 0] * scale)
        # |q k - q' k'| <= |q - q'| |k| + |q'| |k - k'|, each difference at most half a step
        bounds.append(factors[-1] * (longest_q + longest_k) / 2)
        whole = torch.cat([q_ANK.flatten(), k_ANK.flatten()]).to(torch.int16).view(torch.uint8)
        blocks.append(_bytes(whole.view(-1, 2).T))
    error = math.expm1(2 * float(torch.stack(bounds).max()))
    return iter(blocks), {"factor": torch.stack(factors).float(), "error": torch.tensor(error)}


def _bytes(x: Tensor) -> bytes:
    x = x.detach().cpu().contiguous()
    return ctypes.string_at(x.data_ptr(), x.nbytes)


def _kind(x: Tensor) -> str:
    return "int32" if x.dtype == torch.int32 else "float32"


def _element(name: str, block: bytes) -> str:
    return f'<script type="text/plain" id="{name}">{base64.b64encode(zlib.compress(block, 6)).decode()}</script>\n'


def _data_url(image: Image.Image, kind: str) -> str:
    image = image.copy()
    if kind == "JPEG":
        image.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
    file = BytesIO()
    image.save(file, kind, optimize=True, **({"quality": 85} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _source(name: str) -> str:
    return (SOURCES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What a content security policy calls an inline script or style it allows."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
