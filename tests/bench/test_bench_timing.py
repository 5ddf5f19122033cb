"""Timing without a clock that ticks: what is inside it, who takes turns, and kernels that only look fast."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers.simulated import CELL, ENVIRONMENT, MINE, QUIET, ROOF, SPEC, Machine, plan, simulate, steady

from minivit.bench.checks.cases import Case
from minivit.bench.checks.findings import Finding
from minivit.bench.checks.numerics import ask
from minivit.bench.kernels import Kernel
from minivit.bench.timing.blocks import affordable, measure, start
from minivit.bench.timing.cells import Cell, parse_shape
from minivit.bench.timing.problem import Problem
from minivit.bench.timing.run import time_cells
from minivit.bench.timing.summary import rows
from minivit.errors import UsageError
from minivit.model.attention import attend_reference


def kernel(attention) -> Kernel:
    return Kernel(name="mine", attention=attention, takes_scale=True)


HONEST = kernel(attend_reference)
BACKWARD = Cell(spec=replace(SPEC, grads=True), direction="bwd", mode="hot")


def row_of(records, arm: str):
    (row,) = [record for record in records if record["kind"] == "row" and record["arm"] == arm]
    return row


# --- one block


def test_only_the_calls_are_inside_the_clock():
    """A clock that moves when the kernel runs, and when the inputs change, of which only the first is counted."""
    now = 0
    calls = 0

    def attention(q, k, v, *, scale):
        nonlocal now, calls
        now += 5000
        calls += 1
        return attend_reference(q, k, v, scale=scale)

    class Slow(Problem):
        def change(self, laid):
            nonlocal now
            now += 10**9
            super().change(laid)

    block = measure(kernel(attention), Slow(CELL, 1, cache_bytes=1 << 20), samples=4, calls=3, clock=lambda: now)
    assert block.samples_us == [5.0] * 4
    assert block.calls == 3
    assert block.verdict.status == "pass"
    assert 13 <= calls <= 15


def test_every_call_sees_other_values_in_the_same_memory():
    seen = []

    def attention(q, k, v, *, scale):
        seen.append((q.data_ptr(), q._version, q[0, 0, 0].clone(), k[0, 0, 0].clone(), v[0, 0, 0].clone()))
        return attend_reference(q, k, v, scale=scale)

    measure(kernel(attention), Problem(CELL, 1, cache_bytes=1 << 20), samples=5, calls=1, clock=lambda: 0)
    assert len({(pointer, version) for pointer, version, *_ in seen}) == 1  # nothing tells but the values
    for i in (2, 3, 4):
        assert len({tuple(one[i].tolist()) for one in seen}) > len(seen) / 2
        assert len({tuple(one[i].abs().tolist()) for one in seen}) == 1  # only signs, so the sizes stay normal


def test_cold_inputs_rotate_over_three_times_the_cache_and_hot_ones_do_not():
    size = 3 * SPEC.elements * 4
    cold = Problem(replace(CELL, mode="cold"), 1, cache_bytes=10 * size)
    assert len(cold.sets) == 30
    assert len(Problem(CELL, 1, cache_bytes=10 * size).sets) == 1
    pointers = [cold.next(HONEST)[1].q.data_ptr() for _ in range(61)]
    assert len(set(pointers)) == 30
    assert pointers[:30] == pointers[30:60]
    with pytest.raises(UsageError, match="hot only"):
        replace(BACKWARD, mode="cold")


def test_backward_is_timed_alone_and_its_gradients_are_verified():
    forwards = []

    def attention(q, k, v, *, scale):
        forwards.append(1)
        return attend_reference(q, k, v, scale=scale)

    problem = Problem(BACKWARD, 1, cache_bytes=1 << 20)
    call, laid = problem.next(kernel(attention))
    assert forwards == [1]
    gradients = call()
    assert forwards == [1]
    assert [g.shape for g in gradients] == [laid.q.shape] * 3
    assert problem.verify(gradients, laid.qkv).status == "pass"
    dq, dk, dv = gradients
    assert problem.verify((dq, dk, 1.01 * dv), laid.qkv).status == "fail"
    assert start(kernel(lambda q, k, v, *, scale: (q + k + v).detach()), problem).finding.status == "unsupported"


class RemembersWhenTimed:
    """Right for the check, which never calls four times on the same memory with other values; then it remembers."""

    def __init__(self):
        self.key, self.calls, self.out = None, 0, None

    def __call__(self, q, k, v, *, scale):
        key = (q.data_ptr(), q.shape, q._version)
        self.calls = self.calls + 1 if key == self.key else 0
        self.key = key
        if self.calls < 4:
            self.out = attend_reference(q, k, v, scale=scale)
        return self.out


class KeepsItsKeys:
    """Lays the keys out once for every pointer, as if they never changed."""

    def __init__(self):
        self.keys = {}

    def __call__(self, q, k, v, *, scale):
        return attend_reference(q, self.keys.setdefault(k.data_ptr(), k.clone()), v, scale=scale)


def test_a_kernel_that_cheats_only_when_it_is_timed_is_caught():
    cheat = RemembersWhenTimed()
    for check in ("forward/normal", "conduct/fresh-values", "conduct/deterministic", "conduct/outputs-kept"):
        case = Case.parse(f"{check}/2x3x17x32/float32/packed", device="cpu")
        assert ask(kernel(cheat), case, seed=1).status == "pass", check
    for fault in (RemembersWhenTimed(), KeepsItsKeys()):
        block = measure(kernel(fault), Problem(CELL, 1, cache_bytes=1 << 20), samples=20, calls=2, clock=lambda: 0)
        assert block.verdict.status == "fail"
        assert "times what is allowed" in block.verdict.detail


def test_answers_of_other_kinds_are_wrong_answers():
    for attention in (
        lambda q, k, v, *, scale: None,
        lambda q, k, v, *, scale: torch.full_like(q, float("nan")),
        lambda q, k, v, *, scale: attend_reference(q, k, v, scale=scale).double(),
        lambda q, k, v, *, scale: torch.nn.Parameter(attend_reference(q, k, v, scale=scale)),
    ):
        block = measure(kernel(attention), Problem(CELL, 1, cache_bytes=1 << 20), samples=1, calls=1, clock=lambda: 0)
        assert block.verdict.status == "fail"


def test_start_tells_the_first_call_apart_from_later_ones():
    clock = iter(
        [0, 7_000_000_000, *itertools.chain(*((t, t + 5000) for t in range(10**10, 10**10 + 5 * 10**6, 10**6)))]
    )
    began = start(HONEST, Problem(CELL, 1, cache_bytes=1 << 20), clock=lambda: next(clock))
    assert (began.first_call_seconds, began.call_ns, began.finding.status) == (7.0, 5000, "pass")
    if sys.platform == "linux":
        assert began.peak_bytes is None or began.peak_bytes >= 0
    refused = start(replace(HONEST, supports=lambda spec: "not today"), Problem(CELL, 1, cache_bytes=1 << 20))
    assert (refused.finding.status, refused.finding.detail) == ("unsupported", "not today")


def test_blocks_are_as_long_as_they_may_be():
    assert affordable(10_000, 0.1) == (20, 200)  # 200 calls of 10 us are a sample of 2 ms; 20 samples at most
    assert affordable(10_000_000, 0.1) == (10, 1)
    assert affordable(10**9, 0.1) == (3, 1)  # three samples at least


def test_threads_and_cores_are_set_before_torch_is_there():
    code = (
        "import sys, os\n"
        "from minivit.bench.timing import machine\n"
        "assert 'torch' not in sys.modules\n"
        "machine.settle(1)\n"
        "import torch\n"
        "assert torch.get_num_threads() == 1 and os.environ['MKL_NUM_THREADS'] == '1'\n"
        "assert not hasattr(os, 'sched_getaffinity') or len(os.sched_getaffinity(0)) == 1\n"
        "try: machine.settle(1)\n"
        "except RuntimeError as error: assert 'before the threads were set' in str(error)\n"
        "else: raise SystemExit('settled too late without a word')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


# --- a whole run


def test_arms_take_turns_in_random_order_and_the_baseline_twice():
    machine = Machine({MINE: steady(100), "sdpa": steady(200)}, 1)
    blocks = [r for r in time_cells(plan(), open_child=machine.open, clock=machine.clock) if r["kind"] == "block"]
    assert machine.opened == 3
    orders = set()
    for process in range(3):
        for number in range(12):
            arms = [b["arm"] for b in blocks if (b["process"], b["round"]) == (process, number)]
            assert sorted(arms) == ["sdpa", "sdpa (again)", MINE]
            orders.add(tuple(arms))
    assert len(orders) == 6


def test_a_run_sums_up_to_what_was_planted():
    records = simulate({MINE: steady(100), "sdpa": steady(200)}, 2)
    mine, baseline, again = (row_of(records, arm) for arm in (MINE, "sdpa", "sdpa (again)"))
    assert {row["status"] for row in (mine, baseline, again)} == {"verified"}
    assert mine["median_us"] == pytest.approx(100, rel=0.02)
    assert mine["speedup"] == pytest.approx(2, rel=0.02)
    assert mine["speedup_low"] < mine["speedup"] < mine["speedup_high"]
    assert baseline["speedup"] is None
    assert again["speedup"] == pytest.approx(1, abs=0.02)
    assert 0 < mine["resolution"] < 0.03
    assert mine["gflops"] == pytest.approx(4.2, rel=0.02)  # 420 kFLOP in 100 us
    assert (mine["bound_us"], mine["binds"]) == (pytest.approx(42), "gemm")
    assert mine["of_roof"] == pytest.approx(0.42, rel=0.02)
    assert (mine["first_call_seconds"], mine["peak_bytes"], mine["blocks"]) == (0.5, 1 << 20, 36)


def test_the_budget_bounds_the_rounds():
    machine = Machine({MINE: steady(1e6), "sdpa": steady(1e6)}, 1)
    records = simulate(machine.takes, machine=machine, budget=30.0, processes=2)
    assert {r["round"] for r in records if r["kind"] == "block"} == {0, 1, 2}  # no fewer than three
    assert machine.now == pytest.approx(2 * 3 * 3 * 3, rel=0.1)  # processes, rounds, arms, samples of a second


def test_an_impossible_time_is_invalid():
    records = simulate({MINE: steady(30), "sdpa": steady(200)}, 3)  # the roof says 42
    row = row_of(records, MINE)
    assert row["status"] == "invalid"
    assert "gemm roof allows" in row["detail"]
    # The roof may have been wrong: a higher one, measured later, counts.
    records = [r for r in records if r["kind"] != "row"]
    roof = next(r for r in records if r["kind"] == "roof")
    again = rows([*records, {**roof, "gemm": {"float32": 2e10}}])
    assert row_of(again, MINE)["status"] == "verified"


def test_a_kernel_that_slows_over_time_is_unsteady_and_a_machine_that_does_is_not():
    def slows(call: int) -> float:
        return 100 * (1 + call / 40_000)

    records = simulate({MINE: slows, "sdpa": steady(200)}, 4)
    row = row_of(records, MINE)
    assert row["status"] == "unsteady"
    assert "slower, against the baseline, at the end" in row["detail"]
    unasked = row_of(simulate({MINE: slows, "sdpa": steady(200)}, 4, unverified=True), MINE)
    assert unasked["status"] == "unverified"
    assert "also unsteady" in unasked["detail"]
    both = simulate({MINE: slows, "sdpa": lambda call: 2 * slows(2 * call)}, 4)
    assert row_of(both, MINE)["status"] == "verified"


def test_wrong_timed_answers_are_invalid():
    machine = Machine({MINE: steady(100), "sdpa": steady(200)}, 5)
    machine.verdicts[MINE] = Finding(status="fail", detail="relative L2 is 7 times what is allowed")
    row = row_of(simulate(machine.takes, machine=machine), MINE)
    assert row["status"] == "invalid"
    assert "36 of 36 timed answers" in row["detail"]


def test_a_kernel_the_check_refused_or_did_not_see_is_never_verified():
    records = simulate({MINE: steady(100), "sdpa": steady(200)}, 6, unverified=True)
    assert {r["status"] for r in records if r["kind"] == "row"} == {"unverified"}
    refused = [
        {**r, "right": False} if r["kind"] == "verdict" else r
        for r in simulate({MINE: steady(100), "sdpa": steady(200)}, 6)
    ]
    assert row_of(rows([r for r in refused if r["kind"] != "row"]), MINE)["status"] == "failed"


def test_noisy_blocks_are_repeated_and_then_marked():
    machine = Machine({MINE: steady(100), "sdpa": steady(200)}, 7)
    disturbed = replace(QUIET, waited_seconds=1.0)
    machine.counters = lambda name: disturbed if name == MINE else QUIET
    records = simulate(machine.takes, machine=machine)
    mine = [r for r in records if r["kind"] == "block" and r["arm"] == MINE]
    assert len(mine) == 3 * 36
    assert [r["kept"] for r in mine[:3]] == [False, False, True]
    assert "for a core that others had" in mine[0]["noise"]
    row = row_of(records, MINE)
    assert (row["status"], row["blocks"], row["repeated"], row["noisy"]) == ("noisy", 36, 72, 36)
    assert row_of(records, "sdpa")["status"] == "verified"

    calm = iter([disturbed, QUIET] * 100)
    machine.counters = lambda name: next(calm) if name == MINE else QUIET
    row = row_of(simulate(machine.takes, machine=machine), MINE)
    assert (row["status"], row["repeated"], row["noisy"]) == ("verified", 36, 0)


def test_a_kernel_that_crashes_is_out_and_the_others_go_on():
    machine = Machine({MINE: steady(100), "sdpa": steady(200)}, 8)
    machine.crashes.add(MINE)
    records = simulate(machine.takes, machine=machine)
    assert (row_of(records, MINE)["status"], row_of(records, MINE)["detail"]) == ("failed", "crashed: SIGSEGV")
    assert row_of(records, "sdpa")["blocks"] == 36
    assert machine.opened == 4


def test_a_kernel_that_dies_while_it_is_loaded_is_loaded_once():
    machine = Machine({MINE: steady(100), "sdpa": steady(200)}, 8)
    machine.unloadable.add(MINE)
    records = []
    for record in time_cells(plan(), open_child=machine.open, clock=machine.clock):
        records.append(record)
        assert machine.opened <= 4
    assert [r["detail"] for r in records if r["kind"] == "start" and r["kernel"] == MINE] == [
        "ended itself with exit code 3"
    ]
    assert sum(r["kind"] == "block" and r["arm"] == "sdpa" for r in records) == 36


def test_shapes_and_plans_that_cannot_be():
    assert parse_shape("8,12,197,64") == ((8, 12, 197, 64),)
    assert [shape[2] for shape in parse_shape("vit-b")] == [197, 577, 1025]
    for text in ("8,12,197", "8,12,197,0", "vit-x", "8,12,197,a"):
        with pytest.raises(UsageError, match="B,A,N,K"):
            parse_shape(text)
    with pytest.raises(UsageError, match="against itself"):
        plan(kernels=("sdpa",))
    with pytest.raises(UsageError, match="--graph"):
        plan(graph=True)
    assert ROOF.peak(torch.float32) == 1e10
    assert ENVIRONMENT["cores"] == 2
