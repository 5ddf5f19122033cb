"""Colormaps by matplotlib's names, without matplotlib, and how a map is scaled to 0 ... 1."""

from __future__ import annotations

import torch
from torch import Tensor

from minivit.errors import ShapeError, UsageError

# Colours at equal distances, interpolated in between; equal to matplotlib's 256 colours within one level of 255.
# turbo: Mikhailov 2019. viridis, inferno: Smith and van der Walt 2015. Reds, RdBu: Brewer 2002.
_STOPS = {
    "turbo": (
        "30123b 36215f 3b2f80 3f3e9c 424bb5 4559cb 4666dd 4773eb 4680f6 458cfd 4099ff 38a5fb 2fb2f4 27bee9 "
        "1fc9dd 1ad4d0 18ddc2 1ae4b6 22ebaa 2ff19b 3ff68a 52fa7a 65fd69 79fe59 8bff4b 9cfe40 a9fb39 b7f735 "
        "c3f134 d0ea34 dbe236 e5d938 eecf3a f5c53a faba39 fdae35 fea130 fe932a fc8423 f9751d f46617 ef5811 "
        "e84b0c e14109 d83706 ce2d04 c32503 b71d02 a91601 9b0f01 8b0902 7a0403"
    ),
    "viridis": (
        "440154 46085c 471063 481769 481d6f 482475 472a7a 46307e 453781 433d84 414287 3f4889 3d4e8a 3a538b "
        "38598c 355e8d 33638d 31688e 2e6d8e 2c718e 2a768e 297b8e 27808e 25848e 23898e 218e8d 20928c 1f978b "
        "1e9c89 1fa188 21a585 24aa83 28ae80 2eb37c 35b779 3dbc74 46c06f 50c46a 5ac864 65cb5e 70cf57 7cd250 "
        "89d548 95d840 a2da37 b0dd2f bddf26 cae11f d8e219 e5e419 f1e51d fde725"
    ),
    "inferno": (
        "000004 02020c 050417 0a0722 10092d 160b39 1e0c45 260c51 2f0a5b 380962 400a67 490b6a 510e6c 59106e "
        "61136e 69166e 71196e 781c6d 801f6c 88226a 902568 982766 a02a63 a82e5f b0315b b73557 bf3952 c63d4d "
        "cc4248 d34743 d94d3d df5337 e45a31 e9612b ed6925 f1711f f47918 f78212 f98b0b fa9407 fb9d07 fca60c "
        "fcb014 fbba1f fac42a f8cd37 f6d746 f4e156 f2ea69 f2f27d f5f992 fcffa4"
    ),
    "Reds": ("fff5f0 fee0d2 fcbba1 fc9272 fb6a4a ef3b2c cb181d a50f15 67000d"),
    "RdBu": ("67001f b2182b d6604d f4a582 fddbc7 f7f7f7 d1e5f0 92c5de 4393c3 2166ac 053061"),
}

COLORMAPS = ("turbo", "viridis", "inferno", "Reds", "RdBu", "RdBu_r")
# Former names of this package, still accepted.
FORMER_NAMES = {
    "blue-red": "turbo",
    "cubehelix": "viridis",
    "white-red": "Reds",
    "red-white-blue": "RdBu",
    "blue-white-red": "RdBu_r",
}
RAMPS = (*COLORMAPS, *FORMER_NAMES)  # former name of COLORMAPS, with the former names of the maps


def stops(name: str = "turbo") -> list[str]:
    """Return the colours of a colormap at equal distances from 0 to 1, as #rrggbb.

    Raises:
        UsageError: unknown colormap.
    """
    known = FORMER_NAMES.get(name, name)
    if known not in COLORMAPS:
        raise UsageError(f"unknown colormap {name!r}; choose from {', '.join(COLORMAPS)}")
    colors = [f"#{color}" for color in _STOPS[known.removesuffix("_r")].split()]
    return colors[::-1] if known.endswith("_r") else colors


def colormap(name: str = "turbo") -> Tensor:
    """Return the 256 colours of a colormap from min to max: (256, 3), uint8.

    "turbo" (default) shows small values blue and large ones red and is read at a glance. Its lightness rises and
    falls, so equal steps do not look equal. "viridis" and "inferno" rise evenly in lightness: use them for grey print
    and for colour-blind readers. "Reds" starts at white. "RdBu" (red to blue) and "RdBu_r" (blue to red) are
    white in the middle, for values around 0. The names are matplotlib's.

    Raises:
        UsageError: unknown colormap.
    """
    colors = torch.tensor([rgb(color) for color in stops(name)], dtype=torch.float64)
    place = torch.linspace(0, len(colors) - 1, 256, dtype=torch.float64)
    low = place.long().clamp(max=len(colors) - 2)
    return torch.lerp(colors[low], colors[low + 1], (place - low)[:, None]).round().to(torch.uint8)


def rgb(color: str) -> tuple[int, int, int]:
    """Return red, green and blue (0 to 255) of a colour written as #rrggbb."""
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def to_unit(values: Tensor, low: float | None = None, high: float | None = None) -> tuple[Tensor, float, float]:
    """Return a map scaled to 0 ... 1, and the values that became 0 and 1: its own min and max, or those given.

    Values outside are clamped. A constant map becomes 0.

    Raises:
        ShapeError: an empty map, or one with NaN or infinity.
    """
    values = values.detach().double().cpu()
    if not values.numel() or not values.isfinite().all():
        raise ShapeError(f"a map of shape {tuple(values.shape)} is empty, or contains NaN or infinity")
    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    if high <= low:
        return torch.zeros_like(values), low, high
    return ((values - low) / (high - low)).clamp(0, 1), low, high


def apply_colormap(unit: Tensor, cmap: str = "turbo") -> Tensor:
    """Return values 0 ... 1 of any shape as uint8 RGB: (...) -> (..., 3)."""
    return colormap(cmap)[(unit * 255).round().long()]


def components_to_rgb(components_hwc: Tensor) -> Tensor:
    """Return three maps (h, w, 3) as red, green and blue, each scaled from its own min to its own max: uint8.

    Raises:
        ShapeError: not three maps.
    """
    if components_hwc.ndim != 3 or components_hwc.shape[-1] != 3:
        raise ShapeError(f"{tuple(components_hwc.shape)} is not (h, w, 3)")
    channels = [to_unit(channel)[0] for channel in components_hwc.unbind(-1)]
    return (torch.stack(channels, dim=-1) * 255).round().to(torch.uint8)


ramp = colormap  # former name


def colourise(unit: Tensor, colours: str = "turbo") -> Tensor:
    """Former name of `apply_colormap`."""
    return apply_colormap(unit, colours)
