"""torchvision's swin_*: torchvision/models/swin_transformer.py, where stages and mergings alternate."""

from __future__ import annotations

from minivit.model.config import SwinConfig
from minivit.weights.families.base import Family, Kind, Reference, Rows, swin_places, swin_rows
from minivit.weights.families.torchvision.models import head_of
from minivit.weights.families.transformers.shared import ACTIVATIONS
from minivit.weights.families.transformers.swin import FIELDS, read_stages

_ROWS: Rows = {
    "patch_embed": ("features.0.0",),
    "norm_embed": ("features.0.2",),
    **swin_rows("features.{2i+1}.{j}.", "features.{2i+2}.", fc1="mlp.0", fc2="mlp.3"),
}

TORCHVISION_SWIN = Family(
    name="torchvision_swin",
    config=SwinConfig,
    makes="Swin",
    kinds={"SwinTransformer": Kind("head")},
    fields=FIELDS,
    constants={"windowing": "torchvision"},
    read=lambda given, shapes: {**read_stages(given, shapes), **head_of(given, shapes, "head")},
    activations=ACTIVATIONS,
    rows=_ROWS,
    dropped=("*.relative_position_index",),
    processor="TorchvisionPreset",
    steps={"torchvision": swin_places(_ROWS, "head")},
    reference=Reference("torchvision", "torchvision"),
)

REGISTER = (TORCHVISION_SWIN,)
