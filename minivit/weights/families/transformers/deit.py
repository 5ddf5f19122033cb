"""facebook/deit-*-distilled-*: transformers' modeling_deit.py."""

from __future__ import annotations

from minivit.weights.families.base import Family, Kind, Reference, vit_steps
from minivit.weights.families.transformers.shared import ACTIVATIONS, FIELDS, ROWS

DEIT = Family(
    name="deit",
    kinds={
        "DeiTForImageClassificationWithTeacher": Kind("cls_classifier", {"pooling": "cls&dist"}),
        "DeiTForImageClassification": Kind("classifier"),
        "DeiTModel": Kind(),
    },
    prefixes=("deit.",),
    fields=FIELDS,
    constants={"dist_token": True},
    activations=ACTIVATIONS,
    rows={**ROWS, "dist_token": ("embeddings.distillation_token",), "head_dist": ("distillation_classifier",)},
    pooler="pooler.dense",
    dropped=("embeddings.mask_token",),
    processor="DeiTImageProcessor",
    saved=True,
    steps={"transformers5-deit": vit_steps(ROWS, "deit.", "embeddings", "cls_classifier")},
    reference=Reference("transformers", "transformers5-deit", trunk="deit.", module="deit"),
)

REGISTER = (DEIT,)
