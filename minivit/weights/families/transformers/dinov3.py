"""facebook/dinov3-vit*: transformers' modeling_dinov3_vit.py. transformers 5 calls "layer" "model.layer" in memory."""

from __future__ import annotations

from minivit.weights.families.base import Family, Given, Kind, Reference, Rows, Shapes, Spelling, each, vit_steps
from minivit.weights.families.transformers.shared import ACTIVATIONS, FIELDS


def _read_dinov3(given: Given, shapes: Shapes) -> Given:
    biases = [given.get(key, True) for key in ("query_bias", "value_bias")]
    if len(set(biases)) != 1:
        raise ValueError(f"query_bias and value_bias are {biases}; they must be equal")
    return {"mlp": "swiglu" if given.get("use_gated_mlp", False) else "plain"}


_ROWS: Rows = {
    "cls_token": ("embeddings.cls_token",),
    "reg_tokens": ("embeddings.register_tokens",),
    "patch_embed": ("embeddings.patch_embeddings",),
    "blocks.{i}.norm1": ("layer.{i}.norm1",),
    "blocks.{i}.attn.qkv.weight": (each("layer.{i}.attention.", "q_proj.weight", "k_proj.weight", "v_proj.weight"),),
    # A bias of the keys adds the same number to all logits of a query: softmax ignores it, and no file has it.
    "blocks.{i}.attn.qkv.bias": (
        Spelling(("layer.{i}.attention.q_proj.bias", None, "layer.{i}.attention.v_proj.bias")),
    ),
    "blocks.{i}.attn.proj": ("layer.{i}.attention.o_proj",),
    "blocks.{i}.ls1.gamma": ("layer.{i}.layer_scale1.lambda1",),
    "blocks.{i}.norm2": ("layer.{i}.norm2",),
    "blocks.{i}.mlp.fc1": ("layer.{i}.mlp.up_proj",),
    "blocks.{i}.mlp.fc2": ("layer.{i}.mlp.down_proj",),
    "blocks.{i}.ls2.gamma": ("layer.{i}.layer_scale2.lambda1",),
    "norm": ("norm",),
}
# transformers 5 calls "layer" "model.layer" in memory; these are outside.
_ELSEWHERE = {"embed.patches": "embeddings.patch_embeddings", "embed.tokens": "embeddings", "norm": "norm"}

DINOV3 = Family(
    name="dinov3_vit",
    kinds={"DINOv3ViTModel": Kind()},
    prefixes=("model.",),
    fields={
        **FIELDS,
        "width": ("hidden_size", 384),
        "heads": ("num_attention_heads", 6),
        "mlp_width": ("intermediate_size", 1536),
        "eps": ("layer_norm_eps", 1e-5),
        "qkv_bias": ("query_bias", True),
        "registers": ("num_register_tokens", 0),
        "rope_theta": ("rope_theta", 100.0),
    },
    constants={"layer_scale": True, "any_size": True, "positions": "rope"},
    read=_read_dinov3,
    fixed={"key_bias": False, "proj_bias": True, "mlp_bias": True},
    activations=ACTIVATIONS,
    rows=_ROWS,
    variants={("mlp", "swiglu"): {"blocks.{i}.mlp.fc1": (each("layer.{i}.mlp.", "gate_proj", "up_proj"),)}},
    dropped=("embeddings.mask_token", "rope_embeddings.inv_freq"),
    processor="DINOv3ViTImageProcessor",
    steps={"transformers5-dinov3": vit_steps(_ROWS, "model.", elsewhere=_ELSEWHERE)},
    reference=Reference("transformers", "transformers5-dinov3"),
)

REGISTER = (DINOV3,)
