"""Roofs and what attention asks of them, against numbers worked out by hand."""

from __future__ import annotations

import torch

from minivit.bench.checks.cases import Spec
from minivit.bench.timing.peaks import fastest, gemm_peak
from minivit.bench.timing.roofline import Roof, bound, impossible, work

SPEC = Spec(batch=2, heads=3, tokens=5, head_dim=7, dtype=torch.float32, layout="packed")
ROOF = Roof(
    gemm={"float32": 100.0, "bfloat16": 300.0, "float16": 5.0}, memory=10.0, cache=50.0, exp=20.0, cache_bytes=4000
)


def test_work_by_hand():
    # q k^T: 2*3*5*5*7 = 1050 multiplications, twice as many FLOP, two such products. q has 210 numbers.
    forward, backward = work(SPEC, "fwd"), work(SPEC, "bwd")
    assert (forward.flops, forward.bytes, forward.exps) == (4200, 4 * 210 * 4, 150)
    assert (backward.flops, backward.bytes, backward.exps) == (8400, 7 * 210 * 4, 0)


def test_bound_by_hand():
    hot, cold = bound(SPEC, "fwd", "hot", ROOF), bound(SPEC, "fwd", "cold", ROOF)
    assert (hot.gemm, hot.memory, hot.exp) == (42.0, 67.2, 7.5)  # 3360 bytes fit the 4000 of the cache
    assert (hot.seconds, hot.binds) == (67.2, "memory")
    assert (cold.memory, cold.binds) == (336.0, "memory")
    backward = bound(SPEC, "bwd", "hot", ROOF)
    assert backward.memory == 588.0  # 5880 bytes do not fit
    assert bound(SPEC, "fwd", "hot", Roof(**{**vars(ROOF), "exp": 1.0})).binds == "exp"


def test_a_dtype_may_be_computed_in_a_wider_one_but_not_in_a_narrower():
    assert ROOF.peak(torch.float32) == 100.0  # not bfloat16's 300
    assert ROOF.peak(torch.bfloat16) == 300.0
    assert ROOF.peak(torch.float16) == 100.0  # float32's: float16 has no instructions here, and bfloat16 loses bits


def test_impossible_times():
    assert impossible(0.9 * 67.2, SPEC, "fwd", "hot", ROOF) is None
    reason = impossible(0.89 * 67.2, SPEC, "fwd", "hot", ROOF)
    assert reason
    assert "memory roof" in reason
    # A faster exp than the one measured is possible.
    slow_exp = Roof(**{**vars(ROOF), "exp": 1e-3})
    assert impossible(67.2, SPEC, "fwd", "hot", slow_exp) is None


def test_fastest_takes_the_least_by_the_clock_it_is_given():
    now = 0.0
    durations = iter([9.0, 3.0, 1.0, 2.0, 4.0, 100.0, 1.0])

    def call():
        nonlocal now
        now += next(durations)

    assert fastest(call, seconds=15.0, clock=lambda: now) == 1.0  # 9 was the first call, of which nothing is told


def test_measured_peaks_are_numbers_and_the_threads_are_put_back():
    before = torch.get_num_threads()
    assert gemm_peak(torch.float32, 1) > 1e8
    assert torch.get_num_threads() == before
