"""What the preprocessing does to one image: every step with its source, and warnings in words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image
from torch import Tensor

from minivit.images.decode import ImageInput, name_of, open_image
from minivit.images.preprocess import image_from_pixels, pixels_from_image, resize_and_crop, resized, seen_box
from minivit.images.spec import ImageSpec


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the preprocessing."""

    name: str  # such as "resize"
    parameter: str  # such as "640 x 480 to 224 x 224"
    source: str  # the file and key that the parameter was read from


@dataclass(frozen=True, kw_only=True, repr=False)
class Explanation:
    """The preprocessing of one image; it prints as a table."""

    pixels_CHW: Tensor  # float32, what the model receives
    seen: Image.Image  # the same as an 8-bit RGB image
    steps: tuple[Step, ...]  # from the file to the pixels, in order
    warnings: tuple[str, ...]  # what was done to the image that a person should know

    def __repr__(self) -> str:
        rows = [("step", "parameter", "from"), *((step.name, step.parameter, step.source) for step in self.steps)]
        name, parameter = (max(len(row[column]) for row in rows) for column in range(2))
        lines = [f"  {row[0]:<{name}}  {row[1]:<{parameter}}  {row[2]}".rstrip() for row in rows]
        return "\n".join([*lines, *(f"  warning: {warning}" for warning in self.warnings)])


def explain(image: ImageInput, spec: ImageSpec, *, name: str | None = None, icc: str = "ignore") -> Explanation:
    """Return every step of the preprocessing of an image, its pixels and its warnings.

    Args:
        image: path, binary file object or PIL image.
        spec: the preprocessing of the checkpoint, `model.image_spec`.
        name: the name in error messages; by default the path, if there is one.
        icc: what is done with a colour profile, as in `open_image`.

    Raises:
        ImageError: as `preprocess`.
    """
    warnings: list[str] = []
    upright = open_image(image, name=name, warn=warnings.append, icc=icc)
    pixels_CHW = pixels_from_image(resize_and_crop(upright, spec, name=name or name_of(image)), spec)
    shape = " x ".join(map(str, pixels_CHW.shape))
    low, high = (float(bound) for bound in pixels_CHW.aminmax())
    result = Step(name="result", parameter=f"{shape} float32, from {low:.4g} to {high:.4g}", source="")
    return Explanation(
        pixels_CHW=pixels_CHW,
        seen=image_from_pixels(pixels_CHW, spec),
        steps=(*steps_of(upright.size, spec), result),
        warnings=(*warnings, *size_warnings(upright.size, spec)),
    )


def steps_of(size: tuple[int, int], spec: ImageSpec) -> Iterator[Step]:
    """Yield the steps of a spec for an upright image of `size`, (width, height) in pixels, in order."""

    def step(name: str, parameter: str, field: str) -> Step:
        return Step(name=name, parameter=parameter, source=spec.source.get(field, "not recorded"))

    def numbers(values: tuple[float, ...]) -> str:
        return ", ".join(f"{value:g}" for value in values)

    rescale = step("rescale", "x 1/255" if spec.rescale == 1 / 255 else f"x {spec.rescale:g}", "rescale")
    file = "the file and its EXIF orientation"
    yield Step(name="open", parameter=f"{size[0]} x {size[1]} upright RGB, 8 bits", source=file)
    if spec.float_resize:
        yield rescale
    if spec.resize:
        width, height = resized(size, spec.resize)
        edge = f"shorter edge to {spec.resize}: " if isinstance(spec.resize, int) else ""
        yield step("resize", f"{edge}{size[0]} x {size[1]} to {width} x {height}", "resize")
        yield step("filter", spec.resample, "resample")
    else:
        yield step("resize", "none", "resize")
    if spec.crop:
        box = ", ".join(f"{side:.0f}" for side in seen_box(size, spec))
        yield step("centre crop", f"{spec.crop[1]} x {spec.crop[0]}, of the image ({box})", "crop")
    else:
        yield step("centre crop", "none", "crop")
    if not spec.float_resize:
        yield rescale
    yield step("mean", f"- ({numbers(spec.mean)})", "mean")
    yield step("std", f"/ ({numbers(spec.std)})", "std")


def size_warnings(size: tuple[int, int], spec: ImageSpec) -> list[str]:
    """Return what resize and crop change or remove of an upright image, one line each.

    The kinds are: another aspect ratio, upscaling, borders lost by the crop, and black padding.

    Args:
        size: (width, height) of the image in pixels.
    """
    found = []
    width, height = resized(size, spec.resize) if spec.resize else size
    across, down = width / size[0], height / size[1]
    ratio = max(across, down) / min(across, down)
    if ratio > 1.01:
        side = "narrower" if across < down else "flatter"
        found.append(f"aspect squashed: {size[0]} x {size[1]} becomes {width} x {height}, {ratio:.2f} times {side}")
    if max(across, down) > 1:
        found.append(f"upscaled {max(across, down):.2f} times: the added pixels are interpolated")
    left, upper, right, lower = seen_box(size, spec)
    margins = {"left": left, "right": size[0] - right, "top": upper, "bottom": size[1] - lower}
    cut = [f"{edge} {round(pixels)}" for edge, pixels in margins.items() if pixels >= 0.5]
    if cut:
        kept = (min(right, size[0]) - max(left, 0)) * (min(lower, size[1]) - max(upper, 0)) / (size[0] * size[1])
        found.append(f"borders lost: {', '.join(cut)} pixels, {1 - kept:.0%} of the image")
    padded = [f"{edge} {round(-pixels)}" for edge, pixels in margins.items() if pixels <= -0.5]
    if padded:
        found.append(f"padded with black: {', '.join(padded)} pixels of the image's own size")
    return found
