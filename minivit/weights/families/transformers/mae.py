"""facebook/vit-mae-*, of which the encoder is used, unmasked: transformers' modeling_vit_mae.py."""

from __future__ import annotations

from minivit.weights.families.base import Family, Kind, Reference
from minivit.weights.families.transformers.shared import ACTIVATIONS, FIELDS, ROWS

MAE = Family(
    name="vit_mae",
    kinds={"ViTMAEForPreTraining": Kind(), "ViTMAEModel": Kind()},
    prefixes=("vit.",),
    fields=FIELDS,
    activations=ACTIVATIONS,
    rows=ROWS,
    dropped=("decoder.*",),
    reference=Reference("transformers", "transformers5", trunk="vit.", module="vit"),
)

REGISTER = (MAE,)
