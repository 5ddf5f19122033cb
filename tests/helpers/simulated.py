"""A machine that is not there: kernels take the time they are told to, so that no test waits for a clock."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from minivit.bench.checks.cases import Spec
from minivit.bench.checks.findings import Finding
from minivit.bench.report.verdicts import verdict_record
from minivit.bench.sandbox import ChildError
from minivit.bench.timing.cells import Cell
from minivit.bench.timing.machine import Counters
from minivit.bench.timing.problem import Block, Start
from minivit.bench.timing.roofline import Roof
from minivit.bench.timing.roofs import Roofline
from minivit.bench.timing.run import Plan, bench_record, time_cells
from minivit.bench.timing.summary import rows

SPEC = Spec(batch=2, heads=3, tokens=50, head_dim=7, dtype=torch.float32, layout="packed")
CELL = Cell(spec=SPEC, direction="fwd", mode="hot")
# 2 * 2 * 2*3*50*50*7 = 420 kFLOP in 42 us, and memory in less.
ROOF = Roof(gemm={"float32": 1e10}, memory=1e12, cache=1e12, exp=1e12, cache_bytes=1 << 20)
ENVIRONMENT = {
    "minivit": "0.1.0", "torch": "2.14.1", "python": "3.11.2", "platform": "Linux", "cpu": "Imaginary 9000",
    "cpu_capability": "AVX512", "cores": 2, "device": "cpu",
}  # fmt: skip
QUIET = Counters(
    cpu_seconds=0.1,
    minor_faults=1,
    major_faults=0,
    voluntary_switches=1,
    involuntary_switches=0,
    waited_seconds=0.0,
    stolen_seconds=0.0,
)
MINE = "sdpa:math"  # in the part of the kernel that is timed; its name is known, so that no file is needed
Takes = Callable[[int], float]  # microseconds of the call with this number


class Machine:
    """Stands in for a child process with a TimingServer. Every block is about 1% off, every process about 0.5%."""

    def __init__(self, takes: dict[str, Takes], seed: int, *, noise: float = 0.01):
        self.takes, self.noise = takes, noise
        self.random = random.Random(seed)
        self.calls = dict.fromkeys(takes, 0)
        self.now = 0.0
        self.verdicts: dict[str, Finding] = {}
        self.counters: Callable[[str], Counters] = lambda name: QUIET
        self.crashes: set[str] = set()
        self.unloadable: set[str] = set()
        self.opened = 0
        self.luck = dict.fromkeys(takes, 1.0)

    @contextmanager
    def open(self, threads: int) -> Iterator[Any]:
        self.opened += 1
        self.calls = dict.fromkeys(self.takes, 0)
        self.luck = {name: self.luck_of(name) for name in self.takes}
        yield self

    def luck_of(self, name: str) -> float:
        """How many times as long a kernel takes in the process that has just begun."""
        return self.random.gauss(1, self.noise / 2)

    def clock(self) -> float:
        return self.now

    def run(self, name: str) -> None:
        if name in self.crashes:
            raise ChildError("crashed: SIGSEGV")

    def call(self, method: Callable[..., Any], *args: Any) -> Any:
        return getattr(self, method.__name__)(*args)

    def load_timed(self, name: str) -> tuple[Finding | None, float]:
        if name in self.unloadable:
            raise ChildError("ended itself with exit code 3")
        return None, 0.25

    def settled(self) -> tuple[int, list[int]]:
        return 2, [0, 1]

    def open_cell(self, cell: Cell, seed: int) -> None:
        pass

    def start(self, name: str) -> Start:
        self.run(name)
        finding = Finding(status="pass", numbers={"of_limit": 0.5})
        return Start(
            finding=finding, first_call_seconds=0.5, call_ns=int(self.takes[name](0) * 1000), peak_bytes=1 << 20
        )

    def block(self, name: str, samples: int, calls: int, graph: bool) -> Block:
        self.run(name)
        level = self.luck[name] * self.random.gauss(1, self.noise)
        times = []
        for _ in range(samples):
            self.calls[name] += calls
            times.append(self.takes[name](self.calls[name]) * level * self.random.gauss(1, self.noise / 2))
        wall = sum(times) * calls / 1e6
        self.now += wall
        verdict = self.verdicts.get(name, Finding(status="pass", numbers={"of_limit": 0.5}))
        return Block(samples_us=times, calls=calls, verdict=verdict, counters=self.counters(name), wall_seconds=wall)


def plan(**changes: Any) -> Plan:
    usual = {
        "kernels": (MINE,), "against": ("sdpa",), "cells": (CELL,), "threads": (2,), "processes": 3,
        "budget": 60.0, "seed": 1,
    }  # fmt: skip
    return Plan(**{**usual, **changes})


def simulate(takes: dict[str, Takes], seed: int = 0, *, machine: Machine | None = None, roof: Roof = ROOF, **changes):
    """The records of a whole run, rows and all."""
    machine = machine or Machine(takes, seed)
    wanted = plan(**changes)
    records = [bench_record(wanted, ENVIRONMENT, started="2026-11-24T05:00:00+00:00")]
    if not wanted.unverified:
        records += [{**verdict_record(name, []), "right": True} for name in wanted.kernels]
    records += [Roofline(roof=roof, threads=n, device="cpu", age_seconds=0.0).record() for n in wanted.threads]
    records += time_cells(wanted, open_child=machine.open, clock=machine.clock)
    return records + rows(records)


def steady(microseconds: float) -> Takes:
    return lambda call: microseconds
