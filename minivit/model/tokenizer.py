"""From texts to token ids, with the checkpoint's tokenizer.json and the `tokenizers` package (extra `clip`)."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minivit.errors import CheckpointError, UsageError

SETTINGS = "tokenizer_config.json"
LOWERED = ("Siglip2Tokenizer",)  # classes of transformers that put texts in lower case, whatever tokenizer.json says
PADDED_LEFT = {"Siglip2Tokenizer": "left", "GemmaTokenizer": "left"}  # where tokenizer_config.json has no padding_side


class Tokenizer:
    """Texts -> ids_BT, equal to transformers' tokenizer of the same files.

    A text gets start and end tokens if the tokenizer has them. It is truncated to the context, and the end token is
    kept. It is padded to the longest text, or with `pad_to_context` to the context. tokenizer_config.json and
    special_tokens_map.json beside tokenizer.json name the sides and the padding token; without them padding is on the
    right, with the token that ends a text.

    Args:
        path: tokenizer.json.
        context: most tokens of a text.
        vocabulary: number of ids of the model.
        pad_to_context: pad every text to `context` (SigLIP).
        canonical: remove punctuation and capital letters first, as open_clip does for SigLIP.
    """

    def __init__(self, path: Path, *, context: int, vocabulary: int, pad_to_context: bool, canonical: bool = False):
        self.path = path
        self.context = context
        self.vocabulary = vocabulary
        self.pad_to_context = pad_to_context
        self.canonical = canonical
        self._loaded: Any = None

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return token ids, an int64 tensor (B, T).

        Raises:
            UsageError: the tokenizers package is missing.
            CheckpointError: tokenizer.json cannot be read, or has an id outside the vocabulary.
        """
        encodings = self._tokenizer().encode_batch([canonicalize(text) if self.canonical else text for text in texts])
        return torch.tensor([encoding.ids for encoding in encodings])

    def _tokenizer(self) -> Any:
        """Return the package's tokenizer. It is read on first use: images alone do not need the package."""
        if self._loaded is not None:
            return self._loaded
        try:
            from tokenizers import Tokenizer as Reader
        except ImportError:
            raise UsageError("texts need the tokenizers package: pip install 'minivit[clip]'") from None
        try:
            tokenizer = Reader.from_file(str(self.path))
        except Exception as error:  # the package raises plain Exception
            raise CheckpointError(f"{self.path}: the tokenizers package cannot read it ({error})") from None
        highest = max(tokenizer.get_vocab().values(), default=-1)
        if highest >= self.vocabulary:
            raise CheckpointError(
                f"{self.path}: has ids up to {highest}; the model's vocabulary has 0 to {self.vocabulary - 1}"
            )
        tokenizer.no_padding()
        settings = self._settings()
        kind = str(settings.get("tokenizer_class") or "").removesuffix("Fast")
        if kind in LOWERED:
            from tokenizers import normalizers

            rest = [tokenizer.normalizer] if tokenizer.normalizer is not None else []
            tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *rest])
        usual = {"padding_side": PADDED_LEFT.get(kind, "right"), "truncation_side": "right"}
        pads, cuts = (settings.get(key) or side for key, side in usual.items())
        for key, side in (("padding_side", pads), ("truncation_side", cuts)):
            if side not in ("left", "right"):
                raise CheckpointError(f"{self.path.parent / SETTINGS}: {key} is {side!r}; it must be left or right")
        tokenizer.enable_truncation(self.context, direction=cuts)
        pad = self._pad(tokenizer, settings.get("pad_token"))
        tokenizer.enable_padding(
            direction=pads,
            length=self.context if self.pad_to_context else None,
            pad_id=pad,
            pad_token=tokenizer.id_to_token(pad),
        )
        self._loaded = tokenizer
        return tokenizer

    def _settings(self) -> dict[str, Any]:
        """Return the words of special_tokens_map.json and tokenizer_config.json, of which the second has priority."""
        settings: dict[str, Any] = {}
        for name in ("special_tokens_map.json", SETTINGS):
            beside = self.path.parent / name
            if beside.is_file():
                try:
                    words = json.loads(beside.read_text(encoding="utf-8")).items()
                except (OSError, ValueError, AttributeError, RecursionError) as error:
                    raise CheckpointError(f"{beside}: not readable as JSON ({error})") from None
                settings |= {key: value for key, value in words if value is not None}
        return settings

    def _pad(self, tokenizer: Any, given: Any) -> int:
        """Return the id of the padding token that the settings name, else of the token that ends a text."""
        beside = self.path.parent / SETTINGS
        token = given.get("content") if isinstance(given, dict) else given
        if token is not None:
            pad = tokenizer.token_to_id(str(token))
            if pad is None:
                raise CheckpointError(f"{beside}: the padding token {token!r} is not in {self.path.name}")
            return pad
        ids = tokenizer.encode("").ids
        if not ids:
            raise CheckpointError(f"{self.path}: has no end token and no padding token")
        return ids[-1]


def canonicalize(text: str) -> str:
    """Return a text in lower case, without ASCII punctuation and with single spaces.

    It equals canonicalize_text of open_clip and big_vision, but it does not repair wrongly decoded characters, for
    which open_clip uses the ftfy package.
    """
    text = text.replace("_", " ").translate(str.maketrans("", "", string.punctuation))
    return " ".join(text.lower().split())
