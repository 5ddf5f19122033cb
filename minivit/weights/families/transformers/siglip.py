"""google/siglip-*, both towers or the image tower alone: transformers' modeling_siglip.py."""

from __future__ import annotations

from dataclasses import replace

from minivit.model.config import CLIPConfig, TextConfig
from minivit.weights.families.base import Family, Given, Kind, Reference, Rows, Shapes, under, vit_steps
from minivit.weights.families.transformers.shared import (
    ACTIVATIONS,
    OTHER_TOWER,
    POSITION_IDS,
    TEXT_FIELDS,
    TEXT_ROWS,
    TOWER_FIELDS,
    TOWER_ROWS,
)

_REFERENCE = Reference("transformers", "transformers5-siglip", trunk="vision_model.", module="vision_model")


def _read_text(given: Given, shapes: Shapes) -> Given:
    size = given.get("projection_size")
    return {"projection": given.get("hidden_size", 768) if size is None else size}


def _write_text(config: TextConfig) -> Given:
    return {"projection_size": config.projection}


_MAP_ROWS: Rows = {
    "attn_pool.latent": ("head.probe",),
    "attn_pool.qkv.weight": ("head.attention.in_proj_weight",),
    "attn_pool.qkv.bias": ("head.attention.in_proj_bias",),
    "attn_pool.proj": ("head.attention.out_proj",),
    "attn_pool.norm": ("head.layernorm",),
    "attn_pool.mlp.fc1": ("head.mlp.fc1",),
    "attn_pool.mlp.fc2": ("head.mlp.fc2",),
}


SIGLIP_VISION = Family(
    name="siglip_vision_model",
    section="vision_config",
    kinds={"SiglipModel": Kind(), "SiglipVisionModel": Kind()},
    prefixes=("vision_model.",),
    fields={**TOWER_FIELDS, "eps": ("layer_norm_eps", 1e-6), "activation": ("hidden_act", "gelu_pytorch_tanh")},
    constants={"cls_token": False, "pooling": "map", "drop_rest": True},
    fixed={"vision_use_head": True},
    activations=ACTIVATIONS,
    rows={**TOWER_ROWS, **_MAP_ROWS},
    dropped=OTHER_TOWER,
    processor="SiglipImageProcessor",
    saved=True,
    steps={"transformers5-siglip": vit_steps(TOWER_ROWS, "vision_model.", "embeddings")},
    reference=_REFERENCE,
)


SIGLIP = Family(
    name="siglip",
    config=CLIPConfig,
    makes="CLIP",
    towers={
        "image": SIGLIP_VISION,
        "text": Family(
            name="siglip_text_model",
            config=TextConfig,
            makes="text tower",
            section="text_config",
            kinds={"SiglipModel": Kind()},
            fields={
                **TEXT_FIELDS,
                "vocabulary": ("vocab_size", 32000),
                "context": ("max_position_embeddings", 64),
                "width": ("hidden_size", 768),
                "heads": ("num_attention_heads", 12),
                "mlp_width": ("intermediate_size", 3072),
                "eps": ("layer_norm_eps", 1e-6),
                "activation": ("hidden_act", "gelu_pytorch_tanh"),
            },
            constants={"causal": False, "pooling": "last", "projection_bias": True},
            read=_read_text,
            write=_write_text,
            activations=ACTIVATIONS,
            rows=TEXT_ROWS,
        ),
    },
    kinds={"SiglipModel": Kind()},
    constants={"score": "sigmoid"},
    rows={
        **under("image.", "vision_model.", {**TOWER_ROWS, **_MAP_ROWS}),
        **under("text.", "text_model.", TEXT_ROWS),
        "text.proj": ("text_model.head",),
        "logit_scale": ("logit_scale",),
        "logit_bias": ("logit_bias",),
    },
    dropped=POSITION_IDS,
    processor="SiglipImageProcessor",
    saved=True,
    reference=_REFERENCE,
)

# The mean of the patches, after the final norm; the attention pool is in no such file.
SIGLIP_CLASSIFIER = replace(
    SIGLIP_VISION,
    name="siglip_classifier",
    by_model_type=False,
    shares="siglip",
    kinds={"SiglipForImageClassification": Kind("classifier")},
    constants={"cls_token": False, "pooling": "mean", "drop_rest": True},
    rows=TOWER_ROWS,
    dropped=(*OTHER_TOWER, "head.*"),
    fixed={},
    saved=False,
    steps={},
    reference=_REFERENCE,
)

REGISTER = (SIGLIP, SIGLIP_VISION, SIGLIP_CLASSIFIER)
