"""Colour profiles: whether one is sRGB, and the conversion to sRGB."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import Any

from PIL import Image

NEAR_SRGB = 4  # levels of 255 by which a profile may differ from sRGB and still count as sRGB

_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # colour space of a profile -> Pillow's mode


@dataclass(frozen=True, kw_only=True)
class Profile:
    """An ICC profile, ready for images of one mode of Pillow."""

    name: str  # its description, printable
    mode: str  # "RGB", "L" or "CMYK"
    is_srgb: bool  # within NEAR_SRGB levels
    transform: Any  # of ImageCms, from `mode` to sRGB


@lru_cache(maxsize=32)
def read_profile(data: bytes) -> Profile | None:
    """Return an ICC profile with its transform to sRGB, relative colorimetric; None if it cannot be used."""
    try:
        from PIL import ImageCms
    except ImportError:  # a Pillow without LittleCMS
        return None
    try:
        profile = ImageCms.ImageCmsProfile(BytesIO(data))
        mode = _MODES[profile.profile.xcolor_space]
        name = " ".join(ImageCms.getProfileDescription(profile).split())
        srgb = ImageCms.createProfile("sRGB")
        transform = ImageCms.buildTransform(profile, srgb, mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC)
        probe = _probe(mode)
        after = ImageCms.applyTransform(probe, transform)
        assert after is not None
    except Exception:  # LittleCMS and Pillow raise many types on a damaged profile; it is said and ignored
        return None
    pairs = zip(after.tobytes(), probe.convert("RGB").tobytes(), strict=True)
    near = mode != "CMYK" and max(abs(a - b) for a, b in pairs) <= NEAR_SRGB
    shown = "".join(c if c.isprintable() else "?" for c in name)[:60] or "without a name"
    return Profile(name=shown, mode=mode, is_srgb=near, transform=transform)


def _probe(mode: str) -> Image.Image:
    """Return all colours of 6 levels for each channel of RGB, or all levels of grey, as an image of one row."""
    if mode == "L":
        return Image.frombytes("L", (256, 1), bytes(range(256)))
    levels = range(0, 256, 51)
    data = bytes(value for r in levels for g in levels for b in levels for value in (r, g, b))
    return Image.frombytes("RGB", (216, 1), data).convert(mode)


def apply_profile(image: Image.Image, data: bytes, icc: str, note: Callable[[str], None]) -> Image.Image:
    """Return an 8-bit image as sRGB, if `icc` is "convert" and its profile is not sRGB; else the image itself.

    Args:
        image: of any mode of Pillow but 16-bit and floating-point ones; transparency stays.
        data: its ICC profile.
        icc: "ignore" or "convert".
        note: called with one line if the profile is not sRGB, or cannot be used.
    """
    profile = read_profile(data)
    if profile is None:
        note("its colour profile cannot be read, ignored")
        return image
    grey, cmyk = image.mode in ("1", "L", "LA", "La"), image.mode == "CMYK"
    if cmyk != (profile.mode == "CMYK") or (profile.mode == "L" and not grey):
        note(f"its colour profile {profile.name!r} is of other channels, ignored")
        return image
    if profile.is_srgb:
        return image
    if icc == "ignore":
        if not cmyk:  # the conversion of CMYK says it
            note(f"its colour profile {profile.name!r} is ignored, taken as sRGB")
        return image
    from PIL import ImageCms

    note(f"converted from its colour profile {profile.name!r} to sRGB")
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    converted = ImageCms.applyTransform(image.convert("RGB").convert(profile.mode), profile.transform) if (
        not cmyk
    ) else ImageCms.applyTransform(image, profile.transform)  # fmt: skip
    assert converted is not None
    if alpha is not None:
        converted.putalpha(alpha)
    return converted
