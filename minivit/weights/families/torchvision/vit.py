"""torchvision's vit_*: torchvision/models/vision_transformer.py. Its files have no config.json: the name says it."""

from __future__ import annotations

from minivit.weights.families.base import B, Family, Kind, Reference
from minivit.weights.families.torchvision.models import named
from minivit.weights.families.transformers.shared import ACTIVATIONS, FIELDS

_BLOCK = "encoder.layers.encoder_layer_{i}"

# torchvision.models.VisionTransformer; q, k and v are inside one nn.MultiheadAttention.
_STEPS = {
    "embed.patches": "conv_proj",
    "embed.tokens": "encoder.dropout",
    B + "norm1": _BLOCK + ".ln_1",
    B + "attn.out": _BLOCK + ".self_attention",
    B + "resid_mid": _BLOCK + ".ln_2.input",
    B + "norm2": _BLOCK + ".ln_2",
    B + "mlp.pre": _BLOCK + ".mlp.0",
    B + "mlp.act": _BLOCK + ".mlp.1",
    B + "mlp.out": _BLOCK + ".mlp",
    B + "resid_post": _BLOCK,
    "norm": "encoder.ln",
    "pooled": "heads.head.input",
    "logits": "heads.head",
}

# Second spelling of the MLP: files from before torchvision's MLPBlock version 2.
TORCHVISION = Family(
    name="torchvision",
    by_name=named,
    kinds={"VisionTransformer": Kind("heads.head")},
    fields={**FIELDS, "eps": ("layer_norm_eps", 1e-6)},
    constants={"position_resampling": "torchvision"},
    activations=ACTIVATIONS,
    rows={
        "cls_token": ("class_token",),
        "pos_embed": ("encoder.pos_embedding",),
        "patch_embed": ("conv_proj",),
        "blocks.{i}.norm1": ("encoder.layers.encoder_layer_{i}.ln_1",),
        "blocks.{i}.attn.qkv.weight": ("encoder.layers.encoder_layer_{i}.self_attention.in_proj_weight",),
        "blocks.{i}.attn.qkv.bias": ("encoder.layers.encoder_layer_{i}.self_attention.in_proj_bias",),
        "blocks.{i}.attn.proj": ("encoder.layers.encoder_layer_{i}.self_attention.out_proj",),
        "blocks.{i}.norm2": ("encoder.layers.encoder_layer_{i}.ln_2",),
        "blocks.{i}.mlp.fc1": (
            "encoder.layers.encoder_layer_{i}.mlp.0",
            "encoder.layers.encoder_layer_{i}.mlp.linear_1",
        ),
        "blocks.{i}.mlp.fc2": (
            "encoder.layers.encoder_layer_{i}.mlp.3",
            "encoder.layers.encoder_layer_{i}.mlp.linear_2",
        ),
        "norm": ("encoder.ln",),
    },
    processor="TorchvisionPreset",
    steps={"torchvision": _STEPS},
    reference=Reference("torchvision", "torchvision"),
)

REGISTER = (TORCHVISION,)
