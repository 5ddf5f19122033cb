"""facebook/dinov2-* and facebook/dinov2-with-registers-*: transformers' modeling_dinov2.py and _with_registers.py."""

from __future__ import annotations

from dataclasses import replace

from minivit.model.config import ViTConfig
from minivit.weights.families.base import Family, Given, Kind, Reference, Rows, Shapes, each, vit_steps
from minivit.weights.families.transformers.shared import ACTIVATIONS, FIELDS


def _read_dinov2(given: Given, shapes: Shapes) -> Given:
    """Return the size of the MLP from its ratio; a SwiGLU keeps two thirds, rounded up to a multiple of 8."""
    width = int(given.get("hidden_size", 768) * given.get("mlp_ratio", 4))
    if not given.get("use_swiglu_ffn", False):
        return {"mlp_width": width}
    # transformers ignores hidden_act here, so the giant's "gelu" has no effect.
    return {"mlp": "swiglu", "mlp_width": (int(width * 2 / 3) + 7) // 8 * 8, "activation": "silu"}


def _write_dinov2(config: ViTConfig) -> Given:
    return {"use_swiglu_ffn": config.mlp == "swiglu", "mlp_ratio": _ratio(config), "use_mask_token": False}


def _ratio(config: ViTConfig) -> int:
    """Return the mlp_ratio, an integer in transformers, that makes this MLP; 0, which makes none, where none does."""
    for ratio in range(1, 17):
        sizes = {"hidden_size": config.width, "mlp_ratio": ratio, "use_swiglu_ffn": config.mlp == "swiglu"}
        if _read_dinov2(sizes, {})["mlp_width"] == config.mlp_width:
            return ratio
    return 0


_ROWS: Rows = {
    "cls_token": ("embeddings.cls_token",),
    "reg_tokens": ("embeddings.register_tokens",),
    "pos_embed": ("embeddings.position_embeddings",),
    "patch_embed": ("embeddings.patch_embeddings.projection",),
    "blocks.{i}.norm1": ("encoder.layer.{i}.norm1",),
    "blocks.{i}.attn.qkv": (
        each("encoder.layer.{i}.attention.attention.", "query", "key", "value"),
        each("encoder.layer.{i}.attention.", "q_proj", "k_proj", "v_proj"),
    ),
    "blocks.{i}.attn.proj": ("encoder.layer.{i}.attention.output.dense", "encoder.layer.{i}.attention.o_proj"),
    "blocks.{i}.ls1.gamma": ("encoder.layer.{i}.layer_scale1.lambda1",),
    "blocks.{i}.norm2": ("encoder.layer.{i}.norm2",),
    "blocks.{i}.mlp.fc1": ("encoder.layer.{i}.mlp.fc1",),
    "blocks.{i}.mlp.fc2": ("encoder.layer.{i}.mlp.fc2",),
    "blocks.{i}.ls2.gamma": ("encoder.layer.{i}.layer_scale2.lambda1",),
    "norm": ("layernorm",),
}

_SWIGLU: Rows = {
    "blocks.{i}.mlp.fc1": ("encoder.layer.{i}.mlp.weights_in", each("encoder.layer.{i}.mlp.", "gate_proj", "up_proj")),
    "blocks.{i}.mlp.fc2": ("encoder.layer.{i}.mlp.weights_out", "encoder.layer.{i}.mlp.down_proj"),
}

_FIELDS = {**{k: v for k, v in FIELDS.items() if k != "mlp_width"}, "eps": ("layer_norm_eps", 1e-6)}

DINOV2 = Family(
    name="dinov2",
    kinds={"Dinov2ForImageClassification": Kind("classifier", {"pooling": "cls+mean"}), "Dinov2Model": Kind()},
    prefixes=("dinov2.",),
    fields=_FIELDS,
    constants={"layer_scale": True, "any_size": True, "position_resampling": "dinov2"},
    read=_read_dinov2,
    write=_write_dinov2,
    activations=ACTIVATIONS,
    rows=_ROWS,
    variants={("mlp", "swiglu"): _SWIGLU},
    dropped=("embeddings.mask_token",),
    processor="BitImageProcessor",
    saved=True,
    steps={"transformers5-dinov2": vit_steps(_ROWS, "dinov2.", "embeddings", "classifier")},
    reference=Reference("transformers", "transformers5-dinov2", trunk="dinov2.", module="dinov2"),
)

DINOV2_REGISTERS = replace(
    DINOV2,
    name="dinov2_with_registers",
    kinds={
        "Dinov2WithRegistersForImageClassification": Kind("classifier", {"pooling": "cls+mean"}),
        "Dinov2WithRegistersModel": Kind(),
    },
    prefixes=("dinov2_with_registers.",),
    fields={**_FIELDS, "registers": ("num_register_tokens", 4)},
    constants={"layer_scale": True, "any_size": True, "position_resampling": "timm"},
    reference=Reference("transformers", "transformers5-dinov2", trunk="dinov2.", module="dinov2_with_registers"),
)

REGISTER = (DINOV2, DINOV2_REGISTERS)
