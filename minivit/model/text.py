"""The text tower of CLIP and SigLIP: token ids -> text embeddings, with the blocks of block.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minivit.errors import ShapeError, UsageError
from minivit.model.attention import Attend, attend_causal, attend_sdpa
from minivit.model.block import Block
from minivit.model.config import TextConfig


class TextTower(nn.Module):
    """A Transformer on token ids, (B, T) -> (B, E): arXiv:2103.00020, section 2.4.

    Attributes:
        config: the TextConfig it was built from.
        attend: the attention callable of its blocks: `attend_causal` if the config is causal (CLIP), else the given
            one (SigLIP).
    """

    def __init__(self, config: TextConfig, attend: Attend = attend_sdpa):
        super().__init__()
        self.config = config
        self.attend = attend_causal if config.causal else attend
        self.token_embed = nn.Embedding(config.vocabulary, config.width)
        self.pos_embed = nn.Parameter(torch.empty(1, config.context, config.width))
        self.blocks = nn.ModuleList(Block(config, self.attend) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.proj = nn.Linear(config.width, config.projection, bias=config.projection_bias)
        nn.init.trunc_normal_(self.token_embed.weight, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.01)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Return text embeddings (B, E), not normalized, from token ids (B, T), integers.

        Raises:
            ShapeError: ids are not (B, T), or T is larger than the tower's context.
            UsageError: not a tensor of integers, an id outside the vocabulary, or a text without its end token.
        """
        return self.proj(self.pool(self.features(ids_BT), ids_BT))

    def features(self, ids_BT: Tensor) -> Tensor:
        """Return tokens (B, T, D) after the final norm from token ids (B, T); raises as `forward`."""
        config = self.config
        if not isinstance(ids_BT, Tensor):
            raise UsageError(f"ids are a {type(ids_BT).__name__}; expected a tensor (B, T): use model.tokenize(texts)")
        if ids_BT.ndim != 2 or not 1 <= ids_BT.shape[1] <= config.context:
            raise ShapeError(f"ids have shape {tuple(ids_BT.shape)}; expected (B, T) with T from 1 to {config.context}")
        if ids_BT.dtype not in (torch.int64, torch.int32):
            raise UsageError(f"ids are {ids_BT.dtype}; expected torch.int64, as model.tokenize(texts) returns")
        if ids_BT.numel() and not 0 <= int(ids_BT.min()) <= int(ids_BT.max()) < config.vocabulary:
            low, high = int(ids_BT.min()), int(ids_BT.max())
            raise UsageError(f"ids go from {low} to {high}; the vocabulary has 0 to {config.vocabulary - 1}")
        x = self.token_embed(ids_BT) + self.pos_embed[:, : ids_BT.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def pool(self, tokens_BTD: Tensor, ids_BT: Tensor) -> Tensor:
        """Return the token that represents each text: (B, T, D) -> (B, D).

        "end": the first token with the id `config.end`. "argmax": the token with the largest id; older config files of
        OpenAI's CLIP name the wrong end id, 2, and mean this (transformers, pull request 24773). "last": the last
        position (SigLIP, whose texts are padded to the whole context).

        Raises:
            UsageError: pooling is "end" and a text has no end token.
        """
        how = self.config.pooling
        if how == "last":
            return tokens_BTD[:, -1]
        if how == "end":
            ends_BT = ids_BT == self.config.end
            if not bool(ends_BT.any(dim=-1).all()):
                raise UsageError(f"a text has no end token (id {self.config.end})")
            place_B = ends_BT.int().argmax(dim=-1)  # the first
        else:
            place_B = ids_BT.argmax(dim=-1)
        return tokens_BTD[torch.arange(len(tokens_BTD), device=tokens_BTD.device), place_B]
