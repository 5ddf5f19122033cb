"""Maps of tokens: similarity, L2 norm, principal components; and what positions and patch filters have learned."""

from __future__ import annotations

import torch
from torch import Tensor

from minivit.errors import ShapeError, UsageError
from minivit.model.config import TokenLayout
from minivit.study.maps.attention import Query, query_weights


def similarity(tokens_BND: Tensor, layout: TokenLayout, *, query: Query | None = None) -> Tensor:
    """Return the cosine of every patch's token with the query's: (B, h, w), from -1 to 1.

    Args:
        tokens_BND: of any step, for example "norm" or "blocks.5.resid_post".
        query: as `query_weights`; "mean" compares with the mean of the patches.
    """
    query_BD = query_weights(layout, query).to(tokens_BND) @ tokens_BND
    return layout.to_grid(torch.cosine_similarity(tokens_BND, query_BD[:, None], dim=-1))


def norms(tokens_BND: Tensor, layout: TokenLayout) -> Tensor:
    """Return the L2 norm of every patch's token: (B, h, w).

    On "resid_post" of late blocks a few tokens of plain background can have many times the norm of the others: the
    artefacts that registers cure (Darcet et al. 2023, arXiv:2309.16588, section 2).
    """
    return layout.to_grid(tokens_BND.norm(dim=-1))


def pca(tokens_BND: Tensor, layout: TokenLayout, *, components: int = 3, joint: bool = False) -> Tensor:
    """Return patches along the principal components of their tokens: (B, h, w, components); three make an RGB image.

    As in the figures of DINOv2 (Oquab et al. 2023, arXiv:2304.07193, figure 1), without its foreground threshold. The
    components are the directions of largest variance, centred. The sign of a component is arbitrary; its entry of
    largest magnitude is made positive.

    Args:
        joint: components of all images together, so that colours mean the same in each; else each has its own.

    Raises:
        UsageError: more components than patches or than the width.
    """
    # (B, N, D) -> (B, P, D), in at least float32, where the decomposition works
    x = layout.to_grid(tokens_BND).flatten(1, 2)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    batch = len(x)
    if joint:
        # (B, P, D) -> (1, B*P, D)
        x = x.flatten(0, 1)[None]
    scores = principal(x - x.mean(dim=1, keepdim=True), components)[0]
    # (1 or B, ..., components) -> (B, h, w, components)
    return layout.to_grid(scores.reshape(batch, layout.patches, components))


def position_similarity(pos_embed_1ND: Tensor, layout: TokenLayout) -> Tensor:
    """Return the cosine of every patch's position embedding with every other's: (h, w, h, w).

    Dosovitskiy et al. 2021 (arXiv:2010.11929), figure 7, centre. `[r, c]` is the map of the patch in row r, column c.

    Args:
        pos_embed_1ND: `model.pos_embed`, whose last P rows are those of the patches. Rows of prefix tokens may stand
            before them, of all or of some: registers often have none.

    Raises:
        ShapeError: fewer rows than patches or more than tokens.
    """
    rows = pos_embed_1ND.shape[1]
    if not layout.patches <= rows <= layout.count:
        raise ShapeError(f"{rows} positions; this layout has {layout.patches} patches and {layout.count} tokens")
    # (1, rows, D) -> (P, D)
    x = torch.nn.functional.normalize(pos_embed_1ND[0, -layout.patches :], dim=-1)
    return layout.to_grid(layout.to_grid(x @ x.T, dim=1), dim=0)


def patch_filters(weight_DCHW: Tensor, *, components: int = 28) -> Tensor:
    """Return principal components of the patch embedding's filters: (components, C, patch, patch), each of L2 norm 1.

    Dosovitskiy et al. 2021 (arXiv:2010.11929), figure 7, left. Centred over the D filters.

    Args:
        weight_DCHW: `model.patch_embed.weight`.

    Raises:
        UsageError: more components than filters or than values in one.
    """
    # (D, C, patch, patch) -> (1, D, C*patch*patch)
    x = weight_DCHW.flatten(1)[None]
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    directions = principal(x - x.mean(dim=1, keepdim=True), components)[1][0]
    return directions.unflatten(1, weight_DCHW.shape[1:])


def principal(x: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """Return principal components of centred rows (B, R, D): scores (B, R, components), directions (B, components, D).

    Directions have L2 norm 1 and are in the order of falling variance, signs as in `pca`.

    Raises:
        UsageError: more components than rows or columns.
    """
    if not 1 <= components <= min(x.shape[1:]):
        raise UsageError(f"components is {components}; {x.shape[1]} rows of {x.shape[2]} have 1 to {min(x.shape[1:])}")
    directions = torch.linalg.svd(x, full_matrices=False).Vh[:, :components]
    strongest = directions.gather(-1, directions.abs().argmax(dim=-1, keepdim=True))
    directions = directions * strongest.sign()
    return x @ directions.transpose(1, 2), directions
