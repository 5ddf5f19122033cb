"""Labelled images for training and evaluation, from a folder of class folders or from a tar of one."""

from __future__ import annotations

import random
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

from PIL import Image
from torch import Tensor

from minivit.errors import UsageError
from minivit.images.decode import open_image
from minivit.images.formats import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from minivit.images.preprocess import levels_from_image
from minivit.images.spec import ImageSpec
from minivit.training.augment import augment
from minivit.training.recipe import Augmentation


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """Images with their classes. The class of an image is the name of its folder."""

    source: Path  # the folder or the tar
    classes: list[str]  # folder names in sorted order; a label is an index into this list
    names: list[str]  # path of every image inside the source, sorted
    labels: list[int]
    spans: list[tuple[int, int]] | None  # (offset, bytes) of every image in the tar; None for a folder
    skipped: tuple[str, ...] = ()  # files that are no images of a class, in words

    def __len__(self) -> int:
        return len(self.names)

    def open(self, index: int) -> Image.Image:
        """Return image `index`, upright and RGB; raises ImageError as `open_image` does."""
        name = f"{self.source}/{self.names[index]}"
        if self.spans is None:
            return open_image(name)
        offset, size = self.spans[index]
        with self.source.open("rb") as file:
            file.seek(offset)
            return open_image(BytesIO(file.read(size)), name=name)


def find_images(source: str | Path) -> LabelledImages:
    """Return the labelled images of a folder of class folders, or of an uncompressed tar of one.

    Images may lie any number of folders deep (`train/cat/1.jpg`), if all class folders are siblings. Links to
    folders are followed, but for those that lead back. Hidden files and folders, and images of formats that are not
    read, are counted in `skipped`; other files are ignored.

    Raises:
        UsageError: no such file, a compressed tar, no images, or class folders of two parents.
    """
    source = Path(source)
    found: Mapping[str, tuple[int, int] | None]
    links = 0
    if source.is_dir():
        found = dict.fromkeys(_walk(source, source, ()))
    elif source.is_file():
        found, links = _tar_spans(source)
    else:
        raise UsageError(f"{source}: no such folder or tar file")
    skipped = _skipped(found, links)
    found = {name: span for name, span in found.items() if not _hidden(name)}
    names = sorted(name for name in found if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES)
    folders = sorted({PurePosixPath(name).parent for name in names})
    if not names:
        why = f" ({'; '.join(skipped)})" if skipped else ""
        raise UsageError(f"{source}: no images in it{why}; expected a folder of class folders, such as cat/1.jpg")
    if PurePosixPath(".") in folders:
        raise UsageError(f"{source}: {names[0]} lies in no class folder; expected a layout such as cat/1.jpg")
    if len({folder.parent for folder in folders}) > 1:
        parents = sorted({str(folder.parent) for folder in folders})
        raise UsageError(f"{source}: class folders lie under several parents ({', '.join(parents[:4])}); name one")
    index = {folder: label for label, folder in enumerate(folders)}
    return LabelledImages(
        source=source,
        classes=[folder.name for folder in folders],
        names=names,
        labels=[index[PurePosixPath(name).parent] for name in names],
        spans=None if source.is_dir() else [found[name] for name in names],  # type: ignore[misc]
        skipped=skipped,
    )


def _walk(source: Path, folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    """Yield the path of every file below a folder, inside `source`; of a hidden folder, its own path and a slash.

    A link that leads back is not followed.
    """
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UsageError(f"{folder}: the folder cannot be listed ({error.strerror})") from None
    for path in entries:
        if path.is_dir() and not path.name.startswith("."):
            yield from _walk(source, path, (*above, here))
        elif path.is_file() or path.is_dir() or path.is_symlink():  # a link to nothing is an error when it is read
            yield path.relative_to(source).as_posix() + "/" * path.is_dir()


def _hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts if part != ".")


def _skipped(names: Iterable[str], links: int) -> tuple[str, ...]:
    """Return in words what is skipped of the files that look like images."""
    known, lines = IMAGE_SUFFIXES | UNREAD_SUFFIXES.keys(), []
    suffix_of = {name: PurePosixPath(name).suffix.lower() for name in names}
    hidden = [name for name, suffix in suffix_of.items() if _hidden(name) and (suffix in known or name.endswith("/"))]
    unread = Counter(suffix for name, suffix in suffix_of.items() if suffix in UNREAD_SUFFIXES and not _hidden(name))
    lines = [f"{count} {suffix} not read: {UNREAD_SUFFIXES[suffix]}" for suffix, count in sorted(unread.items())]
    if hidden:
        lines.append(f"{len(hidden)} hidden skipped, such as {hidden[0]}")
    if links:
        lines.append(f"{links} links in the tar skipped; make it with tar --dereference --hard-dereference")
    return tuple(lines)


def _tar_spans(source: Path) -> tuple[dict[str, tuple[int, int]], int]:
    """Return the place of every file of a tar, and the number of links in it."""
    try:
        with tarfile.open(source, "r:") as tar:
            members = list(tar)
    except tarfile.TarError as error:
        raise UsageError(f"{source}: not an uncompressed tar file ({error}); unpack it and name the folder") from None
    spans = {member.name: (member.offset_data, member.size) for member in members if member.isfile()}
    return spans, sum(member.issym() or member.islnk() for member in members)


class TrainingImages:
    """A map-style data set of (levels_CHW, label), uint8, for torch's DataLoader.

    A key is (epoch, index). An augmented image depends on (seed, epoch, index) alone, so the order of workers, the
    number of processes and an interruption change nothing. Decoded images are cached up to CACHE_BYTES, so that
    small ones such as CIFAR's are read from disk once.
    """

    CACHE_BYTES = 2**29

    def __init__(self, images: LabelledImages, spec: ImageSpec, augmentation: Augmentation, seed: int):
        self.images, self.spec, self.augmentation, self.seed = images, spec, augmentation, seed
        self.decoded: dict[int, Image.Image] = {}
        self.room = self.CACHE_BYTES

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        rng = random.Random(f"{self.seed}/{epoch}/{index}")
        image = augment(self._decoded(index), self.spec, self.augmentation, rng)
        return levels_from_image(image), self.images.labels[index]

    def _decoded(self, index: int) -> Image.Image:
        image = self.decoded.get(index)
        if image is None:
            image = self.images.open(index)
            self.room -= 3 * image.width * image.height
            if self.room > 0:
                self.decoded[index] = image
        return image
