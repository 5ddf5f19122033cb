"""Two runs against each other: a planted slowdown is found, nothing is found where nothing is, and the gates hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.simulated import ENVIRONMENT, MINE, Machine, simulate, steady

from minivit.bench.checks.findings import Finding
from minivit.bench.report.compare import changes_between
from minivit.bench.report.results import line
from minivit.cli import main


def words(changes) -> dict[str, str]:
    return {change.row["kernel"]: change.word for change in changes}


def run_of(microseconds: float, seed: int, *, machine: float = 1.0, **changes):
    takes = {MINE: steady(microseconds * machine), "sdpa": steady(200 * machine), "eager": steady(400 * machine)}
    return simulate(takes, seed, against=("sdpa", "eager"), **changes)


@pytest.mark.slow
def test_a_planted_slowdown_of_a_tenth_is_found_and_nothing_else():
    for seed in range(20):
        changes = changes_between(run_of(100, seed), run_of(110, seed + 1000), fail_on=0.03)
        assert words(changes) == {MINE: "slower", "sdpa": "same", "eager": "same"}, seed
        slower = next(change for change in changes if change.regression)
        assert slower.ratio == pytest.approx(1.1, rel=0.02)
        assert slower.low < slower.ratio < slower.high
        assert slower.q <= 0.05


@pytest.mark.slow
def test_the_same_twice_is_quiet():
    for seed in range(30):
        changes = changes_between(run_of(100, seed), run_of(100, seed + 1000), fail_on=0.03)
        assert not [change for change in changes if change.word in ("slower", "faster", "broken")], seed


def test_a_faster_kernel_is_faster():
    changes = changes_between(run_of(100, 1), run_of(80, 2), fail_on=0.03)
    assert words(changes)[MINE] == "faster"


def test_a_slowdown_below_fail_on_is_no_regression():
    assert not any(change.regression for change in changes_between(run_of(100, 1), run_of(110, 2), fail_on=0.2))


def test_where_the_machine_moved_times_are_taken_in_units_of_the_baseline():
    slowed = changes_between(run_of(100, 1), run_of(100, 2, machine=1.3), fail_on=0.03)
    assert words(slowed) == {MINE: "same", "sdpa": "same", "eager": "same"}
    mine, baseline = (next(c for c in slowed if c.row["kernel"] == name) for name in (MINE, "sdpa"))
    assert mine.normalised
    assert mine.ratio == pytest.approx(1.0, abs=0.02)
    assert baseline.ratio == pytest.approx(1.3, rel=0.02)
    assert "the machine moved by +" in baseline.detail
    both = changes_between(run_of(100, 1), run_of(115, 2, machine=0.8), fail_on=0.03)
    assert words(both)[MINE] == "slower"  # although it takes less time than before


class TwoSpeeds(Machine):
    """The baseline is fast in some processes and a fifth slower in others, as SDPA is on some CPUs."""

    def __init__(self, seed: int, slow: str):
        super().__init__({MINE: steady(100), "sdpa": steady(200), "eager": steady(400)}, seed)
        self.slow = slow  # a digit for each process

    def luck_of(self, name: str) -> float:
        return super().luck_of(name) * (1.2 if name == "sdpa" and self.slow[self.opened - 1] == "1" else 1.0)


@pytest.mark.parametrize(("before", "after"), [("001", "110"), ("100", "111"), ("000", "011")])
def test_a_baseline_with_two_speeds_makes_nobody_slower(before: str, after: str):
    for seed in range(5):
        old, new = (
            simulate({}, machine=TwoSpeeds(seed + i, slow), against=("sdpa", "eager"))
            for i, slow in enumerate((before, after))
        )
        for pair in ((old, new), (new, old)):
            assert words(changes_between(*pair, fail_on=0.03)) == {MINE: "same", "sdpa": "same", "eager": "same"}, seed


def test_kernels_of_other_names_are_held_together_when_each_run_has_one():
    takes = {"new.py": steady(120), "sdpa": steady(200)}
    (change,) = [c for c in changes_between(run_of(100, 1), _named(takes), fail_on=0.03) if c.row["role"] == "kernel"]
    assert change.word == "slower"


def _named(takes):
    records = simulate({MINE: takes["new.py"], **takes}, 3)
    return json.loads(json.dumps(records).replace(f'"{MINE}"', '"new.py"'))


def test_another_machine_or_torch_is_not_compared():
    other = run_of(110, 2)
    other[0] = {**other[0], "environment": {**ENVIRONMENT, "torch": "2.15.0"}}
    changes = changes_between(run_of(100, 1), other, fail_on=0.03)
    assert {change.word for change in changes} == {"incomparable"}
    assert changes[0].detail == "torch 2.14.1 -> 2.15.0"


def test_what_is_wrong_now_is_broken_and_what_was_wrong_is_not_compared():
    machine = Machine({MINE: steady(100), "sdpa": steady(200), "eager": steady(400)}, 5)
    machine.verdicts[MINE] = Finding(status="fail", detail="relative L2 is 9 times what is allowed")
    wrong = simulate(machine.takes, machine=machine, against=("sdpa", "eager"))
    assert words(changes_between(run_of(100, 1), wrong, fail_on=0.03))[MINE] == "broken"
    assert words(changes_between(wrong, run_of(100, 1), fail_on=0.03))[MINE] == "incomparable"


def test_rows_of_one_run_alone_are_said_to_be():
    changes = changes_between(run_of(100, 1), simulate({MINE: steady(100), "sdpa": steady(200)}, 2), fail_on=0.03)
    (gone,) = [change for change in changes if change.row["kernel"] == "eager"]
    assert (gone.word, gone.detail) == ("incomparable", "only in the old run")


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def write(name: str, records) -> str:
        (tmp_path / name).write_text("".join(line(record) + "\n" for record in records))
        return str(tmp_path / name)

    old, same, slow = write("a", run_of(100, 1)), write("b", run_of(100, 2)), write("c", run_of(110, 3))
    assert main(["bench", "compare", old, same]) == 0
    assert main(["bench", "compare", old, slow]) == 3
    out, err = capsys.readouterr()
    assert "SLOWER" in out
    assert "1 of 3 rows became slower or wrong" in err
    assert main(["bench", "compare", old, slow, "--fail-on", "20%"]) == 0
    capsys.readouterr()
    assert main(["bench", "compare", old, slow, "--json"]) == 3
    mine = json.loads(capsys.readouterr().out.splitlines()[0])
    assert mine["kind"] == "change"
    assert mine["kernel"] == MINE
    assert mine["word"] == "slower"
    assert mine["tokens"] == 50
    assert 1.03 < mine["low"] < mine["ratio"] < mine["high"]

    moved = run_of(110, 3)
    moved[0] = {**moved[0], "environment": {**ENVIRONMENT, "cpu": "Another"}}
    assert main(["bench", "compare", old, write("d", moved)]) == 2
    capsys.readouterr()
    (tmp_path / "h").write_text('{"schema": 1, "kind": "model-bench"}\n')
    (tmp_path / "e").write_text('{"schema": 2, "kind": "bench"}\n')
    (tmp_path / "f").write_text("nonsense\n")
    for name, message in (
        ("h", "only runs of `bench run` can be compared"),
        ("e", "schema 2"),
        ("f", "line 1 is not a record"),
        ("g", "cannot be read"),
    ):
        assert main(["bench", "compare", old, str(tmp_path / name)]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert message in err
        assert err.count("\n") == 1
