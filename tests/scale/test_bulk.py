"""Long runs: what is read ahead, what a batch may change, what is kept, and what every kind of end leaves behind."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from helpers.command import own_signals, run
from PIL import Image

import minivit
from minivit import inference
from minivit.cli import main
from minivit.cli.shared.inputs import find_images, natural
from minivit.errors import ImageError, UsageError
from minivit.inference import embeddings
from minivit.inference.embeddings import EmbeddingFile, EmbeddingWriter, open_embeddings
from minivit.inference.jsonl import JsonlLog
from minivit.inference.predict import image_spec_of
from minivit.inference.prefetch import Input, read_ahead, run_batches
from minivit.inference.search import nearest

SUFFIXES = (".jsonl", ".npy", ".safetensors", ".parquet")


@pytest.fixture(scope="module")
def model(hf_checkpoint) -> str:
    """A small classifier with 11 named classes for pictures of 24 x 40."""
    labels = {index: f"name {index}" for index in range(11)}
    return str(hf_checkpoint(id2label=labels, label2id={name: index for index, name in labels.items()}))


def make_pictures(folder: Path, count: int) -> list[str]:
    """Noise of 30 x 20, another in every file, two bad ones among them."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(7)
    paths = []
    for i in range(count):
        levels = torch.randint(256, (30 * 20 * 3,), generator=generator, dtype=torch.uint8)
        paths.append(str(folder / f"{i}.png"))
        Image.frombytes("RGB", (30, 20), bytes(levels.tolist())).save(paths[-1])
    Path(paths[3]).write_text("no picture")
    Path(paths[6]).write_bytes(Path(paths[5]).read_bytes()[:300])
    return paths


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bulk") / "pictures"
    make_pictures(folder, 40)
    return folder


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# --- reading ahead --------------------------------------------------------------------------------------------------


def test_results_come_in_order_whoever_is_fast():
    def read(i: int) -> int:
        time.sleep(0.02 if i % 5 == 0 else 0)
        return i * i

    assert list(read_ahead(range(50), read, readers=4, ahead=6)) == [i * i for i in range(50)]


def test_no_more_is_drawn_than_may_lie_ready():
    drawn: list[int] = []

    def items():
        for i in range(100):
            drawn.append(i)
            yield i

    results = read_ahead(items(), lambda i: i, readers=3, ahead=5)
    for taken in range(1, 20):
        next(results)
        time.sleep(0.002)
        assert len(drawn) <= taken + 5
    results.close()


def test_a_result_is_handed_out_while_the_next_picture_is_waited_for():
    more = threading.Event()

    def items():
        yield 1
        assert more.wait(60)
        yield 2

    results = read_ahead(items(), lambda i: i, readers=2, ahead=4)
    assert next(results) == 1  # were both drawn first, the wait would end in its error
    more.set()
    assert list(results) == [2]


def test_what_the_source_raises_comes_in_its_turn():
    def items():
        yield from (1, 2)
        raise UsageError("the list is damaged")

    results = read_ahead(items(), lambda i: i, readers=2, ahead=9)
    assert [next(results), next(results)] == [1, 2]
    with pytest.raises(UsageError, match="damaged"):
        next(results)


# --- what the model sees --------------------------------------------------------------------------------------------


def test_pixels_are_those_of_preprocess_and_a_bad_picture_leaves_its_place_black(model, folder):
    """Bit for bit: no draft mode of the decoder, no shortcut of the resize, and one shape for every batch."""
    spec = image_spec_of(minivit.load(model))
    paths = sorted(map(str, folder.iterdir()), key=natural)[:10]
    seen = []

    def answer(pixels_BCHW):
        seen.append(pixels_BCHW.clone())
        return range(len(pixels_BCHW))

    like = torch.empty(0)
    answers = list(run_batches(map(Input, paths), answer, spec, like=like, batch_size=4))
    assert [len(pixels) for pixels in seen] == [4, 4, 2]
    black = minivit.preprocess(Image.new("RGB", (30, 20)), spec)
    expected = [black if i in (3, 6) else minivit.preprocess(path, spec) for i, path in enumerate(paths)]
    assert torch.equal(torch.cat(seen), torch.stack(expected))
    assert [one.value for one in answers] == [0, 1, 2, None, 0, 1, None, 3, 0, 1]
    assert [one.error and one.error.code for one in answers] == [None] * 3 + ["not_an_image"] + [None] * 2 + [
        "truncated"
    ] + [None] * 3


def test_a_resize_in_float32_is_the_one_of_preprocess(folder):
    """As DINOv3 asks for: the arithmetic comes before the batch, in the reading thread."""
    spec = minivit.ImageSpec(resize=(24, 40), resample="bicubic", float_resize=True, mean=(0.4, 0.5, 0.6))
    paths = [str(folder / f"{i}.png") for i in (0, 1, 2)]
    seen = []
    list(
        run_batches(
            map(Input, paths), lambda x: seen.append(x) or range(len(x)), spec, like=torch.empty(0), batch_size=3
        )
    )
    assert torch.equal(seen[0], torch.stack([minivit.preprocess(path, spec) for path in paths]))


def test_neighbours_do_not_change_a_score_and_the_batch_only_its_rounding(model, folder):
    """Same batch size: the same bits, whoever is beside it. Another one: products of other shapes add up in another
    order, within 1e-5 in float32."""
    loaded = minivit.load(model)
    paths = [str(folder / f"{i}.png") for i in (0, 1, 2, 4)]

    def scores(some, batch):
        return [
            sorted((p.index, p.score) for p in one.top)
            for one in minivit.iter_classify(some, model=loaded, top_k=11, batch_size=batch)
            if not one.error
        ]

    alone = scores(paths, 1)
    assert scores([*paths[:2], str(folder / "3.png"), paths[3]], 4)[:2] == scores(paths, 4)[:2]
    for batch in (2, 3, 4, 8):
        for one, many in zip(alone, scores(paths, batch), strict=True):
            assert [s for _, s in one] == pytest.approx([s for _, s in many], abs=1e-5)


# --- which pictures -------------------------------------------------------------------------------------------------


def test_natural_order_counts():
    names = ["img10.png", "img2.png", "img1.png", "img02.png", "a.png", "b1c10.png", "b1c9.png", "img.png"]
    assert sorted(names, key=natural) == [
        *("a.png", "b1c9.png", "b1c10.png", "img.png", "img1.png", "img02.png", "img2.png", "img10.png")
    ]


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    (tmp_path / "1.png").touch()
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    (first, second) = find_images([str(tmp_path)], recursive=True)
    assert first == (str(tmp_path / "1.png"),) * 2
    assert second[0] == str(tmp_path / "deep")
    assert isinstance(second[1], ImageError)


def test_a_link_to_itself_does_not_hide_its_folder(tmp_path):
    (tmp_path / "2.png").symlink_to("2.png")
    (tmp_path / "1.png").touch()
    found = [name for name, _ in find_images([str(tmp_path)], recursive=True)]
    assert found == [str(tmp_path / "1.png"), str(tmp_path / "2.png")]


def test_a_pattern_follows_no_links_to_folders(tmp_path, monkeypatch):
    """glob would walk two loops 2 ** 40 times."""
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    for name in ("x", "y"):
        (deep / name).symlink_to(tmp_path)
    for path in (tmp_path / "1.png", deep / "2.png", tmp_path / ".hidden.png"):
        path.touch()
    monkeypatch.chdir(tmp_path)
    both = ["1.png", "a/b/2.png"]
    for pattern, expected in (
        ("**/*.png", both),
        ("**", both),
        (f"{tmp_path}/**", [str(tmp_path / name) for name in both]),
        ("*/**/2.png", ["a/b/2.png"]),
        ("*", ["1.png"]),
        ("b*/**", ["b*/**"]),
    ):
        assert [name for name, _ in find_images([pattern], recursive=False)] == expected


def test_a_pipe_among_the_pictures_is_refused_not_waited_for(capsys, model, tmp_path):
    os.mkfifo(tmp_path / "1.png")
    code, out, _ = run(capsys, "classify", str(tmp_path), "-m", model, "--jsonl")
    assert code == 3
    assert json.loads(out)["error"]["code"] == "unreadable"


@pytest.mark.parametrize(("option", "end"), [([], b"\n"), ([], b"\r\n"), (["-0"], b"\0")])
def test_paths_come_from_a_list(capsys, model, folder, tmp_path, option, end):
    odd = tmp_path / os.fsdecode(b"odd \xff\n.png" if option else b"odd \xff.png")
    odd.write_bytes((folder / "0.png").read_bytes())
    names = [str(folder / "4.png"), str(odd), "gone.png"]
    (tmp_path / "list").write_bytes(end.join(map(os.fsencode, names)))
    code, out, _ = run(capsys, "classify", "--from-file", str(tmp_path / "list"), *option, "-m", model, "--jsonl")
    assert code == 3
    found = [json.loads(line) for line in out.splitlines()]
    assert [one["path"] for one in found] == names
    assert ["top" in one for one in found] == [True, True, False]


def test_a_list_on_standard_input_is_answered_line_by_line(model, folder):
    process = command("classify", "--from-file", "-", "-m", model, "--jsonl", stdin=subprocess.PIPE)
    for i in (2, 0):
        process.stdin.write(f"{folder / f'{i}.png'}\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["path"] == str(folder / f"{i}.png")
    out, err = process.communicate(timeout=240)
    assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-0", "a.png"], "-0 says how the paths of --from-file"),
        (["--from-file", "no/such/list"], "no such file"),
        (["-", "--from-file", "-"], "can be read only once"),
        (["a.png", "--resume"], "--resume continues a file"),
        (["a.png", "--workers", "2"], "of --engine ray"),
        (["a.png", "--engine", "ray"], "name"),
    ],
)
def test_options_that_cannot_be_honoured_are_refused(capsys, model, arguments, message):
    try:
        code = main(["classify", *arguments, "-m", model])
    except SystemExit as stop:
        code = stop.code
    assert code == 2
    assert message in capsys.readouterr().err


# --- going on after an interruption ----------------------------------------------------------------------------------


def whole_run(capsys, model: str, folder: Path, out: Path, *options: str) -> bytes:
    verb = "classify" if out.name.startswith("labels") else "embed"
    code, printed, err = run(
        capsys, verb, str(folder), "-m", model, "-o", str(out), "-b", "8", "--device", "cpu", *options
    )
    assert (code, printed) == (3, ""), err
    return out.read_bytes()


def test_records_of_a_file_carry_hash_and_settings(capsys, model, folder, tmp_path):
    whole_run(capsys, model, folder, tmp_path / "labels.jsonl")
    first, *others = records(tmp_path / "labels.jsonl")
    assert list(first) == ["schema", "path", "top", "sha256", "model", "revision", "device", "scores", "run"]
    assert list(first["run"]) == ["dtype", "batch_size", "fast", "top_k", "weights"]
    import hashlib

    assert first["sha256"] == hashlib.sha256((folder / "0.png").read_bytes()).hexdigest()
    assert [one["path"] for one in others] == [str(folder / f"{i}.png") for i in range(1, 40)]


@pytest.mark.parametrize("name", ["labels.jsonl", *(f"vectors{suffix}" for suffix in SUFFIXES)])
def test_a_run_killed_at_random_points_and_resumed_equals_one_that_was_not(capsys, model, folder, tmp_path, name):
    """SIGKILL as it looks from the disk: any prefix of the bytes, rows ahead of their lines, a torn last line."""
    expected = whole_run(capsys, model, folder, tmp_path / name)
    binary = not name.endswith(".jsonl")
    whole = tmp_path / "whole.jsonl"
    if binary:
        store = tmp_path / "again.npy"
        keep = pytest.MonkeyPatch()
        keep.setattr("minivit.inference.embeddings.shutil.rmtree", lambda path: None)
        keep.setattr("minivit.inference.embeddings.EmbeddingWriter.finish", lambda self, total: self.log.finish(total))
        run(capsys, "embed", str(folder), "-m", model, "-o", str(store), "-b", "8", "--device", "cpu")
        keep.undo()
        whole = Path(f"{store}.partial") / "records.jsonl"
        vectors = (Path(f"{store}.partial") / "vectors.npy").read_bytes()
    else:
        whole.write_bytes(expected)
    lines = whole.read_bytes()
    chance = random.Random(name)
    for cut in [0, 1, len(lines) - 1, len(lines), *(chance.randrange(len(lines)) for _ in range(3))]:
        out = tmp_path / f"cut{cut}{Path(name).suffix}"
        if binary:
            partial = Path(f"{out}.partial")
            partial.mkdir()
            (partial / "records.jsonl").write_bytes(lines[:cut])
            rows = lines[:cut].count(b"\n") + (cut < len(lines))  # the row is written before its line
            (partial / "vectors.npy").write_bytes(vectors[: len(vectors) - (40 - rows) * 91 * 4])
        else:
            out.write_bytes(lines[:cut])
        verb = "classify" if name.startswith("labels") else "embed"
        common = ["-m", model, "-o", str(out), "-b", "8", "--device", "cpu", "--resume"]
        code, _, err = run(capsys, verb, str(folder), *common)
        assert (code, err) == (3, f"minivit: wrote {out}\nminivit: 2 of 40 images failed\n")
        assert out.read_bytes() == expected, cut
        if name.endswith(".npy"):
            assert Path(f"{out}.jsonl").read_bytes() == lines
        assert not Path(f"{out}.partial").exists()


class Killed(BaseException):
    """A process that ends here."""


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
@pytest.mark.parametrize("point", ["first replace", "last replace", "rmtree", "in the midst of rmtree"])
def test_a_kill_while_a_store_is_finished_loses_nothing(capsys, model, folder, tmp_path, monkeypatch, suffix, point):
    expected = whole_run(capsys, model, folder, tmp_path / f"whole{suffix}")
    out = tmp_path / f"vectors{suffix}"
    calls = []
    with monkeypatch.context() as patch:
        replace, rmtree = Path.replace, embeddings.shutil.rmtree

        def replace_or_not(self, target):
            calls.append(target)
            if point == "first replace" or (point == "last replace" and target == out):
                raise Killed
            return replace(self, target)

        def rmtree_or_not(path):
            if point == "in the midst of rmtree":
                (path / "records.jsonl").unlink()
            raise Killed

        patch.setattr(Path, "replace", replace_or_not)
        patch.setattr(embeddings.shutil, "rmtree", rmtree_or_not)
        with pytest.raises(Killed):
            whole_run(capsys, model, folder, out)
    assert calls
    assert embeddings.shutil.rmtree is rmtree
    assert whole_run(capsys, model, folder, out, "--resume") == expected
    assert not Path(f"{out}.partial").exists()
    if suffix == ".npy":
        assert Path(f"{out}.jsonl").read_bytes() == (tmp_path / "whole.npy.jsonl").read_bytes()


@pytest.mark.parametrize("suffix", SUFFIXES[1:])
def test_a_disk_that_is_full_at_the_end_loses_nothing(capsys, model, folder, tmp_path, monkeypatch, suffix):
    out = tmp_path / f"vectors{suffix}"
    expected = whole_run(capsys, model, folder, tmp_path / f"whole{suffix}")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    finish = JsonlLog.finish

    def finish_and_fill(self, total):
        finish(self, total)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))

    with monkeypatch.context() as patch:
        patch.setattr(JsonlLog, "finish", finish_and_fill)
        try:
            code, _, err = run(capsys, "embed", str(folder), "-m", model, "-o", str(out), "-b", "8", "--device", "cpu")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 1
    assert err.count("\n") == 1
    assert err.endswith(f"; {out}.partial has all of it, --resume tries again\n")
    assert whole_run(capsys, model, folder, out, "--resume") == expected


def test_a_store_of_another_run_is_refused_before_anything_is_cut_off(capsys, model, folder, tmp_path, monkeypatch):
    out = tmp_path / "vectors.npy"
    with monkeypatch.context() as patch:
        patch.setattr(embeddings.EmbeddingWriter, "finish", lambda self, total: None)
        run(
            *(capsys, "embed", str(folder), "-m", model, "-o", str(out), "-b", "8", "--device", "cpu"),
            *("--pool", "cls+mean"),
        )
    before = (tmp_path / "vectors.npy.partial" / "vectors.npy").read_bytes()
    for pool in ("cls", "tokens"):
        code, _, err = run(
            *(capsys, "embed", str(folder), "-m", model, "-o", str(out), "-b", "8", "--device", "cpu"),
            *("--resume", "--pool", pool),
        )
        assert code == 2
        assert f"of another run, with pool cls+mean; this one has pool {pool}" in err
        assert (tmp_path / "vectors.npy.partial" / "vectors.npy").read_bytes() == before


@pytest.mark.parametrize("name", ["labels.jsonl", *(f"vectors{suffix}" for suffix in SUFFIXES)])
def test_what_is_still_unreadable_needs_no_new_answer(capsys, model, tmp_path, name):
    """No hash to go by, and a name that not every file can hold."""
    folder, out = tmp_path / "pictures", tmp_path / name
    make_pictures(folder, 8)
    (folder / os.fsdecode(b"odd \xff.png")).write_bytes((folder / "0.png").read_bytes())
    (folder / os.fsdecode(b"gone \xfe.png")).symlink_to("nowhere")
    before, there = whole_run(capsys, model, folder, out), out.stat()
    assert whole_run(capsys, model, folder, out, "--resume") == before
    assert os.path.samestat(there, out.stat()), "nothing is written anew"
    if name.endswith(".jsonl"):
        return
    plain = tmp_path / f"plain{out.suffix}"  # the fast path depends on the number of inputs
    whole_run(capsys, model, folder, plain, "--no-fast")
    common = ["-m", model, "-o", str(plain), "-b", "8", "--device", "cpu", "--no-fast", "--resume"]
    code, _, err = run(capsys, "embed", str(folder / "0.png"), *common)
    assert code == 2
    assert "has 10 records, but there are only 1 inputs" in err


def test_a_changed_picture_is_answered_anew_and_other_inputs_are_refused(capsys, model, tmp_path):
    folder, out = tmp_path / "pictures", tmp_path / "labels.jsonl"
    make_pictures(folder, 20)
    before = whole_run(capsys, model, folder, out)
    (folder / "9.png").write_bytes((folder / "1.png").read_bytes())
    (folder / "3.png").write_bytes((folder / "2.png").read_bytes())  # a bad one becomes good
    after = whole_run(capsys, model, folder, out, "--resume")
    assert [i for i, (a, b) in enumerate(zip(before.split(b"\n"), after.split(b"\n"), strict=True)) if a != b] == [3, 9]
    assert after == whole_run(capsys, model, folder, tmp_path / "labels2.jsonl")

    (folder / "0a.png").write_bytes((folder / "1.png").read_bytes())
    for arguments, message in (
        ([str(folder)], "of other inputs: its record 2 is"),
        ([str(folder / "0.png")], "has 20 records, but there are only 1 inputs"),
        ([str(folder), "-k", "2"], "of another run, with top_k 5; this one has top_k 2"),
    ):
        code, _, err = run(
            capsys, "classify", *arguments, "-m", model, "-o", str(out), "-b", "8", "--device", "cpu", "--resume"
        )
        assert code == 2
        assert message in err
        assert out.read_bytes() == after, "nothing of what is there is thrown away"
    code, _, err = run(capsys, "classify", str(folder), "-m", model, "-o", str(out))
    assert code == 2
    assert "already exists" in err


def test_what_is_not_ours_is_left_as_it_is(capsys, model, folder, tmp_path):
    for text in ("my notes, without a newline", '{"path": "mine"}\n{"path": "also mine"}'):
        out = tmp_path / "notes.jsonl"
        out.write_text(text)
        code, _, err = run(capsys, "classify", str(folder), "-m", model, "-o", str(out), "--resume")
        assert code == 2
        assert "was not written by minivit" in err
        assert out.read_text() == text


def test_two_runs_do_not_write_one_file(capsys, model, folder, tmp_path):
    from minivit.inference.jsonl import Appender

    other = Appender(tmp_path / "labels.jsonl")
    code, _, err = run(capsys, "classify", str(folder), "-m", model, "-o", str(tmp_path / "labels.jsonl"), "--resume")
    other.close()
    assert code == 2
    assert "another run is writing it" in err


def test_a_finished_store_is_checked_and_never_changed(capsys, model, tmp_path):
    folder, out = tmp_path / "pictures", tmp_path / "vectors.safetensors"
    make_pictures(folder, 12)
    before = whole_run(capsys, model, folder, out)
    assert whole_run(capsys, model, folder, out, "--resume") == before
    (folder / "9.png").write_bytes((folder / "1.png").read_bytes())
    code, _, err = run(
        capsys, "embed", str(folder), "-m", model, "-o", str(out), "-b", "8", "--device", "cpu", "--resume"
    )
    assert code == 2
    assert "is finished, and" in err
    assert out.read_bytes() == before


# --- every kind of end -----------------------------------------------------------------------------------------------


def command(*arguments: str, **kwargs) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(Path(minivit.__file__).parents[1])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    settings = {**pipes, "preexec_fn": own_signals, **kwargs}
    return subprocess.Popen([sys.executable, "-m", "minivit", *arguments], **settings)


@pytest.mark.slow
@pytest.mark.parametrize(("sign", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_signal_leaves_a_valid_prefix_that_resumes(capsys, model, folder, tmp_path, sign, code):
    """In mid-run for certain: its list of paths has no end yet."""
    paths = [str(folder / f"{i}.png") for i in range(40)] * 60
    out = tmp_path / "labels.jsonl"
    (tmp_path / "list").write_text("\n".join(paths) + "\n")
    common = ["-m", model, "-o", str(out), "-b", "8", "--device", "cpu", "--no-fast"]
    process = command("classify", "--from-file", "-", *common, stdin=subprocess.PIPE)
    process.stdin.write((tmp_path / "list").read_text())
    process.stdin.flush()
    while not out.exists() or out.stat().st_size < 3000:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(sign)
    _, err = process.communicate(timeout=240)
    assert process.returncode == code
    assert "Traceback" not in err
    there = out.read_bytes()
    assert run(capsys, "classify", "--from-file", str(tmp_path / "list"), *common, "--resume")[0] == 3
    whole = out.read_bytes()
    assert whole.startswith(there[: there.rfind(b"\n") + 1])
    assert [one["path"] for one in records(out)] == paths


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_records_before_it_are_whole(model, folder, tmp_path):
    """The limit on the size of a file stands for the disk: the last write takes a part, the next fails."""

    def small_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))

    out = tmp_path / "labels.jsonl"
    process = command("classify", str(folder), "-m", model, "-o", str(out), preexec_fn=small_disk)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 1
    assert err == f"minivit: {out}: File too large; the records before this one are whole\n"
    assert 1 <= len(records(out)) < 40
    assert out.read_bytes().endswith(b"\n")

    if Path("/dev/full").exists():
        with Path("/dev/full").open("w") as full:
            process = command("classify", str(folder), "-m", model, "--jsonl", stdout=full)
            _, err = process.communicate(timeout=240)
        assert process.returncode == 1
        assert err == ("minivit: standard output: No space left on device; the records before this one are whole\n")
        with Path("/dev/full").open("w") as full:
            process = command("info", model, stdout=full)  # a command that prints
            _, err = process.communicate(timeout=240)
        assert process.returncode == 1
        assert "No space left on device" in err
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("closed", "code", "out", "err"),
    [
        (">&-", 1, "", "minivit: standard output: Bad file descriptor; the records before this one are whole\n"),
        ("2>&-", 3, '{"schema": 1, "path": "gone.png", ', ""),
        ("<&- 2>&- -o labels.jsonl", 3, "", ""),
    ],
)
def test_a_stream_that_is_closed_is_no_file_of_ours(model, tmp_path, closed, code, out, err):
    script = f"'{sys.executable}' -m minivit classify gone.png -m '{model}' --jsonl {closed}"
    environment = {**os.environ, "PYTHONPATH": str(Path(minivit.__file__).parents[1])}
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, err)
    assert done.stdout.startswith(out)
    assert bool(done.stdout) == bool(out)


@pytest.mark.parametrize("name", ["labels.jsonl", "vectors.npy"])
def test_an_output_folder_that_vanishes_is_noticed(capsys, model, folder, tmp_path, monkeypatch, name):
    home = tmp_path / "home"
    home.mkdir()
    put = JsonlLog.write

    def put_and_lose(self, index, item):
        put(self, index, item)
        if index == 5:
            home.rename(tmp_path / "elsewhere")

    monkeypatch.setattr(JsonlLog, "write", put_and_lose)
    verb = "classify" if name.startswith("labels") else "embed"
    code, _, err = run(capsys, verb, str(folder), "-m", model, "-o", str(home / name))
    assert code == 1
    assert "is gone, or its folder is" in err
    assert err.count("\n") == 1
    code, _, err = run(capsys, verb, str(folder), "-m", model, "-o", str(home / name))
    assert code == 2
    assert "cannot be written (No such file or directory)" in err


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_pictures(model, folder, tmp_path):
    """Peak of a run over 200 and over 4000 pictures, in processes of their own: less than 16 MB apart."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc: getrusage tells the peak of the process before exec too, which was this one")
    code = (
        "import sys\nfrom minivit.cli import main\nmain(sys.argv[1:])\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    peaks = []
    for times in (5, 100):
        arguments = [
            "classify",
            *[str(folder)] * times,
            "-m",
            model,
            "-b",
            "32",
            "-o",
            str(tmp_path / f"{times}.jsonl"),
        ]
        environment = {**os.environ, "PYTHONPATH": str(Path(minivit.__file__).parents[1])}
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments, "--device", "cpu"],
            env=environment, capture_output=True, text=True, timeout=240,
        )  # fmt: skip
        peaks.append(int(done.stdout) / 1024)
        assert len(records(tmp_path / f"{times}.jsonl")) == 40 * times
    assert peaks[1] - peaks[0] < 16


@pytest.mark.slow
def test_the_bar_is_for_terminals(model, folder, tmp_path):
    pty = pytest.importorskip("pty", reason="no terminals here")
    import fcntl
    import termios

    shown = {}
    for options in ((), ("--no-progress",)):
        parent, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        out = tmp_path / f"labels{len(options)}.jsonl"
        process = command("classify", *[str(folder)] * 10, "-m", model, "-o", str(out), *options, stderr=child)
        os.close(child)
        text = b""
        while True:
            try:
                block = os.read(parent, 4096)
            except OSError:  # as Linux ends a terminal
                break
            if not block:
                break
            text += block
        os.close(parent)
        process.stdout.close()
        assert process.wait(240) == 3
        shown[options] = text.decode()
    assert "400" in shown[()], shown
    assert "images/s" in shown[()]
    assert shown[("--no-progress",)] == f"minivit: wrote {out}\r\nminivit: 20 of 400 images failed\r\n"


# --- embeddings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("pool", ["cls+mean", "tokens"])
def test_every_file_holds_the_vectors_with_paths_and_origin(capsys, model, folder, tmp_path, suffix, pool):
    out = tmp_path / f"vectors{suffix}"
    whole_run(capsys, model, folder, out, "--pool", pool, "--layer", "1", "--norm", "l2", "--no-fast")
    store = open_embeddings(out)
    made = store.constant["run"]
    assert (store.constant["model"], made["pool"], made["layer"], made["norm"]) == (model, pool, 1, "l2")
    assert made["preprocessing"]["resize"] == [24, 40]
    pieces = list(store.pieces)
    found = [one for some, _ in pieces for one in some]
    vectors = torch.cat([some for _, some in pieces])
    assert [one["path"] for one in found] == [str(folder / f"{i}.png") for i in range(40)]
    assert [i for i, one in enumerate(found) if "error" in one] == [3, 6]
    assert vectors.flatten(1).isnan().all(1).nonzero().flatten().tolist() == [3, 6]
    good = [i for i in range(40) if i not in (3, 6)]
    expected = minivit.embed(
        [str(folder / f"{i}.png") for i in good], model=model, pool=pool, layer=1, norm="l2", batch_size=8
    )
    assert vectors.shape[1:] == ((182,) if pool == "cls+mean" else (16, 91))
    torch.testing.assert_close(vectors[good], expected, atol=1e-6, rtol=0)


def test_files_open_in_the_libraries_they_are_for(capsys, model, folder, tmp_path):
    numpy = pytest.importorskip("numpy", reason="NumPy is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install 'minivit[parquet]'")
    from safetensors import safe_open

    for suffix in SUFFIXES[1:]:
        whole_run(capsys, model, folder, tmp_path / f"v{suffix}")
    array = numpy.load(tmp_path / "v.npy")
    with safe_open(tmp_path / "v.safetensors", "pt") as file:
        tensor, facts = file.get_tensor("embeddings"), file.metadata()
        lines = bytes(file.get_tensor("records").tolist()).decode().splitlines()
    table = parquet.read_table(tmp_path / "v.parquet")
    assert array.shape == tuple(tensor.shape) == (40, 91)
    assert array.tobytes() == tensor.numpy().tobytes()
    assert table.column("embedding").to_pylist()[0] == array[0].tolist()
    assert [i for i, row in enumerate(table.column("embedding").to_pylist()) if numpy.isnan(row).all()] == [3, 6]
    assert (facts["model"], facts["pool"], facts["device"]) == (model, "cls", "cpu")
    assert table.schema.metadata[b"pool"] == b"cls"
    assert [json.loads(line)["path"] for line in lines] == table.column("path").to_pylist()


def test_a_layer_is_that_of_the_trace(model, folder):
    loaded = minivit.load(model)
    path = str(folder / "0.png")
    pixels = minivit.preprocess(path, loaded.image_spec)[None]
    trace = minivit.trace(loaded, pixels, keep=["blocks.*.resid_post"])
    for layer in (0, 1, -1):
        expected = trace[f"blocks.{layer % 3}.resid_post"]
        assert torch.equal(minivit.embed(path, model=loaded, pool="tokens", layer=layer), expected)
        assert torch.equal(minivit.embed(path, model=loaded, pool="cls", layer=layer), expected[:, 0])
        mean = expected[:, 1:].mean(1)
        assert torch.equal(minivit.embed(path, model=loaded, pool="mean", layer=layer), mean)


def test_the_command_line_knows_the_pools_and_files_of_the_library():
    from minivit.cli.predict import embed
    from minivit.inference.embeddings import SUFFIXES as STORES
    from minivit.inference.predict import POOLS

    assert embed.POOLS == POOLS
    assert list(embed.FORMS) == [".jsonl", *STORES]


def test_what_the_checkpoint_does_not_have_is_refused(capsys, model, folder, tmp_path):
    for options, message in (
        (["--pool", "pooler"], "has no pooler in its checkpoint; use pool cls, mean, cls+mean, tokens"),
        (["--pool", "projection"], "has no projection in its checkpoint"),
        (["--layer", "3"], "has 3 blocks, so layer must lie from -3 to 2, not 3"),
        (["-o", "x.csv"], "embeddings are written as"),
    ):
        out = [] if "-o" in options else ["-o", str(tmp_path / "x.npy")]
        code, _, err = run(capsys, "embed", str(folder), "-m", model, *out, *options)
        assert code == 2
        assert message in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_similar_finds_the_same_picture_first_and_refuses_another_model(
    capsys, model, folder, tmp_path, suffix, hf_checkpoint
):
    out = tmp_path / f"vectors{suffix}"
    whole_run(capsys, model, folder, out, "--pool", "mean")
    query = str(folder / "17.png")
    code, printed, _ = run(capsys, "similar", query, str(out), "-k", "3", "--json", "--device", "cpu")
    found = json.loads(printed)["found"]
    assert code == 0
    assert (found[0]["path"], found[0]["cosine"]) == (query, pytest.approx(1, abs=1e-5))
    # By hand: all cosines in one product.
    good = [str(folder / f"{i}.png") for i in range(40) if i not in (3, 6)]
    vectors = torch.nn.functional.normalize(minivit.embed(good, model=model, pool="mean").double(), dim=-1)
    cosines = vectors @ vectors[good.index(query)]
    best = cosines.topk(3)
    assert [one["path"] for one in found] == [good[i] for i in best.indices]
    assert [one["cosine"] for one in found] == pytest.approx(best.values.tolist(), abs=1e-5)

    other = str(hf_checkpoint(seed=1))
    code, _, err = run(capsys, "similar", query, str(out), "-m", other, "--device", "cpu")
    assert code == 2
    assert "cannot be compared" in err
    (tmp_path / "damaged.npy").write_bytes(b"nothing")
    assert run(capsys, "similar", query, str(tmp_path / "damaged.npy"))[0] == 2


def test_of_equal_vectors_the_first_are_found():
    vectors = torch.tensor([3.0, 4.0]).expand(5000, 2).clone()
    vectors[7] *= -1
    records = [{"path": str(i)} for i in range(5000)]
    found = nearest(torch.tensor([6.0, 8.0]), EmbeddingFile({}, iter([(records, vectors)])), 9)
    assert [match.path for match in found] == [*"0123456", "8", "9"]


# --- the same from Python ---------------------------------------------------------------------------------------------


def test_a_run_is_one_call_that_returns_its_counts(model, folder, tmp_path):
    """40 images, two of them unreadable; a second run keeps every record, whose paths and bytes are the same."""
    loaded = minivit.load(model)
    images = [(path.name, path) for path in sorted(folder.iterdir(), key=lambda path: natural(path.name))]
    settings = inference.constants(loaded, batch_size=8)
    done = []
    for resume, kept in ((False, 0), (True, 40)):
        log = JsonlLog(tmp_path / "labels.jsonl", settings, resume=resume)
        predict = inference.classifier(loaded, 2)
        summary = inference.write_predictions(images, loaded, predict, log, settings, batch_size=8, report=done.append)
        assert summary == inference.Summary(records=40, failed=2, kept=kept)
    assert done == [*range(1, 41)] * 2
    assert [len(one["top"]) for one in records(tmp_path / "labels.jsonl") if "top" in one] == [2] * 38


def test_similar_is_one_call(capsys, model, folder, tmp_path):
    out = tmp_path / "vectors.npy"
    whole_run(capsys, model, folder, out)
    query = str(folder / "17.png")
    found = inference.similar(Image.open(query), out, k=2, model=minivit.load(model))
    assert found.matches[0].path == query
    assert len(found.matches) == 2
    assert found.matches[0].cosine == pytest.approx(1, abs=1e-5)
    assert not found.is_text
    assert found.constant["run"]["pool"] == "cls"
    with pytest.raises(UsageError, match="cannot be compared"):
        inference.similar(query, out, model=minivit.load("minivit/cifar10-vit"))


def test_vectors_with_another_header_are_refused_not_overwritten(model, tmp_path):
    """As another NumPy could write it: 64 bytes longer, so that no row lies where this one would look for it."""
    settings = inference.constants(minivit.load(model), batch_size=1)
    out = tmp_path / "v.npy"
    writer = EmbeddingWriter(out, settings, (3,))
    writer.write(0, {"schema": 1, "path": "a.png", "embedding": torch.ones(3), **settings})
    writer.close()
    vectors = tmp_path / "v.npy.partial" / "vectors.npy"
    data = vectors.read_bytes()
    size = struct.unpack("<H", data[8:10])[0]
    longer = data[:8] + struct.pack("<H", size + 64) + data[10 : 9 + size] + b" " * 64 + data[9 + size :]
    vectors.write_bytes(longer)
    with pytest.raises(UsageError, match="do not fit its records"):
        EmbeddingWriter(out, settings, (3,), resume=True)
    assert vectors.read_bytes() == longer
    vectors.write_bytes(data)
    EmbeddingWriter(out, settings, (3,), resume=True).close()
    assert vectors.read_bytes() == data


def test_equal_runs_write_equal_safetensors(model, tmp_path):
    """The library shuffles the metadata of a file; ours are in the order of their names."""
    settings = inference.constants(minivit.load(model), batch_size=1, pool="cls", layer=None, norm="l2")
    written = []
    for name in ("a", "b", "c"):
        writer = EmbeddingWriter(tmp_path / f"{name}.safetensors", settings, (3,))
        writer.write(0, {"schema": 1, "path": "a.png", "embedding": torch.tensor([1.0, 2.0, 3.0]), **settings})
        writer.finish(1)
        writer.close()
        written.append((tmp_path / f"{name}.safetensors").read_bytes())
    assert written[0] == written[1] == written[2]
    ((_, vectors),) = open_embeddings(tmp_path / "a.safetensors").pieces
    assert vectors.tolist() == [[1, 2, 3]]
