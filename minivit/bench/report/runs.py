"""The result of a run in memory, its reports on disk, and a run that is read back and summed up again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from minivit.bench.checks.check import CheckResult
from minivit.bench.model.summary import model_row
from minivit.bench.report.html import model_page, page
from minivit.bench.report.results import Record, make_folder, of_kind, read
from minivit.bench.report.tables import cell_lines, cells, markdown, model_lines, model_markdown
from minivit.bench.timing.summary import rows
from minivit.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The result of `bench.run` or `bench.run_model`. Its text is the table of the command; a notebook shows HTML."""

    records: tuple[Record, ...]  # everything, raw samples included; see report.results
    checks: tuple[CheckResult, ...] = ()  # of the kernels that were checked before the timing

    @property
    def rows(self) -> list[Record]:
        """One record for every arm in every cell; of `run_model`, the one record. Empty if a check failed."""
        return [record for record in self.records if record["kind"] in ("row", "model")]

    @property
    def refused(self) -> bool:
        """True if a kernel failed its check, so that nothing was timed."""
        return not all(check.right for check in self.checks)

    @property
    def good(self) -> bool:
        """True if no kernel was refused and no row is failed or invalid."""
        return not self.refused and not any(row["status"] in ("failed", "invalid") for row in self.rows)

    def parts(self) -> list[list[str]]:
        """Return the lines of text, a list for each cell."""
        if model := of_kind(self.records, "model"):
            return [model_lines(model[0])]
        return [cell_lines(cell) for cell in cells(self.rows)]

    def __repr__(self) -> str:
        return "\n\n".join("\n".join(lines) for lines in self.parts()) or "nothing was timed: a check failed"

    def _repr_html_(self) -> str | None:
        return _html(self.records) if self.rows else None


def summarize(run: str | Path | Sequence[Record]) -> RunResult:
    """Return a run (a run.jsonl, its folder, or records) with rows computed again from the raw samples.

    Raises:
        UsageError: it cannot be read, or nothing was timed in it.
    """
    every = read(run) if isinstance(run, (str, Path)) else run
    records = [record for record in every if record["kind"] not in ("row", "model")]
    if of_kind(records, "model-block"):
        found = [model_row(records)]
    elif of_kind(records, "block"):
        found = rows(records)
    else:
        raise UsageError(f"{run if isinstance(run, (str, Path)) else 'the run'}: nothing was timed in it")
    return RunResult(records=(*records, *found))


def write_reports(folder: str | Path, records: Sequence[Record]) -> None:
    """Write report.md and report.html of a run, rows included; the folder is created if missing.

    Raises:
        UsageError: the folder cannot be created.
    """
    folder = make_folder(Path(folder))
    text = model_markdown(records) if of_kind(records, "model") else markdown(records)
    (folder / "report.md").write_text(text, encoding="utf-8")
    (folder / "report.html").write_text(_html(records), encoding="utf-8")


def _html(records: Sequence[Record]) -> str:
    return model_page(records) if of_kind(records, "model") else page(records)
