"""What the files of several transformers models have in common: configuration keys and tensor names."""

from __future__ import annotations

from minivit.weights.families.base import Fields, Rows, Spelling, each

ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu", "silu": "silu"}
ACTIVATIONS |= {
    "relu": "relu",
    "gelu_new": "gelu_tanh",
    "swish": "silu",
}  # other names of the same follow the usual one

FIELDS: Fields = {
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 16),
    "channels": ("num_channels", 3),
    "width": ("hidden_size", 768),
    "depth": ("num_hidden_layers", 12),
    "heads": ("num_attention_heads", 12),
    "mlp_width": ("intermediate_size", 3072),
    "eps": ("layer_norm_eps", 1e-12),
    "activation": ("hidden_act", "gelu"),
    "qkv_bias": ("qkv_bias", True),
}

# First spelling: what the hub and save_pretrained write; second: the module names of transformers 5.
ROWS: Rows = {
    "cls_token": ("embeddings.cls_token",),
    "pos_embed": ("embeddings.position_embeddings",),
    "patch_embed": ("embeddings.patch_embeddings.projection",),
    "blocks.{i}.norm1": ("encoder.layer.{i}.layernorm_before", "layers.{i}.layernorm_before"),
    "blocks.{i}.attn.qkv": (
        each("encoder.layer.{i}.attention.attention.", "query", "key", "value"),
        each("layers.{i}.attention.", "q_proj", "k_proj", "v_proj"),
    ),
    "blocks.{i}.attn.proj": ("encoder.layer.{i}.attention.output.dense", "layers.{i}.attention.o_proj"),
    "blocks.{i}.norm2": ("encoder.layer.{i}.layernorm_after", "layers.{i}.layernorm_after"),
    "blocks.{i}.mlp.fc1": ("encoder.layer.{i}.intermediate.dense", "layers.{i}.mlp.fc1"),
    "blocks.{i}.mlp.fc2": ("encoder.layer.{i}.output.dense", "layers.{i}.mlp.fc2"),
    "norm": ("layernorm",),
    "pooler": ("pooler.dense",),
}

# The towers of CLIP and SigLIP.
TOWER_FIELDS = {k: v for k, v in FIELDS.items() if k != "qkv_bias"}
TOWER_BLOCKS: Rows = {
    "blocks.{i}.norm1": ("encoder.layers.{i}.layer_norm1",),
    "blocks.{i}.attn.qkv": (each("encoder.layers.{i}.self_attn.", "q_proj", "k_proj", "v_proj"),),
    "blocks.{i}.attn.proj": ("encoder.layers.{i}.self_attn.out_proj",),
    "blocks.{i}.norm2": ("encoder.layers.{i}.layer_norm2",),
    "blocks.{i}.mlp.fc1": ("encoder.layers.{i}.mlp.fc1",),
    "blocks.{i}.mlp.fc2": ("encoder.layers.{i}.mlp.fc2",),
}
TOWER_ROWS: Rows = {
    "cls_token": (Spelling(("embeddings.class_embedding",), "flat"),),
    "pos_embed": (Spelling(("embeddings.position_embedding.weight",), "flat"),),
    "patch_embed": ("embeddings.patch_embedding",),
    "norm_pre": ("pre_layrnorm",),  # as it is spelled in every file
    **TOWER_BLOCKS,
    "norm": ("post_layernorm",),
}
TEXT_FIELDS: Fields = {
    "vocabulary": ("vocab_size", 49408),
    "context": ("max_position_embeddings", 77),
    "width": ("hidden_size", 512),
    "depth": ("num_hidden_layers", 12),
    "heads": ("num_attention_heads", 8),
    "mlp_width": ("intermediate_size", 2048),
    "eps": ("layer_norm_eps", 1e-5),
    "activation": ("hidden_act", "quick_gelu"),
}
TEXT_ROWS: Rows = {
    "token_embed": ("embeddings.token_embedding",),
    "pos_embed": (Spelling(("embeddings.position_embedding.weight",), "flat"),),
    **TOWER_BLOCKS,
    "norm": ("final_layer_norm",),
}
OTHER_TOWER = ("text_model.*", "text_projection.weight", "logit_scale", "logit_bias", "embeddings.position_ids")
POSITION_IDS = ("vision_model.embeddings.position_ids", "text_model.embeddings.position_ids")
