"""What the commands of minivit bench compute, as functions: one call, one frozen result."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.simulated import MINE, simulate, steady

from minivit import bench
from minivit.bench.checks.cases import Case
from minivit.bench.checks.selftest import HONEST, Trial
from minivit.bench.report.results import line
from minivit.bench.timing.blocks import TimingServer
from minivit.bench.timing.roofline import Roof
from minivit.errors import UsageError

CASES = [
    Case.parse(f"forward/{name}/1x3x17x32/float32/packed", device="cpu") for name in ("normal", "last-key", "normal")
]


def test_import_is_light_and_every_name_is_there():
    code = "import sys, minivit.bench; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)
    for name in bench.__all__:
        assert getattr(bench, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = bench.nothing


def test_check_returns_rows_counts_and_the_worst_failures():
    seen: list = []
    result = bench.check("mutant:dropped-last-key", cases=CASES, seed=5, on_record=seen.append)
    assert not result.right
    assert result.counts == {"unsupported": 0, "pass": 0, "note": 0, "inconclusive": 0, "fail": 3}
    assert [row.case for row in result.rows] == CASES
    assert sorted(row.case.check for row in result.failures) == ["forward/last-key", "forward/normal"]
    assert [record["kind"] for record in seen] == ["case", "case", "case", "verdict"]
    assert "wrong: 3 fail (seed 5)" in repr(result)
    assert "minivit bench check mutant:dropped-last-key --seed 5 --case forward/last-key" in repr(result)


def test_check_refuses_what_it_does_not_know():
    with pytest.raises(UsageError, match="no check forward/abnormal"):
        bench.check("sdpa", cases=[Case.parse("forward/abnormal/1x3x17x32/float32/packed", device="cpu")])
    with pytest.raises(UsageError, match="choose from small, quick"):
        bench.check("sdpa", effort="huge")
    with pytest.raises(UsageError, match="no such file"):
        bench.check("nothing.py", cases=CASES)


def test_selftest_counts_mutants_and_right_kernels(monkeypatch: pytest.MonkeyPatch):
    names = ("mutant:a", "mutant:b", *HONEST)

    def trials(cases, ask):
        for name in names:
            yield Trial(kernel=name, asked=9, refused=3, caught_by={}, reason="", good=name != "mutant:b")

    monkeypatch.setattr("minivit.bench.checks.selftest.trials", trials)
    seen: list = []
    result = bench.selftest(seed=2, on_trial=seen.append)
    assert not result.good
    assert result.summary.startswith("power: 1 of 2 wrong kernels refused for the right reason, 4 of 4 honest ones")
    assert tuple(seen) == result.trials


def test_runs_are_compared_as_results_records_or_files(tmp_path: Path):
    old = simulate({MINE: steady(100), "sdpa": steady(200)}, 1)
    new = simulate({MINE: steady(120), "sdpa": steady(200)}, 2)
    (tmp_path / "run.jsonl").write_text("\n".join(map(line, old)) + "\n")
    summary = bench.summarize(old)
    assert summary.good
    assert [row["arm"] for row in summary.rows] == [MINE, "sdpa", "sdpa (again)"]
    assert summary.rows == [record for record in old if record["kind"] == "row"]
    assert "<svg" in summary._repr_html_()
    for one in (summary, old, tmp_path, str(tmp_path / "run.jsonl")):
        found = bench.compare(one, bench.RunResult(records=tuple(new)))
        assert [(change.row["kernel"], change.word) for change in found.regressions] == [(MINE, "slower")]
        assert found.comparable
    assert bench.compare(old, new, fail_on=0.5).regressions == []
    with pytest.raises(UsageError, match="nothing was timed"):
        bench.summarize([record for record in old if record["kind"] == "bench"])


def test_roofline_is_kept_and_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    measured = []

    class Measures:
        def __init__(self, threads, limits, device):
            measured.append(threads)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def call(self, method, dtypes):
            assert method is TimingServer.roof
            return Roof(gemm={"float32": 1e10}, memory=2e9, cache=3e9, exp=4e9, cache_bytes=1 << 20)

    monkeypatch.setattr("minivit.bench.timing.roofs.timing_child", Measures)
    file = tmp_path / "roofline.json"
    messages: list[str] = []
    for again in (False, False, True):
        found = bench.roofline(2, [torch.float32], cache=file, again=again, on_message=messages.append)
    assert measured == [2, 2]
    assert len(messages) == 2
    assert found.lines()[1] == "  float32 products           10.0 GFLOP/s"


def test_cells_are_every_shape_dtype_and_direction_once():
    cells = bench.cells_of(
        ["1,2,17,16", "vit-b", "1,2,17,16"], [torch.float32, torch.float16], directions=("fwd", "bwd")
    )
    assert len(cells) == 2 * 2 * (1 + 3)
    assert {cell.spec.grads for cell in cells if cell.direction == "bwd"} == {True}
    with pytest.raises(UsageError, match="choose from contiguous"):
        bench.cells_of(["vit-b"], layout="heap")
