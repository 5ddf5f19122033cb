"""torchvision's vit_*: torchvision/models/vision_transformer.py. Its files have no config.json: the name says it."""

from __future__ import annotations

from minivit.weights.families.base import B, Family, Kind, Reference, Rows, vit_steps
from minivit.weights.families.torchvision.models import head_of, named
from minivit.weights.families.transformers.shared import ACTIVATIONS, FIELDS

_HEADS = ("heads.head", "heads", "heads.0", "heads.1")  # the last three as tutorials replace it
_ROWS: Rows = {
    "cls_token": ("class_token",),
    "pos_embed": ("encoder.pos_embedding",),
    "patch_embed": ("conv_proj",),
    "blocks.{i}.norm1": ("encoder.layers.encoder_layer_{i}.ln_1",),
    "blocks.{i}.attn.qkv.weight": ("encoder.layers.encoder_layer_{i}.self_attention.in_proj_weight",),
    "blocks.{i}.attn.qkv.bias": ("encoder.layers.encoder_layer_{i}.self_attention.in_proj_bias",),
    "blocks.{i}.attn.proj": ("encoder.layers.encoder_layer_{i}.self_attention.out_proj",),
    "blocks.{i}.norm2": ("encoder.layers.encoder_layer_{i}.ln_2",),
    "blocks.{i}.mlp.fc1": ("encoder.layers.encoder_layer_{i}.mlp.0", "encoder.layers.encoder_layer_{i}.mlp.linear_1"),
    "blocks.{i}.mlp.fc2": ("encoder.layers.encoder_layer_{i}.mlp.3", "encoder.layers.encoder_layer_{i}.mlp.linear_2"),
    "norm": ("encoder.ln",),
    "head": _HEADS,
}

# q, k and v are inside one nn.MultiheadAttention.
_LAYER = "encoder.layers.encoder_layer_{i}."
_ELSEWHERE = {B + "attn.mix": "", B + "attn.out": _LAYER + "self_attention", B + "mlp.act": _LAYER + "mlp.1"}
_ELSEWHERE |= {B + part: "" for part in "qkv"}

# Second spelling of the MLP: files from before torchvision's MLPBlock version 2.
TORCHVISION = Family(
    name="torchvision",
    by_name=named,
    kinds={"VisionTransformer": Kind("heads.head")},
    fields={**FIELDS, "eps": ("layer_norm_eps", 1e-6)},
    constants={"position_resampling": "torchvision"},
    read=lambda given, shapes: head_of(given, shapes, *_HEADS),
    activations=ACTIVATIONS,
    rows=_ROWS,
    processor="TorchvisionPreset",
    steps={"torchvision": vit_steps(_ROWS, "", "encoder.dropout", "heads.head", _ELSEWHERE, spelling=0)},
    reference=Reference("torchvision", "torchvision"),
)

REGISTER = (TORCHVISION,)
