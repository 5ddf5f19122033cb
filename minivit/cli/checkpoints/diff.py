"""minivit diff: at which step another implementation of a model parts from this one, and why."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from minivit.cli.shared.console import printable, say
from minivit.cli.shared.models import add_hub_options, go_offline
from minivit.cli.shared.picture import open_photo, say_notes
from minivit.errors import UsageError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from minivit.images.spec import ImageSpec
    from minivit.model.capabilities import ImageModel
    from minivit.parity.search import Cause, Row

SCHEMA = 1  # of the JSON record; a field is only ever added under the same number
USAGE = "minivit diff MODEL --against transformers|timm|torchvision|FILE.safetensors [IMAGE] [options]"
DTYPES = ("float64", "float32")


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "diff",
        usage=USAGE,
        help="find where another implementation parts from this one",
        description="Compare every step of a forward with another library's, run on the same files, or with a trace: "
        "first the preprocessing, then each named tensor in float64 and float32, up to the first that is out of "
        "tolerance, and what the other side does differently there, found by doing the same. The exit code is 1 when "
        "parity breaks.",
        epilog="FILE.safetensors holds tensors under the names of steps (minivit trace --help lists them), as minivit "
        "trace -o writes them, or a port's own code with safetensors: save_file({'pixels': x, 'embed.tokens': t, "
        "'blocks.0.norm1': n, ...}, FILE); q, k, v and attn.mix as (B, A, N, K) or (B, N, D); with 'pixels', what they "
        "were made of, no IMAGE is needed. Without an IMAGE libraries are compared on random pixels.",
    )
    parser.add_argument(
        "words", nargs="*", metavar="MODEL", help="hub id, folder or weights file; then perhaps a picture"
    )
    parser.add_argument(
        "--against",
        nargs="+",
        required=True,
        metavar="PEER",
        help="transformers, timm or torchvision, which must be installed (pip install 'minivit[diff]') and able to "
        "load the same files; or a file of steps, FILE.safetensors",
    )
    parser.add_argument("--json", action="store_true", help="write one JSON object")
    add_hub_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from minivit.model.capabilities import image_model
    from minivit.parity import diff, diff_swin, swin_step_names
    from minivit.study import step_names
    from minivit.weights import find, load

    # The picture may stand behind --against, which takes what follows it.
    against, words = args.against[0], [*args.words, *args.against[1:]]
    if not 1 <= len(words) <= 2:
        raise UsageError(f"expected a MODEL and perhaps an IMAGE, not {len(words)} names: {USAGE}")
    name, image = words[0], words[1] if len(words) > 1 else None
    if args.offline:
        go_offline()
    is_file = against.lower().endswith(".safetensors")
    photo = None
    if image:
        photo, notes = open_photo(image)
        say_notes(image, notes)
    model = image_model(load(name, revision=args.revision, family=args.family))
    every = swin_step_names(model.config) if model.windowed else step_names(model)
    facts = {"schema": SCHEMA, "model": model.name, "revision": model.revision, "against": against}
    rows: list[Row] = []
    if is_file:
        theirs, their_pixels = read_steps(against, model, every)
        pixels_BCHW = given_pixels(model, photo, their_pixels, against)
    else:
        from minivit.parity.libraries import load_peer

        peer = load_peer(against, find(name, args.revision, args.family), model.config, args.family)
        facts["version"] = peer.version
        their_pixels = peer.prepare(photo) if photo and peer.prepare else None
        pixels_BCHW = given_pixels(model, photo, None, against)
    if photo and their_pixels is not None:
        ours = own_pixels(model, photo)
        rows += compare_pixels(ours, their_pixels)
        if not rows[-1].equal:
            return report(facts, rows, pixel_causes(model, photo, their_pixels, ours), [], args.json)
    if not is_file:
        theirs = {"float32": peer.steps(pixels_BCHW, every), "float64": peer.steps(pixels_BCHW.double(), every)}
        del peer
    there = {name.partition("[")[0] for steps in theirs.values() for name in steps}
    absent = [step for step in every if step not in there]
    compared = diff_swin(model, pixels_BCHW, theirs) if model.windowed else diff(model, pixels_BCHW, theirs)
    steps, causes = compared
    return report(facts, rows + steps, causes, absent, args.json)


def read_steps(path: str, model: ImageModel, every: list[str]) -> tuple[dict[str, dict[str, Tensor]], Tensor | None]:
    """The steps of a file by dtype and name, and its pixels where it has them.

    Raises:
        UsageError: no such file, no safetensors, or nothing in it that has the name of a step.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    from minivit.study.selectors import read_keep

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: not a safetensors file of steps ({error})") from None
    pixels = tensors.pop("pixels", None)
    found: dict[str, dict[str, Tensor]] = {"float64": {}, "float32": {}}

    def read_name(name: str) -> tuple[str, str]:
        """A step in its one spelling, and its axes."""
        if model.windowed:
            return every[every.index(name)], "BND"
        (wanted,) = read_keep(name, model)
        return wanted.key, wanted.step.axes

    for name, tensor in tensors.items():
        try:
            key, axes = read_name(name)
        except (UsageError, ValueError):
            say(f"{printable(path)}: {printable(name)} is no step of {model.name}; not compared")
            continue
        if axes == "BANK" and tensor.ndim == 3 and tensor.shape[-1] == model.config.width:
            # (B, N, A*K) -> (B, N, A, K) -> (B, A, N, K)
            tensor = tensor.unflatten(-1, (model.config.heads, -1)).transpose(1, 2)
        if not tensor.is_floating_point():
            raise UsageError(f"{path}: {name} is {tensor.dtype}; steps are floating-point tensors")
        found["float64" if tensor.dtype == torch.float64 else "float32"][key] = tensor
    if not (found["float64"] or found["float32"]):
        raise UsageError(f"{path}: holds no tensor under the name of a step; minivit trace --help lists the names")
    return found, pixels


def own_pixels(model: ImageModel, photo: Image.Image) -> Tensor:
    """A picture as minivit prepares it for this model: (1, C, H, W), float32."""
    from minivit.images.preprocess import preprocess
    from minivit.inference.predict import image_spec_of

    return preprocess(photo, image_spec_of(model))[None]


def given_pixels(model: ImageModel, photo: Image.Image | None, theirs: Tensor | None, against: str) -> Tensor:
    """What both sides read, (B, C, H, W), float32: the file's own, else the picture's, else random numbers."""
    import torch

    if theirs is not None:
        return theirs.float()
    if photo is not None:
        return own_pixels(model, photo)
    if against.lower().endswith(".safetensors"):
        raise UsageError(f"{against}: holds no pixels; name the IMAGE its steps were made of")
    shape = (1, model.config.channels, *model.config.image_size)
    say("no IMAGE: preprocessing is not compared, and the steps on random pixels")
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def compare_pixels(ours: Tensor, theirs: Tensor) -> list[Row]:
    """The row of the preprocessing, whose tolerance is a few units in the last place."""
    import torch

    from minivit.parity.search import LAST_PLACES, Row, measure

    same = ours.shape == theirs.shape
    tolerance = LAST_PLACES * torch.finfo(torch.float32).eps * float(ours.abs().max())
    measures = {"float32": measure(ours, theirs, tolerance)} if same else {}
    return [Row(name="pixels", shape=tuple(ours.shape), theirs=tuple(theirs.shape), measures=measures)]


def pixel_causes(model: ImageModel, photo: Image.Image, theirs: Tensor, ours: Tensor) -> list[Cause]:
    """What the other side does differently with a picture, found by doing the same."""
    from minivit.images.preprocess import preprocess
    from minivit.inference.predict import image_spec_of
    from minivit.parity.search import Cause

    found = []
    before = float((ours - theirs).abs().max()) if ours.shape == theirs.shape else float("inf")
    spec = image_spec_of(model)
    candidates = [(says, preprocess(photo, other)[None]) for says, other in other_specs(spec)]
    candidates.append(("colours stand as BGR, here as RGB", ours.flip(1)))
    for says, pixels in candidates:
        if pixels.shape == theirs.shape:
            after = float((pixels - theirs).abs().max())
            if after <= 1e-5 * float(theirs.abs().max()) < before:
                found.append(Cause("preprocessing", says, before, after))
    return sorted(found, key=lambda cause: cause.after)


def other_specs(spec: ImageSpec) -> Iterator[tuple[str, ImageSpec]]:
    """Preprocessings another implementation may have in the place of this one, in words."""
    from minivit.images.spec import FLOAT_RESAMPLES, RESAMPLES

    kinds = {
        "halves": ((0.5,) * 3, (0.5,) * 3),
        "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "CLIP": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        "none": ((0.0,) * 3, (1.0,) * 3),
    }
    for name, (mean, std) in kinds.items():
        if (mean, std) != (spec.mean, spec.std):
            yield (
                f"mean and std are those of {name}, here {spec.mean} and {spec.std}",
                replace(spec, mean=mean, std=std),
            )
    yield "bytes are not rescaled to 0 to 1", replace(spec, rescale=1.0)
    for resample in FLOAT_RESAMPLES if spec.float_resize else RESAMPLES:
        if resample != spec.resample:
            yield f"resized by {resample}, here by {spec.resample}", replace(spec, resample=resample)
    other = "even" if spec.crop_rounding == "down" else "down"
    yield (
        f"half a pixel beside the crop is rounded {other}, here {spec.crop_rounding}",
        replace(spec, crop_rounding=other),
    )
    if spec.crop:
        yield "resized to the crop's size, nothing is cut off", replace(spec, resize=spec.crop, crop=None)
    if isinstance(spec.resize, int):
        square = (spec.resize, spec.resize)
        yield "resized to a square, here by the shorter edge", replace(spec, resize=square)
    elif spec.resize and spec.resize[0] == spec.resize[1] and not spec.float_resize:
        crop = spec.crop or spec.resize
        yield "resized by the shorter edge and cropped", replace(spec, resize=spec.resize[0], crop=crop)


def report(facts: dict[str, Any], rows: list[Row], causes: list[Cause], absent: list[str], as_json: bool) -> int:
    """Print the table and the verdict; the exit code."""
    from minivit.parity.search import EXACT, LAST_PLACES, ROUNDINGS

    equal = rows[-1].equal
    if as_json:
        steps = [
            {
                "name": row.name,
                "shape": list(row.shape),
                "theirs": list(row.theirs),
                "equal": row.equal,
                **{dtype: {**finite(m._asdict()), "equal": m.equal} for dtype, m in row.measures.items()},
            }
            for row in rows
        ]
        broken = None if equal else {"step": rows[-1].name, "dtype": rows[-1].broken}
        found = [{**cause._asdict(), "before": finite({"": cause.before})[""]} for cause in causes]
        print(json.dumps({**facts, "equal": equal, "break": broken, "causes": found, "absent": absent, "steps": steps}))
        return 0 if equal else 1
    version = f" {facts['version']}" if "version" in facts else ""
    print(f"{printable(facts['model'])} against {printable(facts['against'])}{version}")
    print("\n".join(table(rows)))
    print(
        f"tolerance: float64 {EXACT:g} of the greatest magnitude; float32 {ROUNDINGS} times our own rounding error, at "
        f"least {LAST_PLACES} units in the last place"
    )
    if absent:
        kinds = dict.fromkeys(name.split(".", 2)[2] if name.startswith("blocks.") else name for name in absent)
        print(f"not compared, for the other side does not show it: {', '.join(kinds)}")
    print(verdict(rows, causes))
    return 0 if equal else 1


def finite(numbers: dict[str, float]) -> dict[str, float | None]:
    """Numbers for JSON, which has no nan and no infinity."""
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}


def verdict(rows: list[Row], causes: list[Cause]) -> str:
    """Equal, or where parity breaks and why."""
    row = rows[-1]
    if row.equal:
        return f"equal: {len(rows)} steps within tolerance"
    if not row.broken:
        ours, theirs = (" x ".join(map(str, shape)) for shape in (row.shape, row.theirs))
        lines = [f"parity breaks at {row.name}: its shape is {theirs}, here {ours}"]
    else:
        measure = row.measures[row.broken]
        apart = f"{measure.max_abs:.3g} apart in {row.broken}, {measure.tolerance:.3g} allowed"
        lines = [f"parity breaks at {row.name}: {apart}"]
    for i, cause in enumerate(causes[:3]):
        word = "likely cause" if i == 0 else "as near"
        lines.append(f"{word}: {cause.cause}: {cause.says} (doing so leaves {cause.after:.2g} of {cause.before:.2g})")
    if not causes:
        lines.append("likely cause: none of those tried reproduces the other side's numbers")
    return "\n".join(lines)


def table(rows: list[Row]) -> list[str]:
    """The steps as lines: shape, and for each dtype greatest difference, its share of the magnitude, cosine."""
    header = ["step", "shape"]
    for dtype in DTYPES:
        header += [f"{dtype}: abs", "rel", "cosine"]
    cells = [header]
    for row in rows:
        line = [row.name, " x ".join(map(str, row.shape))]
        for dtype in DTYPES:
            m = row.measures.get(dtype)
            line += [f"{m.max_abs:.2g}", f"{m.max_rel:.2g}", f"{m.cosine:.8f}"] if m else ["-", "-", "-"]
        cells.append([*line, "" if row.equal else "<-"])
    header.append("")
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    return [
        "  ".join(
            [line[0].ljust(widths[0]), line[1].ljust(widths[1])]
            + [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
        ).rstrip()
        for line in cells
    ]
