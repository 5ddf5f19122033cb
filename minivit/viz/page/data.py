"""What the page carries: a description for JSON, and packed blocks of numbers."""

from __future__ import annotations

import base64
import ctypes
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from minivit.errors import UsageError
from minivit.study.exploration import Exploration
from minivit.viz.colormaps import stops
from minivit.viz.maps import Box

MAPS = ("all", "cls")

# One byte of an attention map: 0 is less than 2^-15.9, c from 1 to 255 is 2^((c - 255) / STEPS).
STEPS = 16
LEVELS = 8191  # of a packed query or key on either side of 0, a scale for each head: 14 bits
PHOTO_SIDE = 960  # pixels of the image's longer side in the page


@dataclass(frozen=True, kw_only=True)
class PageData:
    """Everything a page shows, ready to be written."""

    about: dict[str, Any]  # JSON-able: sizes, names, the images as data URLs, shapes of the tensors
    tensors: str  # all small tensors one behind the other: zlib, then base64
    blocks: list[str]  # attention of each block, in the same packing


def page_data(
    exploration: Exploration,
    photo: Image.Image,
    seen: Image.Image,
    *,
    box: Box | None,
    labels: Mapping[int, str] | None,
    maps: str,
    cmap: str,
    **texts: Any,
) -> PageData:
    """Return the data of a page; arguments as in `viz.explorer`, `texts` are strings that go in as they are.

    Raises:
        UsageError: maps is neither "all" nor "cls", "cls" of a model without prefix tokens, or unknown colormap.
    """
    layout, config = exploration.layout, exploration.config
    if maps not in MAPS:
        raise UsageError(f"maps is {maps!r}; it must be {' or '.join(MAPS)}")
    if maps == "cls" and not layout.prefix:
        raise UsageError("maps 'cls' keeps the attention of prefix tokens, and this model has none; use maps 'all'")
    queries = layout.count if maps == "all" else layout.prefix
    smaller = queries * layout.count <= 2 * (queries + layout.count) * config.head_dim
    as_maps = smaller or bool(exploration.trace.allowed)  # queries and keys know nothing of a knock-out
    blocks, more = _maps(exploration, queries) if as_maps else _queries_and_keys(exploration, queries)
    tensors = {**_tensors(exploration), **more}
    left, upper, right, lower = box or (0, 0, photo.width, photo.height)
    about = {
        **texts,
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
        "colormap": stops(cmap),
        "photoSize": photo.size,
        "box": [left / photo.width, upper / photo.height, right / photo.width, lower / photo.height],
        "photo": _data_url(photo, "JPEG"),
        "seen": _data_url(seen, "PNG"),
        "best": [] if exploration.best_T is None else exploration.best_T.tolist(),
        "labels": _labels(exploration, labels or {}),
        "tensors": {name: {"shape": list(x.shape), "type": _kind(x)} for name, x in tensors.items()},
    }
    return PageData(
        about=about,
        tensors=_packed(b"".join(_bytes(x) for x in tensors.values())),
        blocks=[_packed(block) for block in blocks],
    )


def _labels(exploration: Exploration, labels: Mapping[int, str]) -> dict[int, str]:
    """Return the names of the classes that the page shows somewhere."""
    shown: set[int] = set()
    for index in (exploration.best_T, exploration.lens_labels_SNJ):
        shown |= set() if index is None else set(index.unique().tolist())
    return {index: labels[index] for index in sorted(shown)} if labels else {}


def _tensors(exploration: Exploration) -> dict[str, Tensor]:
    """Return the small tensors by the names that the page's scripts use."""
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
    """Return the attention of every block as bytes of logarithms, (A + 1, queries, N): the heads, then their mean.

    The mean of the packed heads misses what is too small in each of them. The last plane has the byte of the mean where
    the packed heads do not give it within the error of a head, and else 0, which takes no room.
    """

    def pack(probs_BANM: Tensor) -> bytes:
        heads_ANM = probs_BANM[0, :, :queries].cpu().double()
        codes_ANM, mean_NM = _codes(heads_ANM), heads_ANM.mean(dim=0)
        packed_NM = torch.where(codes_ANM > 0, 2 ** ((codes_ANM - 255) / STEPS), 0).mean(dim=0)
        wrong_NM = (packed_NM - mean_NM).abs() > 0.99 * (2 ** (0.5 / STEPS) - 1) * mean_NM
        planes = torch.cat([codes_ANM, torch.where(wrong_NM, _codes(mean_NM), 0)[None]])
        return _bytes(planes.to(torch.uint8))

    return (pack(probs_BANM) for probs_BANM in exploration.trace.attention), {}


def _codes(probs: Tensor) -> Tensor:
    """Return probabilities as the bytes of their logarithms."""
    return (255 + STEPS * probs.log2()).round().clamp(0, 255)


def _queries_and_keys(exploration: Exploration, queries: int) -> tuple[Iterator[bytes], dict[str, Tensor]]:
    """Return q (A, queries, K) and k (A, N, K) of every block as two planes of bytes, low and high, and the scales.

    `factor` (depth, A) turns the product of a packed query and key into a score. `error` is the largest relative error
    of a probability, measured on all of them; a mean of heads is off by no more.
    """
    trace, factors, errors, blocks = exploration.trace, [], [], []
    for i in range(exploration.config.depth):
        exact, sides, steps = [], [], []
        for x_ANK in (trace[f"blocks.{i}.q"][0, :, :queries], trace[f"blocks.{i}.k"][0]):
            x_ANK = x_ANK.double().cpu()
            step_A11 = x_ANK.abs().amax(dim=(1, 2), keepdim=True).clamp(min=1e-30) / LEVELS
            exact.append(x_ANK)
            sides.append((x_ANK / step_A11).round())
            steps.append(step_A11)
        (q_ANK, k_ANK), scale = sides, trace.scales[i]
        factors.append((steps[0] * steps[1])[:, 0, 0] * scale)
        packed_ANM = q_ANK @ k_ANK.mT * factors[-1].float().double()[:, None, None]  # the page has float32 factors
        apart_ANM = packed_ANM.log_softmax(dim=-1) - (exact[0] @ exact[1].mT * scale).log_softmax(dim=-1)
        errors.append(apart_ANM.abs().max().expm1())
        whole = torch.cat([q_ANK.flatten(), k_ANK.flatten()]).to(torch.int16).view(torch.uint8)
        blocks.append(_bytes(whole.view(-1, 2).T))
    # The trace's own float32 probabilities differ from exact ones by rounding.
    error = float(torch.stack(errors).max()) * 1.01 + 1e-5
    return iter(blocks), {"factor": torch.stack(factors).float(), "error": torch.tensor(error)}


def _bytes(x: Tensor) -> bytes:
    x = x.detach().cpu().contiguous()
    return ctypes.string_at(x.data_ptr(), x.nbytes)


def _kind(x: Tensor) -> str:
    return "int32" if x.dtype == torch.int32 else "float32"


def _packed(block: bytes) -> str:
    return base64.b64encode(zlib.compress(block, 6)).decode()


def _data_url(image: Image.Image, kind: str) -> str:
    image = image.copy()
    if kind == "JPEG":
        image.thumbnail((PHOTO_SIDE, PHOTO_SIDE))
    file = BytesIO()
    image.save(file, kind, optimize=True, **({"quality": 85} if kind == "JPEG" else {}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
