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


class Tokenizer:
    """Texts -> ids_BT, equal to transformers' tokenizer of the same files.

    A text gets start and end tokens if the tokenizer has them. It is truncated to the context, and the end token is
    kept. It is padded to the longest text, or with `pad_to_context` to the context. tokenizer_config.json beside
    tokenizer.json names the padding token; without that file it is the token that ends a text.

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
        tokenizer.enable_truncation(self.context)
        pad = self._pad(tokenizer)
        tokenizer.enable_padding(
            length=self.context if self.pad_to_context else None, pad_id=pad, pad_token=tokenizer.id_to_token(pad)
        )
        self._loaded = tokenizer
        return tokenizer

    def _pad(self, tokenizer: Any) -> int:
        """Return the id of the padding token."""
        beside = self.path.parent / "tokenizer_config.json"
        given = None
        if beside.is_file():
            try:
                given = json.loads(beside.read_text(encoding="utf-8")).get("pad_token")
            except (OSError, ValueError, AttributeError) as error:
                raise CheckpointError(f"{beside}: not readable as JSON ({error})") from None
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
