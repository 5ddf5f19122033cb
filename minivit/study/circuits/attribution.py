"""Direct logit attribution: a logit as the sum of what every part of the model adds to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from minivit.errors import UsageError
from minivit.model.block import Block, LayerScale
from minivit.model.capabilities import require_vit
from minivit.model.vit import ViT
from minivit.study.tracing import trace


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """What every part of a model adds to one logit of every image, float64.

    The parts sum to `total`; `residual` is the logit of the forward pass minus that sum, which is rounding.
    """

    classes: Tensor  # (B,), the class of each image
    logits: Tensor  # (B,), of the model's own forward pass
    embedding: Tensor  # (B,), the input of the first block: patches or prefix tokens, with their positions
    heads: Tensor  # (B, layers, A), every head through its slice of the output projection
    proj_bias: Tensor  # (B, layers), the bias of the output projection, which belongs to no head
    mlps: Tensor  # (B, layers)
    norm_bias: Tensor  # (B,), the bias of the final norm, through the head
    head_bias: Tensor  # (B,)

    @property
    def total(self) -> Tensor:
        """The sum of all parts, (B,)."""
        by_layer = self.heads.sum(dim=(1, 2)) + self.proj_bias.sum(dim=1) + self.mlps.sum(dim=1)
        return self.embedding + by_layer + self.norm_bias + self.head_bias

    @property
    def residual(self) -> Tensor:
        """The logit of the forward pass minus the sum of the parts, (B,)."""
        return self.logits - self.total

    def by_layer(self, image: int = 0) -> tuple[list[str], Tensor]:
        """Return for one image the names of the parts of a layer, and their values (layers, A + 2)."""
        names = [*(f"head {a}" for a in range(self.heads.shape[2])), "bias", "mlp"]
        parts = [self.heads[image], self.proj_bias[image, :, None], self.mlps[image, :, None]]
        return names, torch.cat(parts, dim=1)

    def strongest(self, count: int, image: int = 0) -> list[tuple[str, float]]:
        """Return the parts of one image with the largest values, by name: "head 3 of layer 4"."""
        names, values_LX = self.by_layer(image)
        layers = enumerate(values_LX.tolist())
        parts = [(f"{name} of layer {i}", x) for i, row in layers for name, x in zip(names, row, strict=True)]
        return sorted(parts, key=lambda part: -abs(part[1]))[:count]

    def __repr__(self) -> str:
        first = ", ".join(f"{name} {value:+.3f}" for name, value in self.strongest(3))
        return f"<Attribution of {len(self.logits)} logit(s), the first {float(self.logits[0]):.3f}: {first}, ...>"


@torch.no_grad()
def attribute(
    model: ViT, pixels_BCHW: Tensor, *, target: int | Tensor | None = None, resample: bool = False
) -> Attribution:
    """Return what the embedding, every head and every MLP add to a class's logit.

    The stream at the head's input is the sum of what the embedding, the heads and the MLPs write (Elhage et al. 2021,
    "A Mathematical Framework for Transformer Circuits"; for CLIP's ViTs Gandelsman et al. 2023, arXiv:2310.05916). The
    final norm keeps the scale that it had for this image, which makes it linear; pooling and head are linear. So the
    parts sum to the logit exactly. They are direct effects: what a head changes in later ones counts there. LayerNorm
    subtracts each part's own mean over the channels; its bias and the head's are separate parts.

    Args:
        target: the class, one number for all images or (B,); None is the most likely class of each image.
        resample: as in `ViT.embed`.

    Raises:
        UsageError: no head, no such class, or something that is not linear: an attention pool, a tanh layer, a cosine
            head.
    """
    config = require_vit(model, "attribute").config
    if not config.classes:
        raise UsageError("the model has no head, so there is no logit to take apart")
    if model.attn_pool is not None or model.pooler is not None:
        between = "an attention pool" if model.attn_pool is not None else "a tanh layer"
        raise UsageError(f"{between} stands between the blocks and the head: the logit is no sum of what they write")
    if config.head == "cosine":
        raise UsageError("a cosine head divides by the norm of its input: the logit is no sum of what the blocks write")
    last = f"blocks.{config.depth - 1}.resid_post"
    parts = ["embed.tokens", "blocks.*.attn.mix", "blocks.*.mlp.out", last]
    read = {"cls": ["cls"], "cls&dist": ["cls", "dist"], "mean": ["patches"], "cls+mean": ["cls", "patches"]}
    rows = f"[{','.join(read[config.pooling])}]"  # the tokens the head reads, R of them; the others add nothing
    kept = trace(model, pixels_BCHW, keep=[*(part + rows for part in parts), "logits"], limit=None, resample=resample)

    logits_BL = kept["logits"].double()
    classes_B = logits_BL.argmax(dim=-1) if target is None else torch.as_tensor(target).expand(len(logits_BL))
    if not 0 <= int(classes_B.min()) <= int(classes_B.max()) < config.classes:
        raise UsageError(f"target is {target}; there are classes 0 to {config.classes - 1}")
    classes_B = classes_B.to(logits_BL.device)
    head_BRD, head_bias_B = _head(model, classes_B, kept[last].shape[1])
    direction_BRD, norm_bias_B = _through_norm(model, kept[last].double(), head_BRD)

    heads, proj_bias, mlps = [], [], []
    for i, block in enumerate(cast("list[Block]", list(model.blocks))):
        before_attn, before_mlp = _unscaled(direction_BRD, block.ls1), _unscaled(direction_BRD, block.ls2)
        # The head's columns of the projection, transposed: (B, R, D) @ (D, A*K) -> (B, R, A, K)
        back_BRAK = (before_attn @ block.attn.proj.weight.double()).unflatten(-1, (config.heads, -1))
        heads.append(torch.einsum("brak,bark->ba", back_BRAK, kept[f"blocks.{i}.attn.mix"].double()))
        proj_bias.append((before_attn @ block.attn.proj.bias.double()).sum(dim=1))
        mlps.append((before_mlp * kept[f"blocks.{i}.mlp.out"]).sum(dim=(1, 2)))
    return Attribution(
        classes=classes_B,
        logits=logits_BL.gather(1, classes_B[:, None])[:, 0],
        embedding=(direction_BRD * kept["embed.tokens"]).sum(dim=(1, 2)),
        heads=torch.stack(heads, dim=1),
        proj_bias=torch.stack(proj_bias, dim=1),
        mlps=torch.stack(mlps, dim=1),
        norm_bias=norm_bias_B,
        head_bias=head_bias_B,
    )


def _head(model: ViT, classes_B: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """The head's weights for one class on each token of its input, (B, R, D), and its bias (B,)."""
    config = model.config
    head = cast(nn.Linear, model.head)
    weight_BD, bias_B = head.weight[classes_B].double(), head.bias[classes_B].double()
    if model.head_dist is not None:
        other_BD, other_B = model.head_dist.weight[classes_B].double(), model.head_dist.bias[classes_B].double()
        return torch.stack([weight_BD, other_BD], dim=1) / 2, (bias_B + other_B) / 2
    if config.pooling == "cls":
        return weight_BD[:, None], bias_B
    if config.pooling == "mean":
        return (weight_BD / rows)[:, None].expand(-1, rows, -1), bias_B
    # cls+mean: the first half of the head reads the class token, the second the mean of the patches
    cls_BD, mean_BD = weight_BD.chunk(2, dim=-1)
    return torch.cat([cls_BD[:, None], (mean_BD / (rows - 1))[:, None].expand(-1, rows - 1, -1)], dim=1), bias_B


def _through_norm(model: ViT, stream_BRD: Tensor, head_BRD: Tensor) -> tuple[Tensor, Tensor]:
    """The factor of the stream before the final norm, (B, R, D), and the term of the norm's bias, (B,).

    LayerNorm is (x - mean(x)) / s * weight + bias. Subtracting the mean is symmetric: it is subtracted from the
    direction instead.
    """
    norm = model.norm
    weighed_BRD = head_BRD * norm.weight.double()
    normed_BRD = stream_BRD if model.config.norm == "tokens" else stream_BRD.mean(dim=1, keepdim=True)
    scale_BR1 = (normed_BRD.var(dim=-1, correction=0, keepdim=True) + norm.eps).sqrt()
    direction_BRD = (weighed_BRD - weighed_BRD.mean(dim=-1, keepdim=True)) / scale_BR1
    return direction_BRD, (head_BRD @ norm.bias.double()).sum(dim=1)


def _unscaled(direction_BRD: Tensor, scale: nn.Module) -> Tensor:
    """The direction before a branch's layer scale."""
    return direction_BRD * scale.gamma.double() if isinstance(scale, LayerScale) else direction_BRD
