"""Timed forward passes of a model; and the server that runs them in a child process."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from time import perf_counter_ns

import torch
from torch import Tensor

from minivit.bench import device as devices
from minivit.bench.checks.cases import Spec
from minivit.bench.checks.findings import Finding
from minivit.bench.checks.server import KernelServer
from minivit.bench.kernels import Kernel
from minivit.bench.model.errors import Errors, attend_with, errors_of
from minivit.bench.sandbox import Child, Limits, answer_requests, enter_sandbox, patience
from minivit.bench.timing import machine
from minivit.bench.timing.machine import Counters
from minivit.bench.timing.problem import Block
from minivit.model.attention import Attend, attend_sdpa
from minivit.model.vit import ViT


@dataclass(frozen=True, kw_only=True)
class Forward:
    """The times of one forward pass of a batch."""

    total_us: float
    attention_us: float  # in the kernel, all blocks together


@dataclass(frozen=True, kw_only=True)
class ModelBlock(Block):
    """A block of forward passes."""

    attention_us: list[float]  # microseconds of each sample that were spent in attention


class ModelTimer:
    """A model that runs with one attention and then another, on a new batch every time."""

    def __init__(self, model: ViT, pixels: Tensor, batch: int, *, seed: int):
        self.model, self.pixels, self.batch = model, pixels, batch
        self.random = random.Random(seed)
        self.generator = torch.Generator(pixels.device).manual_seed(seed)

    def fresh(self) -> Tensor:
        """Return a batch drawn from the images, with a little noise: (B, C, H, W)."""
        chosen = torch.tensor(self.random.choices(range(len(self.pixels)), k=self.batch))
        pixels = self.pixels[chosen]
        noise = torch.randn(pixels.shape, generator=self.generator, device=pixels.device, dtype=torch.float32)
        return pixels + 0.01 * noise.to(pixels)

    @torch.inference_mode()
    def forward(self, attend: Attend, *, clock: Callable[[], int] = perf_counter_ns) -> tuple[Forward, Tensor, Tensor]:
        """Return the times, the pixels and the logits of one forward pass."""
        pixels = self.fresh()
        spent = 0

        def watched(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
            nonlocal spent
            devices.finish(q)
            start = clock()
            out = attend(q, k, v, scale=scale)
            devices.finish(q)
            spent += clock() - start
            return out

        attend_with(self.model, watched)
        devices.finish(pixels)
        start = clock()
        logits = self.model(pixels)
        devices.finish(pixels)
        total = clock() - start
        return Forward(total_us=total / 1000, attention_us=spent / 1000), pixels, logits


def time_block(timer: ModelTimer, attend: Attend, samples: int, allowed: float) -> ModelBlock:
    """Return a block of forward passes.

    The logits of one pass, drawn in secret, may differ from those of the default attention by `allowed`.
    """
    timer.forward(attend)
    drawn = timer.random.randrange(samples)
    found = []
    before, wall = Counters.now(), perf_counter_ns()
    gc.disable()
    try:
        for i in range(samples):
            forward, pixels, logits = timer.forward(attend)
            found.append(forward)
            if i == drawn:
                kept = pixels, logits
    finally:
        gc.enable()
    counters, wall = Counters.now().since(before), perf_counter_ns() - wall
    with torch.inference_mode():
        default = attend_with(timer.model, attend_sdpa)(kept[0])
    apart = (kept[1].double() - default.double()).abs().max().item()
    if apart <= allowed:  # false for nan
        verdict = Finding(status="pass", numbers={"of_limit": apart / allowed})
    else:
        detail = f"the logits of a timed forward are {apart:.3g} from the default's; {allowed:.3g} is allowed"
        verdict = Finding(status="fail", detail=detail)
    totals = [forward.total_us for forward in found]
    return ModelBlock(
        samples_us=totals,
        attention_us=[forward.attention_us for forward in found],
        calls=1,
        verdict=verdict,
        counters=counters,
        wall_seconds=wall / 1e9,
    )


class ModelServer(KernelServer):
    """Runs a model inside the child process. A kernel of None is the default attention."""

    timer: ModelTimer

    def supports(self, kernel: str, spec: Spec) -> bool | str:
        """Return True, or why the kernel does not support this shape."""
        return self.kernels[kernel].supports(spec)

    @patience(10)
    def open_model(self, file: str, batch: int, seed: int) -> None:
        """Read the model and the pixels that model.run wrote."""
        model, pixels = torch.load(file, weights_only=False)  # a whole module; our own parent process wrote the file
        self.timer = ModelTimer(model.eval(), pixels, batch, seed=seed)

    @patience(100)
    def errors(self, kernel: str | None) -> Errors:
        """Return the errors of a kernel on all images."""
        return errors_of(self.timer.model, self.timer.pixels, self._attend(kernel))

    @patience(10)
    def start(self, kernel: str | None) -> tuple[float, float, int | None]:
        """Return the seconds of the first and of a later forward pass, and the bytes of one at its peak."""
        attend, timer = self._attend(kernel), self.timer
        first, later = (timer.forward(attend)[0].total_us / 1e6 for _ in range(2))

        def again() -> None:
            timer.forward(attend)

        on = timer.pixels
        return first, later, devices.peak_memory(again, on) if on.is_cuda else machine.peak_memory(again)

    @patience(10)
    def block(self, kernel: str | None, samples: int, allowed: float) -> ModelBlock:
        """Return a block of forward passes, see time_block."""
        return time_block(self.timer, self._attend(kernel), samples, allowed)

    def _attend(self, name: str | None) -> Attend:
        return as_attend(self.kernels[name]) if name else attend_sdpa


def serve(connection: Connection, threads: int, memory: int, device: str) -> None:
    """Run a ModelServer; machine.serve calls it in the child process."""
    enter_sandbox(memory, device)
    answer_requests(connection, ModelServer())


def model_child(threads: int, limits: Limits, device: str) -> Child:
    """Return a child process with a ModelServer and so many threads."""
    return Child(machine.serve, __name__, threads, limits.memory, device, seconds=limits.seconds)


def as_attend(kernel: Kernel) -> Attend:
    """Return a kernel as the model calls it. One without the keyword `scale` uses 1 / sqrt(K), as the model does."""

    def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        return kernel(q, k, v, scale=scale if kernel.takes_scale else None)

    return attend
