"""Pictures of what the model does: tensors in, pictures out."""

from minivit.viz.blocks import cells, dots_by_depth, label_maps
from minivit.viz.charts import confusion_chart, line_chart
from minivit.viz.colormaps import RAMPS, colourise, components_to_rgb, ramp, to_unit
from minivit.viz.curves import curve_sheet
from minivit.viz.maps import overlay, paint, sheet
from minivit.viz.page.html import explorer
from minivit.viz.terminal import half_blocks, shades

__all__ = [
    "RAMPS",
    "cells",
    "colourise",
    "components_to_rgb",
    "confusion_chart",
    "curve_sheet",
    "dots_by_depth",
    "explorer",
    "half_blocks",
    "label_maps",
    "line_chart",
    "overlay",
    "paint",
    "ramp",
    "shades",
    "sheet",
    "to_unit",
]
