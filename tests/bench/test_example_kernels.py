"""The kernels of benchmarks/kernels go through the check: the right ones are accepted, the wrong one is refused."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from minivit.bench.checks.cases import EFFORTS, SMALL_SIZES, Case, Effort, plan
from minivit.bench.checks.numerics import CHECKS, ask
from minivit.bench.checks.server import Row, run_cases
from minivit.bench.kernels import Kernel, load_kernel
from minivit.bench.sandbox import Limits

KERNELS = Path(__file__).resolve().parents[2] / "benchmarks" / "kernels"
EVERY_DTYPE = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
LIMITS = Limits(seconds=120)

needs_compiler = pytest.mark.skipif(
    not (shutil.which("c++") and shutil.which("ninja")), reason="needs a C++ compiler and ninja"
)
needs_x86 = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="needs an x86 CPU")

# Around the blocks of the kernel, 12 (or 6) queries, 16 or 32 (or 8) lanes of keys and blocks of 256 keys; heads that
# are no whole vectors, one of them odd.
AROUND_THE_BLOCKS = Effort(
    pairs=lambda axes: [("tokens", "dtype"), ("head_dim", "dtype"), ("check", "layout")],
    work=3 * 10**7,
    sizes={
        "tokens": (2, 11, 12, 13, 31, 33, 65, 197, 256, 257, 289, 577),
        "head_dim": (31, 32, 64, 72, 80, 136),
        "heads": (2, 3),
        "batch": (1, 2),
    },
)
FORWARD = [check for check in CHECKS if not check.startswith("backward")]


def refusals(rows: Sequence[Row]) -> list[str]:
    return [f"{row.case}: {row.finding.detail}" for row in rows if row.finding.status in ("fail", "inconclusive")]


def asked_here(kernel: Kernel, cases: Sequence[Case]) -> list[Row]:
    return [Row(kernel=kernel.name, case=case, finding=ask(kernel, case, seed=3)) for case in cases]


def asked_apart(file: str, cases: Sequence[Case]) -> list[Row]:
    """In a process of its own, as the command does it, which sees the environment anew."""
    return list(run_cases(str(KERNELS / file), cases, seed=3, device="cpu", limits=LIMITS))


@pytest.mark.parametrize("file", ["eager.py", "online_softmax.py"])
def test_plain_pytorch_is_accepted_in_every_dtype(file: str):
    cases = plan(list(CHECKS), EFFORTS["small"], device="cpu", dtypes=EVERY_DTYPE)
    rows = asked_here(load_kernel(str(KERNELS / file)), cases)
    assert refusals(rows) == []
    assert {row.finding.status for row in rows} == {"pass"}


@pytest.mark.parametrize("sizes", ["256x3x2x80", "32x6x2x128"])
def test_two_tokens_in_float64_ask_no_more_of_gradients_than_sums_over_the_head_allow(sizes: str):
    kernel = load_kernel(str(KERNELS / "online_softmax.py"))
    names = ("backward/strided", "backward/random", "backward/expanded", "backward/only-v")
    cases = [Case.parse(f"{name}/{sizes}/float64/packed", device="cpu") for name in names]
    assert refusals(asked_here(kernel, cases)) == []


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("backward/random/1x3x2x128/float64/padded", 46),
        ("backward/random/1x3x2x128/float64/padded", 76),
        ("backward/expanded/1x3x63x80/float64/misaligned", 69),
    ],
)
def test_a_row_whose_gradient_cancels_is_not_held_against_a_kernel(name: str, seed: int):
    kernel, case = load_kernel(str(KERNELS / "online_softmax.py")), Case.parse(name, device="cpu")
    assert ask(kernel, case, seed=seed).numbers["of_limit"] < 0.8  # of its own size a row was 1.2 to 1.6 of the limit
    assert ask(load_kernel("mutant:gradient-without-mean"), case, seed=seed).numbers["of_limit"] > 1e10


def test_the_wrong_kernel_is_refused_where_keys_are_lost_and_only_there():
    wrong, right = (load_kernel(str(KERNELS / file)) for file in ("wrong.py", "eager.py"))
    for tokens, lost in ((17, 0), (64, 0), (128, 0), (65, 1), (197, 5), (577, 1)):
        normal, needle = (
            ask(wrong, Case.parse(f"{name}/1x3x{tokens}x64/float32/packed", device="cpu"), seed=3)
            for name in ("forward/normal", "needle/permutation")
        )
        expected = "fail" if lost else "pass"
        assert (normal.status, needle.status) == (expected, expected), (tokens, normal, needle)
        if lost:  # the needle counts them in each of three heads and names one
            key = int(needle.detail.partition("asks for key ")[2].partition(",")[0])
            assert needle.detail.startswith(f"{3 * lost} of {3 * tokens} rows")
            assert tokens - lost <= key < tokens

    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 3, 577, 64)
    answers = [kernel(q, k, v, scale=0.125) for kernel in (wrong, right)]
    torch.testing.assert_close(*answers, atol=1e-1, rtol=1e-2)  # as its text says: what a tolerance lets through


@needs_compiler
@needs_x86
@pytest.mark.slow
@pytest.mark.parametrize("capability", ["avx2", "avx512"])
def test_the_cpp_kernel_is_accepted_around_its_blocks(capability: str, monkeypatch: pytest.MonkeyPatch):
    if capability == "avx512" and torch.backends.cpu.get_cpu_capability() != "AVX512":
        pytest.skip("this CPU has no AVX-512")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", capability)
    cases = plan(FORWARD, AROUND_THE_BLOCKS, device="cpu", dtypes=EVERY_DTYPE[:3])
    rows = asked_apart("avx.py", cases)
    assert refusals(rows) == []
    assert {row.finding.status for row in rows} == {"pass"}


@needs_compiler
@needs_x86
@pytest.mark.slow
def test_the_cpp_kernel_takes_what_the_check_does_not_send():
    kernel, right = (load_kernel(str(KERNELS / file)) for file in ("avx.py", "eager.py"))
    torch.manual_seed(0)
    q = torch.randn(2, 3, 5, 7)
    k, v = torch.randn(2, 2, 3, 19, 7)  # other keys than queries
    head_last = [x.mT.contiguous().mT for x in (q, k, v)]  # no unit stride
    for scale in (0.3, 0.0, -0.3):
        expected = right(q.double(), k.double(), v.double(), scale=scale)
        for inputs in ((q, k, v), head_last):
            torch.testing.assert_close(kernel(*inputs, scale=scale).double(), expected, atol=1e-6, rtol=1e-5)

    # A key that is out of the question (-inf) weighs nothing, even where it is all that a block of keys holds.
    q, k, v = torch.ones(1, 1, 1, 1), torch.randn(1, 1, 300, 1), torch.randn(1, 1, 300, 1)
    k[:, :, :280] = -torch.inf
    expected = right(q, k[:, :, 280:], v[:, :, 280:], scale=1.0)
    torch.testing.assert_close(kernel(q, k, v, scale=1.0), expected)

    with pytest.raises(NotImplementedError, match="forward only"):
        kernel(q.requires_grad_(), k, v)
    for bad in ((q[0], k, v), (q, k[..., :0, :], v[..., :0, :]), (q, k, v[:, :, :-1]), (q, k.half(), v.half())):
        with pytest.raises(RuntimeError, match="q"):
            kernel.attention(*(x.detach() for x in bad), scale=1.0)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("file", ["compiled.py", "flex.py"])
def test_compiled_kernels_are_accepted(file: str):
    if file == "flex.py" and torch.__version__ < "2.7":
        pytest.skip("flex.py needs torch 2.7")
    names = ["forward/last-key/2x3x65x32", "needle/permutation/2x3x65x32", "forward/large-mean/2x3x65x32"]
    cases = [Case.parse(f"{name}/float32/packed", device="cpu") for name in names]
    rows = asked_apart(file, cases)
    assert refusals(rows) == []
    assert {row.finding.status for row in rows} == {"pass"}


@pytest.mark.slow
def test_the_triton_kernel_is_accepted_in_the_interpreter(monkeypatch: pytest.MonkeyPatch):
    if not importlib.util.find_spec("triton"):
        pytest.skip("needs triton")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    sizes = SMALL_SIZES | {"tokens": (2, 17, 65), "batch": (1, 2), "heads": (2,)}
    effort = Effort(pairs=lambda axes: [("check", "dtype")], work=10**6, sizes=sizes)
    cases = plan(FORWARD, effort, device="cpu", dtypes=EVERY_DTYPE[:3])
    rows = asked_apart("triton_flash.py", cases)
    assert refusals(rows) == []
    assert {row.finding.status for row in rows} == {"pass"}
