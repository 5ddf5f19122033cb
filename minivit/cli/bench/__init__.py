"""minivit bench: check and time an attention kernel."""

from __future__ import annotations

from minivit.cli.bench import check, compare, kernels, model, report, roofline, selftest
from minivit.cli.bench import run as timed
from minivit.cli.shared.bench import RIGHTS
from minivit.cli.shared.command import group

COMMAND = group(
    "bench",
    help="check and time an attention kernel",
    description="Is an attention kernel right, how fast is it, how far from the limits of this machine, and what does "
    f"it do to a model? {RIGHTS}",
    commands=[
        *(check.run, kernels.list_kernels, kernels.new, selftest.run),
        *(timed.run, report.run, roofline.run, model.run, compare.run),
    ],
)
