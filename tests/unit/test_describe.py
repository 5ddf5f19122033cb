"""What the preprocessing does to an image: steps, sources, warnings, and the image that the model receives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from minivit import ImageError, ImageSpec
from minivit.images.describe import explain, size_warnings
from minivit.images.preprocess import image_from_pixels, preprocess


def noise(width: int, height: int) -> Image.Image:
    levels = torch.randint(256, (height * width * 3,), generator=torch.manual_seed(0), dtype=torch.uint8)
    return Image.frombytes("RGB", (width, height), bytes(levels.tolist()))


def test_warnings_of_a_crop():
    found = size_warnings((400, 200), ImageSpec(resize=50, crop=(40, 40)))
    assert found == ["borders lost: left 120, right 120, top 20, bottom 20 pixels, 68% of the image"]


def test_warnings_of_a_crop_larger_than_the_image():
    found = size_warnings((30, 20), ImageSpec(resize=None, crop=(40, 40)))
    assert found == ["padded with black: left 5, right 5, top 10, bottom 10 pixels of the image's own size"]


def test_warnings_of_another_aspect_ratio_and_of_upscaling():
    # 30 x 20 to 60 x 60: 2 times as wide, 3 times as high
    found = size_warnings((30, 20), ImageSpec(resize=(60, 60)))
    assert found == [
        "aspect squashed: 30 x 20 becomes 60 x 60, 1.50 times narrower",
        "upscaled 3.00 times: the added pixels are interpolated",
    ]


def test_no_warnings_for_an_image_that_fits():
    assert size_warnings((224, 224), ImageSpec(resize=(224, 224))) == []


def test_every_step_is_listed_in_order_with_its_source():
    spec = ImageSpec(resize=30, crop=(20, 24), resample="bicubic", source={"resize": "a.json: size"})
    found = explain(noise(90, 60), spec)
    assert [(step.name, step.parameter) for step in found.steps[:-1]] == [
        ("open", "90 x 60 upright RGB, 8 bits"),
        ("resize", "shorter edge to 30: 90 x 60 to 45 x 30"),
        ("filter", "bicubic"),
        ("centre crop", "24 x 20, of the image (20, 10, 68, 50)"),
        ("rescale", "x 1/255"),
        ("mean", "- (0.5, 0.5, 0.5)"),
        ("std", "/ (0.5, 0.5, 0.5)"),
    ]
    assert [step.source for step in found.steps[1:3]] == ["a.json: size", "not recorded"]
    assert found.steps[-1].parameter.startswith("3 x 20 x 24 float32, from -")


def test_a_resize_in_float32_comes_after_the_rescale():
    found = explain(noise(9, 7), ImageSpec(resize=(8, 8), float_resize=True))
    assert [step.name for step in found.steps[1:3]] == ["rescale", "resize"]


def test_the_pixels_are_those_of_preprocess_and_the_changes_to_the_file_are_warnings(tmp_path: Path):
    path = tmp_path / "a.png"
    Image.new("RGBA", (20, 20), (200, 10, 10, 90)).save(path)
    spec = ImageSpec(resize=(20, 20), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    found = explain(path, spec)
    assert torch.equal(found.pixels_CHW, preprocess(path, spec))
    assert found.warnings == ("transparency flattened on white",)
    assert str(found).endswith("\n  warning: transparency flattened on white")


def test_an_error_names_the_image(tmp_path: Path):
    with pytest.raises(ImageError, match=r"^query: no such file"):
        explain(tmp_path / "none.png", ImageSpec(resize=None), name="query")


def test_the_image_of_pixels_is_the_image_they_came_from():
    image = noise(11, 7)
    spec = ImageSpec(resize=None, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    assert image_from_pixels(preprocess(image, spec), spec).tobytes() == image.tobytes()


def test_an_error_without_a_path_takes_a_name_and_one_with_a_path_keeps_it():
    assert str(ImageError("empty", "the image: the file is empty").named("-")) == "-: the file is empty"
    assert str(ImageError("empty", "a.png: the file is empty").named("-")) == "a.png: the file is empty"
    assert ImageError("empty", "the image: empty").named("-").code == "empty"
