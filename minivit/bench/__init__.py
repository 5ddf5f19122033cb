"""The kernel bench: is an attention kernel right, how fast is it, and what does it do to a model?

    check(kernel)                   cases, findings and the verdict, as `minivit bench check`
    run(Plan(...))                  times, speed-ups and the status of each row, as `minivit bench run`
    roofline()                      the measured limits of this machine
    run_model(ModelPlan(...), ...)  a kernel inside a model, as `minivit bench model`
    compare(old, new)               two runs: what became slower
    summarize(run)                  a run read back, as `minivit bench report`
    selftest()                      the power of the check

Every function returns a frozen dataclass whose text is the table of the command. See README.md for the reading order.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minivit.bench.checks.check import CheckResult, check
    from minivit.bench.checks.selftest import SelfTest, selftest
    from minivit.bench.model.run import ModelPlan, run_model
    from minivit.bench.report.compare import Change, Comparison, compare
    from minivit.bench.report.runs import RunResult, summarize
    from minivit.bench.sandbox import Limits
    from minivit.bench.timing.cells import Cell, cells_of
    from minivit.bench.timing.roofs import Roofline, roofline
    from minivit.bench.timing.run import Plan, run

# Imported on first use, because the modules import torch.
_HOMES = {
    "checks.check": ("CheckResult", "check"),
    "checks.selftest": ("SelfTest", "selftest"),
    "model.run": ("ModelPlan", "run_model"),
    "report.compare": ("Change", "Comparison", "compare"),
    "report.runs": ("RunResult", "summarize"),
    "sandbox": ("Limits",),
    "timing.cells": ("Cell", "cells_of"),
    "timing.roofs": ("Roofline", "roofline"),
    "timing.run": ("Plan", "run"),
}

__all__ = [
    "Cell",
    "Change",
    "CheckResult",
    "Comparison",
    "Limits",
    "ModelPlan",
    "Plan",
    "Roofline",
    "RunResult",
    "SelfTest",
    "cells_of",
    "check",
    "compare",
    "roofline",
    "run",
    "run_model",
    "selftest",
    "summarize",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"minivit.bench.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
