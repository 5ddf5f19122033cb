"""Where two implementations of one model part, and why."""

from minivit.parity.search import Cause, Row, compare, diff, find_causes
from minivit.parity.swin import diff_swin, swin_step_names, swin_steps

__all__ = ["Cause", "Row", "compare", "diff", "diff_swin", "find_causes", "swin_step_names", "swin_steps"]
