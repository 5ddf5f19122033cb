"""Where two implementations of one model differ, and why."""

from minivit.parity.comparison import Row, compare
from minivit.parity.report import Difference, diff_against
from minivit.parity.search import Cause, all_step_names, diff, diff_swin, find_causes
from minivit.parity.swin import swin_step_names, swin_steps

__all__ = [
    "Cause",
    "Difference",
    "Row",
    "all_step_names",
    "compare",
    "diff",
    "diff_against",
    "diff_swin",
    "find_causes",
    "swin_step_names",
    "swin_steps",
]
