"""Texts become token ids, by the checkpoint's own tokenizer.json and the `tokenizers` package (extra `clip`)."""

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

    A text gets its start and end, where the tokenizer has them, is cut to the model's context with its end kept, and
    is padded: to the longest of the texts, or with `whole` to the whole context. tokenizer_config.json, where it
    stands beside tokenizer.json, names the token that pads; without it, it is the one that ends a text.

    Args:
        path: tokenizer.json.
        context: tokens a text may have.
        vocabulary: how many ids the model has.
        whole: pad every text to `context` (SigLIP).
        bare: take punctuation and capitals away first, which open_clip leaves to the caller of SigLIP's tokenizer.
    """

    def __init__(self, path: Path, *, context: int, vocabulary: int, whole: bool, bare: bool = False):
        self.path = path
        self.context = context
        self.vocabulary = vocabulary
        self.whole = whole
        self.bare = bare
        self._loaded: Any = None

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Ids as an int64 tensor (B, T).

        Raises:
            UsageError: the tokenizers package is missing.
            CheckpointError: tokenizer.json cannot be read, or has other ids than the model.
        """
        encodings = self._tokenizer().encode_batch([bared(text) if self.bare else text for text in texts])
        return torch.tensor([encoding.ids for encoding in encodings])

    def _tokenizer(self) -> Any:
        """The package's object, read when first needed: importing minivit, or running pictures alone, goes without."""
        if self._loaded is not None:
            return self._loaded
        try:
            from tokenizers import Tokenizer as Reader
        except ImportError:
            raise UsageError("texts need the tokenizers package: pip install 'minivit[clip]'") from None
        try:
            tokenizer = Reader.from_file(str(self.path))
        except Exception as error:  # the package raises plain Exception
            raise CheckpointError(f"{self.path}: not a tokenizer of the tokenizers package ({error})") from None
        highest = max(tokenizer.get_vocab().values(), default=-1)
        if highest >= self.vocabulary:
            raise CheckpointError(
                f"{self.path}: has ids up to {highest}, the model's vocabulary 0 to {self.vocabulary - 1}"
            )
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.context)
        pad = self._pad(tokenizer)
        tokenizer.enable_padding(
            length=self.context if self.whole else None, pad_id=pad, pad_token=tokenizer.id_to_token(pad)
        )
        self._loaded = tokenizer
        return tokenizer

    def _pad(self, tokenizer: Any) -> int:
        """The id that pads."""
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
                raise CheckpointError(f"{beside}: pads with {token!r}, which {self.path.name} does not have")
            return pad
        ids = tokenizer.encode("").ids
        if not ids:
            raise CheckpointError(f"{self.path}: ends no text and names no token that pads")
        return ids[-1]


def bared(text: str) -> str:
    """A text in lower case, without ASCII punctuation, single-spaced: canonicalize_text of open_clip and big_vision.

    open_clip first repairs characters that were decoded wrongly, with the ftfy package; this does not.
    """
    text = text.replace("_", " ").translate(str.maketrans("", "", string.punctuation))
    return " ".join(text.lower().split())
