"""Many pictures through one model: threads read ahead, batches keep their places, results come in order."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import islice
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from minivit.errors import ImageError
from minivit.images.decode import Picture, open_image
from minivit.images.preprocess import levels_from_image, normalize, pixels_from_image, resize_and_crop
from minivit.images.spec import ImageSpec

A = TypeVar("A")
B = TypeVar("B")


class Item(NamedTuple):
    """A picture to answer for, or the reason why there is none; and what is known of it from an earlier run."""

    picture: Picture | ImageError
    sha256: str | None = None  # of the bytes it was answered for already


@dataclass(kw_only=True)
class Answer:
    """What became of one picture: its `value`, or the `error` that stands in its place."""

    picture: Picture | ImageError  # as it was given
    value: Any = None  # what the model's answer was for this picture
    error: ImageError | None = None
    warnings: list[str] = field(default_factory=list)  # liberties taken on the way to RGB
    sha256: str | None = None  # of the file's bytes, where it was asked for and they could be read
    kept: bool = False  # the bytes are those of Item.sha256, so the earlier answer stands; there is no value


@dataclass(kw_only=True)
class _Read(Answer):
    """An answer on its way, with what the model needs."""

    prepared: Tensor | None = None  # levels (C, H, W), uint8; under float_resize pixels (C, H, W), float32


def default_readers() -> int:
    """Threads that read ahead: one for every two cores, at most eight."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(1, cores // 2))


def answer_all(
    items: Iterable[Item],
    answer: Callable[[Tensor], Sequence[Any]],
    spec: ImageSpec,
    *,
    like: Tensor,
    batch_size: int = 1,
    readers: int | None = None,
    hashing: bool = False,
) -> Generator[Answer, None, None]:
    """Answer for every picture, in order; a bad picture becomes an answer with an error, the rest go on.

    Reading, decoding and resizing run in threads beside the model: Pillow lets go of Python's lock in both.
    At most two batches lie ready, so memory does not grow with the number of pictures.

    Picture i runs in batch i // batch_size at place i % batch_size, and a bad picture leaves its place black:
    the shapes the model sees depend on the number of pictures alone, and so do the roundings. Pictures that
    are kept from an earlier run are read again only where their batch is.

    Args:
        items: drawn in a thread, one after the other, as room becomes free.
        answer: pixels_BCHW -> one result for each of the B pictures.
        spec: how a picture becomes pixels.
        like: a tensor of the device and dtype the pixels are wanted in.
        batch_size: pictures at once.
        readers: threads that read ahead; `default_readers()` when None.
        hashing: take the sha256 of every file; Item.sha256 means nothing without it.
    """
    seen = read_ahead(
        items,
        lambda item: _read(item, spec, hashing),
        readers=readers or default_readers(),
        ahead=2 * batch_size,
    )
    while batch := list(islice(seen, batch_size)):
        if any(one.prepared is not None for one in batch):
            for one in batch:
                if one.kept:
                    with suppress(ImageError):
                        one.prepared = _prepare(one.picture, spec, _name(one.picture), [])
            black = torch.zeros_like(next(one.prepared for one in batch if one.prepared is not None))
            stacked = torch.stack([black if one.prepared is None else one.prepared for one in batch])
            for one, value in zip(batch, answer(_pixels(stacked, spec, like)), strict=True):
                one.value = value if one.prepared is not None and not one.kept else None
                one.prepared = None
        yield from batch


def read_ahead(items: Iterable[A], read: Callable[[A], B], *, readers: int, ahead: int) -> Iterator[B]:
    """`map(read, items)` by `readers` threads that have at most `ahead` results waiting; in the order of the items.

    An item is handed out as soon as it is read, even while the next one is still waited for. What `items`
    or `read` raise is raised here, in its turn. The threads end with the process, even when one hangs.
    """
    source = iter(items)
    room = threading.Semaphore(ahead)
    turn = threading.Lock()
    ended = threading.Event()
    order: SimpleQueue[Future[B] | None] = SimpleQueue()

    def work() -> None:
        while True:
            room.acquire()
            with turn:
                if ended.is_set():
                    return
                future: Future[B] = Future()
                try:
                    item = next(source)
                except BaseException as error:
                    ended.set()
                    if not isinstance(error, StopIteration):
                        future.set_exception(error)
                        order.put(future)
                    order.put(None)
                    return
                order.put(future)
            try:
                future.set_result(read(item))
            except BaseException as error:
                future.set_exception(error)
            del item, future

    threads = [threading.Thread(target=work, name=f"minivit-reader-{i}", daemon=True) for i in range(readers)]
    for thread in threads:
        thread.start()
    try:
        while (future := order.get()) is not None:
            result = future.result()
            del future
            room.release()
            yield result
            del result
    finally:
        ended.set()
        room.release(readers)
        # An interpreter that ends under a thread in the midst of C++ aborts; one that waits for input may be left.
        until = time.monotonic() + 1
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))


def _read(item: Item, spec: ImageSpec, hashing: bool) -> _Read:
    """One picture on its way: prepared, or with the reason why not, or kept as it is."""
    one = _Read(picture=item.picture)
    try:
        with ExitStack() as opened:
            source, one.sha256 = _hashed(item.picture, opened) if hashing else (item.picture, None)
            one.kept = one.sha256 is not None and one.sha256 == item.sha256
            if not one.kept:
                one.prepared = _prepare(source, spec, _name(item.picture), one.warnings)
    except ImageError as error:
        one.error = error
    return one


def _prepare(source: Picture | ImageError, spec: ImageSpec, name: str, warnings: list[str]) -> Tensor:
    """The picture up to the arithmetic that is better done for a whole batch; raises ImageError."""
    if isinstance(source, ImageError):
        raise source
    _refuse_pipes(source)
    image = resize_and_crop(open_image(source, name=name, warn=warnings.append), spec, name=name)
    return pixels_from_image(image, spec) if spec.float_resize else levels_from_image(image)


def _pixels(prepared: Tensor, spec: ImageSpec, like: Tensor) -> Tensor:
    """A stack of `_prepare` as pixels_BCHW; the bytes are what travels to a GPU, a quarter of the floats."""
    if like.is_cuda:
        prepared = prepared.to(like.device)
    return (normalize(prepared, spec) if prepared.dtype == torch.uint8 else prepared).to(like)


def _hashed(picture: Picture | ImageError, opened: ExitStack) -> tuple[Picture | ImageError, str | None]:
    """The picture, opened where it was a path, and the sha256 of its bytes; None where there are none to read."""
    file: Any = picture
    try:
        if isinstance(picture, (str, os.PathLike)):
            _refuse_pipes(picture)
            file = opened.enter_context(open(picture, "rb"))  # noqa: SIM115
        elif not hasattr(picture, "seek") or not hasattr(picture, "read"):
            return picture, None
        file.seek(0)
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
        file.seek(0)
    except (OSError, ValueError):
        return picture, None  # opening it once more says why
    return file, digest.hexdigest()


def _name(picture: Picture | ImageError) -> str:
    return str(picture) if isinstance(picture, (str, os.PathLike)) else ImageError.UNNAMED


def _refuse_pipes(picture: Picture | ImageError) -> None:
    """A pipe or a device among the pictures would be waited for without end."""
    if isinstance(picture, (str, os.PathLike)):
        try:
            mode = os.stat(picture).st_mode
        except (OSError, ValueError):
            return  # opening it says why
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            message = f"{picture}: a pipe or a device, not a file; one picture can come in through -"
            raise ImageError("unreadable", message)
