"""The loop that `bench run` and `bench model` share: rounds of one block for every arm, in random order.

A block that was disturbed is measured again. What happened to the process decides that, not whether the times please.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Generic, TypeVar

from minivit.bench.report.results import Record
from minivit.bench.timing.problem import Block
from minivit.bench.timing.stats import quantile

MIN_ROUNDS = 3
MAX_ATTEMPTS = 3  # at a disturbed block
MAX_LOST = 0.05  # fraction of the time of its threads that an undisturbed block may lose to other processes
MAX_SPREAD, MIN_SPREAD_SAMPLES = 0.2, 5  # between the quartiles of the samples, if there are at least so many
ArmT = TypeVar("ArmT")
BlockT = TypeVar("BlockT", bound=Block)


@dataclass(frozen=True, kw_only=True)
class Attempt(Generic[ArmT, BlockT]):
    """One attempt at the block of an arm in a round."""

    arm: ArmT
    round: int
    attempt: int
    kept: bool  # the last attempt
    noise: str | None  # why the block counts as disturbed
    block: BlockT

    def record(self) -> Record:
        """Return the fields that every record of a block has."""
        return {
            "round": self.round,
            "attempt": self.attempt,
            "kept": self.kept,
            "noise": self.noise,
            "status": self.block.verdict.status,
            "detail": self.block.verdict.detail,
        }


def rounds(
    arms: Sequence[ArmT],
    measure: Callable[[ArmT], BlockT],
    *,
    threads: int,
    seconds: float,
    max_rounds: int,
    rng: random.Random,
    clock: Callable[[], float],
) -> Iterator[Attempt[ArmT, BlockT]]:
    """Yield every attempt of MIN_ROUNDS to `max_rounds` rounds; after the minimum, no round starts after `seconds`."""
    begun = clock()
    number = 0
    while number < MIN_ROUNDS or (number < max_rounds and clock() - begun < seconds):
        for arm in rng.sample(arms, len(arms)):
            for attempt in range(MAX_ATTEMPTS):
                block = measure(arm)
                noise = noisy(block, threads)
                kept = noise is None or attempt == MAX_ATTEMPTS - 1
                yield Attempt(arm=arm, round=number, attempt=attempt, kept=kept, noise=noise, block=block)
                if kept:
                    break
        number += 1


def noisy(block: Block, threads: int) -> str | None:
    """Return why a block was disturbed and should be repeated, or None."""
    counters, room = block.counters, block.wall_seconds * threads
    if counters.waited_seconds > MAX_LOST * room:
        return f"its threads waited {counters.waited_seconds / room:.0%} of the time for a core that others had"
    if counters.stolen_seconds > MAX_LOST * room + 0.02:  # counted in hundredths of a second
        return f"the host took {counters.stolen_seconds / room:.0%} of the time"
    if counters.major_faults:
        return f"{counters.major_faults} pages were read from disk"
    spread = (quantile(block.samples_us, 0.75) - quantile(block.samples_us, 0.25)) / median(block.samples_us)
    if len(block.samples_us) >= MIN_SPREAD_SAMPLES and spread > MAX_SPREAD:
        return f"half of its samples lie {spread:.0%} apart"
    return None
