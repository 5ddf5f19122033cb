"""microsoft/swin-*: transformers' modeling_swin.py. Second spelling: the module names of transformers 5."""

from __future__ import annotations

from minivit.model.config import SwinConfig
from minivit.weights.families.base import (
    Family,
    Fields,
    Given,
    Kind,
    Reference,
    Rows,
    Shapes,
    each,
    swin_places,
    swin_rows,
)
from minivit.weights.families.transformers.shared import ACTIVATIONS


def read_stages(given: Given, shapes: Shapes) -> Given:
    """Return the stages of a Swin from the keys of transformers' SwinConfig."""
    depths, heads = given.get("depths", [2, 2, 6, 2]), given.get("num_heads", [3, 6, 12, 24])
    window = given.get("window_size", 7)
    for name, value in (("depths", depths), ("num_heads", heads)):
        if not isinstance(value, list) or not all(type(number) is int for number in value):
            raise ValueError(f"{name} is {value!r}; expected a list of whole numbers")
    if type(window) is not int:
        raise ValueError(f"window_size is {window!r}; expected a whole number")
    if sum(depths) > len(shapes):
        raise ValueError(f"depths is {depths}; the weights have only {len(shapes)} tensors")
    return {"depths": tuple(depths), "heads": tuple(heads), "window": (window,) * len(depths)}


def _write_stages(config: SwinConfig) -> Given:
    return {"depths": list(config.depths), "num_heads": list(config.heads), "window_size": config.window[0]}


FIELDS: Fields = {
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 4),
    "channels": ("num_channels", 3),
    "width": ("embed_dim", 96),
    "mlp_ratio": ("mlp_ratio", 4.0),
    "activation": ("hidden_act", "gelu"),
    "qkv_bias": ("qkv_bias", True),
}


_BLOCK = "encoder.layers.{i}.blocks.{j}."

_ROWS: Rows = {
    "patch_embed": ("embeddings.patch_embeddings.projection",),
    "norm_embed": ("embeddings.norm",),
    **swin_rows(_BLOCK, "encoder.layers.{i}.downsample.", norm1="layernorm_before", norm2="layernorm_after"),
    "stages.{i}.blocks.{j}.attn.qkv": (
        each(_BLOCK + "attention.self.", "query", "key", "value"),
        each(_BLOCK + "attention.", "q_proj", "k_proj", "v_proj"),
    ),
    "stages.{i}.blocks.{j}.attn.bias_table": (
        _BLOCK + "attention.self.relative_position_bias_table",
        _BLOCK + "attention.relative_position_bias.relative_position_bias_table",
    ),
    "stages.{i}.blocks.{j}.attn.proj": (_BLOCK + "attention.output.dense", _BLOCK + "attention.o_proj"),
    "stages.{i}.blocks.{j}.mlp.fc1": (_BLOCK + "intermediate.dense", _BLOCK + "mlp.fc1"),
    "stages.{i}.blocks.{j}.mlp.fc2": (_BLOCK + "output.dense", _BLOCK + "mlp.fc2"),
    "norm": ("layernorm",),
}

# Two LayerNorms of transformers have eps 1e-5 whatever config.json says, so only that value is supported.
SWIN = Family(
    name="swin",
    config=SwinConfig,
    makes="Swin",
    kinds={"SwinForImageClassification": Kind("classifier"), "SwinModel": Kind()},
    prefixes=("swin.",),
    fields=FIELDS,
    constants={"windowing": "hf"},
    read=read_stages,
    write=_write_stages,
    fixed={"use_absolute_embeddings": False, "layer_norm_eps": 1e-5},
    activations=ACTIVATIONS,
    rows=_ROWS,
    dropped=("*.relative_position_index", "embeddings.mask_token"),
    saved=True,
    steps={"transformers": swin_places(_ROWS, "classifier")},
    reference=Reference("transformers", "transformers", module="swin"),
)

REGISTER = (SWIN,)
