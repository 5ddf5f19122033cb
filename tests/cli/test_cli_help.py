"""What the command line says of the usual mistakes, its threads, and the names of written files."""

from __future__ import annotations

import os

import pytest
import torch
from PIL import Image

from minivit.cli import COMMANDS, main
from minivit.cli.shared.models import idle_cores, threads_limited

BUNDLED = "minivit/cifar10-vit"


def failed(capsys, *words: str) -> str:
    """What a wrong command line prints on stderr; its exit code is 2 and stdout is empty."""
    with pytest.raises(SystemExit) as error:
        main(list(words))
    said = capsys.readouterr()
    assert (error.value.code, said.out) == (2, "")
    return said.err


@pytest.fixture
def image(tmp_path) -> str:
    path = tmp_path / "dog.png"
    Image.new("RGB", (40, 40), (200, 10, 90)).save(path)
    return str(path)


@pytest.mark.parametrize(("words", "lists"), [([], [c.name for c in COMMANDS]), (["bench"], ["check", "roofline"])])
def test_a_command_line_without_a_command_lists_them(words, lists, capsys):
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert all(f"\n    {name}" in said.err for name in lists)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["classfy", "dog.jpg"], "minivit: error: invalid choice: 'classfy'; did you mean classify?"),
        (["bench", "chek"], "minivit bench: error: invalid choice: 'chek'; did you mean check?"),
        (["zzzz"], "invalid choice: 'zzzz'. There are classify, embed"),
        (["classify", "dog.jpg", "--modle", "x"], "minivit classify: error: no option --modle; did you mean --model?"),
        (["classify", "dog.jpg", "--topk=3"], "no option --topk=3; did you mean --top-k?"),
        (["attribute", "dog.jpg", "--jsn"], "minivit attribute: error: no option --jsn; did you mean --json?"),
        (["bench", "check", "k.py", "--devcie", "cpu"], "minivit bench check: error: no option --devcie"),
        (["trace", "dog.jpg", "cat.jpg", "--keep", "q"], "minivit trace: error: more arguments than it takes: cat.jpg"),
        (["classify", "dog.jpg", "--qqqqqqqq"], "no option --qqqqqqqq\n"),
    ],
)
def test_a_misspelt_word_names_the_nearest_and_the_usage_of_its_own_command(words, says, capsys):
    said = failed(capsys, *words)
    assert says in said
    command = says.partition(": error")[0] if ": error" in says else "minivit"
    assert said.startswith(f"usage: {command}")


def test_every_command_that_runs_a_model_has_threads(capsys):
    for name in ("classify", "embed", "similar", "attention", "explore", "trace", "lens", "attribute", "ablate"):
        assert "--threads N" in shown(name, capsys), name
    for name in ("heads", "faithfulness", "diff", "train", "eval"):
        assert "--threads N" in shown(name, capsys), name


def shown(name: str, capsys) -> str:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("asked", [1, 3])
def test_threads_are_those_asked_for_and_those_before_afterwards(asked):
    before = torch.get_num_threads()
    with threads_limited(asked):
        assert torch.get_num_threads() == asked
    assert torch.get_num_threads() == before
    with pytest.raises(ZeroDivisionError), threads_limited(asked):
        _ = 1 / 0
    assert torch.get_num_threads() == before


def test_the_default_number_of_threads_leaves_busy_cores_alone(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        for idle, expected in ((1, 1), (3, 3), (16, 4)):
            monkeypatch.setattr("minivit.cli.shared.models.idle_cores", lambda idle=idle: idle)
            with threads_limited(None):
                assert torch.get_num_threads() == expected
        monkeypatch.setenv("OMP_NUM_THREADS", "4")
        monkeypatch.setattr("minivit.cli.shared.models.idle_cores", lambda: 1)
        with threads_limited(None):
            assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
    assert 1 <= idle_cores() <= (os.cpu_count() or 1)


def test_written_files_are_named_on_stderr(image, tmp_path, capsys):
    trace, log = str(tmp_path / "steps.safetensors"), str(tmp_path / "out.jsonl")
    assert main(["trace", image, "-m", BUNDLED, "--keep", "norm", "-o", trace]) == 0
    assert f"minivit: wrote {trace}\n" in capsys.readouterr().err
    assert main(["classify", image, "-m", BUNDLED, "-o", log, "--threads", "1"]) == 0
    said = capsys.readouterr()
    assert f"minivit: wrote {log}\n" in said.err
    assert said.out == ""
