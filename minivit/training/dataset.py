"""Labelled images for training and evaluation, from a folder of class folders or from a tar of one."""

from __future__ import annotations

import random
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

from PIL import Image
from torch import Tensor

from minivit.errors import UsageError
from minivit.images.decode import IMAGE_SUFFIXES, open_image
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

    Images may lie any number of folders deep (`train/cat/1.jpg`), if all class folders are siblings. Files without
    the suffix of an image are ignored.

    Raises:
        UsageError: no such file, a compressed tar, no images, or class folders of two parents.
    """
    source = Path(source)
    found: Mapping[str, tuple[int, int] | None]
    if source.is_dir():
        found = dict.fromkeys(path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file())
    elif source.is_file():
        found = _tar_spans(source)
    else:
        raise UsageError(f"{source}: no such folder or tar file")
    names = sorted(name for name in found if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES)
    folders = sorted({PurePosixPath(name).parent for name in names})
    if not names:
        raise UsageError(f"{source}: no images in it; expected a folder of class folders, such as cat/1.jpg")
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
    )


def _tar_spans(source: Path) -> dict[str, tuple[int, int]]:
    try:
        with tarfile.open(source, "r:") as tar:
            return {member.name: (member.offset_data, member.size) for member in tar if member.isfile()}
    except tarfile.TarError as error:
        raise UsageError(f"{source}: not an uncompressed tar file ({error}); unpack it and name the folder") from None


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
