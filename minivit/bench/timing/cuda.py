"""Timing on a GPU, with CUDA events."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter_ns

import torch
from torch import Tensor

from minivit.bench.device import clocks
from minivit.bench.kernels import Kernel
from minivit.bench.timing.machine import Counters
from minivit.bench.timing.problem import Block, Problem

PRIME_CYCLES = 2_000_000  # about a millisecond in which the queue fills, so that no call waits for the host


def measure(kernel: Kernel, problem: Problem, *, samples: int, calls: int, graph: bool) -> Block:
    """Return a block on a GPU: a pair of events around every call, in a queue that is never empty.

    With `graph`, a call is the replay of a CUDA graph, one for each set of inputs, without the time of the host.
    """
    device = problem.sets[0].q.device
    replays = _capture(kernel, problem) if graph else {}
    drawn = problem.random.randrange(samples * calls)
    for _ in range(problem.random.randint(1, 3)):
        call, laid = problem.next(kernel)
        call()
        problem.change(laid)
    torch.cuda.synchronize(device)
    before, wall = Counters.now(), perf_counter_ns()
    times: list[float] = []
    for sample in range(samples):
        pairs = []
        torch.cuda._sleep(PRIME_CYCLES)
        for number in range(sample * calls, (sample + 1) * calls):
            call, laid = problem.next(kernel)
            replay, output = replays.get(id(laid), (None, None))
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            out = replay() if replay else call()
            end.record()
            pairs.append((start, end))
            if number == drawn:
                q, k, v = (x.detach().clone() for x in laid.qkv)
                kept = (output.clone() if output is not None else out), (q, k, v)
            del out
            problem.change(laid)
        torch.cuda.synchronize(device)
        times.append(sum(start.elapsed_time(end) for start, end in pairs) / calls * 1000)
    counters, wall = Counters.now().since(before), perf_counter_ns() - wall
    return Block(
        samples_us=times,
        calls=calls,
        verdict=problem.verify(*kept),
        counters=counters,
        wall_seconds=wall / 1e9,
        clocks=clocks(device),
    )


def _capture(kernel: Kernel, problem: Problem) -> dict[int, tuple[Callable[[], None], Tensor]]:
    """Return, for every set of inputs, the replay of a call on it and the tensor that it writes."""
    found = {}
    for _ in problem.sets:
        call, inputs = problem.next(kernel)
        assert problem.cell.direction == "fwd"
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # a first call may allocate and tune, which no graph can hold
            call()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = call()
        found[id(inputs)] = graph.replay, out
    return found
