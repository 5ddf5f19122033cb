"""`bench.run_model`: a kernel in a whole model. Images per second, errors after each block, classes that change."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from minivit.bench.checks.cases import Spec, name_of
from minivit.bench.checks.check import quick_cases
from minivit.bench.checks.findings import KernelError
from minivit.bench.checks.tolerance import SLACK
from minivit.bench.kernels import kernel_file, sha256
from minivit.bench.model.blocks import ModelBlock, ModelServer, model_child
from minivit.bench.model.summary import ARMS, model_row
from minivit.bench.report.results import Record, Recorder, record
from minivit.bench.report.runs import RunResult, write_reports
from minivit.bench.sandbox import Child, Limits
from minivit.bench.timing.rounds import rounds
from minivit.bench.timing.run import environment_of, now, verify
from minivit.errors import UsageError
from minivit.model.vit import ViT

MAX_ROUNDS = 30  # in one process


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """How one kernel is timed in one model."""

    kernel: str
    batch: int = 8
    threads: int
    processes: int = 2
    budget: float = 60.0  # seconds of the rounds
    seed: int
    device: str = "cpu"
    unverified: bool = False  # skip the check, and say so
    limits: Limits = field(default_factory=Limits)


OpenChild = Callable[[ModelPlan], AbstractContextManager[Child]]


def run_model(
    plan: ModelPlan,
    model: ViT,
    pixels: Tensor,
    names: Sequence[str] | None = None,
    *,
    out: str | Path | None = None,
    on_record: Callable[[Record], object] | None = None,
) -> RunResult:
    """Return what a kernel does to a model: speed, errors, classes that change. The kernel is checked first.

    Args:
        plan: the kernel, and how it is timed.
        model: a plain ViT in eval mode.
        pixels: (B, C, H, W) in the dtype of the model; batches are drawn from them.
        names: of the images, for messages; numbers if None.
        out: a folder for run.jsonl, report.md and report.html.
        on_record: called with every record (see report.results) as soon as it is known.

    Raises:
        UsageError: an unknown kernel, one that does not support the model, or a folder that holds a run already.
        MinivitError: the kernel cannot be loaded, raised, crashed or hung.
    """
    kernel_file(plan.kernel)
    names = [f"image {i}" for i in range(len(pixels))] if names is None else names
    checks = []
    with Recorder(out, on_record) as to:
        to.add(bench_record(plan, model, names, environment_of(plan.device), started=now()))
        if not plan.unverified:
            cases = quick_cases([model.patch_embed.weight.dtype], plan.device, False)
            checks = verify([plan.kernel], cases, plan.seed, plan.device, plan.limits, to.add)
        if all(result.right for result in checks):
            for one in time_model(plan, model, pixels):
                to.add(one)
            to.add(model_row(to.records))
    result = RunResult(records=tuple(to.records), checks=tuple(checks))
    if to.folder and result.rows:
        write_reports(to.folder, result.records)
    return result


def bench_record(plan: ModelPlan, model: ViT, images: Sequence[str], environment: Record, *, started: str) -> Record:
    """Return the first record: what is timed, on what, and the sha256 of the kernel."""
    return record(
        "model-bench",
        started=started,
        kernel=plan.kernel,
        sha256=sha256(plan.kernel),
        model=model.name,
        revision=model.revision,
        dtype=name_of(model.patch_embed.weight.dtype),
        tokens=model.config.layout.count,
        pictures=list(images),
        batch=plan.batch,
        threads=plan.threads,
        processes=plan.processes,
        budget_seconds=plan.budget,
        unverified=plan.unverified,
        seed=plan.seed,
        environment=environment,
    )


def time_model(
    plan: ModelPlan,
    model: ViT,
    pixels: Tensor,
    *,
    open_child: OpenChild = lambda plan: model_child(plan.threads, plan.limits, plan.device),
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Record]:
    """Yield the record of the errors first, then of the first forward passes and of every block.

    Raises:
        UsageError: the kernel does not support the model's attention.
        MinivitError: the kernel cannot be loaded, raised, crashed or hung.
    """
    rng = random.Random(plan.seed)
    allowed = math.inf
    with TemporaryDirectory(prefix="minivit-") as folder:
        file = f"{folder}/model.pt"  # a file, because a pipe is slow for hundreds of megabytes
        torch.save((model, pixels), file)
        for process in range(plan.processes):
            with open_child(plan) as child:
                _prepare(plan, child, model)
                child.call(ModelServer.open_model, file, plan.batch, rng.randrange(1 << 32))
                if not process:
                    errors = child.call(ModelServer.errors, plan.kernel)
                    yield record("model-errors", **asdict(errors))
                    # On these images, kernel and default are each so far from the truth; on others, up to twice that.
                    allowed = 2 * (SLACK + 1) * errors.yardstick
                yield from _rounds(plan, child, process, allowed, rng, clock)


def _prepare(plan: ModelPlan, child: Child, model: ViT) -> None:
    """Load the kernel in the child, and refuse one that does not support the model."""
    if problem := child.call(ModelServer.load, plan.kernel):
        raise UsageError(problem) if isinstance(problem, str) else KernelError(f"{plan.kernel}: {problem.detail}")
    spec = spec_of(model, plan.batch, plan.device)
    if (reason := child.call(ModelServer.supports, plan.kernel, spec)) is not True:
        raise UsageError(f"{plan.kernel}: does not support {spec}, which {model.name} needs: {reason}")


def _rounds(
    plan: ModelPlan, child: Child, process: int, allowed: float, rng: random.Random, clock: Callable[[], float]
) -> Iterator[Record]:
    """Yield the records of the first forward passes, then of all rounds."""
    kernels = {arm: plan.kernel if arm == "kernel" else None for arm in ARMS}
    later = 0.0
    for arm in ("default", "kernel"):
        first, seconds, peak = child.call(ModelServer.start, kernels[arm])
        later = max(later, seconds)
        yield record("model-start", arm=arm, process=process, first_forward_seconds=first, peak_bytes=peak)
    samples = min(10, max(1, round(0.3 / later)))

    def measure(arm: str) -> ModelBlock:
        return child.call(ModelServer.block, kernels[arm], samples, allowed)

    seconds = plan.budget / plan.processes
    for attempt in rounds(
        ARMS, measure, threads=plan.threads, seconds=seconds, max_rounds=MAX_ROUNDS, rng=rng, clock=clock
    ):
        block = attempt.block
        yield record(
            "model-block",
            arm=attempt.arm,
            process=process,
            **attempt.record(),
            samples_us=block.samples_us,
            attention_us=block.attention_us,
            wall_seconds=block.wall_seconds,
            **block.counters.record(),
        )


def spec_of(model: ViT, batch: int, device: str) -> Spec:
    """Return the shape that the blocks of a model ask of a kernel."""
    config = model.config
    return Spec(
        batch=batch,
        heads=config.heads,
        tokens=config.layout.count,
        head_dim=config.head_dim,
        dtype=model.patch_embed.weight.dtype,
        layout="packed",
        device=device,
    )
