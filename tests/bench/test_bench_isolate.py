"""A kernel that crashes, hangs, eats memory or leaves is a failed row, and the next case is asked all the same."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from minivit.bench.checks.cases import Case, Spec
from minivit.bench.checks.server import run_cases
from minivit.bench.sandbox import Limits
from minivit.errors import UsageError

LIMITS = Limits(seconds=20, memory=2 << 30)

ACCIDENTS = """
import ctypes, os, time
import torch
import torch.nn.functional as F

print("this must not stand among the results")

def attention(q, k, v):
    tokens = q.shape[2]
    if tokens == 2:
        ctypes.string_at(0)
    if tokens == 15:
        time.sleep(600)
    if tokens == 16:
        hog = torch.ones(1 << 32)
    if tokens == 17:
        hog = bytearray(1 << 34)
    if tokens == 63:
        os._exit(0)
    return F.scaled_dot_product_attention(q, k, v)
"""


def case(tokens: int) -> Case:
    spec = Spec(batch=1, heads=3, tokens=tokens, head_dim=32, dtype=torch.float32, layout="packed")
    return Case(check="forward/normal", spec=spec)


def rows(kernel: Path, *tokens: int, seed: int = 1) -> list[tuple[int | None, str, str]]:
    found = run_cases(str(kernel), [case(n) for n in tokens], seed=seed, device="cpu", limits=LIMITS)
    return [(row.case.spec.tokens if row.case else None, row.finding.status, row.finding.detail) for row in found]


@pytest.fixture
def accidents(tmp_path: Path) -> Path:
    file = tmp_path / "accidents.py"
    file.write_text(ACCIDENTS)
    return file


@pytest.mark.slow
def test_accidents_are_rows_and_the_rest_is_asked_until_the_third_death(
    accidents: Path, capfd: pytest.CaptureFixture[str]
):
    crash, hang, tensor, buffer, good, left, last = rows(accidents, 2, 15, 16, 17, 65, 63, 65, 65)
    assert crash == (2, "fail", "crashed: SIGSEGV")
    assert hang == (15, "fail", "no answer within 20 seconds")
    assert tensor[:2] == (16, "fail")
    assert tensor[2].startswith("out of memory: ")
    assert buffer[:2] == (17, "fail")
    assert buffer[2].startswith("out of memory: ")
    assert good == (65, "pass", "")
    assert left == (63, "fail", "ended itself with exit code 0")
    assert last == (None, "fail", "its process died 3 times; 2 cases were not asked")
    out, err = capfd.readouterr()
    assert out == ""
    assert "must not stand" in err


def test_a_file_that_cannot_be_imported_is_one_row(tmp_path: Path):
    file = tmp_path / "broken.py"
    file.write_text("import nothing_of_that_name\n")
    ((none, status, detail),) = rows(file, 2, 15)
    assert (none, status) == (None, "fail")
    assert detail == "raised ModuleNotFoundError while it was imported: No module named 'nothing_of_that_name'"


def test_what_lies_beside_the_file_can_be_imported_and_the_caller_sees_none_of_it(tmp_path: Path):
    (tmp_path / "beside_it.py").write_text(
        "from torch.nn.functional import scaled_dot_product_attention as attention\n"
    )
    file = tmp_path / "mine.py"
    file.write_text("import os\nos.environ['LEFT_BEHIND'] = '1'\nfrom beside_it import attention\n")
    assert rows(file, 17) == [(17, "pass", "")]
    assert "LEFT_BEHIND" not in os.environ


def test_a_kernel_that_is_not_there_is_the_callers_mistake(accidents: Path):
    with pytest.raises(UsageError, match="no such file"):
        rows(accidents.with_name("nothing.py"), 2)
    with pytest.raises(UsageError, match="no function third"):
        list(run_cases(f"{accidents}:third", [case(2)], seed=1, device="cpu", limits=LIMITS))


def test_limits_that_allow_nothing_are_refused():
    with pytest.raises(UsageError, match="above zero"):
        Limits(seconds=0)
