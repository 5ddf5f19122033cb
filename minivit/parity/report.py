"""A checkpoint held against another implementation: a reference library, or a file of its steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minivit.errors import UsageError
from minivit.images.preprocess import preprocess
from minivit.inference.predict import image_spec_of
from minivit.model.capabilities import ImageModel, image_model
from minivit.parity.comparison import EXACT, LAST_PLACES, ROUNDINGS, Row
from minivit.parity.libraries import load_reference
from minivit.parity.pixels import compare_pixels, pixel_causes
from minivit.parity.search import Cause, all_step_names, diff
from minivit.study.selectors import read_keep
from minivit.weights import find, load


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The steps of two implementations side by side, up to and with the first that differs, and its causes."""

    model: str
    revision: str | None
    against: str  # a library, or a file
    version: str | None  # of the library
    rows: list[Row]
    causes: list[Cause]  # of the last row, the nearest first; empty where nothing tried reproduces its numbers
    absent: list[str]  # steps that the other side does not have
    notes: list[str]  # what was not compared, in words

    @property
    def equal(self) -> bool:
        """Whether every step is within tolerance."""
        return self.rows[-1].equal

    def record(self) -> dict[str, Any]:
        """Return all of it but the notes as JSON-ready fields; numbers that are not finite become None."""
        steps = [
            {
                "name": row.name,
                "shape": list(row.shape),
                "theirs": list(row.theirs),
                "equal": row.equal,
                **{dtype: {**_finite(m._asdict()), "equal": m.equal} for dtype, m in row.measures.items()},
            }
            for row in self.rows
        ]
        causes = [{**cause._asdict(), **_finite({"before": cause.before})} for cause in self.causes]
        return {
            "model": self.model,
            "revision": self.revision,
            "against": self.against,
            **({} if self.version is None else {"version": self.version}),
            "equal": self.equal,
            "break": None if self.equal else {"step": self.rows[-1].name, "dtype": self.rows[-1].broken},
            "causes": causes,
            "absent": self.absent,
            "steps": steps,
        }

    def verdict(self) -> str:
        """Return in a line or more: equal, or the step that differs and the causes."""
        row = self.rows[-1]
        if row.equal:
            return f"equal: {len(self.rows)} steps within tolerance"
        if row.broken:
            measure = row.measures[row.broken]
            what = f"{measure.max_abs:.3g} apart in {row.broken}, {measure.tolerance:.3g} allowed"
        else:
            ours, theirs = (" x ".join(map(str, shape)) for shape in (row.shape, row.theirs))
            what = f"its shape is {theirs}, here {ours}"
        lines = [f"parity breaks at {row.name}: {what}"]
        for word, cause in zip(("likely cause", "as near", "as near"), self.causes, strict=False):
            left = f"doing so leaves {cause.after:.2g} of {cause.before:.2g}"
            lines.append(f"{word}: {cause.cause}: {cause.says} ({left})")
        if not self.causes:
            lines.append("likely cause: none of those tried reproduces the other side's numbers")
        return "\n".join(lines)

    def tolerance(self) -> str:
        """Return the tolerance in words."""
        return (
            f"tolerance: float64 {EXACT:g} of the largest magnitude; float32 {ROUNDINGS} times our own rounding error, "
            f"at least {LAST_PLACES} units in the last place"
        )

    def __repr__(self) -> str:
        return f"<Difference of {self.model} and {self.against}: {self.verdict()}>"


def _finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """Numbers for JSON, which has no nan and no infinity."""
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}


def diff_against(
    model: str,
    against: str,
    image: Image.Image | None = None,
    *,
    revision: str | None = None,
    family: str | None = None,
) -> Difference:
    """Return where a checkpoint differs from another implementation of it, and why.

    The preprocessing comes first, where there is an image; then every named step, in float64 and float32. The steps run
    on the file's "pixels", else on the image, else on random pixels.

    Args:
        model: as `minivit.load`.
        against: "transformers", "timm" or "torchvision", which loads the same files, or a safetensors file of steps.
        image: upright RGB.
        revision, family: as `minivit.load`.

    Raises:
        UsageError: the library is missing or cannot load these files, the file holds no steps, or it holds no
            pixels and there is no image.
        ModelUnavailableError, CheckpointError: as `minivit.load`.
    """
    ours = image_model(load(model, revision=revision, family=family))
    names = all_step_names(ours)
    notes: list[str] = []
    reference, version = None, None
    theirs: dict[str, dict[str, Tensor]] = {}
    if against.lower().endswith(".safetensors"):
        theirs, their_pixels, unknown = read_steps(against, ours)
        notes += [f"{against}: {name} is no step of {ours.name}; not compared" for name in unknown]
        if their_pixels is None and image is None:
            raise UsageError(f"{against}: holds no pixels; name the IMAGE its steps were made of")
    else:
        reference = load_reference(against, find(model, revision, family), ours.config, family)
        version = reference.version
        their_pixels = reference.prepare(image) if image is not None and reference.prepare else None
    own_pixels = None if image is None else preprocess(image, image_spec_of(ours))[None]

    def result(rows: list[Row], causes: list[Cause], absent: list[str]) -> Difference:
        return Difference(
            model=ours.name or model,
            revision=ours.revision,
            against=against,
            version=version,
            rows=rows,
            causes=causes,
            absent=absent,
            notes=notes,
        )

    rows = []
    if image is not None and own_pixels is not None and their_pixels is not None:
        rows = [compare_pixels(own_pixels, their_pixels)]
        if not rows[0].equal:
            return result(rows, pixel_causes(image_spec_of(ours), image, their_pixels), [])
    if reference is None and their_pixels is not None:
        pixels_BCHW = their_pixels.float()
    elif own_pixels is not None:
        pixels_BCHW = own_pixels
    else:
        notes.append("no IMAGE: preprocessing is not compared, and the steps on random pixels")
        shape = (1, ours.config.channels, *ours.config.image_size)
        pixels_BCHW = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if reference is not None:
        theirs = {"float32": reference.steps(pixels_BCHW, names)}
        theirs["float64"] = reference.steps(pixels_BCHW.double(), names)
        del reference  # its memory, before ours runs in float64
    there = {name.partition("[")[0] for steps in theirs.values() for name in steps}
    steps, causes = diff(ours, pixels_BCHW, theirs)
    return result(rows + steps, causes, [name for name in names if name not in there])


def read_steps(path: str, model: ImageModel) -> tuple[dict[str, dict[str, Tensor]], Tensor | None, list[str]]:
    """Return the steps of a safetensors file by dtype and name, its "pixels", and the names that are no steps.

    q, k, v and attn.mix may be (B, A, N, K) or (B, N, D). Tensors of fewer bits than float64 count as float32.

    Raises:
        UsageError: no such file, no safetensors, or nothing in it that has the name of a step.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path}: not a safetensors file of steps ({error})") from None
    pixels = tensors.pop("pixels", None)
    names = all_step_names(model)
    found: dict[str, dict[str, Tensor]] = {"float64": {}, "float32": {}}
    unknown = []

    def read_name(name: str) -> tuple[str, str]:
        """A step in its one spelling, and its axes."""
        if model.windowed:
            return names[names.index(name)], "BND"
        (selected,) = read_keep(name, model)
        return selected.key, selected.step.axes

    for name, tensor in tensors.items():
        try:
            key, axes = read_name(name)
        except (UsageError, ValueError):
            unknown.append(name)
            continue
        if axes == "BANK" and tensor.ndim == 3 and tensor.shape[-1] == model.config.width:
            # (B, N, A*K) -> (B, N, A, K) -> (B, A, N, K)
            tensor = tensor.unflatten(-1, (model.config.heads, -1)).transpose(1, 2)
        if not tensor.is_floating_point():
            raise UsageError(f"{path}: {name} is {tensor.dtype}; steps are floating-point tensors")
        found["float64" if tensor.dtype == torch.float64 else "float32"][key] = tensor
    if not (found["float64"] or found["float32"]):
        raise UsageError(f"{path}: holds no tensor under the name of a step; minivit trace --help lists the names")
    return found, pixels, unknown
