"""Names and defaults of published checkpoints: data only, one table per family.

A row gives a canonical name and the names the same tensor has in files, preferred spelling first
(the one `save` writes). A spelling of several parts means: concatenated along the first axis.
`{i}` is the number of a block; a name without `.weight` or `.bias` stands for both.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Table:
    """One checkpoint family: how its config.json and its tensors are called."""

    model_types: tuple[str, ...]  # values of config.json's model_type
    architectures: dict[str, bool]  # values of config.json's architectures -> whether it has a classifier
    prefix: str  # in front of backbone names in files of a model with a classifier
    fields: dict[str, tuple[str, object]]  # ViTConfig field -> (config.json key, the family's default)
    activations: dict[str, str]  # config.json's name -> ours
    rows: dict[str, tuple[str | tuple[str, ...], ...]]  # canonical name -> spellings
    head: str  # source name of the classifier
    pooler: str  # source name of the pooler
    dropped: frozenset[str] = field(default_factory=frozenset)  # known, and of no use to inference


def _qkv(prefix: str, *parts: str) -> tuple[str, ...]:
    return tuple(prefix + part for part in parts)


HF_VIT = Table(
    # google/vit-*, the non-distilled facebook/deit-* and facebook/dino-*: transformers' modeling_vit.py.
    # First spelling: what the hub and save_pretrained write; second: the module names of transformers 5.
    model_types=("vit",),
    architectures={"ViTForImageClassification": True, "ViTModel": False},
    prefix="vit.",
    fields={
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
    },
    activations={
        "gelu": "gelu",
        "gelu_pytorch_tanh": "gelu_tanh",
        "quick_gelu": "quick_gelu",
    },
    rows={
        "cls_token": ("embeddings.cls_token",),
        "pos_embed": ("embeddings.position_embeddings",),
        "patch_embed": ("embeddings.patch_embeddings.projection",),
        "blocks.{i}.norm1": ("encoder.layer.{i}.layernorm_before", "layers.{i}.layernorm_before"),
        "blocks.{i}.attn.qkv": (
            _qkv("encoder.layer.{i}.attention.attention.", "query", "key", "value"),
            _qkv("layers.{i}.attention.", "q_proj", "k_proj", "v_proj"),
        ),
        "blocks.{i}.attn.proj": ("encoder.layer.{i}.attention.output.dense", "layers.{i}.attention.o_proj"),
        "blocks.{i}.norm2": ("encoder.layer.{i}.layernorm_after", "layers.{i}.layernorm_after"),
        "blocks.{i}.mlp.fc1": ("encoder.layer.{i}.intermediate.dense", "layers.{i}.mlp.fc1"),
        "blocks.{i}.mlp.fc2": ("encoder.layer.{i}.output.dense", "layers.{i}.mlp.fc2"),
        "norm": ("layernorm",),
        "pooler": ("pooler.dense",),
        "head": ("classifier",),
    },
    head="classifier",
    pooler="pooler.dense",
    dropped=frozenset({"embeddings.mask_token"}),
)

FAMILIES = {"vit": HF_VIT}

# Preprocessing: class defaults of transformers' image processors, which stand for every key that a
# preprocessor_config.json leaves out. `square` says whether an int `size` is both sides or the shorter edge.
_HALF = [0.5, 0.5, 0.5]
PROCESSORS: dict[str, dict] = {
    "ViT": {
        "square": True,
        "do_resize": True,
        "size": {"height": 224, "width": 224},
        "resample": 2,
        "do_center_crop": False,
        "crop_size": None,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": _HALF,
        "image_std": _HALF,
    },
}
