"""No image and no class vanishes in silence: what folders, lists and class folders have beside what is read."""

from __future__ import annotations

import argparse
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from minivit import ImageError, UsageError
from minivit.cli.shared.inputs import find_images as find_inputs_of
from minivit.cli.shared.inputs import find_inputs
from minivit.images.formats import IMAGE_SUFFIXES
from minivit.training.dataset import LabelledImages, find_images
from minivit.training.evaluation import match_classes


def walk(folder: Path, capsys: pytest.CaptureFixture[str], *, recursive: bool) -> tuple[list[str], list[str]]:
    """The images that are found below a folder, by their path inside, and the lines on stderr."""
    found = [os.path.relpath(name, folder) for name, _ in find_inputs_of([str(folder)], recursive=recursive)]
    return found, [line.removeprefix(f"minivit: {folder}: ") for line in capsys.readouterr().err.splitlines()]


def test_files_that_are_not_read_are_counted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("1.png", "b.JXL", "a.nef", "deep/2.png", "deep/c.jxl", "deep/d.jxl", "notes.txt", "Thumbs.db"):
        (tmp_path / name).touch()
    jxl, nef = "not read, such as b.JXL: convert to PNG", "1 .nef file not read, such as a.nef: convert raw camera"
    found, said = walk(tmp_path, capsys, recursive=True)
    assert found == ["1.png", "deep/2.png"]
    assert said[0] == f"3 .jxl files {jxl}"
    assert said[1].startswith(nef)
    assert len(said) == 2
    found, said = walk(tmp_path, capsys, recursive=False)
    assert found == ["1.png"]
    assert said[0] == f"1 .jxl file {jxl}"


@pytest.mark.skipif(".heic" in IMAGE_SUFFIXES, reason="pillow-heif is installed and reads HEIC")
def test_heic_says_what_to_install(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "IMG_1.HEIC").touch()
    found, said = walk(tmp_path, capsys, recursive=False)
    assert found == []
    assert said[1] == "1 .heic file not read, such as IMG_1.HEIC: pip install pillow-heif"


def test_hidden_names_and_links_are_skipped_with_a_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (".thumbnails", ".git", "deep"):
        (tmp_path / folder).mkdir()
    for name in ("._1.png", "1.png", ".DS_Store", "deep/._2.jpg", ".thumbnails/3.png"):
        (tmp_path / name).touch()
    (tmp_path / "linked").symlink_to(tmp_path / "deep")
    found, said = walk(tmp_path, capsys, recursive=True)
    assert (found, said) == (["1.png"], ["skipped 2 hidden image files, 2 hidden folders, 1 link to a folder"])
    found, said = walk(tmp_path, capsys, recursive=False)
    assert (found, said) == (["1.png"], ["skipped 1 hidden image file"])
    # What is named itself is read.
    assert walk(tmp_path / ".thumbnails", capsys, recursive=False) == (["3.png"], [])
    assert [name for name, _ in find_inputs_of([str(tmp_path / "._1.png")], recursive=False)] == [
        str(tmp_path / "._1.png")
    ]


def test_an_image_is_counted_quietly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("1.png", "._1.png", "2.jxl"):
        (tmp_path / name).touch()
    assert len(list(find_inputs_of([str(tmp_path)], recursive=False, quiet=True))) == 1
    assert capsys.readouterr().err == ""


def listed(path: Path, *, null: bool = False) -> list[str]:
    args = argparse.Namespace(images=[], recursive=False, from_file=str(path), null=null)
    return [name for name, _ in find_inputs(args)]


@pytest.mark.parametrize("end, null", [(b"\n", False), (b"\r\n", False), (b"\0", True)])
def test_a_byte_order_mark_is_no_part_of_a_name(end: bytes, null: bool, tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_bytes(b"\xef\xbb\xbf" + end.join([b"1.png", b"\xef\xbb\xbf2.png"]))
    assert listed(path, null=null) == ["1.png", "\ufeff2.png"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_a_list_in_utf_16_is_refused(encoding: str, tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.write_bytes("\ufeff1.png\n".encode(encoding) if encoding.endswith("be") else "1.png\n".encode(encoding))
    with pytest.raises(UsageError, match="written in UTF-16; save it as UTF-8"):
        listed(path)


# --- classes


@pytest.fixture
def classes(tmp_path: Path) -> Callable[..., Path]:
    def make(folder: str, *names: str) -> Path:
        for name in names:
            path = tmp_path / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (2, 2)).save(path, "PNG")
        return tmp_path / folder

    return make


def test_linked_class_folders_count(classes: Callable[..., Path]) -> None:
    elsewhere, data = classes("elsewhere", "cat/1.png", "cat/2.png"), classes("data", "dog/1.png")
    (data / "cat").symlink_to(elsewhere / "cat")
    (data / "dog" / "back").symlink_to(data)  # a circle
    (data / "dog" / "2.png").symlink_to(data / "dog" / "1.png")
    found = find_images(data)
    assert found.classes == ["cat", "dog"]
    assert found.names == ["cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png"]
    assert found.open(0).size == (2, 2)


def test_a_link_to_nothing_is_an_error_not_a_gap(classes: Callable[..., Path]) -> None:
    data = classes("data", "cat/1.png", "dog/1.png")
    (data / "dog" / "2.png").symlink_to("gone.png")
    found = find_images(data)
    assert found.names == ["cat/1.png", "dog/1.png", "dog/2.png"]
    with pytest.raises(ImageError, match=r"dog/2\.png: no such file"):
        found.open(2)


def test_hidden_folders_are_no_classes(classes: Callable[..., Path]) -> None:
    data = classes(
        "data", "cat/1.png", "cat/._1.png", "cat/.DS_Store", ".ipynb_checkpoints/1.png", "dog/1.png", "dog/2.jxl"
    )
    found = find_images(data)
    assert found.classes == ["cat", "dog"]
    assert found.names == ["cat/1.png", "dog/1.png"]
    assert found.skipped == (
        "1 .jxl not read: convert to PNG",
        "2 hidden skipped, such as .ipynb_checkpoints/",
    )
    with tarfile.open(data.parent / "all.tar", "w") as tar:
        tar.add(data, arcname=".")
    packed = find_images(data.parent / "all.tar")
    assert packed.classes == found.classes
    assert len(packed) == 2
    assert "2 hidden skipped" in packed.skipped[1]


def test_links_in_a_tar_are_counted(classes: Callable[..., Path]) -> None:
    data = classes("data", "cat/1.png", "dog/1.png")
    os.link(data / "cat" / "1.png", data / "cat" / "2.png")
    (data / "dog" / "2.png").symlink_to("1.png")
    with tarfile.open(data.parent / "all.tar", "w") as tar:
        tar.add(data, arcname="all")
    (line,) = find_images(data.parent / "all.tar").skipped
    assert line.startswith("2 links in the tar skipped")


def test_a_folder_of_unread_images_says_so(classes: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match=r"no images in it \(2 \.nef not read"):
        find_images(classes("data", "cat/1.nef", "dog/1.nef"))


def labelled(*names: str) -> LabelledImages:
    return LabelledImages(source=Path("data"), classes=list(names), names=[], labels=[], spans=None)


def test_labels_that_are_equal_after_folding_are_refused() -> None:
    def match(labels: dict[int, str], *folders: str) -> list[int]:
        return match_classes(labelled(*folders), labels, len(labels))

    assert match({0: "great_White, shark", 1: "Tabby"}, "tabby", "Great white") == [1, 0]
    assert match({0: "Cat", 1: "cat"}, "Cat", "cat") == [0, 1]  # exact names are clear
    assert match({0: "crane, bird", 1: "crane"}, "crane") == [1]
    with pytest.raises(UsageError, match=r"folder CAT matches several labels of the model: Cat \(0\), cat \(1\)"):
        match({0: "Cat", 1: "cat"}, "CAT")
    with pytest.raises(UsageError, match=r"crane matches several .*: crane \(0\), crane \(1\)"):
        match({0: "crane", 1: "crane"}, "crane")
    with pytest.raises(UsageError, match=r"crane matches several"):
        match({0: "crane, bird", 1: "crane, machine"}, "crane")
    with pytest.raises(UsageError, match=r"folders of one label of the model: Cat, cat; merge them"):
        match({0: "cat", 1: "dog"}, "Cat", "cat", "dog")
    with pytest.raises(UsageError, match=r"no labels of the model: fox"):
        match({0: "cat"}, "fox")
