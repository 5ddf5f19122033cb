"""google/vit-*, the non-distilled facebook/deit-* and facebook/dino-*: transformers' modeling_vit.py."""

from __future__ import annotations

from minivit.weights.families.base import B, Family, Kind, Reference, vit_steps
from minivit.weights.families.transformers.shared import ACTIVATIONS, FIELDS, ROWS

# ViTForImageClassification of transformers 4.x, and after transformers 5.0 renamed its modules. attentions[{i}] is a
# field of its output, there under attn_implementation="eager" only.
_PROBS = {B + "attn.probs": "attentions[{i}]"}
_ELSEWHERE_4 = _PROBS | {
    B + "attn.out": "vit.encoder.layer.{i}.attention.output",
    B + "mlp.act": "vit.encoder.layer.{i}.intermediate",
    B + "mlp.out": "vit.encoder.layer.{i}.output.dense",
}
_ELSEWHERE_5 = _PROBS | {B + "mlp.act": "vit.layers.{i}.mlp.activation_fn"}

VIT = Family(
    name="vit",
    kinds={"ViTForImageClassification": Kind("classifier"), "ViTModel": Kind()},
    prefixes=("vit.",),
    fields=FIELDS,
    activations=ACTIVATIONS,
    rows=ROWS,
    pooler="pooler.dense",
    dropped=("embeddings.mask_token",),
    saved=True,
    steps={
        "transformers4": vit_steps(ROWS, "vit.", "embeddings", "classifier", _ELSEWHERE_4, spelling=0),
        "transformers5": vit_steps(ROWS, "vit.", "embeddings", "classifier", _ELSEWHERE_5),
    },
    reference=Reference("transformers", "transformers5", trunk="vit.", module="vit"),
)

REGISTER = (VIT,)
