"""Batches of labelled images, read ahead by worker processes; a broken image is the same error from any of them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from minivit.errors import MinivitError
from minivit.training.dataset import TrainingImages

Key = tuple[int, int]  # (epoch, index)


def load_batches(images: TrainingImages, keys: list[list[Key]], *, workers: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield levels (B, C, H, W), uint8, and labels (B) of every batch of keys.

    Args:
        workers: processes that read ahead; 0 reads in this one.

    Raises:
        ImageError: an image cannot be read.
    """
    loader: torch.utils.data.DataLoader = torch.utils.data.DataLoader(
        _Returning(images),  # type: ignore[arg-type]
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_leave_signals_to_the_parent,
    )
    for batch in loader:
        if isinstance(batch, MinivitError):
            raise batch
        yield batch


class _Returning:
    """The images, with an error as a value: torch would wrap one that is raised in a worker into a traceback."""

    def __init__(self, images: TrainingImages):
        self.images = images

    def __getitem__(self, key: Key) -> tuple[Tensor, int] | MinivitError:
        try:
            return self.images[key]
        except MinivitError as error:
            return error


def _collate(items: list[Any]) -> Any:
    return next((item for item in items if isinstance(item, MinivitError)), None) or default_collate(items)


def _leave_signals_to_the_parent(worker: int) -> None:
    """A signal to the whole process group ends the run through the parent, which saves the state first."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
