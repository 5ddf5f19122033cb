"""The explorer as one HTML file: page.html, style.css, the scripts and the data put together."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template

from PIL import Image

from minivit.study.exploration import Exploration
from minivit.viz.maps import Box
from minivit.viz.page.data import page_data

SOURCES = files("minivit.viz") / "page"
SCRIPTS = ("data.js", "paint.js", "parts.js", "stages.js", "views.js", "app.js")


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
    cmap: str = "turbo",
) -> str:
    """Return one self-contained page, to be written as UTF-8; its content security policy forbids it the network.

    Attention is packed in the smaller of two ways. As maps: a byte for each probability, sixteen steps for every
    factor of two, so that it is off by at most 2.2%, and what is below 0.0000163 is 0. As queries and keys of
    14 bits, from which the browser computes the rows: the largest relative error is measured and shown in the page.
    The mean of the heads is within the same bound; as maps, bytes behind the heads correct it.
    All other numbers are float32. The image becomes a JPEG of at most 960 pixels, the model's input a PNG.

    Args:
        exploration: as `study.explore` returns it.
        photo: the image, upright RGB.
        seen: the model's input as an image.
        box: where in the image the patches lie (left, upper, right, lower); None is the whole image.
        labels: names of the classes; without them the page shows their numbers.
        maps: attention of "all" queries, or of the prefix tokens only ("cls"), for a small page.
        title, model, revision: name of the image, of the model, and its commit.
        preprocessing, notes: how the image was prepared, and warnings: one sentence each, without a full stop.
        cmap: one of `viz.COLORMAPS`.

    Raises:
        UsageError: unknown maps or colormap, or "cls" of a model without prefix tokens.
    """
    texts = {"title": title, "model": model, "revision": revision, "preprocessing": preprocessing, "notes": [*notes]}
    data = page_data(exploration, photo, seen, box=box, labels=labels, maps=maps, cmap=cmap, **texts)
    style = _source("style.css")
    script = '"use strict";\n' + "\n".join(_source(name) for name in SCRIPTS)
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
    # The first map needs the tensors and the last block: they stand before the script, all other blocks after it.
    *rest, last = (_element(f"attention-{i}", block) for i, block in enumerate(data.blocks))
    return Template(_source("page.html")).substitute(
        policy=policy,
        title=html.escape(f"{title} in {model}"),
        style=style,
        # Inside a script element only "</script" and "<!--" mean anything to HTML; without "<" neither can occur.
        about=json.dumps(data.about, allow_nan=False).replace("<", "\\u003c"),
        first=_element("tensors", data.tensors) + last,
        script=script,
        rest="".join(rest),
    )


def _element(name: str, text: str) -> str:
    return f'<script type="text/plain" id="{name}">{text}</script>\n'


def _source(name: str) -> str:
    return (SOURCES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return the name by which a content security policy allows an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
