"""The files of a run: checkpoint.pt, which a run is resumed from, and metrics.jsonl, one line per step."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from minivit.errors import CheckpointError
from minivit.training.recipe import Recipe
from minivit.training.state import TrainingState


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
        self.out.mkdir(parents=True, exist_ok=True)
        lines = self.metrics.read_text().splitlines(keepends=True) if resume else []
        self.metrics.write_text("".join(line for line in lines if json.loads(line)["step"] < self.state.step))

    def log(self, line: dict[str, Any]) -> None:
        """Append the metrics of one step."""
        if self.writes:
            with self.metrics.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def save(self) -> None:
        """Write checkpoint.pt beside the old one, then replace it, so that a kill leaves one of the two."""
        if self.writes:
            torch.save({**self.run, **self.state.tensors()}, self.out / "checkpoint.tmp")
            (self.out / "checkpoint.tmp").replace(self.out / "checkpoint.pt")

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
