"""facebook/deit-*-distilled-*: transformers' modeling_deit.py."""

from __future__ import annotations

from minivit.weights.families.base import Family, Kind, Reference
from minivit.weights.families.transformers.shared import ACTIVATIONS, FIELDS, ROWS, step_names

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
    fixed={"pooler_act": "tanh"},
    activations=ACTIVATIONS,
    rows={
        **ROWS,
        "dist_token": ("embeddings.distillation_token",),
        "head_dist": ("distillation_classifier",),
    },
    pooler="pooler.dense",
    dropped=("embeddings.mask_token",),
    processor="DeiTImageProcessor",
    saved=True,
    steps={
        "transformers5-deit": step_names(
            "deit",
            "layers.{i}",
            "attention.o_proj",
            "layernorm_before",
            "layernorm_after",
            "mlp.fc1",
            "mlp.fc2",
            embed__patches="embeddings.patch_embeddings",
            embed__tokens="embeddings",
            norm="layernorm",
            logits="cls_classifier",
        )
    },
    reference=Reference("transformers", "transformers5-deit", trunk="deit.", module="deit"),
)

REGISTER = (DEIT,)
