"""Pictures of what the model does: tensors in, pictures out."""

from minivit.viz.charts import confusion_chart, line_chart
from minivit.viz.colours import RAMPS, colourise, components_to_rgb, ramp, to_unit
from minivit.viz.explorer import explorer
from minivit.viz.maps import overlay, paint, sheet
from minivit.viz.terminal import half_blocks, shades

__all__ = [
    "RAMPS",
    "colourise",
    "components_to_rgb",
    "confusion_chart",
    "explorer",
    "half_blocks",
    "line_chart",
    "overlay",
    "paint",
    "ramp",
    "shades",
    "sheet",
    "to_unit",
]
