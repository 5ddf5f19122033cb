"""The names of the classes of ImageNet-1k."""

from __future__ import annotations

from pathlib import Path


def imagenet_labels() -> dict[int, str]:
    """Return the 1000 classes of ImageNet-1k in the order every checkpoint uses, under torchvision's names for them."""
    names = (Path(__file__).parents[1] / "imagenet_labels.txt").read_text(encoding="utf-8").splitlines()
    return dict(enumerate(names))
