"""The command as a person uses it: what it prints, in what order, and how it ends."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.command import own_signals, run
from PIL import Image

import minivit
from minivit.cli import main


@pytest.fixture(scope="module")
def model(hf_checkpoint) -> str:
    """A small classifier with 11 named classes for pictures of 24 x 40."""
    labels = {index: f"name {index}" for index in range(11)}
    return str(hf_checkpoint(id2label=labels, label2id={name: index for index, name in labels.items()}))


@pytest.fixture
def pictures(tmp_path: Path) -> dict[str, str]:
    """Two good pictures, one that is cut off, one that is none, and a folder with more."""
    generator = torch.Generator().manual_seed(3)
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    places = ("a.png", "b.jpg", "folder/2.png", "folder/1.PNG", "folder/deep/3.png")
    for place in places:
        levels = torch.randint(256, (30 * 20 * 3,), generator=generator, dtype=torch.uint8)
        Image.frombytes("RGB", (30, 20), bytes(levels.tolist())).save(tmp_path / place)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "b.jpg").read_bytes()[:400])
    (tmp_path / "text.jpg").write_text("no picture")
    (folder / "notes.txt").write_text("not taken for a picture")
    return {place: str(tmp_path / place) for place in (*places, "cut.jpg", "text.jpg", "folder")}


def test_jsonl_schema_1_is_frozen(capsys, model, pictures):
    code, out, err = run(capsys, "classify", pictures["a.png"], "-m", model, "-k", "2", "--jsonl", "--device", "cpu")
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert list(record) == ["schema", "path", "top", "model", "revision", "device", "scores"]
    assert record["scores"] == "softmax"
    assert record["schema"] == 1
    assert record["path"] == pictures["a.png"]
    assert (record["model"], record["revision"], record["device"]) == (model, None, "cpu")
    assert [list(item) for item in record["top"]] == [["index", "label", "score"]] * 2

    # Scores are unrounded and are what the library gives.
    (expected,) = minivit.classify(pictures["a.png"], model=model, top_k=2)
    assert [(i["index"], i["label"], i["score"]) for i in record["top"]] == [
        (p.index, p.label, p.score) for p in expected
    ]
    assert record["top"][0]["label"] == f"name {record['top'][0]['index']}"


def test_a_bad_picture_becomes_a_record_and_the_others_go_on_in_order(capsys, model, pictures):
    names = ["b.jpg", "cut.jpg", "a.png", "text.jpg"]
    arguments = [*(pictures[name] for name in names), "gone.png"]
    for batch in ("1", "3", "8"):
        code, out, _ = run(capsys, "classify", *arguments, "-m", model, "--jsonl", "-b", batch)
        records = [json.loads(line) for line in out.splitlines()]
        assert code == 3
        assert [record["path"] for record in records] == arguments
        codes = [record.get("error", {}).get("code") for record in records]
        assert codes == [None, "truncated", None, "not_an_image", "not_found"]
        assert all(("top" in record) != ("error" in record) for record in records)
        assert records[4]["error"]["message"] == "gone.png: no such file"


def test_the_batch_does_not_change_a_score(capsys, model, pictures):
    """Within float32 rounding of a different summation order."""
    arguments = [pictures[name] for name in ("a.png", "b.jpg", "folder/1.PNG", "folder/2.png")]
    runs = []
    for batch in ("1", "4"):
        _, out, _ = run(capsys, "classify", *arguments, "-m", model, "--json", "-b", batch, "-k", "11")
        runs.append(json.loads(out))
    for one, many in zip(*runs, strict=True):
        assert [item["index"] for item in one["top"]] == [item["index"] for item in many["top"]]
        assert [i["score"] for i in one["top"]] == pytest.approx([i["score"] for i in many["top"]], abs=1e-5)


def test_folders_are_sorted_and_recursion_is_asked_for(capsys, model, pictures):
    folder = pictures["folder"]
    _, out, _ = run(capsys, "classify", folder, "-m", model, "--jsonl")
    assert [json.loads(line)["path"] for line in out.splitlines()] == [f"{folder}/1.PNG", f"{folder}/2.png"]
    _, out, _ = run(capsys, "classify", folder, "-m", model, "--jsonl", "--recursive")
    assert [json.loads(line)["path"] for line in out.splitlines()][2:] == [f"{folder}/deep/3.png"]
    _, out, _ = run(capsys, "classify", f"{folder}/**/*.png", "-m", model, "--jsonl")
    assert [json.loads(line)["path"] for line in out.splitlines()] == [f"{folder}/2.png", f"{folder}/deep/3.png"]


def test_json_is_one_array_and_csv_has_a_row_a_label(capsys, model, pictures):
    _, out, _ = run(capsys, "classify", pictures["a.png"], pictures["cut.jpg"], "-m", model, "--json", "-k", "2")
    records = json.loads(out)
    assert len(records) == 2
    _, out, _ = run(capsys, "classify", pictures["a.png"], pictures["cut.jpg"], "-m", model, "--csv", "-k", "2")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [(row["rank"], row["error"]) for row in rows] == [("1", ""), ("2", ""), ("", "truncated")]
    assert [float(row["score"]) for row in rows[:2]] == [item["score"] for item in records[0]["top"]]


def test_text_is_for_people(capsys, model, pictures):
    code, out, err = run(capsys, "classify", pictures["a.png"], pictures["cut.jpg"], "-m", model, "-k", "1")
    (prediction,) = minivit.classify(pictures["a.png"], model=model, top_k=1)[0]
    assert out == f"{pictures['a.png']}\n  {prediction.score:.3f}  {prediction.label} ({prediction.index})\n"
    assert code == 3
    assert err.startswith(f"minivit: {pictures['cut.jpg']}: the file is cut off")
    assert err.splitlines()[1:] == ["minivit: 1 of 2 images failed"]


def test_a_head_without_names_prints_numbers_and_says_so(capsys, hf_checkpoint, pictures):
    code, out, err = run(capsys, "classify", pictures["a.png"], "-m", str(hf_checkpoint()), "-k", "1")
    assert code == 0
    assert "LABEL" not in out
    assert "  class " in out
    assert "names no classes" in err


def test_a_model_without_head_or_preprocessing_is_refused_by_name(capsys, hf_checkpoint, pictures, tmp_path):
    headless = str(hf_checkpoint(head=False))
    code, _, err = run(capsys, "classify", pictures["a.png"], "-m", headless)
    assert code == 5
    assert "has no classifier" in err
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).symlink_to(hf_checkpoint() / name)
    code, _, err = run(capsys, "classify", pictures["a.png"], "-m", str(bare))
    assert code == 5
    assert "has no preprocessor_config.json" in err


def test_control_characters_in_a_name_do_not_reach_the_terminal(capsys, model, pictures, tmp_path):
    odd = tmp_path / "a\x1b[31m\n.png"
    odd.write_bytes(Path(pictures["a.png"]).read_bytes())
    _, out, _ = run(capsys, "classify", str(odd), "-m", model, "-k", "1")
    assert out.splitlines()[0].endswith(r"a\x1b[31m\n.png")


def test_warnings_stand_in_the_record(capsys, model, tmp_path):
    path = tmp_path / "alpha.png"
    Image.new("RGBA", (8, 8), (255, 0, 0, 128)).save(path)
    _, out, _ = run(capsys, "classify", str(path), "-m", model, "--jsonl")
    assert json.loads(out)["warnings"] == ["transparency flattened on white"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["classify"], "required: IMAGE"),
        (["classify", "a.png", "--top-k", "0"], "'0' is not a whole number of at least 1"),
        (["classify", "a.png", "--json", "--csv"], "not allowed with argument"),
        (["classify", "a.png", "--dtype", "int8"], "invalid choice"),
        (["nonsense"], "invalid choice"),
    ],
)
def test_usage_errors_exit_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_devices_that_are_not_there_are_refused(capsys, model, pictures):
    for device in ("cuda:99", "mps" if not torch.backends.mps.is_available() else "cuda", "toaster"):
        code, _, err = run(capsys, "classify", pictures["a.png"], "-m", model, "--device", device)
        assert code == 2
        assert f"--device {device}" in err


def test_info_reads_the_files_alone(capsys, model):
    code, out, _ = run(capsys, "info", model, "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["parameters"] == sum(p.numel() for p in minivit.load(model).parameters())
    assert facts["tokens"] == {"count": 16, "prefix": 1, "grid": [3, 5]}
    assert facts["weights"]["dtypes"] == ["F32"]
    assert facts["labels"][10] == "name 10"
    _, out, _ = run(capsys, "info", model)
    assert "3 blocks of width 91, 7 heads of 13, MLP 101 (gelu), LayerNorm eps 1e-12" in out
    assert "16 = 1 prefix + 3 x 5 patches" in out


def command(*arguments: str, **kwargs) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(Path(minivit.__file__).parents[1])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    settings = {**pipes, "preexec_fn": own_signals, **kwargs}
    return subprocess.Popen([sys.executable, "-m", "minivit", *arguments], **settings)


@pytest.mark.slow
def test_standard_input_in_and_a_closed_pipe_out(model, pictures):
    """`minivit classify - < a.png` works, and `| head -n 1` ends quietly."""
    with Path(pictures["a.png"]).open("rb") as file:
        process = command("classify", "-", "-m", model, "--jsonl", stdin=file)
        out, err = process.communicate(timeout=240)
    assert (process.returncode, err) == (0, "")
    assert json.loads(out)["path"] == "-"
    expected = minivit.classify(pictures["a.png"], model=model)[0]
    assert [item["index"] for item in json.loads(out)["top"]] == [p.index for p in expected]

    process = command("classify", *[pictures["a.png"]] * 2000, "-m", model, "--jsonl")
    assert process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=240) == 0


def test_interrupting_leaves_valid_output_and_exits_130(model, pictures):
    process = command("classify", *[pictures["a.png"]] * 3000, "-m", model, "--json")
    start = process.stdout.readline()  # of 3000, most of which no pipe can hold: the run waits for its reader
    process.send_signal(signal.SIGINT)
    with process.stdout, process.stderr:  # read on from the same buffer, which communicate() would skip
        rest, err = process.stdout.read(), process.stderr.read()
    assert process.wait(timeout=240) == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert 1 <= len(json.loads(start + rest)) < 3000


@pytest.mark.slow
def test_every_photo_equals_transformers_with_its_pillow_processor(capsys, photos, hf_checkpoint):
    """Real photos through a ViT-B/16 written by transformers: same top five, scores within 1e-5."""
    from transformers import ViTForImageClassification, ViTImageProcessorPil
    from transformers.image_utils import load_image

    full = {"image_size": 224, "patch_size": 16, "hidden_size": 768, "num_hidden_layers": 12}
    full |= {"num_attention_heads": 12, "intermediate_size": 3072, "num_labels": 1000}
    folder = hf_checkpoint(**full)
    code, out, _ = run(
        capsys, "classify", *map(str, photos), "-m", str(folder), "--jsonl", "-b", "7", "--device", "cpu"
    )
    assert code == 0
    records = [json.loads(line) for line in out.splitlines()]
    reference = ViTForImageClassification.from_pretrained(folder).eval()
    processor = ViTImageProcessorPil.from_pretrained(folder)
    assert len(records) == len(photos) == 49
    for start in range(0, len(photos), 7):
        some = photos[start : start + 7]
        pixels = processor([load_image(str(photo)) for photo in some], return_tensors="pt").pixel_values
        with torch.inference_mode():
            best = reference(pixels).logits.softmax(-1).topk(5)
        for i, photo in enumerate(some):
            top = records[start + i]["top"]
            assert [item["index"] for item in top] == best.indices[i].tolist(), photo.name
            assert [item["score"] for item in top] == pytest.approx(best.values[i].tolist(), abs=1e-5), photo.name
