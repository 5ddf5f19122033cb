"""Everything the explorer page shows of one picture, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minivit.errors import ShapeError
from minivit.model.classes import class_scores, score_of
from minivit.model.config import TokenLayout, ViTConfig
from minivit.model.embed import check_pixels
from minivit.model.vit import ViT
from minivit.study.changes import softmax_needed
from minivit.study.circuits.heads import attention_distance, attention_entropy
from minivit.study.circuits.lens import lens
from minivit.study.maps.attention import rollout
from minivit.study.maps.relevance import relevance_by_start
from minivit.study.maps.tokens import pca
from minivit.study.tracing import Trace, trace


@dataclass(frozen=True, kw_only=True)
class Exploration:
    """One picture in one model. S streams are the tokens before the first block and after each, depth + 1.

    All of it float32 on the CPU, whatever the model computed in; T is the number of best classes, J of the labels
    kept of every lens. What needs a head is None where the model has none.
    """

    config: ViTConfig
    layout: TokenLayout
    trace: Trace  # q and k of every block; its `attention` gives probs_BANM
    distance_LA: Tensor  # mean distance of every block's heads in pixels, attention_distance
    entropy_LA: Tensor  # mean entropy of their rows in nats, attention_entropy
    greatest_N: Tensor  # the most any head of any block lets every token give one patch
    rollout_Lhw: Tensor  # of CLS (without one, the mean of the patches), by the first block that takes part
    norms_SN: Tensor  # length of every token
    pca_Shw3: Tensor  # every patch along the three principal components of its stream
    pca_share_S: Tensor  # of the patches' variance, what the three hold
    best_T: Tensor | None = None  # the most likely classes, best first, int64
    scores_T: Tensor | None = None  # their scores, as config.score says: probabilities, or logits
    relevance_TLhw: Tensor | None = None  # for each of them, by the first block that takes part
    lens_SNT: Tensor | None = None  # score of each of them, read from every token; row N is what the head reads
    lens_labels_SNJ: Tensor | None = None  # the most likely classes of every token, int64; rows as before
    lens_scores_SNJ: Tensor | None = None  # their scores


def explore(model: ViT, pixels_BCHW: Tensor, *, top_k: int = 5, labels: int = 3, resample: bool = False) -> Exploration:
    """Run one picture once forward, and once backward for each of its `top_k` classes, and gather what there is to see.

    Rollout and PCA are those of `rollout` and `pca`, relevance that of `relevance`, the lens `lens` of each token
    alone.

    Args:
        pixels_BCHW: one picture, B = 1.
        top_k: how many classes are followed.
        labels: how many labels of every lens are kept.
        resample: as in `ViT.embed`.

    Raises:
        ShapeError: more or fewer pictures than one, or a size the model does not take.
    """
    check_pixels(pixels_BCHW, model.patch_embed.weight)
    if len(pixels_BCHW) != 1:
        raise ShapeError(f"{len(pixels_BCHW)} pictures; the explorer shows one")
    config, layout = model.config, model.layout_of(pixels_BCHW, resample=resample)
    streams = ["embed.tokens", *(f"blocks.{i}.resid_post" for i in range(config.depth))]
    with softmax_needed(model, "the explorer"):
        kept = trace(model, pixels_BCHW, keep=[*streams, "blocks.*.q", "blocks.*.k"], limit=None, resample=resample)
    distances, entropies, greatest, fused = [], [], [], []
    for probs_BANM in kept.attention:
        distances.append(attention_distance(probs_BANM, layout, config.patch_size)[0])
        entropies.append(attention_entropy(probs_BANM)[0])
        greatest.append(probs_BANM[0, :, :, layout.prefix :].amax(dim=(0, 2)))
        fused.append(probs_BANM.mean(dim=1, keepdim=True))  # what rollout reads of a layer, A times smaller
    rollouts = [rollout(fused, layout, start_layer=start)[0] for start in range(config.depth)]
    components = [pca(kept[name], layout)[0] for name in streams]
    shares = [_share(part, layout.to_grid(kept[name])[0]) for part, name in zip(components, streams, strict=True)]
    return Exploration(
        config=config,
        layout=layout,
        trace=kept,
        distance_LA=_plain(distances),
        entropy_LA=_plain(entropies),
        greatest_N=_plain(greatest).amax(dim=0),
        rollout_Lhw=_plain(rollouts),
        norms_SN=_plain([kept[name][0].norm(dim=-1) for name in streams]),
        pca_Shw3=_plain(components),
        pca_share_S=_plain(shares),
        **(_of_the_head(model, pixels_BCHW, kept, streams, top_k, labels, resample) if config.classes else {}),
    )


def _of_the_head(
    model: ViT, pixels_BCHW: Tensor, kept: Trace, streams: Sequence[str], top_k: int, labels: int, resample: bool
) -> dict[str, Tensor]:
    """What only a model with a head has to show."""
    classes = model.config.classes
    logits_L = lens(model, [kept[streams[-1]]])[0, 0, 0]  # of the last block the model's own answer, to the last bit
    how = score_of(model)
    scores_T, best_T = class_scores(logits_L, how).topk(min(top_k, classes))
    relevance_TLBhw = relevance_by_start(model, pixels_BCHW, best_T.tolist(), resample=resample)
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    with torch.no_grad():
        for name in streams:  # one at a time: all tokens of all streams by all classes may be much
            tokens_LR = lens(model, [kept[name]], rows=range(kept.layout.count))[0, 0]
            head_L1 = lens(model, [kept[name]])[0, 0]
            probs_NL = class_scores(torch.cat([tokens_LR, head_L1]), how).float()
            strongest = probs_NL.topk(min(labels, classes))
            found.append((probs_NL[:, best_T], strongest.indices, strongest.values))
    lens_SNT, lens_labels_SNJ, lens_scores_SNJ = (torch.stack(parts).cpu() for parts in zip(*found, strict=True))
    return {
        "best_T": best_T.cpu(),
        "scores_T": scores_T.float().cpu(),
        "relevance_TLhw": relevance_TLBhw[:, :, 0].float().cpu(),
        "lens_SNT": lens_SNT,
        "lens_labels_SNJ": lens_labels_SNJ,
        "lens_scores_SNJ": lens_scores_SNJ,
    }


def _share(components_hwc: Tensor, tokens_hwD: Tensor) -> Tensor:
    """Of the variance between patches, what some of their principal components hold."""
    centred_hwD = tokens_hwD.float() - tokens_hwD.float().mean(dim=(0, 1))
    return components_hwc.float().square().sum() / centred_hwD.square().sum().clamp(min=1e-30)


def _plain(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack([part.detach() for part in parts]).float().cpu()
