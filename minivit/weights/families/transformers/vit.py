"""google/vit-*, the non-distilled facebook/deit-* and facebook/dino-*: transformers' modeling_vit.py."""

from __future__ import annotations

from minivit.weights.families.base import B, Family, Kind, Reference
from minivit.weights.families.transformers.shared import ACTIVATIONS, FIELDS, ROWS

_HF4, _HF5 = "vit.encoder.layer.{i}.", "vit.layers.{i}."
_AROUND = {
    "embed.patches": "vit.embeddings.patch_embeddings",
    "embed.tokens": "vit.embeddings",
    B + "attn.probs": "attentions[{i}]",
    "norm": "vit.layernorm",
    "pooled": "classifier.input",
    "logits": "classifier",
}

# ViTForImageClassification of transformers 4.x, and after transformers 5.0 renamed its modules. attentions[{i}] is a
# field of its output, there under attn_implementation="eager" only.
_STEPS_4 = _AROUND | {
    B + "norm1": _HF4 + "layernorm_before",
    B + "q": _HF4 + "attention.attention.query",
    B + "k": _HF4 + "attention.attention.key",
    B + "v": _HF4 + "attention.attention.value",
    B + "attn.mix": _HF4 + "attention.output.dense.input",
    B + "attn.out": _HF4 + "attention.output",
    B + "resid_mid": _HF4 + "layernorm_after.input",
    B + "norm2": _HF4 + "layernorm_after",
    B + "mlp.pre": _HF4 + "intermediate.dense",
    B + "mlp.act": _HF4 + "intermediate",
    B + "mlp.out": _HF4 + "output.dense",
    B + "resid_post": "vit.encoder.layer.{i}",
}
_STEPS_5 = _AROUND | {
    B + "norm1": _HF5 + "layernorm_before",
    B + "q": _HF5 + "attention.q_proj",
    B + "k": _HF5 + "attention.k_proj",
    B + "v": _HF5 + "attention.v_proj",
    B + "attn.mix": _HF5 + "attention.o_proj.input",
    B + "attn.out": _HF5 + "attention.o_proj",
    B + "resid_mid": _HF5 + "layernorm_after.input",
    B + "norm2": _HF5 + "layernorm_after",
    B + "mlp.pre": _HF5 + "mlp.fc1",
    B + "mlp.act": _HF5 + "mlp.activation_fn",
    B + "mlp.out": _HF5 + "mlp",
    B + "resid_post": "vit.layers.{i}",
}

VIT = Family(
    name="vit",
    kinds={"ViTForImageClassification": Kind("classifier"), "ViTModel": Kind()},
    prefixes=("vit.",),
    fields=FIELDS,
    fixed={"pooler_act": "tanh"},
    activations=ACTIVATIONS,
    rows=ROWS,
    pooler="pooler.dense",
    dropped=("embeddings.mask_token",),
    saved=True,
    steps={"transformers4": _STEPS_4, "transformers5": _STEPS_5},
    reference=Reference("transformers", "transformers5", trunk="vit.", module="vit"),
)

REGISTER = (VIT,)
