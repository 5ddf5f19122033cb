"""What commands write: nothing of the user's is lost, nothing is text under a wrong name, every locale can show it."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.command import run
from PIL import Image

import minivit
from minivit.cli.shared.console import say, show_text, table
from minivit.cli.shared.writers import form_of
from minivit.errors import UsageError, WriteError
from minivit.weights.replacing import replacing, replacing_files


@pytest.fixture(scope="module")
def model(hf_checkpoint) -> str:
    return str(hf_checkpoint())


@pytest.fixture
def image(photo, tmp_path) -> Path:
    return Path(shutil.copy(photo, tmp_path / "dog.png"))


COMMANDS = {
    "preprocess": [],
    "attention": [],
    "attribute": [],
    "lens": ["--patches"],
    "ablate": ["--scan", "heads"],
    "faithfulness": ["--methods", "norms"],
    "heads": [],
}


WAYS = ["itself", "symlink", "hard link", "in a folder", "link in a folder"]


@pytest.mark.parametrize(
    ("name", "way"),
    [(name, way) for name in COMMANDS for way in WAYS if "folder" not in way or name in ("heads", "faithfulness")],
)
def test_an_output_that_is_an_input_is_refused_through_links_too(capsys, model, image, tmp_path, name, way):
    before, given, out = image.read_bytes(), image, image
    if way == "symlink":
        out = tmp_path / "out.png"
        out.symlink_to(image)
    elif way == "hard link":
        out = tmp_path / "out.png"
        out.hardlink_to(image)
    elif "folder" in way:
        given = image.parent
        if way.startswith("link"):
            given, out = tmp_path / "images", image
            given.mkdir()
            (given / "a.png").symlink_to(image)
    arguments = [name, str(given), *COMMANDS[name], "-m", model, "-o", str(out), "--overwrite"]
    code, _, err = run(capsys, *arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert f"{out}: the file is also an input" in err
    assert image.read_bytes() == before


def test_weights_are_inputs_as_well(capsys, model, image, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    weights = copy / "model.safetensors"
    before = weights.read_bytes()
    code, _, err = run(
        *(capsys, "trace", str(image), "--keep", "norm", "-m", str(copy), "-o", str(weights), "--overwrite")
    )
    assert code == 2
    assert "also an input" in err
    link = tmp_path / "linked"
    link.mkdir()
    (link / "model.safetensors").symlink_to(weights)
    code, _, err = run(capsys, "convert", str(copy), str(link))
    assert code == 2
    assert "model.safetensors in it is also an input" in err
    assert weights.read_bytes() == before


@pytest.mark.parametrize("name", ["preprocess", "attention", "explore"])
def test_an_existing_output_is_replaced_only_with_overwrite(capsys, model, image, tmp_path, name):
    out = tmp_path / ("page.html" if name == "explore" else "out.png")
    out.write_bytes(b"mine")
    out.chmod(0o640)
    code, _, err = run(capsys, name, str(image), "-m", model, "-o", str(out))
    assert code == 2
    assert f"-o {out}: already exists; --overwrite replaces it, or name another one" in err
    assert out.read_bytes() == b"mine"
    assert run(capsys, name, str(image), "-m", model, "-o", str(out), "--overwrite")[0] == 0
    assert len(out.read_bytes()) > 100
    assert out.stat().st_mode & 0o777 == 0o640
    empty = tmp_path / f"empty{out.suffix}"  # as mktemp makes one: nothing is lost
    empty.touch()
    assert run(capsys, name, str(image), "-m", model, "-o", str(empty))[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"dog.png", out.name, empty.name}


def test_a_link_is_followed_and_stays(capsys, model, image, tmp_path):
    (tmp_path / "far").mkdir()
    link = tmp_path / "out.png"
    link.symlink_to(Path("far") / "real.png")
    for more in ([], ["--overwrite"]):
        assert run(capsys, "preprocess", str(image), "-m", model, "-o", str(link), *more)[0] == 0
        assert link.is_symlink()
        Image.open(tmp_path / "far" / "real.png").load()
    for name, target in (("v.npy", "real.npy"), ("v.safetensors", "real.safetensors")):
        (tmp_path / name).symlink_to(Path("far") / target)
        assert run(capsys, "embed", str(image), "-m", model, "-o", str(tmp_path / name))[0] == 0
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "far" / target).is_file()
        assert run(capsys, "similar", str(image), str(tmp_path / name))[1].startswith("1.0000")


def test_a_resumed_log_behind_a_link_is_rewritten_where_it_is(capsys, model, photo, image, tmp_path):
    real, link = tmp_path / "real.jsonl", tmp_path / "labels.jsonl"
    link.symlink_to(real)
    assert run(capsys, "classify", str(image), "-m", model, "-o", str(link))[0] == 0
    real.chmod(0o600)
    before = json.loads(real.read_text())
    Image.open(photo).rotate(180).save(image)
    assert run(capsys, "classify", str(image), "-m", model, "-o", str(link), "--resume")[0] == 0
    assert link.is_symlink()
    assert json.loads(real.read_text())["sha256"] != before["sha256"]
    assert real.stat().st_mode & 0o777 == 0o600


def test_a_failure_while_writing_leaves_what_was_there(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    for number, kind in ((errno.ENOSPC, WriteError), (errno.EACCES, UsageError)):
        with pytest.raises(kind, match=str(path)), replacing(path) as new:
            new.write_text("half")
            raise OSError(number, os.strerror(number))
    with pytest.raises(KeyboardInterrupt), replacing(path) as new:
        new.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(WriteError), replacing_files(tmp_path, ["x.txt", "y.txt"]) as (one, two):
        one.write_text("new")
        two.write_text("new")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["x.txt"]
    with replacing("/dev/null") as new:
        assert new == Path("/dev/null")


@pytest.mark.parametrize(
    ("path", "asked", "form"),
    [
        (None, None, "text"),
        ("labels", None, "text"),
        ("labels.TXT", None, "text"),
        ("x.JSON", None, "json"),
        ("x.csv", "csv", "csv"),
        ("x.log", "jsonl", "jsonl"),
        ("x.parquet", None, None),
        ("x.npy", "jsonl", None),
        ("x.json", "csv", None),
        ("x.csv.gz", None, None),
        ("x.tsv", None, None),
        ("x.txt", "json", None),
    ],
)
def test_the_form_of_labels_is_that_of_the_suffix_or_refused(path, asked, form):
    if form:
        assert form_of(path, asked) == form
        return
    with pytest.raises(UsageError, match=r"labels are written as \.jsonl, \.json, \.csv or \.txt"):
        form_of(path, asked)


def minivit_bytes(*arguments: str | bytes, **environment: str) -> subprocess.CompletedProcess:
    everything = {**os.environ, "PYTHONPATH": str(Path(minivit.__file__).parents[1]), **environment}
    return subprocess.run([sys.executable, "-m", "minivit", *arguments], capture_output=True, env=everything)


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["utf-8:strict", "latin-1", "ascii"])
def test_every_locale_gets_every_name(model, photo, tmp_path, encoding):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in (b"a.png", "\u540d\u1e9e.png".encode(), b"z\xff.png"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).hardlink_to(photo)
    for form in ("--csv", "--jsonl", None):
        options = [form] if form else []
        done = minivit_bytes("classify", str(folder), "-m", model, "-k", "1", *options, PYTHONIOENCODING=encoding)
        assert done.returncode == 0, done.stderr
        if form == "--csv":  # UTF-8 whatever the locale, as the documents say
            assert "\u540d\u1e9e.png" in done.stdout.decode()
            assert "z\\udcff.png" in done.stdout.decode()
        elif form is None:
            known = "\u540d\u1e9e" if encoding.startswith("utf") else "\\u540d\\u1e9e"
            assert known in done.stdout.decode(encoding.split(":")[0])
    out = tmp_path / "o.csv"
    done = minivit_bytes("classify", str(folder), "-m", model, "-k", "1", "-o", str(out), PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert [line.split("/")[-1].split(",")[0] for line in out.read_text("utf-8").splitlines()[1:]] == [
        "a.png", "z\\udcff.png", "\u540d\u1e9e.png",
    ]  # fmt: skip


def test_nothing_that_a_file_says_controls_the_terminal(capsys):
    evil = "\x1b[2Ja\nb\u202e\udcff"
    say(f"{evil}: broken")
    show_text(f"one {evil[:5]}\ntwo")
    print(table([["name", evil], ["x", "y"]]))
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert err == "minivit: \\x1b[2Ja\\nb\\u202e\\udcff: broken\n"
    assert out.splitlines()[:2] == ["one \\x1b[2Ja", "two"]
    assert len(out.splitlines()) == 4
    code, _, err = run(capsys, "classify", "\x1b[31m.png", "--no-such-option\x1b[1m")
    assert code == 2
    assert "\x1b" not in err


@pytest.mark.parametrize("form", [[], ["--jsonl"], ["--json"], ["--csv"], ["-o", "OUT.jsonl"]])
def test_exit_code_3_comes_with_one_line_of_summary(capsys, model, image, tmp_path, form):
    form = [word.replace("OUT", str(tmp_path / "out")) for word in form]
    (tmp_path / "bad.png").write_bytes(b"none")
    code, _, err = run(capsys, "classify", str(image), str(tmp_path / "bad.png"), str(image), "-m", model, *form)
    assert code == 3
    assert err.splitlines()[-1] == "minivit: 1 of 3 images failed"
    assert err.count("images failed") == 1


def test_heads_says_how_many_failed(capsys, model, image, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"none")
    code, _, err = run(capsys, "heads", str(tmp_path), "-m", model)
    assert code == 3
    assert err.splitlines()[-1] == "minivit: 1 of 2 images failed"


def test_similar_says_what_a_file_of_labels_is(capsys, model, image, tmp_path):
    for name in ("labels.jsonl", "labels.json", "labels.csv"):
        out = tmp_path / name
        assert run(capsys, "classify", str(image), "-m", model, "-o", str(out))[0] == 0
        code, _, err = run(capsys, "similar", str(image), str(out))
        assert (code, err.count("\n")) == (2, 1)
        assert err.startswith(f"minivit: {out}: labels of `minivit classify`, not embeddings; ")


def test_a_damaged_file_of_embeddings_is_one_line(capsys, model, image, tmp_path):
    out = tmp_path / "v.jsonl"
    images = [str(image)] * 300  # more than one piece
    assert run(capsys, "embed", *images, "-m", model, "-o", str(out))[0] == 0
    lines = out.read_bytes().splitlines(keepends=True)
    damage = {
        "torn": b"".join(lines)[:-40],
        "null": b"".join([*lines[:299], b"null\n"]),
        "text": b"".join([*lines[:299], lines[299].replace(b'"embedding": [', b'"embedding": ["x", ')]),
        "short": b"".join([*lines[:299], lines[299].replace(b'"embedding": [', b'"embedding": [1.5, ')]),
        "deep": b"".join([*lines[:299], b"[" * 100_000 + b"\n"]),
        "bytes": b"".join([*lines[:299], b"\xff\xfe\n"]),
        "no run": b"".join([lines[0].replace(b'"run"', b'"ran"'), *lines[1:]]),
    }
    for name, content in damage.items():
        out.write_bytes(content)
        code, printed, err = run(capsys, "similar", str(image), str(out))
        assert (code, printed, err.count("\n")) == (2, "", 1), (name, err)
        assert f"{out}: not embeddings of minivit, or damaged" in err, name


def test_negative_counts_are_refused_by_argparse(capsys, tmp_path):
    for arguments in (["eval", "m", "d", "--workers", "-1"], ["train", "d", "-o", "o", "--workers", "-2"]):
        code, _, err = run(capsys, *arguments)
        assert code == 2
        assert "is not a whole number of at least 0" in err


def test_a_stream_without_reconfigure_is_left_alone(monkeypatch, tmp_path):
    class Notebook(io.StringIO):
        """As ipykernel's stream: it has no encoding to change."""

    monkeypatch.setattr(sys, "stdout", Notebook())
    assert minivit.cli.main(["models"]) == 0
    assert "google/vit-base-patch16-224" in sys.stdout.getvalue()
