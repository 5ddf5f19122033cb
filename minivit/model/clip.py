"""CLIP (arXiv:2103.00020) and SigLIP (arXiv:2303.15343): an image tower and a text tower with one embedding space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivit.errors import CheckpointError, UsageError
from minivit.images.spec import ImageSpec
from minivit.model.attention import Attend, attend_sdpa
from minivit.model.config import CLIPConfig
from minivit.model.text import TextTower
from minivit.model.tokenizer import Tokenizer
from minivit.model.vit import ViT, cosine_logits


class CLIP(nn.Module):
    """A ViT for images, a Transformer for texts, and the similarity of their embeddings.

    Attributes:
        config: the CLIPConfig it was built from.
        image: the image tower, a ViT without a head; use it wherever a ViT is needed.
        text: the text tower.
        tokenizer: texts -> token ids, from the checkpoint's tokenizer.json; None if there is none.
    """

    has_text: ClassVar[Literal[True]] = True  # see capabilities.py
    windowed: ClassVar[Literal[False]] = False

    def __init__(self, config: CLIPConfig, attend: Attend = attend_sdpa):
        super().__init__()
        self.config = config
        self.tokenizer: Tokenizer | None = None
        self.image = ViT(config.image, attend)
        self.text = TextTower(config.text, attend)
        self.logit_scale = nn.Parameter(torch.full((1,), 2.6592))  # ln(1 / 0.07), the paper's initial value
        self.logit_bias = nn.Parameter(torch.full((1,), -10.0)) if config.score == "sigmoid" else None

    def forward(self, pixels_BCHW: Tensor, ids_LT: Tensor, *, resample: bool = False) -> Tensor:
        """Return logits_BL for pixels (B, C, H, W) and token ids (L, T) of texts.

        The softmax of a row gives scores for CLIP, the sigmoid of each logit for SigLIP.

        Raises:
            ShapeError, UsageError: as the towers.
        """
        images_BE = self.encode_image(pixels_BCHW, resample=resample)
        return cosine_logits(images_BE, self.encode_text(ids_LT), self.logit_scale, self.logit_bias)

    def encode_image(self, pixels_BCHW: Tensor, *, resample: bool = False) -> Tensor:
        """Return image embeddings (B, E), not normalized, from pixels (B, C, H, W)."""
        return self.image(pixels_BCHW, resample=resample)

    def encode_text(self, ids_BT: Tensor) -> Tensor:
        """Return text embeddings (B, E), not normalized, from token ids (B, T)."""
        return self.text(ids_BT)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Return token ids (B, T) of texts, int64, on the device of the weights; a long text is truncated.

        Raises:
            CheckpointError: the checkpoint has no tokenizer.json, or one that does not fit this model.
            UsageError: the tokenizers package is missing, or there are no texts.
        """
        if self.tokenizer is None:
            raise CheckpointError(f"{self.name}: has no tokenizer.json, which texts need; put it beside config.json")
        if isinstance(texts, str) or not texts:
            raise UsageError(f"texts is {texts!r}; give a list of at least one text")
        return self.tokenizer(texts).to(self.logit_scale.device)

    def embed_texts(self, texts: Sequence[str], *, batch_size: int = 256) -> Tensor:
        """Return text embeddings (B, E) with an L2 norm of 1; raises as `tokenize`."""
        with torch.no_grad():
            parts = self.tokenize(texts).split(batch_size)
            return torch.cat([F.normalize(self.encode_text(part), dim=-1) for part in parts])

    def zero_shot(self, labels: Sequence[str], templates: Sequence[str] = ("{}",)) -> ViT:
        """Return the image tower as a ViT with a head that has a class for each label; it shares the tower's weights.

        It works wherever a ViT with a head does: classify, trace, relevance. The embeddings of several templates are
        normalized, averaged and normalized again, as in section 3.1.4 of arXiv:2103.00020.

        Args:
            labels: names of the classes.
            templates: texts with {} in the place of the label, such as "a photo of a {}".

        Raises:
            UsageError: no labels, a repeated label, or a template without {}.
            CheckpointError: as `tokenize`.
        """
        if isinstance(labels, str) or not labels:
            raise UsageError(f"labels is {labels!r}; give a list of at least one")
        repeated = next((label for i, label in enumerate(labels) if label in labels[:i]), None)
        if repeated is not None:
            raise UsageError(f"label {repeated!r} is given more than once")
        if isinstance(templates, str) or not templates:
            raise UsageError(f"templates is {templates!r}; give a list of at least one")
        wrong = next((template for template in templates if "{}" not in template), None)
        if wrong is not None:
            raise UsageError(f"template {wrong!r} has no {{}} for the label")
        texts = [template.replace("{}", label) for label in labels for template in templates]
        # (L * templates, E) -> (L, E)
        means_LE = self.embed_texts(texts).unflatten(0, (len(labels), -1)).mean(dim=1)
        config = replace(self.image.config, classes=len(labels), head="cosine", score=self.config.score)
        with torch.device("meta"):
            model = ViT(config, self.image.attend)
        bias = torch.zeros_like(self.logit_scale) if self.logit_bias is None else self.logit_bias
        head = {"weight": F.normalize(means_LE, dim=-1), "logit_scale": self.logit_scale, "logit_bias": bias}
        state = {**self.image.state_dict(), **{f"head.{name}": tensor.detach() for name, tensor in head.items()}}
        model.load_state_dict(state, assign=True)
        model.labels = dict(enumerate(labels))
        model.image_spec, model.name, model.revision = self.image_spec, self.name, self.revision
        return model.eval()

    @property
    def image_spec(self) -> ImageSpec | None:
        """The image preprocessing, or None if the checkpoint has none."""
        return self.image.image_spec

    @property
    def name(self) -> str | None:
        """The hub id or path of the weights; set by `minivit.load`."""
        return self.image.name

    @property
    def revision(self) -> str | None:
        """The commit of a hub model; set by `minivit.load`."""
        return self.image.revision
