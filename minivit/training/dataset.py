"""Labelled pictures for training and evaluation: a folder of class folders, or a tar of one."""

from __future__ import annotations

import random
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath

from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from minivit.errors import UsageError
from minivit.images.decode import IMAGE_SUFFIXES, open_image
from minivit.images.preprocess import levels_from_image, resize_and_crop
from minivit.images.spec import ImageSpec
from minivit.training.recipe import Augmentation


@dataclass(frozen=True, kw_only=True)
class Photos:
    """Pictures with their classes. The class of a picture is the folder it lies in."""

    source: Path  # the folder or the tar
    classes: list[str]  # folder names in sorted order; a label is an index into this list
    names: list[str]  # path of every picture inside the source, sorted
    labels: list[int]
    spans: list[tuple[int, int]] | None  # (offset, bytes) of every picture in the tar; None for a folder

    def __len__(self) -> int:
        return len(self.names)

    def open(self, index: int) -> Image.Image:
        """Picture `index`, upright and RGB; raises ImageError as `open_image` does."""
        name = f"{self.source}/{self.names[index]}"
        if self.spans is None:
            return open_image(name)
        offset, size = self.spans[index]
        with self.source.open("rb") as file:
            file.seek(offset)
            return open_image(BytesIO(file.read(size)), name=name)


def find_photos(source: str | Path) -> Photos:
    """The labelled pictures of a folder of class folders or of an uncompressed tar of one.

    Pictures may lie any number of folders deep (`train/cat/1.jpg`), as long as all class folders
    are siblings; files that are no pictures by their suffix are left out.

    Raises:
        UsageError: nothing there, a compressed tar, no pictures, or class folders of two parents.
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
        raise UsageError(f"{source}: no pictures in it; expected a folder of class folders, such as cat/1.jpg")
    if PurePosixPath(".") in folders:
        raise UsageError(f"{source}: {names[0]} lies in no class folder; expected a layout such as cat/1.jpg")
    if len({folder.parent for folder in folders}) > 1:
        parents = sorted({str(folder.parent) for folder in folders})
        raise UsageError(f"{source}: class folders lie under several parents ({', '.join(parents[:4])}); name one")
    index = {folder: label for label, folder in enumerate(folders)}
    return Photos(
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


def augment(image: Image.Image, spec: ImageSpec, how: Augmentation, rng: random.Random) -> Image.Image:
    """One variation of an RGB picture at the size of `spec`; the same `rng` state gives the same pixels."""
    if how.crop == "resized":
        part = image.crop(_random_box(image.size, how.smallest, rng))
        image = resize_and_crop(part, ImageSpec(resize=spec.size, resample=spec.resample))
    else:
        image = resize_and_crop(image, spec)
    if how.crop == "padded":
        image = _shift(image, rng)
    if how.flip and rng.random() < 0.5:
        image = ImageOps.mirror(image)
    for operation in rng.choices(list(OPERATIONS.values()), k=how.operations):
        image = operation(image, how.magnitude * rng.choice((-1, 1)))
    return image


def _random_box(size: tuple[int, int], smallest: float, rng: random.Random) -> tuple[int, int, int, int]:
    """A random part of the picture (left, top, right, bottom): area share in [smallest, 1], aspect in [3/4, 4/3]."""
    width, height = size
    area = width * height * rng.uniform(smallest, 1)
    aspect = rng.uniform(3 / 4, 4 / 3)
    box_width = min(width, max(1, round((area * aspect) ** 0.5)))
    box_height = min(height, max(1, round((area / aspect) ** 0.5)))
    left, top = rng.randint(0, width - box_width), rng.randint(0, height - box_height)
    return left, top, left + box_width, top + box_height


def _shift(image: Image.Image, rng: random.Random) -> Image.Image:
    """Move the picture by up to an eighth of its sides; what comes in from outside is black."""
    width, height = image.size
    x, y = rng.randint(-(width // 8), width // 8), rng.randint(-(height // 8), height // 8)
    return image.crop((x, y, x + width, y + height))


GREY = (128, 128, 128)


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=GREY)


# Name -> (image, strength in [-1, 1]) -> image: the list of RandAugment, each bounded to what keeps a picture legible.
OPERATIONS: dict[str, Callable[[Image.Image, float], Image.Image]] = {
    "identity": lambda image, s: image,
    "autocontrast": lambda image, s: ImageOps.autocontrast(image),
    "equalize": lambda image, s: ImageOps.equalize(image),
    "rotate": lambda image, s: image.rotate(30 * s, Image.Resampling.BILINEAR, fillcolor=GREY),
    "posterize": lambda image, s: ImageOps.posterize(image, 8 - round(4 * abs(s))),
    "solarize": lambda image, s: ImageOps.solarize(image, 256 - round(128 * abs(s))),
    "colour": lambda image, s: ImageEnhance.Color(image).enhance(1 + 0.9 * s),
    "contrast": lambda image, s: ImageEnhance.Contrast(image).enhance(1 + 0.9 * s),
    "brightness": lambda image, s: ImageEnhance.Brightness(image).enhance(1 + 0.9 * s),
    "sharpness": lambda image, s: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * s),
    "shear_x": lambda image, s: _affine(image, 1, 0.3 * s, 0, 0, 1, 0),
    "shear_y": lambda image, s: _affine(image, 1, 0, 0, 0.3 * s, 1, 0),
    "translate_x": lambda image, s: _affine(image, 1, 0, 0.45 * s * image.width, 0, 1, 0),
    "translate_y": lambda image, s: _affine(image, 1, 0, 0, 0, 1, 0.45 * s * image.height),
}


class AugmentedPhotos:
    """A map-style data set of (levels_CHW, label), uint8, for torch's DataLoader.

    A key is (epoch, index), and a picture depends on (seed, epoch, index) alone, so the order of
    workers, the number of processes and an interruption change nothing. Decoded pictures are kept
    up to CACHE_BYTES: small ones such as CIFAR's are read from disk once.
    """

    CACHE_BYTES = 2**29

    def __init__(self, photos: Photos, spec: ImageSpec, augmentation: Augmentation, seed: int):
        self.photos, self.spec, self.augmentation, self.seed = photos, spec, augmentation, seed
        self.decoded: dict[int, Image.Image] = {}
        self.room = self.CACHE_BYTES

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = key
        rng = random.Random(f"{self.seed}/{epoch}/{index}")
        image = augment(self._decoded(index), self.spec, self.augmentation, rng)
        return levels_from_image(image), self.photos.labels[index]

    def _decoded(self, index: int) -> Image.Image:
        image = self.decoded.get(index)
        if image is None:
            image = self.photos.open(index)
            self.room -= 3 * image.width * image.height
            if self.room > 0:
                self.decoded[index] = image
        return image
