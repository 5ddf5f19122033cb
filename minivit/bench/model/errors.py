"""What a kernel does to the numbers of a model: errors after each block, errors of the logits, classes that change."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from minivit.bench.checks.findings import Finding, KernelError, judged
from minivit.bench.checks.tolerance import judge
from minivit.model.attention import Attend, attend_reference, attend_sdpa
from minivit.model.vit import ViT

ERROR_BATCH = 4  # images a batch, because float64 and the tokens of every block are kept


@dataclass(frozen=True, kw_only=True)
class Errors:
    """The errors of a kernel in a model. The field names are those of the JSON record."""

    finding: Finding  # of the logits, under the tolerance of the check
    blocks: dict[str, list[float]]  # relative L2 error of the tokens after each block, for eager, sdpa and kernel
    yardstick: float  # the baseline: the largest error of a logit with plain attention
    top1: list[tuple[int, int]]  # for every image: the class with the default attention, and with the kernel
    top5_agree: list[bool]  # for every image: the same five classes, in any order
    margins: list[float]  # for every image: between the two largest logits in float64


def attend_with(model: ViT, attend: Attend) -> ViT:
    """Set the attention of all blocks; return the model."""
    for block in model.blocks:
        block.attn.attend = attend  # type: ignore[union-attr]
    return model


@torch.inference_mode()
def errors_of(model: ViT, pixels: Tensor, attend: Attend) -> Errors:
    """Return the errors of a kernel in a model on all pixels (B, C, H, W).

    The kernel, plain attention and SDPA are compared with the model in float64 with plain attention.
    """
    exact = attend_with(copy.deepcopy(model).double(), attend_reference)
    ways: dict[str, Attend] = {"eager": attend_reference, "sdpa": attend_sdpa, "kernel": attend}
    squares = {way: [0.0] * len(exact.blocks) for way in ways}
    truth_squares = [0.0] * len(exact.blocks)
    logits: dict[str, list[Tensor]] = {way: [] for way in (*ways, "truth")}
    for batch in pixels.split(ERROR_BATCH):
        true_blocks, true_logits = _every_block(exact, batch.double())
        logits["truth"].append(true_logits)
        for i, block in enumerate(true_blocks):
            truth_squares[i] += block.square().sum().item()
        for way, one in ways.items():
            blocks, answer = _every_block(attend_with(model, one), batch)
            logits[way].append(answer)
            for i, (block, true) in enumerate(zip(blocks, true_blocks, strict=True)):
                squares[way][i] += (block.double() - true).square().sum().item()
    relative = {
        way: [math.sqrt(square / true) for square, true in zip(found, truth_squares, strict=True)]
        for way, found in squares.items()
    }
    every = {way: torch.cat(parts) for way, parts in logits.items()}
    return judged_model(every, relative, terms=model.config.width)


def judged_model(logits: Mapping[str, Tensor], blocks: dict[str, list[float]], *, terms: int) -> Errors:
    """Return the errors from logits_BL of "truth" (float64), "eager", "sdpa" and "kernel".

    `blocks` is Errors.blocks; `terms` is the number of terms in the sum of one logit.
    """
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
    """Return the tokens after each block, and the logits."""
    seen: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda module, args, out: seen.append(out)) for block in model.blocks]
    try:
        return seen, model(pixels)
    finally:
        for hook in hooks:
            hook.remove()
