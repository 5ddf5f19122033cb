"""Pictures of what the model does: tensors in, images, charts (matplotlib) and pages out."""

from minivit.viz.blocks import cells, dots_by_depth
from minivit.viz.charts import confusion_chart, line_chart
from minivit.viz.colormaps import (
    COLORMAPS,
    RAMPS,
    apply_colormap,
    colormap,
    colourise,
    components_to_rgb,
    ramp,
    to_unit,
)
from minivit.viz.curves import curve_sheet
from minivit.viz.layout import image_from_rgb
from minivit.viz.maps import label_maps, overlay, paint, sheet
from minivit.viz.page.html import explorer
from minivit.viz.style import save
from minivit.viz.terminal import half_blocks, shades

__all__ = [
    "COLORMAPS",
    "RAMPS",
    "apply_colormap",
    "cells",
    "colormap",
    "colourise",
    "components_to_rgb",
    "confusion_chart",
    "curve_sheet",
    "dots_by_depth",
    "explorer",
    "half_blocks",
    "image_from_rgb",
    "label_maps",
    "line_chart",
    "overlay",
    "paint",
    "ramp",
    "save",
    "shades",
    "sheet",
    "to_unit",
]
