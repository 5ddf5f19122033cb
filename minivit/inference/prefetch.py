"""Many images through one model: threads read ahead, every image keeps its place, results come in order."""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import islice
from queue import SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from minivit.errors import ImageError
from minivit.images.decode import ImageInput, open_image
from minivit.images.preprocess import levels_from_image, normalize, pixels_from_image, resize_and_crop
from minivit.images.spec import ImageSpec

A = TypeVar("A")
B = TypeVar("B")


class Input(NamedTuple):
    """An image to predict, or the reason why there is none; and what an earlier run knows of it."""

    image: ImageInput | ImageError
    sha256: str | None = None  # of the bytes that an earlier run predicted


@dataclass(kw_only=True)
class Result:
    """The outcome for one image: its `value`, or the `error` that replaces it."""

    image: ImageInput | ImageError  # as it was given
    value: Any = None  # what `predict` returned for this image
    error: ImageError | None = None
    warnings: list[str] = field(default_factory=list)  # what was done to convert the image to RGB
    sha256: str | None = None  # of the file's bytes, when hashing is on and they could be read
    kept: bool = False  # the bytes have Input.sha256: the earlier record stays valid, and there is no value


@dataclass(kw_only=True)
class _Loaded(Result):
    """A result in progress, with the model's input."""

    prepared: Tensor | None = None  # levels (C, H, W), uint8; with float_resize pixels (C, H, W), float32


def default_readers() -> int:
    """Return the number of threads that read ahead: one per two cores, at most eight."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(1, cores // 2))


def run_batches(
    inputs: Iterable[Input],
    predict: Callable[[Tensor], Sequence[Any]],
    spec: ImageSpec,
    *,
    like: Tensor,
    batch_size: int = 1,
    readers: int | None = None,
    hashing: bool = False,
    icc: str = "ignore",
    image_timeout: float | None = None,
) -> Generator[Result, None, None]:
    """Yield one Result per image, in order; an image that cannot be read yields an error, the others continue.

    Threads read, decode and resize beside the model: Pillow releases Python's lock in both. At most two batches
    wait, so memory does not grow with the number of images.

    Image i runs in batch i // batch_size at position i % batch_size, and an unreadable image leaves its position
    black: batch shapes, and so roundings, depend on the number of images alone. Images that are kept from an
    earlier run are read again only when their batch runs.

    Args:
        inputs: drawn in a thread, one after another, as room becomes free.
        predict: pixels_BCHW -> a sequence of B values.
        spec: how an image becomes pixels.
        like: a tensor with the device and dtype of the pixels.
        batch_size: images per forward pass.
        readers: threads that read ahead; `default_readers()` when None.
        hashing: compute the sha256 of every file; Input.sha256 is ignored without it.
        icc: what is done with colour profiles, as in `open_image`.
        image_timeout: seconds after which an image that is still being read becomes an error of code "timeout"; no
            limit when None, so that results do not depend on the load of the machine.
    """
    seen = read_ahead(
        inputs,
        lambda one: _load(one, spec, hashing, icc),
        readers=readers or default_readers(),
        ahead=2 * batch_size,
        timeout=image_timeout,
        late=lambda one: _late(one, image_timeout),
    )
    while batch := list(islice(seen, batch_size)):
        if any(one.prepared is not None for one in batch):
            for one in batch:
                if one.kept:
                    with suppress(ImageError):
                        one.prepared = _prepare(one.image, spec, _name(one.image), [], icc)
            black = torch.zeros_like(next(one.prepared for one in batch if one.prepared is not None))
            stacked = torch.stack([black if one.prepared is None else one.prepared for one in batch])
            for one, value in zip(batch, predict(_pixels(stacked, spec, like)), strict=True):
                one.value = value if one.prepared is not None and not one.kept else None
                one.prepared = None
        yield from batch


def read_ahead(
    items: Iterable[A],
    read: Callable[[A], B],
    *,
    readers: int,
    ahead: int,
    timeout: float | None = None,
    late: Callable[[A], B] | None = None,
) -> Iterator[B]:
    """Yield `map(read, items)` in order, computed by `readers` threads with at most `ahead` results waiting.

    A result is yielded as soon as it is ready, even while `items` still waits for its next one. An exception of
    `items` or `read` is raised here, in its turn. The threads are daemons: they end with the process.

    Args:
        timeout: seconds after which `late(item)` is yielded in place of `read(item)`, and another thread replaces the
            one that hangs, which cannot be stopped.
    """
    source = iter(items)
    room = threading.Semaphore(ahead)
    turn = threading.Lock()
    ended = threading.Event()
    order: SimpleQueue[_Reading[A, B] | None] = SimpleQueue()

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
                        order.put(_Reading(future, None, 0.0))
                    order.put(None)
                    return
                reading = _Reading(future, item, time.monotonic())
                order.put(reading)
            try:
                future.set_result(read(item))
            except BaseException as error:
                future.set_exception(error)
            if reading.abandoned:
                return
            del item, future, reading

    def start() -> threading.Thread:
        thread = threading.Thread(target=work, name="minivit-reader", daemon=True)
        thread.start()
        return thread

    threads = [start() for _ in range(readers)]
    try:
        while (one := order.get()) is not None:
            if timeout is not None and late is not None and not one.done_by(timeout):
                result = late(one.item)  # type: ignore[arg-type]
                threads.append(start())
            else:
                result = one.future.result()
            del one
            room.release()
            yield result
            del result
    finally:
        ended.set()
        room.release(len(threads))
        # Python aborts when it ends while a thread runs C++ code; a thread that waits for input may be left.
        until = time.monotonic() + 1
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))


class _Reading(Generic[A, B]):
    """An item that a thread reads."""

    def __init__(self, future: Future[B], item: A | None, begun: float):
        self.future, self.item, self.begun = future, item, begun
        self.abandoned = False  # its thread was replaced, and ends if it ever comes back

    def done_by(self, timeout: float) -> bool:
        """Wait until the item is read, or `timeout` seconds have passed since its begin; return whether it is."""
        wait([self.future], max(0.0, self.begun + timeout - time.monotonic()))
        self.abandoned = not self.future.done()
        return not self.abandoned


def _late(given: Input, timeout: float | None) -> _Loaded:
    message = f"{_name(given.image)}: not read within {timeout:g} s (--image-timeout)"
    return _Loaded(image=given.image, error=ImageError("timeout", message))


def _load(given: Input, spec: ImageSpec, hashing: bool, icc: str) -> _Loaded:
    """Return one image prepared for the model, or with the reason why not, or marked as kept."""
    one = _Loaded(image=given.image)
    try:
        with ExitStack() as opened:
            source, one.sha256 = _hashed(given.image, opened) if hashing else (given.image, None)
            one.kept = one.sha256 is not None and one.sha256 == given.sha256
            if not one.kept:
                one.prepared = _prepare(source, spec, _name(given.image), one.warnings, icc)
    except ImageError as error:
        one.error = error
    return one


def _prepare(source: ImageInput | ImageError, spec: ImageSpec, name: str, warnings: list[str], icc: str) -> Tensor:
    """Return the image at the size of `spec`; `_pixels` does the arithmetic for a whole batch. Raises ImageError."""
    if isinstance(source, ImageError):
        raise source
    _refuse_pipes(source)
    image = resize_and_crop(open_image(source, name=name, warn=warnings.append, icc=icc), spec, name=name)
    return pixels_from_image(image, spec) if spec.float_resize else levels_from_image(image)


def _pixels(prepared: Tensor, spec: ImageSpec, like: Tensor) -> Tensor:
    """Return stacked results of `_prepare` as pixels_BCHW; bytes are sent to a GPU, a quarter of the floats."""
    if like.is_cuda:
        prepared = prepared.to(like.device)
    return (normalize(prepared, spec) if prepared.dtype == torch.uint8 else prepared).to(like)


def _hashed(image: ImageInput | ImageError, opened: ExitStack) -> tuple[ImageInput | ImageError, str | None]:
    """Return the image, opened if it was a path, and the sha256 of its bytes, or None when it has none."""
    file: Any = image
    try:
        if isinstance(image, (str, os.PathLike)):
            _refuse_pipes(image)
            file = opened.enter_context(open(image, "rb"))  # noqa: SIM115
        elif not hasattr(image, "seek") or not hasattr(image, "read"):
            return image, None
        file.seek(0)
        digest = hashlib.sha256()
        while block := file.read(2**20):
            digest.update(block)
        file.seek(0)
    except (OSError, ValueError):
        return image, None  # opening it once more says why
    return file, digest.hexdigest()


def _name(image: ImageInput | ImageError) -> str:
    return str(image) if isinstance(image, (str, os.PathLike)) else ImageError.UNNAMED


def _refuse_pipes(image: ImageInput | ImageError) -> None:
    """Raise ImageError for a pipe or a device, which could be waited for without end."""
    if isinstance(image, (str, os.PathLike)):
        try:
            mode = os.stat(image).st_mode
        except (OSError, ValueError):
            return  # opening it says why
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            message = f"{image}: a pipe or a device, not a file; one image can be read from standard input, -"
            raise ImageError("unreadable", message)
