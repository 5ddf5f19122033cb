"""Augmentation: random variations of one image (RandomResizedCrop, RandAugment), and of a batch (mixup, cutmix)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Tensor

from minivit.images.preprocess import resize_and_crop
from minivit.images.spec import ImageSpec
from minivit.training.recipe import Augmentation, Recipe


def augment(image: Image.Image, spec: ImageSpec, how: Augmentation, rng: random.Random) -> Image.Image:
    """Return an augmented RGB image at the size of `spec`; the same state of `rng` gives the same pixels."""
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
    """Return the box (left, top, right, bottom) of RandomResizedCrop: scale in [smallest, 1], ratio in [3/4, 4/3]."""
    width, height = size
    area = width * height * rng.uniform(smallest, 1)
    aspect = rng.uniform(3 / 4, 4 / 3)
    box_width = min(width, max(1, round((area * aspect) ** 0.5)))
    box_height = min(height, max(1, round((area / aspect) ** 0.5)))
    left, top = rng.randint(0, width - box_width), rng.randint(0, height - box_height)
    return left, top, left + box_width, top + box_height


def _shift(image: Image.Image, rng: random.Random) -> Image.Image:
    """Return the image as RandomCrop with black padding leaves it: moved by up to 1/8 of its sides."""
    width, height = image.size
    x, y = rng.randint(-(width // 8), width // 8), rng.randint(-(height // 8), height // 8)
    return image.crop((x, y, x + width, y + height))


GREY = (128, 128, 128)


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=GREY)


# RandAugment: name -> (image, strength in [-1, 1]) -> image, each bounded so that images stay legible.
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


def mix(pixels: Tensor, targets: Tensor, recipe: Recipe, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return pixels (B, C, H, W) and targets (B, L) after mixup or cutmix of neighbours in the batch; B is even.

    Pairing neighbours of an already shuffled batch needs no exchange between processes.
    """
    alpha = recipe.mixup
    cut = bool(recipe.cutmix) and (not alpha or torch.rand((), generator=generator).item() < 0.5)
    alpha = recipe.cutmix if cut else alpha
    if not alpha:
        return pixels, targets
    kept = random.Random(int(torch.randint(2**62, (), generator=generator))).betavariate(alpha, alpha)
    partner = pixels.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
    if cut:
        height, width = pixels.shape[2:]
        box_height, box_width = (round(side * math.sqrt(1 - kept)) for side in (height, width))
        top = int(torch.randint(height - box_height + 1, (), generator=generator))
        left = int(torch.randint(width - box_width + 1, (), generator=generator))
        pixels = pixels.clone()
        box = (..., slice(top, top + box_height), slice(left, left + box_width))
        pixels[box] = partner[box]
        kept = 1 - box_height * box_width / (height * width)
    else:
        pixels = kept * pixels + (1 - kept) * partner
    return pixels, kept * targets + (1 - kept) * targets.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
