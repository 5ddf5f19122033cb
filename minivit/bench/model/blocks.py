"""What a kernel does to a whole model: images per second, errors that travel through the blocks, answers that flip.

Attention is a small part of a Vision Transformer (4 N / (24 D + 4 N) of its FLOPs, 4% of ViT-B at 197 tokens), so
that a kernel twice as fast changes little. Amdahl's law (1967) says how much it can: the ceiling is the gain of an
attention that takes no time, and a gain beyond it means that something else than attention was changed.
"""

from __future__ import annotations

import copy
import gc
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from statistics import median
from tempfile import TemporaryDirectory
from time import monotonic, perf_counter_ns
from typing import Any

import torch
from torch import Tensor

from minivit.bench import device as cuda
from minivit.bench import sandbox as isolate
from minivit.bench.checks.cases import Spec, name_of
from minivit.bench.checks.findings import Finding, KernelError, judged
from minivit.bench.checks.tolerance import SLACK, judge
from minivit.bench.kernels import Kernel, sha256
from minivit.bench.report.verdicts import SCHEMA
from minivit.bench.sandbox import Child, Limits
from minivit.bench.timing import machine, worker
from minivit.bench.timing.machine import Counters
from minivit.bench.timing.problem import Block
from minivit.bench.timing.run import LEAST_ROUNDS, MOST_ATTEMPTS, Record, Requests, ask, noisy
from minivit.bench.timing.stats import interval
from minivit.bench.timing.summary import MOST_NOISY, TRUST, Series, ratios_to_both, resolution_of
from minivit.errors import UsageError
from minivit.model.attention import Attend, attend_reference, attend_sdpa
from minivit.model.vit import ViT

ARMS = ("default", "again", "kernel")
MOST_ROUNDS = 30  # in one process
ERROR_BATCH = 4  # pictures at once where float64 and every block are kept


def attend_with(model: ViT, attend: Attend) -> ViT:
    """The model with another kernel in all of its blocks."""
    for block in model.blocks:
        block.attn.attend = attend  # type: ignore[union-attr]
    return model


# --- inside the process that runs the model


@dataclass(frozen=True, kw_only=True)
class Forward:
    """One timed forward of a batch, in microseconds."""

    total_us: float
    attention_us: float  # inside the kernel, all blocks together


@dataclass(frozen=True, kw_only=True)
class Errors:
    """What the kernel does to the answers."""

    finding: Finding  # of the logits by the rule
    blocks: dict[str, list[float]]  # relative L2 error after each block, of eager, sdpa and kernel
    yardstick: float  # the largest error of a logit that plain attention makes
    top1: list[tuple[int, int]]  # of every picture: the default's class and the kernel's
    top5_agree: list[bool]  # the same five classes, in whatever order
    margins: list[float]  # of every picture: between the two best logits of the float64 model


class Bench:
    """A model that runs with one kernel and then with another, on pictures that are never the same."""

    def __init__(self, model: ViT, pixels: Tensor, batch: int, *, seed: int):
        self.model, self.pixels, self.batch = model, pixels, batch
        self.random = random.Random(seed)
        self.generator = torch.Generator(pixels.device).manual_seed(seed)

    def fresh(self) -> Tensor:
        """A batch drawn from the pictures, with a little noise: (B, C, H, W)."""
        chosen = torch.tensor(self.random.choices(range(len(self.pixels)), k=self.batch))
        pixels = self.pixels[chosen]
        noise = torch.randn(pixels.shape, generator=self.generator, device=pixels.device, dtype=torch.float32)
        return pixels + 0.01 * noise.to(pixels)

    @torch.inference_mode()
    def forward(self, attend: Attend, *, clock: Callable[[], int] = perf_counter_ns) -> tuple[Forward, Tensor, Tensor]:
        """A timed forward: its times, its pixels and its logits."""
        pixels = self.fresh()
        spent = 0

        def watched(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
            nonlocal spent
            cuda.finish(q)
            start = clock()
            out = attend(q, k, v, scale=scale)
            cuda.finish(q)
            spent += clock() - start
            return out

        attend_with(self.model, watched)
        cuda.finish(pixels)
        start = clock()
        logits = self.model(pixels)
        cuda.finish(pixels)
        total = clock() - start
        return Forward(total_us=total / 1000, attention_us=spent / 1000), pixels, logits

    @torch.inference_mode()
    def errors(self, attend: Attend) -> Errors:
        """The kernel, plain attention and SDPA against the model in float64 with plain attention, on every picture."""
        exact = attend_with(copy.deepcopy(self.model).double(), attend_reference)
        ways: dict[str, Attend] = {"eager": attend_reference, "sdpa": attend_sdpa, "kernel": attend}
        squares = {way: [0.0] * len(exact.blocks) for way in ways}
        truth_squares = [0.0] * len(exact.blocks)
        logits: dict[str, list[Tensor]] = {way: [] for way in (*ways, "truth")}
        for pixels in self.pixels.split(ERROR_BATCH):
            true_blocks, true_logits = _every_block(exact, pixels.double())
            logits["truth"].append(true_logits)
            for i, block in enumerate(true_blocks):
                truth_squares[i] += block.square().sum().item()
            for way, one in ways.items():
                blocks, answer = _every_block(attend_with(self.model, one), pixels)
                logits[way].append(answer)
                for i, (block, true) in enumerate(zip(blocks, true_blocks, strict=True)):
                    squares[way][i] += (block.double() - true).square().sum().item()
        relative = {
            way: [math.sqrt(square / true) for square, true in zip(found, truth_squares, strict=True)]
            for way, found in squares.items()
        }
        every = {way: torch.cat(parts) for way, parts in logits.items()}
        return judged_model(every, relative, terms=self.model.config.width)


def judged_model(logits: Mapping[str, Tensor], blocks: dict[str, list[float]], *, terms: int) -> Errors:
    """The errors from logits_BL of "truth" (float64), "eager", "sdpa" and "kernel"; `terms` in the sum of a logit."""
    truth = logits["truth"]
    verdict = judge(logits["kernel"], truth, eager=[logits["eager"], logits["sdpa"]], sdpa=logits["sdpa"], terms=terms)
    try:
        finding = judged(verdict, "logits")
    except KernelError as wrong:
        finding = Finding(status="fail", detail=str(wrong), numbers=wrong.numbers)
    five = min(5, truth.shape[1])
    best = {way: logits[way].topk(five, dim=1).indices for way in ("sdpa", "kernel")}
    two = truth.topk(min(2, truth.shape[1]), dim=1).values
    return Errors(
        finding=finding,
        blocks=blocks,
        yardstick=max((logits[way].double() - truth).abs().max().item() for way in ("eager", "sdpa")),
        top1=list(zip(best["sdpa"][:, 0].tolist(), best["kernel"][:, 0].tolist(), strict=True)),
        top5_agree=[set(a) == set(b) for a, b in zip(best["sdpa"].tolist(), best["kernel"].tolist(), strict=True)],
        margins=(two[:, 0] - two[:, -1]).tolist(),
    )


def _every_block(model: ViT, pixels: Tensor) -> tuple[list[Tensor], Tensor]:
    """The tokens after each block, and the logits."""
    seen: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda module, args, out: seen.append(out)) for block in model.blocks]
    try:
        return seen, model(pixels)
    finally:
        for hook in hooks:
            hook.remove()


def serve(connection: Connection, threads: int, seconds: float, memory: int, device: str) -> None:
    """The process that runs the model: answers requests until nobody asks any more."""
    isolate.enclose(memory, device)
    kernels: dict[str, Kernel] = {}
    benches: list[Bench] = []

    def attends(name: str | None) -> Attend:
        return _seam(kernels[name]) if name else attend_sdpa

    def take(file: str, batch: int, seed: int) -> None:
        model, pixels = torch.load(file, weights_only=False)  # whole; time_model wrote it a moment ago
        benches[:] = [Bench(model.eval(), pixels, batch, seed=seed)]

    def start(name: str | None) -> tuple[float, float, int | None]:
        """Seconds of the first and of a later forward, and the bytes that one takes at its peak."""
        first, later = (benches[0].forward(attends(name))[0].total_us / 1e6 for _ in range(2))

        def again() -> None:
            benches[0].forward(attends(name))

        pixels = benches[0].pixels
        return first, later, cuda.peak_memory(again, pixels) if pixels.is_cuda else machine.peak_memory(again)

    def block(name: str | None, samples: int, allowed: float) -> tuple[Block, list[float]]:
        return time_block(benches[0], attends(name), samples, allowed)

    requests: dict[str, Callable[..., Any]] = {
        "load": lambda name: isolate.load(name, kernels),
        "supports": lambda name, spec: kernels[name].supports(spec),
        "take": take,
        "errors": lambda name: benches[0].errors(attends(name)),
        "start": start,
        "block": block,
    }
    isolate.reply(connection, requests, 20 * seconds)


def _seam(kernel: Kernel) -> Attend:
    """A kernel as the model calls it, with its scale of 1 / sqrt(K), which one without the keyword has built in."""

    def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        return kernel(q, k, v, scale=scale if kernel.takes_scale else None)

    return attend


def time_block(bench: Bench, attend: Attend, samples: int, allowed: float) -> tuple[Block, list[float]]:
    """A block of forwards, and the microseconds of each that were attention.

    The logits of one of them, drawn in secret, may be `allowed` from what the default answers there.
    """
    bench.forward(attend)
    drawn = bench.random.randrange(samples)
    found = []
    before, wall = Counters.now(), perf_counter_ns()
    gc.disable()
    try:
        for i in range(samples):
            forward, pixels, logits = bench.forward(attend)
            found.append(forward)
            if i == drawn:
                kept = pixels, logits
    finally:
        gc.enable()
    counters, wall = Counters.now().since(before), perf_counter_ns() - wall
    with torch.inference_mode():
        default = attend_with(bench.model, attend_sdpa)(kept[0])
    apart = (kept[1].double() - default.double()).abs().max().item()
    if apart <= allowed:  # which no nan is
        verdict = Finding(status="pass", numbers={"of_limit": apart / allowed})
    else:
        detail = f"the logits of a timed forward are {apart:.3g} from the default's; {allowed:.3g} is allowed"
        verdict = Finding(status="fail", detail=detail)
    totals = [forward.total_us for forward in found]
    block = Block(samples_us=totals, calls=1, verdict=verdict, counters=counters, wall_seconds=wall / 1e9)
    return block, [forward.attention_us for forward in found]


# --- the process that asks


@dataclass(frozen=True, kw_only=True)
class ModelPlan:
    """One kernel in one model."""

    kernel: str
    batch: int
    threads: int
    processes: int
    budget: float  # seconds of the rounds
    seed: int
    device: str = "cpu"
    unverified: bool = False
    limits: Limits = field(default_factory=Limits)


def open_child(plan: ModelPlan) -> AbstractContextManager[Requests]:
    """A process that runs models, with the threads of the plan."""
    limits = plan.limits
    return Child(worker.serve, __name__, plan.threads, limits.seconds, limits.memory, plan.device)


def bench_record(plan: ModelPlan, model: ViT, pictures: Sequence[str], environment: Record, *, started: str) -> Record:
    """The first record."""
    return {
        "schema": SCHEMA,
        "kind": "model-bench",
        "started": started,
        "kernel": plan.kernel,
        "sha256": sha256(plan.kernel),
        "model": model.name,
        "revision": model.revision,
        "dtype": name_of(model.patch_embed.weight.dtype),
        "tokens": model.config.layout.count,
        "pictures": list(pictures),
        "batch": plan.batch,
        "threads": plan.threads,
        "processes": plan.processes,
        "budget_seconds": plan.budget,
        "unverified": plan.unverified,
        "seed": plan.seed,
        "environment": environment,
    }


def time_model(
    plan: ModelPlan,
    model: ViT,
    pixels: Tensor,
    *,
    open_child: Callable[[ModelPlan], AbstractContextManager[Requests]] = open_child,
    clock: Callable[[], float] = monotonic,
) -> Iterator[Record]:
    """The records of the errors, which come first, and of every block of forwards.

    Raises:
        UsageError: the kernel does not support the model's attention.
        MinivitError: the kernel cannot be loaded, raised, crashed or hung.
    """
    rng = random.Random(plan.seed)
    allowed = math.inf
    with TemporaryDirectory(prefix="minivit-") as folder:
        file = f"{folder}/model.pt"  # not through the pipe, which is no place for hundreds of megabytes
        torch.save((model, pixels), file)
        for process in range(plan.processes):
            with open_child(plan) as child:
                _prepare(plan, child, model, file, rng.randrange(1 << 32))
                if not process:
                    errors: Errors = ask(child, "errors", plan.kernel, seconds=100 * plan.limits.seconds)
                    yield {"schema": SCHEMA, "kind": "model-errors", **asdict(errors)}
                    # The kernel and the default are each so far from the truth, here; on other pictures twice that.
                    allowed = 2 * (SLACK + 1) * errors.yardstick
                yield from _rounds(plan, child, process, allowed, rng, clock)


def _prepare(plan: ModelPlan, child: Requests, model: ViT, file: str, seed: int) -> None:
    """The kernel and the model, loaded by the process."""
    patience = plan.limits.seconds
    if problem := ask(child, "load", plan.kernel, seconds=10 * patience):
        raise UsageError(problem) if isinstance(problem, str) else KernelError(f"{plan.kernel}: {problem.detail}")
    spec = spec_of(model, plan.batch, plan.device)
    if (there := ask(child, "supports", plan.kernel, spec, seconds=patience)) is not True:
        raise UsageError(f"{plan.kernel}: does not support {spec}, which {model.name} needs: {there}")
    ask(child, "take", file, plan.batch, seed, seconds=10 * patience)


def _rounds(
    plan: ModelPlan, child: Requests, process: int, allowed: float, rng: random.Random, clock: Callable[[], float]
) -> Iterator[Record]:
    """The first forwards, and then one block of every arm in random order, round after round."""
    patience = 10 * plan.limits.seconds
    later = 0.0
    for arm in ("default", "kernel"):
        first, seconds, peak = ask(child, "start", plan.kernel if arm == "kernel" else None, seconds=patience)
        later = max(later, seconds)
        start = {"arm": arm, "process": process, "first_forward_seconds": first, "peak_bytes": peak}
        yield {"schema": SCHEMA, "kind": "model-start", **start}
    samples = min(10, max(1, round(0.3 / later)))
    begun = clock()
    number = 0
    while number < LEAST_ROUNDS or (number < MOST_ROUNDS and clock() - begun < plan.budget / plan.processes):
        for arm in rng.sample(ARMS, len(ARMS)):
            for attempt in range(MOST_ATTEMPTS):
                name = plan.kernel if arm == "kernel" else None
                block, attention = ask(child, "block", name, samples, allowed, seconds=patience)
                noise = noisy(block, plan.threads)
                last = noise is None or attempt == MOST_ATTEMPTS - 1
                yield {
                    "schema": SCHEMA,
                    "kind": "model-block",
                    "arm": arm,
                    "process": process,
                    "round": number,
                    "attempt": attempt,
                    "kept": last,
                    "noise": noise,
                    "status": block.verdict.status,
                    "detail": block.verdict.detail,
                    "samples_us": block.samples_us,
                    "attention_us": attention,
                    "wall_seconds": block.wall_seconds,
                    **block.counters.record(),
                }
                if last:
                    break
        number += 1


def spec_of(model: ViT, batch: int, device: str) -> Spec:
    """What the blocks of a model ask of a kernel."""
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


def ceiling(share: float) -> float:
    """Amdahl's: the gain of the whole when a part that takes this share of it takes no time."""
    return 1 / (1 - share)


def predicted(share: float, speedup: float) -> float:
    """The gain of the whole when that part becomes so many times as fast."""
    return 1 / (1 - share + share / speedup)


def model_row(records: Iterable[Record]) -> Record:
    """A record of kind "model": everything that is told, from the records of a run."""
    every = list(records)
    head = next(record for record in every if record["kind"] == "model-bench")
    errors = next(record for record in every if record["kind"] == "model-errors")
    blocks = [record for record in every if record["kind"] == "model-block"]
    kept = [record for record in blocks if record["kept"]]
    series = {arm: Series([record for record in kept if record["arm"] == arm]) for arm in ARMS}
    rates = {
        arm: sorted(head["batch"] * 1e6 / rate for rate in (median(one.medians.values()), *interval_of(one)))
        for arm, one in series.items()
    }
    resolution = resolution_of(series["default"], series["again"])
    gains = ratios_to_both((series["default"], series["again"]), series["kernel"])
    gain = median(gains.values())
    gain_low, gain_high = interval(series["default"].by_process(gains))
    attention = {arm: _attention(series[arm]) for arm in ARMS}
    share = median([*_shares(series["default"]), *_shares(series["again"])])
    top = ceiling(share)
    speedup = median([attention["default"], attention["again"]]) / attention["kernel"]
    flips = [
        {
            "picture": head["pictures"][i],
            "default": default,
            "kernel": kernel,
            "margin": errors["margins"][i],
            "explained": errors["margins"][i] <= 2 * SLACK * errors["yardstick"],
        }
        for i, (default, kernel) in enumerate(errors["top1"])
        if default != kernel
    ]
    starts = [record for record in every if record["kind"] == "model-start"]
    row = {
        "schema": SCHEMA,
        "kind": "model",
        "kernel": head["kernel"],
        "model": head["model"],
        "status": "",
        "detail": "",
        "images_per_second": rates["kernel"],
        "default_images_per_second": rates["default"],
        "gain": gain,
        "gain_low": gain_low,
        "gain_high": gain_high,
        "resolution": resolution,
        "attention_share": share,
        "attention_speedup": speedup,
        "predicted_gain": predicted(share, speedup),
        "ceiling": top,
        "reached": (gain - 1) / (top - 1),
        "first_forward_seconds": {r["arm"]: r["first_forward_seconds"] for r in starts if r["process"] == 0},
        "peak_bytes": {r["arm"]: r["peak_bytes"] for r in starts if r["process"] == 0},
        "logits": errors["finding"],
        "blocks": errors["blocks"],
        "pictures": len(errors["top1"]),
        "top1_agreement": 1 - len(flips) / len(errors["top1"]),
        "top5_agreement": sum(errors["top5_agree"]) / len(errors["top5_agree"]),
        "flips": flips,
    }
    row["status"], row["detail"] = _trust(row, blocks, head)
    return row


def interval_of(series: Series) -> tuple[float, float]:
    """The 95% interval of the median of a series, in microseconds."""
    return interval(series.by_process(series.medians))


def _shares(series: Series) -> list[float]:
    """Of the forward that is attention, for every sample."""
    pairs = [pair for block in series.blocks for pair in zip(block["attention_us"], block["samples_us"], strict=True)]
    return [attention / total for attention, total in pairs]


def _attention(series: Series) -> float:
    """Microseconds of attention in a forward."""
    return median(one for block in series.blocks for one in block["attention_us"])


def _trust(row: Record, blocks: Sequence[Record], head: Record) -> tuple[str, str]:
    """How far the row is to be trusted, in the words of summary.TRUST."""
    if row["logits"]["status"] == "fail":
        return "failed", row["logits"]["detail"]
    if unexplained := [flip for flip in row["flips"] if not flip["explained"]]:
        return "failed", f"{len(unexplained)} pictures change their class by more than rounding explains"
    if wrong := [block for block in blocks if block["status"] == "fail"]:
        return "invalid", f"{len(wrong)} of {len(blocks)} timed answers looked at are wrong: {wrong[0]['detail']}"
    if row["gain_low"] > row["ceiling"] * (1 + (row["resolution"] or 0)):
        return "invalid", f"a gain of {row['gain']:.3f} is above the ceiling of {row['ceiling']:.3f}"
    if head["unverified"]:
        return "unverified", TRUST["unverified"]
    kept = [block for block in blocks if block["kept"]]
    disturbed = [block["noise"] for block in kept if block["noise"]]
    if len(disturbed) > MOST_NOISY * len(kept):
        return "noisy", f"{len(disturbed)} of {len(kept)} blocks, for one: {disturbed[0]}"
    return "verified", ""
