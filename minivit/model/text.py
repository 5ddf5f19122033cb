"""Texts become places in the space they share with pictures: tokens, the blocks of block.py, one token read."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minivit.errors import ShapeError, UsageError
from minivit.model.attention import Attend, attend_causal, attend_sdpa
from minivit.model.block import Block
from minivit.model.config import TextConfig


class TextTower(nn.Module):
    """A Transformer that reads token ids: (B, T) -> (B, E). CLIP: arXiv:2103.00020, section 2.4.

    Attributes:
        config: the TextConfig it was built from.
        attend: the attention callable of its blocks: `attend_causal` where a token must not see those behind it,
            the one that was given where all see all (SigLIP).
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
        """Token ids, (B, T) integers -> embeddings (B, E), not of length 1.

        Raises:
            ShapeError: more tokens than the tower has positions, or ids that are no (B, T).
            UsageError: an id outside the vocabulary, or a text without its end.
        """
        return self.proj(self.pool(self.features(ids_BT), ids_BT))

    def features(self, ids_BT: Tensor) -> Tensor:
        """Token ids (B, T) -> tokens (B, T, D) after the final norm; raises as `forward`."""
        config = self.config
        if ids_BT.ndim != 2 or not 1 <= ids_BT.shape[1] <= config.context:
            raise ShapeError(f"ids have shape {tuple(ids_BT.shape)}; expected (B, T) with T from 1 to {config.context}")
        if ids_BT.numel() and not 0 <= int(ids_BT.min()) <= int(ids_BT.max()) < config.vocabulary:
            low, high = int(ids_BT.min()), int(ids_BT.max())
            raise UsageError(f"ids go from {low} to {high}; the vocabulary has 0 to {config.vocabulary - 1}")
        x = self.token_embed(ids_BT) + self.pos_embed[:, : ids_BT.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def pool(self, tokens_BTD: Tensor, ids_BT: Tensor) -> Tensor:
        """The token that speaks for the text: (B, T, D) -> (B, D).

        "end" is the first token with the id that ends a text. Config files of OpenAI's CLIP from before it was known
        (transformers, pull request 24773) say that id is 2, and mean the greatest id of all: "argmax". SigLIP reads
        the "last" position, whatever stands there: its texts are padded to the whole context.
        """
        how = self.config.pooling
        if how == "last":
            return tokens_BTD[:, -1]
        if how == "end":
            ends_BT = ids_BT == self.config.end
            if not bool(ends_BT.any(dim=-1).all()):
                raise UsageError(f"a text has no token {self.config.end}, which ends it")
            place_B = ends_BT.int().argmax(dim=-1)  # the first
        else:
            place_B = ids_BT.argmax(dim=-1)
        return tokens_BTD[torch.arange(len(tokens_BTD), device=tokens_BTD.device), place_B]
