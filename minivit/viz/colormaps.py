"""From numbers to colours: the ramps, and the one way a map is brought to 0 ... 1."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minivit.errors import ShapeError, UsageError

_BLUE, _WHITE, _RED = [33, 102, 172], [255, 255, 255], [178, 24, 43]
# Colours at equal distances, mixed in between.
_STOPS = {
    "blue-red": [[0, 0, 255], [0, 255, 255], [0, 255, 0], [255, 255, 0], [255, 0, 0]],
    "white-red": [_WHITE, _RED],
    "blue-white-red": [_BLUE, _WHITE, _RED],
    "red-white-blue": [_RED, _WHITE, _BLUE],
}
RAMPS = ("blue-red", "cubehelix", "white-red", "blue-white-red", "red-white-blue")


def ramp(name: str = "blue-red") -> Tensor:
    """A colour ramp from least to most: (256, 3), uint8.

    "blue-red" goes through cyan, green and yellow and is read at a glance; its lightness rises and falls on
    the way, so that equal steps do not look equal. "cubehelix" rises evenly in lightness from black to white, also
    in grey print (Green 2011, Bull. Astr. Soc. India 39, 289; start 0.5, rotations -1.5, hue 1, gamma 1).
    In the others white is nothing; "blue-white-red" and "red-white-blue" are for numbers around 0.

    Raises:
        UsageError: no ramp of that name.
    """
    t = torch.linspace(0, 1, 256, dtype=torch.float64)
    if name in _STOPS:
        stops = torch.tensor(_STOPS[name], dtype=torch.float64) / 255
        place = t * (len(stops) - 1)
        low = place.long().clamp(max=len(stops) - 2)
        rgb = torch.lerp(stops[low], stops[low + 1], (place - low)[:, None])
    elif name == "cubehelix":
        angle = 2 * math.pi * (0.5 / 3 + 1 - 1.5 * t)
        amplitude = t * (1 - t) / 2
        mix = torch.tensor([[-0.14861, 1.78277], [-0.29227, -0.90649], [1.97294, 0.0]], dtype=torch.float64)
        rgb = t[:, None] + amplitude[:, None] * (torch.stack([angle.cos(), angle.sin()], dim=1) @ mix.T)
    else:
        raise UsageError(f"no colours {name!r}; there are {', '.join(RAMPS)}")
    return (rgb.clamp(0, 1) * 255).round().to(torch.uint8)


def to_unit(values: Tensor, low: float | None = None, high: float | None = None) -> tuple[Tensor, float, float]:
    """A map brought to 0 ... 1, and the values that became 0 and 1: its own least and most, or those given.

    Values outside are clamped; a map of one value everywhere becomes 0.

    Raises:
        ShapeError: an empty map, or one with NaN or infinity.
    """
    values = values.detach().double().cpu()
    if not values.numel() or not values.isfinite().all():
        raise ShapeError(
            f"a map of shape {tuple(values.shape)} with nothing in it, or with NaN or infinity, has no colours"
        )
    low = float(values.min()) if low is None else low
    high = float(values.max()) if high is None else high
    if high <= low:
        return torch.zeros_like(values), low, high
    return ((values - low) / (high - low)).clamp(0, 1), low, high


def colourise(unit: Tensor, colours: str = "blue-red") -> Tensor:
    """Values 0 ... 1 of any shape as uint8 RGB: (...) -> (..., 3)."""
    return ramp(colours)[(unit * 255).round().long()]


def components_to_rgb(components_hwc: Tensor) -> Tensor:
    """Three maps (h, w, 3) as red, green and blue, each from its own least to its own most: uint8.

    Raises:
        ShapeError: not three maps.
    """
    if components_hwc.ndim != 3 or components_hwc.shape[-1] != 3:
        raise ShapeError(f"{tuple(components_hwc.shape)} is not (h, w, 3)")
    channels = [to_unit(channel)[0] for channel in components_hwc.unbind(-1)]
    return (torch.stack(channels, dim=-1) * 255).round().to(torch.uint8)
