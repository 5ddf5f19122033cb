"""The files of a run: checkpoint.pt, which a run is resumed from, and metrics.jsonl, one line per step."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from minivit.errors import CheckpointError
from minivit.training.recipe import Recipe
from minivit.training.state import TrainingState
from minivit.weights.replacing import replacing, replacing_files, write_error


class Checkpointer:
    """Writes and reads the files in the folder `out`.

    Args:
        state: what is saved and restored.
        images: the number of training images, which a resumed run must have as well.
        writes: False in all processes but the first one.
    """

    def __init__(self, out: str | Path, state: TrainingState, recipe: Recipe, images: int, *, writes: bool = True):
        self.out, self.state, self.writes = Path(out), state, writes
        self.run: dict[str, Any] = {"recipe": asdict(recipe), "config": asdict(state.model.config), "pictures": images}

    @property
    def metrics(self) -> Path:
        """The file of metrics."""
        return self.out / "metrics.jsonl"

    def begin(self, *, resume: bool) -> None:
        """Restore the state if `resume` is set, and keep the metrics of its steps alone.

        Raises:
            CheckpointError: there is no checkpoint, or it is of another run.
        """
        if resume:
            self._restore()
        if not self.writes:
            return
        lines = self.metrics.read_text().splitlines(keepends=True) if resume and self.metrics.is_file() else []
        with replacing_files(self.out, [self.metrics.name]) as (metrics,):
            metrics.write_text("".join(line for line in lines if _step(line) < self.state.step))
        if not resume:
            (self.out / "checkpoint.pt").unlink(missing_ok=True)  # of a run that this one replaces

    def kept(self) -> str:
        """Return what there is after a failure, and what to try, for a message."""
        path = self.out / "checkpoint.pt"
        there = f"{path} is as it was before" if path.is_file() else "no checkpoint was saved yet"
        return f"{there}; try a smaller --lr, a longer --warmup or --clip 1"

    def log(self, line: dict[str, Any]) -> None:
        """Append the metrics of one step.

        Raises:
            WriteError: the disk is full.
        """
        if self.writes:
            try:
                with self.metrics.open("a") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as error:
                raise write_error(error, str(self.metrics)) from None

    def save(self) -> None:
        """Write checkpoint.pt beside the old one, then replace it, so that a kill leaves one of the two.

        Raises:
            WriteError: the disk is full; the old one stays.
        """
        if not self.writes:
            return
        with replacing(self.out / "checkpoint.pt") as path:
            try:
                torch.save({**self.run, **self.state.tensors()}, path)
            except RuntimeError as error:  # torch's own writer, as on a full disk
                raise OSError(f"torch.save failed: {str(error).splitlines()[0][:120]}") from None

    def _restore(self) -> None:
        path = self.out / "checkpoint.pt"
        if not path.is_file():
            raise CheckpointError(f"{path}: nothing to resume; leave out --resume to start a new run")
        saved = torch.load(path, map_location=self.state.model.patch_embed.weight.device, weights_only=True)
        before, now = ({**run["recipe"], **run["config"], "pictures": run["pictures"]} for run in (saved, self.run))
        changed = [f"{key} was {before.get(key)}, is {now[key]}" for key in now if before.get(key) != now[key]]
        if changed:
            raise CheckpointError(f"{path}: made by another run ({'; '.join(changed)})")
        self.state.load(saved)


def _step(line: str) -> float:
    """The step of a line of metrics; of one that a full disk or a kill has cut off, infinity."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf
