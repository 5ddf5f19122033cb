"""A stream of images, or of texts, through a model into a writer of records, one run that can be interrupted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from minivit.errors import ImageError, UsageError
from minivit.images.decode import ImageInput
from minivit.inference.jsonl import Known, utf8
from minivit.inference.predict import image_spec_of
from minivit.inference.prefetch import Input, Result, run_batches
from minivit.inference.records import record
from minivit.model.capabilities import ImageModel
from minivit.model.clip import CLIP

NamedImage = tuple[str, "ImageInput | ImageError"]  # the path of the record, and what to read; or why it cannot be read


class RecordWriter(Protocol):
    """Where records go, in order: a JsonlLog, an EmbeddingWriter, or one of your own."""

    def known(self) -> Iterator[Known]:
        """Yield what an earlier run has written; nothing if the writer cannot resume."""

    def write(self, index: int, item: dict[str, Any]) -> None:
        """Write record `index`."""

    def finish(self, total: int) -> None:
        """Finish after `total` records."""

    def close(self) -> None:
        """Close what is open; written records stay."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The outcome of a run."""

    records: int  # one per input
    failed: int  # of them, those with an error
    kept: int = 0  # of them, those that an earlier run had written, for the same bytes


def write_predictions(
    images: Iterable[NamedImage],
    model: ImageModel,
    predict: Callable[[Tensor], Sequence[Any]],
    writer: RecordWriter,
    constant: dict[str, Any],
    *,
    batch_size: int = 1,
    readers: int | None = None,
    icc: str = "ignore",
    image_timeout: float | None = None,
    report: Callable[[int], object] = lambda done: None,
) -> Summary:
    """Run every image through the model, write one record each, in order, and return how many failed.

    A record of an earlier run stays when path and content are the same. The writer is closed at any end.

    Args:
        images: (path, image) pairs, drawn lazily in a thread.
        model: the one that `predict` runs; its preprocessing and device count.
        predict: `predict.classifier(model, k)` or `predict.embedder(model, pool)`.
        constant: the fields that every record shares, from `records.constants`; with settings of a run, every
            record has the sha256 of its file.
        icc, image_timeout: as in `prefetch.run_batches`.
        report: called with the number of records done, after each one.

    Raises:
        UsageError: the writer has records of other inputs; nothing that exists is removed.
        WriteError: a record cannot be written.
    """
    pending: deque[tuple[str, Known | None]] = deque()  # names of images in progress: drawn in a thread, used here

    def inputs() -> Iterator[Input]:
        known = writer.known()
        for number, (name, image) in enumerate(images, start=1):
            before = next(known, None)
            if before is not None and before.path != utf8(name):
                where = f"{path}: " if (path := getattr(writer, "path", None)) else ""
                raise UsageError(
                    f"{where}of other inputs: its record {number} is {before.path}, input {number} is {name}"
                )
            pending.append((name, before))
            yield Input(image, before.sha256 if before else None)

    results = run_batches(
        inputs(),
        predict,
        image_spec_of(model),
        like=model.patch_embed.weight,
        batch_size=batch_size,
        readers=readers,
        hashing="run" in constant,
        icc=icc,
        image_timeout=image_timeout,
    )
    total = failed = kept = 0
    try:
        with closing(results):
            for total, result in enumerate(results, start=1):
                name, before = pending.popleft()
                if result.kept and before is not None:
                    kept += 1
                    failed += before.error is not None
                else:
                    item = record(name, result, constant)
                    failed += "error" in item
                    if before == Known.of(item):  # unreadable before and now: there is no hash to compare
                        kept += 1
                    else:
                        writer.write(total - 1, item)
                report(total)
        writer.finish(total)
    finally:
        writer.close()
    return Summary(records=total, failed=failed, kept=kept)


def write_text_embeddings(
    texts: Sequence[str],
    towers: CLIP,
    writer: RecordWriter,
    constant: dict[str, Any],
    *,
    norm: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Summary:
    """Write one record per text, with the text as its path and its embedding in the space shared with images."""
    try:
        for i, text in enumerate(texts):
            with torch.inference_mode():
                vectors = towers.embed_texts([text]) if norm else towers.encode_text(towers.tokenize([text]))
            result = Result(image=text, value=vectors[0].to("cpu", dtype))
            writer.write(i, record(text, result, constant))
        writer.finish(len(texts))
    finally:
        writer.close()
    return Summary(records=len(texts), failed=0)


def default_batch_size(model: ImageModel) -> int:
    """Return 1 on a CPU, where larger batches gain little, and 32 elsewhere."""
    return 1 if model.patch_embed.weight.device.type == "cpu" else 32
