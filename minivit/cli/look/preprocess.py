"""minivit preprocess: exactly what the network sees of a picture, step by step."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from minivit.cli.shared.console import printable, say
from minivit.cli.shared.models import add_hub_options, add_model_option, load_model
from minivit.cli.shared.picture import check_suffix, open_photo, pixels_for, show, writing

if TYPE_CHECKING:
    from torch import Tensor

    from minivit.images.spec import ImageSpec


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "preprocess",
        help="show what the network sees of a picture",
        description="Prepare one picture as a model's files say, and show or write the very pixels the network reads.",
    )
    parser.add_argument("image", metavar="IMAGE", help="a picture file, or - for standard input")
    parser.add_argument("--explain", action="store_true", help="print every step, its parameter and where that stands")
    parser.add_argument("-o", "--out", metavar="FILE", help="write the picture, FILE.png; else it is drawn as text")
    add_model_option(parser)
    add_hub_options(parser)
    parser.set_defaults(run=run, device="cpu", dtype="float32")


def run(args: argparse.Namespace) -> int:
    check_suffix(args.out, ".png")
    photo, notes = open_photo(args.image)
    model = load_model(args)
    pixels_BCHW, spec = pixels_for(model, photo)
    pixels_CHW = pixels_BCHW[0]
    notes += warnings(photo.size, spec)
    if args.explain:
        print(explain(args.image, photo.size, spec, pixels_CHW, notes, str(model.name)))
    else:
        for note in notes:
            say(f"{printable(args.image)}: {note}")
    seen = as_seen(pixels_CHW, spec)
    if args.out:
        with writing(args.out):
            seen.save(args.out)
    elif not args.explain:
        print(show(seen, grey(pixels_CHW)))
    return 0


def as_seen(pixels_CHW: Tensor, spec: ImageSpec) -> Any:
    """The network's pixels as a picture for people: normalisation and rescale undone, rounded to 8 bits."""
    import torch

    from minivit.viz.maps import image_from_rgb

    mean, std = (torch.tensor(values)[:, None, None] for values in (spec.mean, spec.std))
    levels = (pixels_CHW * std + mean) / spec.rescale
    # (C, H, W) -> (H, W, C)
    return image_from_rgb(levels.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0))


def grey(pixels_CHW: Tensor, side: int = 40) -> Tensor:
    """The pixels without colour, as few as fit on a terminal: (rows, columns)."""
    import torch

    share = min(1.0, side / max(pixels_CHW.shape[1:]))
    height, width = (max(1, round(length * share)) for length in pixels_CHW.shape[1:])
    return torch.nn.functional.adaptive_avg_pool2d(pixels_CHW.mean(dim=0, keepdim=True), (height, width))[0]


def warnings(size: tuple[int, int], spec: ImageSpec) -> list[str]:
    """What the geometry does to a picture of (width, height) that a person would want to know."""
    from minivit.images.preprocess import resized, seen_box

    found = []
    width, height = resized(size, spec.resize) if spec.resize else size
    across, down = width / size[0], height / size[1]
    ratio = max(across, down) / min(across, down)
    if ratio > 1.01:
        side = "narrower" if across < down else "flatter"
        found.append(f"aspect squashed: {size[0]} x {size[1]} becomes {width} x {height}, {ratio:.2f} times {side}")
    if max(across, down) > 1:
        found.append(f"upscaled {max(across, down):.2f} times: the network sees detail the picture does not have")
    left, upper, right, lower = seen_box(size, spec)
    lost = {"left": left, "right": size[0] - right, "top": upper, "bottom": size[1] - lower}
    cut = [f"{edge} {round(pixels)}" for edge, pixels in lost.items() if pixels >= 0.5]
    if cut:
        kept = (min(right, size[0]) - max(left, 0)) * (min(lower, size[1]) - max(upper, 0)) / (size[0] * size[1])
        found.append(f"borders lost: {', '.join(cut)} pixels, {1 - kept:.0%} of the picture")
    padded = [f"{edge} {round(-pixels)}" for edge, pixels in lost.items() if pixels <= -0.5]
    if padded:
        found.append(f"padded with black: {', '.join(padded)} pixels of the picture's own size")
    return found


def explain(path: str, size: tuple[int, int], spec: ImageSpec, pixels_CHW: Tensor, notes: list[str], model: str) -> str:
    """Every step with its parameter and the key of the configuration it came from, then the warnings."""
    rows = [("step", "parameter", "from"), *_steps(size, spec)]
    channels, height, width = pixels_CHW.shape
    low, high = (float(bound) for bound in pixels_CHW.aminmax())
    rows.append(("result", f"{channels} x {height} x {width} float32, from {low:.4g} to {high:.4g}", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    lines = [f"{printable(path)} as {printable(model)} sees it"]
    lines += [f"  {name:<{widths[0]}}  {value:<{widths[1]}}  {source}".rstrip() for name, value, source in rows]
    return "\n".join([*lines, *(f"  warning: {note}" for note in notes)])


def _steps(size: tuple[int, int], spec: ImageSpec) -> Iterator[tuple[str, str, str]]:
    from minivit.images.preprocess import resized, seen_box

    def numbers(values: tuple[float, ...]) -> str:
        return ", ".join(f"{value:g}" for value in values)

    def source(name: str) -> str:
        return spec.source.get(name, "not recorded")

    factor = "1/255" if spec.rescale == 1 / 255 else f"{spec.rescale:g}"
    rescale = "rescale", f"x {factor}", source("rescale")
    yield "open", f"{size[0]} x {size[1]} upright RGB, 8 bits", "the file and its EXIF orientation"
    if spec.float_resize:
        yield rescale
    if spec.resize:
        width, height = resized(size, spec.resize)
        edge = f"shorter edge to {spec.resize}: " if isinstance(spec.resize, int) else ""
        yield "resize", f"{edge}{size[0]} x {size[1]} to {width} x {height}", source("resize")
        yield "filter", spec.resample, source("resample")
    else:
        yield "resize", "none", source("resize")
    if spec.crop:
        box = ", ".join(f"{side:.0f}" for side in seen_box(size, spec))
        yield "centre crop", f"{spec.crop[1]} x {spec.crop[0]}, of the picture ({box})", source("crop")
    else:
        yield "centre crop", "none", source("crop")
    if not spec.float_resize:
        yield rescale
    yield "mean", f"- ({numbers(spec.mean)})", source("mean")
    yield "std", f"/ ({numbers(spec.std)})", source("std")
