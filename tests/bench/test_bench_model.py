"""A kernel in a model: Amdahl by hand, errors against float64, flips with their margins, kernels that only pretend."""

from __future__ import annotations

import json
import math
import re
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import fakes
from helpers.simulated import ENVIRONMENT, QUIET

from minivit.bench.checks.findings import Finding, KernelError
from minivit.bench.model.blocks import ModelBlock, ModelTimer, time_block
from minivit.bench.model.errors import Errors, attend_with, errors_of, judged_model
from minivit.bench.model.run import ModelPlan, bench_record, time_model
from minivit.bench.model.summary import ceiling, model_row, predicted
from minivit.bench.report.results import read
from minivit.bench.report.tables import model_lines
from minivit.cli import main
from minivit.errors import UsageError
from minivit.model.attention import attend_reference, attend_sdpa

BENCH_FIELDS = [
    *("schema", "kind", "started", "kernel", "sha256", "model", "revision", "dtype", "tokens", "pictures", "batch"),
    *("threads", "processes", "budget_seconds", "unverified", "seed", "environment"),
]
BLOCK_FIELDS = [
    *("schema", "kind", "arm", "process", "round", "attempt", "kept", "noise", "status", "detail"),
    *("samples_us", "attention_us", "wall_seconds", "cpu_seconds"),
    *("minor_faults", "major_faults", "voluntary_switches", "involuntary_switches", "waited_seconds", "stolen_seconds"),
]
MODEL_FIELDS = [
    *("schema", "kind", "kernel", "model", "status", "detail", "images_per_second", "default_images_per_second"),
    *("gain", "gain_low", "gain_high", "resolution", "attention_share", "attention_speedup", "predicted_gain"),
    *("ceiling", "reached", "first_forward_seconds", "peak_bytes", "logits", "blocks", "pictures", "top1_agreement"),
    *("top5_agreement", "flips"),
]


def test_amdahl_by_hand():
    assert ceiling(0.2) == 1.25
    assert predicted(0.2, 2.0) == pytest.approx(1 / 0.9)
    assert predicted(0.2, math.inf) == ceiling(0.2)
    assert predicted(0.5, 1.0) == 1.0


# --- errors and flips


def logits_of(**changes) -> dict[str, torch.Tensor]:
    """Three pictures, seven classes; plain attention is wrong by 0.001 in one logit."""
    truth = torch.tensor(
        [[5.0, 1, 0, -1, -2, -3, -4], [2.0, 1.9985, 0, -1, -2, -3, -4], [0.0, 1, 2, 3, 4, 5, 6]], dtype=torch.float64
    )
    eager = truth.float()
    eager[0, 0] += 0.001
    return {"truth": truth, "eager": eager, "sdpa": truth.float(), "kernel": truth.float(), **changes}


BLOCKS = {"eager": [1e-7, 2e-7], "sdpa": [1e-7, 2e-7], "kernel": [1e-7, 3e-7]}


def test_logits_are_judged_by_twice_the_error_of_plain_attention():
    for size, status in ((0.0019, "pass"), (0.0021, "fail")):
        kernel = logits_of()["truth"].float()
        kernel[2, 0] += size
        errors = judged_model(logits_of(kernel=kernel), BLOCKS, terms=8)
        assert errors.finding.status == status, size
        assert errors.yardstick == pytest.approx(0.001, rel=1e-3)


def test_flips_and_margins():
    kernel = logits_of()["truth"].float()
    kernel[1, 1] += 0.0018  # 1.9985 becomes the largest
    kernel[2, 2] += 0.0001
    errors = judged_model(logits_of(kernel=kernel), BLOCKS, terms=8)
    assert errors.top1 == [(0, 0), (0, 1), (6, 6)]
    assert errors.top5_agree == [True, True, True]
    assert errors.margins == pytest.approx([4.0, 0.0015, 1.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_errors_of_a_real_model(dtype: torch.dtype):
    model, pixels = fakes.build(dtype=dtype), fakes.pixels(6, dtype=dtype)

    def slightly_off(q, k, v, *, scale):
        return attend_reference(q, k, v, scale=scale) * 1.05

    right, wrong = errors_of(model, pixels, attend_sdpa), errors_of(model, pixels, slightly_off)
    assert right.finding.status == "pass"
    assert wrong.finding.status == "fail"
    assert right.blocks["kernel"] == right.blocks["sdpa"]
    assert len(right.blocks["kernel"]) == 3
    assert all(a > 2 * b for a, b in zip(wrong.blocks["kernel"], wrong.blocks["eager"], strict=True))
    # By hand: the first block's tokens against float64.
    exact = attend_with(fakes.build(), attend_reference)
    exact.load_state_dict({name: value.double() for name, value in model.state_dict().items()})
    first = exact.blocks[0](exact.embed(pixels.double()), None)
    attend_with(model, attend_reference)
    ours = model.blocks[0](model.embed(pixels), None)
    expected = ((ours.double() - first).norm() / first.norm()).item()
    assert right.blocks["eager"][0] == pytest.approx(expected, rel=1e-3)


# --- timed forwards


def test_the_share_of_attention_is_taken_inside_the_kernel():
    now = 0

    def attend(q, k, v, *, scale):
        nonlocal now
        now += 7000
        return attend_reference(q, k, v, scale=scale)

    timer = ModelTimer(fakes.build(dtype=torch.float32), fakes.pixels(3, dtype=torch.float32), 2, seed=1)
    forward, pixels, logits = timer.forward(attend, clock=lambda: now)
    assert (forward.total_us, forward.attention_us) == (21.0, 21.0)  # three blocks, and nothing else takes time
    assert pixels.shape[0] == 2
    assert logits.shape == (2, 5)
    assert not torch.equal(pixels, timer.forward(attend)[1])


def test_a_model_answered_from_memory_is_caught():
    timer = ModelTimer(fakes.build(dtype=torch.float32), fakes.pixels(3, dtype=torch.float32), 2, seed=1)
    allowed = 6 * errors_of(timer.model, timer.pixels, attend_sdpa).yardstick
    assert time_block(timer, attend_reference, 3, allowed).verdict.status == "pass"
    kept = {}

    def remembers(q, k, v, *, scale):
        number = len(kept) if len(kept) < 3 else remembers.turn % 3
        remembers.turn += 1
        return kept.setdefault(number, attend_reference(q, k, v, scale=scale))

    remembers.turn = 0
    finding = time_block(timer, remembers, 5, allowed).verdict
    assert finding.status == "fail"
    assert "from the default's" in finding.detail


# --- a whole run, on a machine that is not there


class Machine:
    """Forwards of 1000 us of which attention takes 200; with the kernel, what the test says."""

    def __init__(self, total: float = 900.0, attention: float = 100.0, errors: Errors | None = None):
        self.times = {None: (1000.0, 200.0), "eager": (total, attention)}
        self.errors_found = errors or judged_model(logits_of(), BLOCKS, terms=8)
        self.now, self.turn, self.supported, self.verdict = 0.0, 0, True, Finding(status="pass")
        self.counters, self.problem = QUIET, None

    @contextmanager
    def open(self, plan):
        yield self

    def call(self, method, *args):
        return getattr(self, method.__name__)(*args)

    def load(self, name):
        return self.problem

    def supports(self, name, spec):
        return self.supported

    def open_model(self, file, batch, seed):
        pass

    def errors(self, name):
        return self.errors_found

    def start(self, name):
        return 0.5, 0.001, 1 << 20

    def block(self, name, samples, allowed):
        self.turn += 1
        self.now += 0.1
        total, attention = (value * (1 + 0.002 * (self.turn * 7 % 5 - 2)) for value in self.times[name])
        return ModelBlock(
            samples_us=[total] * samples,
            attention_us=[attention] * samples,
            calls=1,
            verdict=self.verdict,
            counters=self.counters,
            wall_seconds=0.1,
        )


def run_of(machine: Machine, **changes):
    model = fakes.build(dtype=torch.float32)
    usual = {"kernel": "eager", "batch": 2, "threads": 2, "processes": 2, "budget": 10.0, "seed": 1}
    plan = ModelPlan(**{**usual, **changes})
    pixels = fakes.pixels(3, dtype=torch.float32)
    records = [bench_record(plan, model, ["a.jpg", "b.jpg", "c.jpg"], ENVIRONMENT, started="2026-11-24T05:00:00+00:00")]
    records += time_model(plan, model, pixels, open_child=machine.open, clock=lambda: machine.now)
    return records, model_row(records)


def test_a_gain_is_held_against_its_ceiling():
    records, row = run_of(Machine())
    assert list(records[0]) == BENCH_FIELDS
    assert list(row) == MODEL_FIELDS
    assert all(list(record) == BLOCK_FIELDS for record in records if record["kind"] == "model-block")
    assert row["status"] == "verified"
    assert row["gain"] == pytest.approx(10 / 9, rel=0.01)
    assert row["attention_share"] == pytest.approx(0.2, rel=1e-6)
    assert row["ceiling"] == pytest.approx(1.25)
    assert row["attention_speedup"] == pytest.approx(2, rel=0.01)
    assert row["predicted_gain"] == pytest.approx(1 / 0.9, rel=0.01)
    assert row["reached"] == pytest.approx((10 / 9 - 1) / 0.25, rel=0.05)
    assert row["images_per_second"][1] == pytest.approx(2e6 / 900, rel=0.01)
    text = "\n".join(model_lines(row))
    assert "20.0% of the default forward" in text
    assert "Amdahl's ceiling   1.250" in text


def test_a_gain_above_the_ceiling_is_invalid():
    _, row = run_of(Machine(total=700.0))  # 1.43, where all of attention is worth 1.25
    assert row["status"] == "invalid"
    assert "above the ceiling of 1.250" in row["detail"]
    assert run_of(Machine(total=805.0))[1]["status"] == "verified"  # 1.242


def test_flips_are_explained_by_margin_or_fail():
    kernel = logits_of()["truth"].float()
    kernel[1, 1] += 0.0018
    _, row = run_of(Machine(errors=judged_model(logits_of(kernel=kernel), BLOCKS, terms=8)))
    (flip,) = row["flips"]
    assert (flip["picture"], flip["default"], flip["kernel"], flip["explained"]) == ("b.jpg", 0, 1, True)
    assert row["status"] == "verified"
    assert row["top1_agreement"] == pytest.approx(2 / 3)
    # The same flip over a margin that no rounding of this size crosses.
    errors = judged_model(logits_of(), BLOCKS, terms=8)
    flipped = Errors(**{**vars(errors), "top1": [(0, 3), (0, 0), (6, 6)]})
    _, row = run_of(Machine(errors=flipped))
    assert row["status"] == "failed"
    assert "more than rounding explains" in row["detail"]


def test_wrong_answers_and_what_is_not_supported():
    machine = Machine()
    machine.verdict = Finding(status="fail", detail="the logits of a timed forward are 3 from the default's")
    assert run_of(machine)[1]["status"] == "invalid"
    assert run_of(Machine(), unverified=True)[1]["status"] == "unverified"
    machine = Machine()
    machine.counters = replace(QUIET, waited_seconds=0.1)
    records, row = run_of(machine)
    assert row["status"] == "noisy"
    assert "for a core that others had" in row["detail"]
    assert sum(not r["kept"] for r in records if r["kind"] == "model-block") * 3 == 2 * machine.turn
    machine.problem = Finding(status="fail", detail="raised ImportError while it was imported: no flash")
    with pytest.raises(KernelError, match="eager: raised ImportError") as failed:
        run_of(machine)
    assert failed.value.exit_code == 1
    machine.problem, machine.supported = None, "only 64 tokens"
    with pytest.raises(UsageError, match=r"does not support 2x3x16x7/float32/packed.*only 64 tokens"):
        run_of(machine)


@pytest.mark.slow
def test_the_command_on_the_model_in_the_box(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from minivit.bench.checks.cases import Case

    case = Case.parse("forward/normal/2x3x17x32/float32/packed", device="cpu")
    monkeypatch.setattr("minivit.bench.model.run.quick_cases", lambda *a: [case])
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def attention(q, k, v, *, scale):\n    return (q @ k.mT * scale).softmax(-1) @ v\n")
    common = ["--model", "minivit/cifar10-vit", "--images", str(shared / "photos"), "--threads", "1", "--most", "5"]
    small = [*common, "--budget", "1s", "--processes", "1", "-b", "2", "-o", "out"]
    assert main(["bench", "model", "mine.py", *small]) == 0
    out, _ = capsys.readouterr()
    assert re.match(r"mine\.py in minivit/cifar10-vit: (VERIFIED|NOISY)", out)  # others may want the cores, too
    assert "100.0%, 100.0% agree with the default on 5 pictures" in out
    records = read("out")
    assert [record["kind"] for record in records][:3] == ["model-bench", "case", "verdict"]
    assert list(json.loads(json.dumps(records[-1]))) == MODEL_FIELDS
    report = Path("out/report.md").read_text()
    assert "# mine.py in minivit/cifar10-vit" in report
    assert "Amdahl's ceiling" in report
    assert "<svg" in Path("out/report.html").read_text()
    assert main(["bench", "report", "out", "-o", "again"]) == 0
    assert Path("again/report.md").read_text() == report
    capsys.readouterr()
    assert main(["bench", "model", "mine.py", *common, "--images", "nowhere"]) == 2
    assert "no image there can be read" in capsys.readouterr().err
