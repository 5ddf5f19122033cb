"""Read and write preprocessor_config.json as an ImageSpec."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

from minivit.errors import CheckpointError, UsageError
from minivit.images.spec import RESAMPLES, ImageSpec
from minivit.weights.families.base import Family, Given
from minivit.weights.families.processors import DERIVED, PROCESSORS
from minivit.weights.files import Source


def find_preprocessor(source: Source, family: Family, size: tuple[int, int]) -> tuple[Given | None, str]:
    """Return the contents of preprocessor_config.json and where they are from: the file, or the family's own way.

    Args:
        size: height and width of the model's images in pixels.
    """
    if source.preprocessor is not None and "pretrained_cfg" in source.preprocessor and family.preprocessor:
        return family.preprocessor(source.preprocessor, size)  # TimmWrapperImageProcessor
    if source.preprocessor is not None:
        return source.preprocessor, source.preprocessor_file
    return family.preprocessor(source.config, size) if family.preprocessor else (None, "")


def is_number(value: object) -> bool:
    """Return whether a value is a finite number; JSON in Python may hold NaN and Infinity, and bools are ints."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _sides(value: Any, square: bool) -> tuple[int, int] | int:
    """Return height and width, or one number for the shorter edge; an int is both sides where `square`."""
    if isinstance(value, dict):
        value = {edge: side for edge, side in value.items() if side is not None}
    found: tuple[int, int] | int
    match value:
        case int(side):
            found = (side, side) if square else side
        case {"height": int(height), "width": int(width)} | [int(height), int(width)] if len(value) == 2:
            found = height, width
        case {"shortest_edge": int(side)} if len(value) == 1:
            found = side
        case _:
            raise ValueError
    if min(found if isinstance(found, tuple) else (found,)) < 1:
        raise ValueError
    return found


def _crop(value: Any, square: bool) -> tuple[int, int]:
    found = _sides(value, square=True)
    if isinstance(found, int):
        raise ValueError
    return found


def _filter(value: Any, square: bool) -> str:
    if isinstance(value, str) and value.lower() in RESAMPLES:
        # transformers' Pillow processors expect a number, and are bilinear for anything else (class PilBackend).
        return "bilinear"
    if type(value) is not int or value not in range(len(RESAMPLES)):
        raise ValueError
    return RESAMPLES[value]


def _factor(value: Any, square: bool) -> Any:
    if not is_number(value):
        raise ValueError
    return value


def _channels(value: Any, square: bool) -> tuple[float, ...]:
    numbers = tuple(value) if isinstance(value, list) else (value,) * 3
    if len(numbers) != 3 or not all(is_number(number) for number in numbers):
        raise ValueError
    return numbers


def _deviations(value: Any, square: bool) -> tuple[float, ...]:
    numbers = _channels(value, square)
    if 0 in numbers:
        raise ValueError
    return numbers


class Step(NamedTuple):
    """One step of an image processor."""

    field: str  # of ImageSpec
    switch: str  # key that switches the step on
    key: str  # key of its value
    read: Callable[[Any, bool], Any]  # value, processor's `square` -> value of the field; ValueError if not supported


STEPS = (
    Step("resize", "do_resize", "size", _sides),
    Step("resample", "do_resize", "resample", _filter),
    Step("crop", "do_center_crop", "crop_size", _crop),
    Step("rescale", "do_rescale", "rescale_factor", _factor),
    Step("mean", "do_normalize", "image_mean", _channels),
    Step("std", "do_normalize", "image_std", _deviations),
)


def read_image_spec(
    given: Given, name: str, processor: str = "ViTImageProcessor", where: str = "preprocessor_config.json"
) -> ImageSpec:
    """Return preprocessor_config.json, in its old or new form, as an ImageSpec that remembers the keys it is from.

    Args:
        name: of the checkpoint, for messages.
        processor: the class whose defaults apply where the file names none.
        where: what the values were read from, for `ImageSpec.source`.

    Raises:
        CheckpointError: a processor or a value that is not supported.
    """
    kind = str(given.get("image_processor_type") or given.get("feature_extractor_type") or processor)
    short = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", kind)
    if short not in PROCESSORS:
        raise CheckpointError(f"{name}: preprocessor_config.json is for {kind}; known are {', '.join(PROCESSORS)}")
    values = {"do_pad": False, **PROCESSORS[short], **given}
    if isinstance(given.get("default_to_square"), bool):
        values["square"] = given["default_to_square"]
    size = values["size"]
    if given.get("use_square_size") and isinstance(size, dict) and "shortest_edge" in size:
        values["size"] = {"height": size["shortest_edge"], "width": size["shortest_edge"]}

    values = DERIVED[short](values) if short in DERIVED else values

    def fail(key: str) -> CheckpointError:
        return CheckpointError(
            f"{name}: preprocessor_config.json has {key} = {values[key]!r}, which minivit does not support"
        )

    def switch(key: str) -> bool:
        if values[key] not in (True, False, None):  # null is off, as in the reference
            raise fail(key)
        return bool(values[key])

    if switch("do_pad"):
        raise fail("do_pad")
    spec: Given = {"resize": None, "rescale": 1.0, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    spec |= {key: PROCESSORS[short][key] for key in ("float_resize", "crop_rounding")}
    origins = {}
    for step in STEPS:
        # Where the value was read: its key, or the switch that leaves the step out.
        key = step.key if switch(step.switch) else step.switch
        origins[step.field] = f"{where if key in given else f'default of {short}ImageProcessor'}: {key}"
        if switch(step.switch):
            try:
                spec[step.field] = step.read(values[step.key], values["square"])
                if step.key == "resample" and isinstance(values[step.key], str):
                    origins[step.field] += f" is {values[step.key]!r}; transformers reads every name as bilinear"
            except ValueError:
                raise fail(step.key) from None
    try:
        return ImageSpec(**spec, source=origins)
    except UsageError as error:
        raise CheckpointError(f"{name}: preprocessor_config.json makes no preprocessing: {error}") from None


def write_preprocessor(spec: ImageSpec, family: Family) -> Given:
    """Return preprocessor_config.json for the first image processor of transformers with all steps of this spec.

    For a tower the family's own processor comes first, because transformers' pairing with a tokenizer asks for it.

    Raises:
        UsageError: the spec has a step that none of them has.
    """
    size: dict[str, int] | None = None
    if isinstance(spec.resize, int):
        size = {"shortest_edge": spec.resize}
    elif spec.resize:
        size = {"height": spec.resize[0], "width": spec.resize[1]}
    values = {
        "do_resize": spec.resize is not None,
        **({"size": size} if size else {}),
        "resample": RESAMPLES.index(spec.resample),
        "do_center_crop": spec.crop is not None,
        **({"crop_size": {"height": spec.crop[0], "width": spec.crop[1]}} if spec.crop else {}),
        "do_rescale": spec.rescale != 1,
        "rescale_factor": spec.rescale,
        "do_normalize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
    }
    # transformers' ViTImageProcessor crops too if told to, but its class documents no crop.
    kinds = ("BitImageProcessor",) if spec.crop else ("ViTImageProcessor", "DINOv3ViTImageProcessor")
    for kind in (family.processor, *kinds) if family.towers or family.section else kinds:
        result = {"image_processor_type": kind, **values}
        if read_image_spec(result, kind) == replace(spec, crop_rounding="down"):
            return result
    raise UsageError(f"none of transformers' processors does: {spec}")
