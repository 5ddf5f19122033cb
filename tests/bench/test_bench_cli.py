"""minivit bench on the command line: exit codes, records of a frozen form, files to start from."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from pathlib import Path

import pytest

from minivit.bench.checks.cases import Case
from minivit.bench.checks.mutants import MUTANTS
from minivit.bench.checks.numerics import ask
from minivit.bench.checks.selftest import HONEST, Trial
from minivit.bench.kernels import load_kernel, sha256
from minivit.cli import main

RIGHT = (
    "import torch.nn.functional as F\n\ndef attention(q, k, v):\n    return F.scaled_dot_product_attention(q, k, v)\n"
)
CASE = "forward/normal/2x3x17x32/float32/packed"

RUN_FIELDS = ["schema", "kind", "kernels", "seed", "effort", "limits", "environment"]
ENVIRONMENT = ["minivit", "torch", "python", "platform", "cpu", "cpu_capability", "cores", "threads", "device"]
CASE_FIELDS = [
    *("schema", "kind", "kernel", "case", "check", "batch", "heads", "tokens", "head_dim", "dtype", "layout", "device"),
    *("status", "detail", "numbers", "seed", "command"),
]
NUMBERS = ["of_limit", "x_eager", "x_sdpa", "largest_error", "rel_l2", "worst_row"]
VERDICT_FIELDS = ["schema", "kind", "kernel", "right", "counts"]


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(RIGHT)
    return "mine.py"


@pytest.mark.slow
def test_records_of_a_right_and_a_wrong_kernel(kernel: str, capsys: pytest.CaptureFixture[str]):
    wrong = "mutant:dropped-last-key"
    assert main(["bench", "check", kernel, wrong, "--case", CASE, "--seed", "5", "--json"]) == 1
    lines = capsys.readouterr().out.splitlines()
    run, good, good_verdict, bad, bad_verdict = (json.loads(line) for line in lines)

    assert {record["schema"] for record in (run, good, good_verdict, bad, bad_verdict)} == {1}
    assert list(run) == RUN_FIELDS
    assert run["kind"] == "run"
    assert run["seed"] == 5
    assert list(run["environment"]) == ENVIRONMENT
    digest = hashlib.sha256(RIGHT.encode()).hexdigest()
    assert run["kernels"] == [{"kernel": kernel, "sha256": digest}, {"kernel": wrong, "sha256": None}]
    assert run["limits"]["seconds"] == 60

    for record in (good, bad):
        assert list(record) == CASE_FIELDS
        assert list(record["numbers"]) == NUMBERS
        assert (record["kind"], record["case"], record["tokens"], record["dtype"]) == ("case", CASE, 17, "float32")
    assert good["status"] == "pass"
    assert good["numbers"]["of_limit"] <= 1
    assert bad["status"] == "fail"
    assert bad["numbers"]["of_limit"] > 1
    assert "times what is allowed" in bad["detail"]
    assert shlex.split(bad["command"]) == ["minivit", "bench", "check", wrong, "--seed", "5", "--case", CASE]

    for record, right in ((good_verdict, True), (bad_verdict, False)):
        assert list(record) == VERDICT_FIELDS
        assert record["right"] is right
    assert good_verdict["counts"] == {"unsupported": 0, "pass": 1, "note": 0, "inconclusive": 0, "fail": 0}


def test_the_digest_covers_the_sources_that_bear_the_kernels_name(tmp_path: Path):
    for name, text in (("fast.py", "b"), ("fast.cpp", "a"), ("fast.txt", "no source"), ("faster.cpp", "another's")):
        (tmp_path / name).write_text(text)
    assert sha256(str(tmp_path / "fast.py")) == hashlib.sha256(b"ab").hexdigest()
    (tmp_path / "fast.cpp").write_text("c")
    assert sha256(f"{tmp_path}/fast.py:mine") == hashlib.sha256(b"cb").hexdigest()


def test_the_table_shows_the_worst_case_and_the_command_that_repeats_it(
    kernel: str, capsys: pytest.CaptureFixture[str]
):
    Path(kernel).write_text(RIGHT.replace("(q, k, v)\n", "(q, k, v) * 1.01\n"))
    assert main(["bench", "check", kernel, "--case", CASE, "--seed", "5"]) == 1
    out = capsys.readouterr().out
    assert "forward/normal" in out
    assert "wrong: 1 fail (seed 5)" in out
    assert f"minivit bench check mine.py --seed 5 --case {CASE}" in out


def test_a_kernel_of_which_nothing_could_be_checked_is_not_right(kernel: str, capsys: pytest.CaptureFixture[str]):
    Path(kernel).write_text(RIGHT + "\ndef supports(spec):\n    return 'not today'\n")
    assert main(["bench", "check", kernel, "--case", CASE]) == 1
    out = capsys.readouterr().out
    assert "nothing was checked: 1 unsupported" in out
    assert "not today" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.py"], "no such file"),
        (["mine.py", "--dtypes", "float32,float8"], "no float8"),
        (["mine.py", "--case", "nonsense"], "not of the form"),
        (["mine.py", "--case", CASE.replace("normal", "abnormal")], "no check forward/abnormal"),
        (["mine.py", "--device", "warp"], "no such device"),
    ],
)
def test_mistakes_of_the_caller_are_one_line_and_2(
    kernel: str, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
):
    assert main(["bench", "check", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def test_new_writes_a_kernel_once(kernel: str, capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "new", "cpp", "fast"]) == 0
    assert capsys.readouterr().out.split() == ["fast.py", "fast.cpp"]
    Path("fast.py").write_text("mine now\n")
    assert main(["bench", "new", "python", "fast.py"]) == 2
    assert "left alone" in capsys.readouterr().err
    assert Path("fast.py").read_text() == "mine now\n"
    assert main(["bench", "new", "triton", "nowhere/fast"]) == 2
    Path("broken.py").symlink_to("nowhere/at/all")
    assert main(["bench", "new", "triton", "broken"]) == 2
    assert "broken.py: cannot be written" in capsys.readouterr().err


def test_the_cpp_kernel_to_start_from_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if not shutil.which("c++"):
        pytest.skip("no C++ compiler")
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "new", "cpp", "fast"]) == 0
    kernel = load_kernel("fast.py")
    for layout in ("packed", "misaligned", "padded"):
        for check in ("forward/last-key", "needle/permutation", "isolation/nan", "conduct/reads-inside"):
            case = Case.parse(f"{check}/2x3x65x80/float32/{layout}", device="cpu")
            finding = ask(kernel, case, seed=1)
            assert finding.status == "pass", (case, finding)


def test_list_names_baselines_and_mutants(capsys: pytest.CaptureFixture[str]):
    assert main(["bench", "list"]) == 0
    out = capsys.readouterr().out
    for name in ("eager", "sdpa:flash", "sdpa:cudnn", "flex", "compiled", *(f"mutant:{name}" for name in MUTANTS)):
        assert name in out


def test_selftest_prints_the_power_and_fails_when_one_gets_through(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def trials(cases, ask):
        for name in (*(f"mutant:{name}" for name in MUTANTS), *HONEST):
            good = name not in survivors
            yield Trial(kernel=name, asked=9, refused=3, caught_by={"a/b": (int(good), 1)}, reason="", good=good)

    monkeypatch.setattr("minivit.bench.checks.selftest.trials", trials)
    survivors: list[str] = []
    assert main(["bench", "selftest", "--seed", "2"]) == 0
    survivors.append("mutant:no-scale")
    assert main(["bench", "selftest", "--seed", "2"]) == 1
    out = capsys.readouterr().out
    total = len(MUTANTS)
    assert f"power: {total} of {total} wrong kernels" in out
    assert f"power: {total - 1} of {total}" in out
    assert out.count("NOT AS IT MUST BE") == 1


def test_the_help_says_that_a_kernel_is_code(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["bench", "check", "--help"])
    assert "with your rights" in " ".join(capsys.readouterr().out.split())
