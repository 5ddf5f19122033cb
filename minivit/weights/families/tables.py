"""Names and defaults of published checkpoints: data only, one table per family.

A row gives a canonical name and the names the same tensor has in files, preferred spelling first
(the one `save` writes). A name without `.weight` or `.bias` stands for both; `{i}` is the number of a block.
Of a Swin, `{i}` is the number of a stage and `{j}` that of a block in it; files count stages otherwise, as in `{i+1}`.
A spelling is a name, several names (concatenated along the first axis), or a Spelling with more to say.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from minivit.model.config import CLIPConfig, SwinConfig, TextConfig, ViTConfig


class Spelling(NamedTuple):
    """How one parameter stands in a file."""

    parts: tuple[str | None, ...]  # names, concatenated along the first axis; None: zeros, not in the file
    layout: str = "same"  # of every part, a name of operations.OPERATIONS
    shares: tuple[int, ...] = ()  # of the parts in the first axis; equal when empty


Row = tuple[str | tuple[str, ...] | Spelling, ...]


class Kind(NamedTuple):
    """What a class named in config.json's `architectures` has behind the backbone."""

    head: str | None = None  # source name of its classifier
    values: dict[str, object] = {}  # noqa: RUF012  ViTConfig values it implies; read only


@dataclass(frozen=True, kw_only=True)
class Table:
    """One checkpoint family: how its config.json and its tensors are called."""

    model_types: tuple[str, ...] = ()  # values of config.json's model_type
    config: type = ViTConfig  # what config.json is read as; of two towers, what is made of both
    makes: str = "ViT"  # what that is called
    towers: dict[str, Table] = field(default_factory=dict)  # of two towers: name in the configuration -> its table
    section: str | None = None  # the part of config.json that describes this tower, where there are two towers
    kinds: dict[str, Kind]  # values of config.json's architectures; without one, the first whose head is in the file
    prefixes: tuple[str, ...] = ()  # in front of names, one or none; with a classifier, `save` writes the first
    fields: dict[str, tuple[str, object]] = field(default_factory=dict)  # ViTConfig field -> (config.json key, default)
    constants: dict[str, object] = field(default_factory=dict)  # ViTConfig values of the whole family
    derived: str | None = None  # a name of configs.DERIVED: values that take arithmetic, or come from the tensors
    fixed: dict[str, object] = field(default_factory=dict)  # config.json keys of which only this value is known
    activations: dict[str, str] = field(default_factory=dict)  # config.json's name -> ours
    rows: dict[str, Row]  # canonical name -> spellings
    variants: dict[tuple[str, object], dict[str, Row]] = field(default_factory=dict)  # (field, value) -> rows instead
    pooler: str | None = None  # source name of the tanh pooler
    dropped: tuple[str, ...] = ()  # patterns of names that are known, and of no use to inference
    processor: str = "ViTImageProcessor"  # where preprocessor_config.json names none
    assumed: dict | None = None  # preprocessor_config.json where the family's files cannot have one


def _under(ours: str, theirs: str, rows: dict[str, Row]) -> dict[str, Row]:
    """Rows of a part: its own, with what stands in front of the names in the model and in the file."""

    def prefixed(given: str | tuple[str, ...] | Spelling) -> Spelling:
        spelling = given if isinstance(given, Spelling) else Spelling((given,) if isinstance(given, str) else given)
        return spelling._replace(parts=tuple(part and theirs + part for part in spelling.parts))

    return {ours + name: tuple(prefixed(given) for given in row) for name, row in rows.items()}


def _each(prefix: str, *parts: str) -> tuple[str, ...]:
    return tuple(prefix + part for part in parts)


def _pair(canonical: str, name: str, weight: str = "transposed", bias: str = "same") -> dict[str, Row]:
    """Rows of a linear layer in flax: kernel and bias, each in its layout."""
    return {
        f"{canonical}.weight": (Spelling((f"{name}/kernel",), weight),),
        f"{canonical}.bias": (Spelling((f"{name}/bias",), bias),),
    }


def _norm(canonical: str, name: str) -> dict[str, Row]:
    """Rows of a LayerNorm in flax."""
    return {f"{canonical}.weight": (f"{name}/scale",), f"{canonical}.bias": (f"{name}/bias",)}


_ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "quick_gelu": "quick_gelu", "silu": "silu"}

_HF_FIELDS: dict[str, tuple[str, object]] = {
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

_HF_ROWS: dict[str, Row] = {
    "cls_token": ("embeddings.cls_token",),
    "pos_embed": ("embeddings.position_embeddings",),
    "patch_embed": ("embeddings.patch_embeddings.projection",),
    "blocks.{i}.norm1": ("encoder.layer.{i}.layernorm_before", "layers.{i}.layernorm_before"),
    "blocks.{i}.attn.qkv": (
        _each("encoder.layer.{i}.attention.attention.", "query", "key", "value"),
        _each("layers.{i}.attention.", "q_proj", "k_proj", "v_proj"),
    ),
    "blocks.{i}.attn.proj": ("encoder.layer.{i}.attention.output.dense", "layers.{i}.attention.o_proj"),
    "blocks.{i}.norm2": ("encoder.layer.{i}.layernorm_after", "layers.{i}.layernorm_after"),
    "blocks.{i}.mlp.fc1": ("encoder.layer.{i}.intermediate.dense", "layers.{i}.mlp.fc1"),
    "blocks.{i}.mlp.fc2": ("encoder.layer.{i}.output.dense", "layers.{i}.mlp.fc2"),
    "norm": ("layernorm",),
    "pooler": ("pooler.dense",),
}

# google/vit-*, the non-distilled facebook/deit-* and facebook/dino-*: transformers' modeling_vit.py.
# First spelling: what the hub and save_pretrained write; second: the module names of transformers 5.
HF_VIT = Table(
    model_types=("vit",),
    kinds={"ViTForImageClassification": Kind("classifier"), "ViTModel": Kind()},
    prefixes=("vit.",),
    fields=_HF_FIELDS,
    fixed={"pooler_act": "tanh"},
    activations=_ACTIVATIONS,
    rows=_HF_ROWS,
    pooler="pooler.dense",
    dropped=("embeddings.mask_token",),
)

# facebook/deit-*-distilled-*: transformers' modeling_deit.py.
HF_DEIT = Table(
    model_types=("deit",),
    kinds={
        "DeiTForImageClassificationWithTeacher": Kind("cls_classifier", {"pooling": "cls&dist"}),
        "DeiTForImageClassification": Kind("classifier"),
        "DeiTModel": Kind(),
    },
    prefixes=("deit.",),
    fields=_HF_FIELDS,
    constants={"dist_token": True},
    fixed={"pooler_act": "tanh"},
    activations=_ACTIVATIONS,
    rows={
        **_HF_ROWS,
        "dist_token": ("embeddings.distillation_token",),
        "head_dist": ("distillation_classifier",),
    },
    pooler="pooler.dense",
    dropped=("embeddings.mask_token",),
    processor="DeiTImageProcessor",
)

_DINOV2_ROWS: dict[str, Row] = {
    "cls_token": ("embeddings.cls_token",),
    "reg_tokens": ("embeddings.register_tokens",),
    "pos_embed": ("embeddings.position_embeddings",),
    "patch_embed": ("embeddings.patch_embeddings.projection",),
    "blocks.{i}.norm1": ("encoder.layer.{i}.norm1",),
    "blocks.{i}.attn.qkv": (
        _each("encoder.layer.{i}.attention.attention.", "query", "key", "value"),
        _each("encoder.layer.{i}.attention.", "q_proj", "k_proj", "v_proj"),
    ),
    "blocks.{i}.attn.proj": ("encoder.layer.{i}.attention.output.dense", "encoder.layer.{i}.attention.o_proj"),
    "blocks.{i}.ls1.gamma": ("encoder.layer.{i}.layer_scale1.lambda1",),
    "blocks.{i}.norm2": ("encoder.layer.{i}.norm2",),
    "blocks.{i}.mlp.fc1": ("encoder.layer.{i}.mlp.fc1",),
    "blocks.{i}.mlp.fc2": ("encoder.layer.{i}.mlp.fc2",),
    "blocks.{i}.ls2.gamma": ("encoder.layer.{i}.layer_scale2.lambda1",),
    "norm": ("layernorm",),
}
_DINOV2_SWIGLU: dict[str, Row] = {
    "blocks.{i}.mlp.fc1": (
        "encoder.layer.{i}.mlp.weights_in",
        _each("encoder.layer.{i}.mlp.", "gate_proj", "up_proj"),
    ),
    "blocks.{i}.mlp.fc2": ("encoder.layer.{i}.mlp.weights_out", "encoder.layer.{i}.mlp.down_proj"),
}
_DINOV2_FIELDS = {**{k: v for k, v in _HF_FIELDS.items() if k != "mlp_width"}, "eps": ("layer_norm_eps", 1e-6)}

# facebook/dinov2-{small,base,large,giant} and their -imagenet1k-1-layer: transformers' modeling_dinov2.py.
HF_DINOV2 = Table(
    model_types=("dinov2",),
    kinds={
        "Dinov2ForImageClassification": Kind("classifier", {"pooling": "cls+mean"}),
        "Dinov2Model": Kind(),
    },
    prefixes=("dinov2.",),
    fields=_DINOV2_FIELDS,
    constants={"layer_scale": True, "any_size": True, "position_resampling": "dinov2"},
    derived="dinov2",
    activations=_ACTIVATIONS,
    rows=_DINOV2_ROWS,
    variants={("mlp", "swiglu"): _DINOV2_SWIGLU},
    dropped=("embeddings.mask_token",),
    processor="BitImageProcessor",
)

# facebook/dinov2-with-registers-*: transformers' modeling_dinov2_with_registers.py.
HF_DINOV2_REGISTERS = Table(
    model_types=("dinov2_with_registers",),
    kinds={
        "Dinov2WithRegistersForImageClassification": Kind("classifier", {"pooling": "cls+mean"}),
        "Dinov2WithRegistersModel": Kind(),
    },
    prefixes=("dinov2_with_registers.",),
    fields={**_DINOV2_FIELDS, "registers": ("num_register_tokens", 4)},
    constants={"layer_scale": True, "any_size": True, "position_resampling": "timm"},
    derived="dinov2",
    activations=_ACTIVATIONS,
    rows=_DINOV2_ROWS,
    variants={("mlp", "swiglu"): _DINOV2_SWIGLU},
    dropped=("embeddings.mask_token",),
    processor="BitImageProcessor",
)

# facebook/dinov3-vit*: transformers' modeling_dinov3_vit.py. transformers 5 calls "layer" "model.layer" in memory.
HF_DINOV3 = Table(
    model_types=("dinov3_vit",),
    kinds={"DINOv3ViTModel": Kind()},
    prefixes=("model.",),
    fields={
        **_HF_FIELDS,
        "width": ("hidden_size", 384),
        "heads": ("num_attention_heads", 6),
        "mlp_width": ("intermediate_size", 1536),
        "eps": ("layer_norm_eps", 1e-5),
        "qkv_bias": ("query_bias", True),
        "registers": ("num_register_tokens", 0),
        "rope_theta": ("rope_theta", 100.0),
    },
    constants={"layer_scale": True, "any_size": True, "positions": "rope"},
    derived="dinov3",
    fixed={"key_bias": False, "proj_bias": True, "mlp_bias": True},
    activations=_ACTIVATIONS,
    rows={
        "cls_token": ("embeddings.cls_token",),
        "reg_tokens": ("embeddings.register_tokens",),
        "patch_embed": ("embeddings.patch_embeddings",),
        "blocks.{i}.norm1": ("layer.{i}.norm1",),
        "blocks.{i}.attn.qkv.weight": (
            _each("layer.{i}.attention.", "q_proj.weight", "k_proj.weight", "v_proj.weight"),
        ),
        # A bias of the keys shifts all logits of a query alike; the softmax does not see it and no file has it.
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
    },
    variants={
        ("mlp", "swiglu"): {"blocks.{i}.mlp.fc1": (_each("layer.{i}.mlp.", "gate_proj", "up_proj"),)},
    },
    dropped=("embeddings.mask_token", "rope_embeddings.inv_freq"),
    processor="DINOv3ViTImageProcessor",
)

# facebook/vit-mae-*, of which the encoder is used, unmasked: transformers' modeling_vit_mae.py.
HF_MAE = Table(
    model_types=("vit_mae",),
    kinds={"ViTMAEForPreTraining": Kind(), "ViTMAEModel": Kind()},
    prefixes=("vit.",),
    fields=_HF_FIELDS,
    activations=_ACTIVATIONS,
    rows=_HF_ROWS,
    dropped=("decoder.*",),
)

_TOWER_FIELDS = {k: v for k, v in _HF_FIELDS.items() if k != "qkv_bias"}
_TOWER_BLOCKS: dict[str, Row] = {
    "blocks.{i}.norm1": ("encoder.layers.{i}.layer_norm1",),
    "blocks.{i}.attn.qkv": (_each("encoder.layers.{i}.self_attn.", "q_proj", "k_proj", "v_proj"),),
    "blocks.{i}.attn.proj": ("encoder.layers.{i}.self_attn.out_proj",),
    "blocks.{i}.norm2": ("encoder.layers.{i}.layer_norm2",),
    "blocks.{i}.mlp.fc1": ("encoder.layers.{i}.mlp.fc1",),
    "blocks.{i}.mlp.fc2": ("encoder.layers.{i}.mlp.fc2",),
}
_TOWER_ROWS: dict[str, Row] = {
    "cls_token": (Spelling(("embeddings.class_embedding",), "flat"),),
    "pos_embed": (Spelling(("embeddings.position_embedding.weight",), "flat"),),
    "patch_embed": ("embeddings.patch_embedding",),
    "norm_pre": ("pre_layrnorm",),  # as it is spelled in every file
    **_TOWER_BLOCKS,
    "norm": ("post_layernorm",),
}
_TEXT_FIELDS: dict[str, tuple[str, object]] = {
    "vocabulary": ("vocab_size", 49408),
    "context": ("max_position_embeddings", 77),
    "width": ("hidden_size", 512),
    "depth": ("num_hidden_layers", 12),
    "heads": ("num_attention_heads", 8),
    "mlp_width": ("intermediate_size", 2048),
    "eps": ("layer_norm_eps", 1e-5),
    "activation": ("hidden_act", "quick_gelu"),
}
_TEXT_ROWS: dict[str, Row] = {
    "token_embed": ("embeddings.token_embedding",),
    "pos_embed": (Spelling(("embeddings.position_embedding.weight",), "flat"),),
    **_TOWER_BLOCKS,
    "norm": ("final_layer_norm",),
}
_OTHER_TOWER = ("text_model.*", "text_projection.weight", "logit_scale", "logit_bias", "embeddings.position_ids")
_POSITION_IDS = ("vision_model.embeddings.position_ids", "text_model.embeddings.position_ids")

# The image tower of openai/clip-vit-*, alone or out of both: transformers' modeling_clip.py. transformers 5 writes a
# tower that stands alone without the prefix.
HF_CLIP_VISION = Table(
    model_types=("clip_vision_model",),
    section="vision_config",
    kinds={
        "CLIPModel": Kind(),
        "CLIPVisionModelWithProjection": Kind(),
        "CLIPVisionModel": Kind(None, {"projection": 0}),
    },
    prefixes=("vision_model.",),
    fields={
        **_TOWER_FIELDS,
        "patch_size": ("patch_size", 32),
        "eps": ("layer_norm_eps", 1e-5),
        "activation": ("hidden_act", "quick_gelu"),
        "projection": ("projection_dim", 512),
    },
    constants={"norm_pre": True, "norm": "pooled", "patch_bias": False},
    activations=_ACTIVATIONS,
    rows={**_TOWER_ROWS, "proj": ("visual_projection",)},
    dropped=_OTHER_TOWER,
    processor="CLIPImageProcessor",
)

# Both towers of openai/clip-vit-*: transformers' modeling_clip.py. There, texts are 77 tokens by default.
HF_CLIP = Table(
    model_types=("clip",),
    config=CLIPConfig,
    makes="CLIP",
    towers={
        "image": HF_CLIP_VISION,
        "text": Table(
            config=TextConfig,
            makes="text tower",
            section="text_config",
            kinds={"CLIPModel": Kind()},
            fields={**_TEXT_FIELDS, "projection": ("projection_dim", 512), "end": ("eos_token_id", 49407)},
            derived="clip_text",
            activations=_ACTIVATIONS,
            rows=_TEXT_ROWS,
        ),
    },
    kinds={"CLIPModel": Kind()},
    rows={
        **_under("image.", "vision_model.", _TOWER_ROWS),
        "image.proj": ("visual_projection",),
        **_under("text.", "text_model.", _TEXT_ROWS),
        "text.proj": ("text_projection",),
        "logit_scale": (Spelling(("logit_scale",), "scalar"),),
    },
    dropped=_POSITION_IDS,
    processor="CLIPImageProcessor",
)

_MAP_ROWS: dict[str, Row] = {
    "attn_pool.latent": ("head.probe",),
    "attn_pool.qkv.weight": ("head.attention.in_proj_weight",),
    "attn_pool.qkv.bias": ("head.attention.in_proj_bias",),
    "attn_pool.proj": ("head.attention.out_proj",),
    "attn_pool.norm": ("head.layernorm",),
    "attn_pool.mlp.fc1": ("head.mlp.fc1",),
    "attn_pool.mlp.fc2": ("head.mlp.fc2",),
}

# The image tower of google/siglip-*, alone or out of both: transformers' modeling_siglip.py.
HF_SIGLIP_VISION = Table(
    model_types=("siglip_vision_model",),
    section="vision_config",
    kinds={"SiglipModel": Kind(), "SiglipVisionModel": Kind()},
    prefixes=("vision_model.",),
    fields={
        **_TOWER_FIELDS,
        "eps": ("layer_norm_eps", 1e-6),
        "activation": ("hidden_act", "gelu_pytorch_tanh"),
    },
    constants={"cls_token": False, "pooling": "map", "drop_rest": True},
    fixed={"vision_use_head": True},
    activations=_ACTIVATIONS,
    rows={**_TOWER_ROWS, **_MAP_ROWS},
    dropped=_OTHER_TOWER,
    processor="SiglipImageProcessor",
)

# Both towers of google/siglip-*: transformers' modeling_siglip.py.
HF_SIGLIP = Table(
    model_types=("siglip",),
    config=CLIPConfig,
    makes="CLIP",
    towers={
        "image": HF_SIGLIP_VISION,
        "text": Table(
            config=TextConfig,
            makes="text tower",
            section="text_config",
            kinds={"SiglipModel": Kind()},
            fields={
                **_TEXT_FIELDS,
                "vocabulary": ("vocab_size", 32000),
                "context": ("max_position_embeddings", 64),
                "width": ("hidden_size", 768),
                "heads": ("num_attention_heads", 12),
                "mlp_width": ("intermediate_size", 3072),
                "eps": ("layer_norm_eps", 1e-6),
                "activation": ("hidden_act", "gelu_pytorch_tanh"),
            },
            constants={"causal": False, "pooling": "last", "projection_bias": True},
            derived="siglip_text",
            activations=_ACTIVATIONS,
            rows=_TEXT_ROWS,
        ),
    },
    kinds={"SiglipModel": Kind()},
    constants={"score": "sigmoid"},
    rows={
        **_under("image.", "vision_model.", {**_TOWER_ROWS, **_MAP_ROWS}),
        **_under("text.", "text_model.", _TEXT_ROWS),
        "text.proj": ("text_model.head",),
        "logit_scale": ("logit_scale",),
        "logit_bias": ("logit_bias",),
    },
    dropped=_POSITION_IDS,
    processor="SiglipImageProcessor",
)

# torchvision's vit_*: torchvision/models/vision_transformer.py. Its files have no config.json; weights/files.py
# makes one of the name. Second spelling of the MLP: files from before its MLPBlock version 2.
TORCHVISION = Table(
    model_types=("torchvision",),
    kinds={"VisionTransformer": Kind("heads.head")},
    fields={**_HF_FIELDS, "eps": ("layer_norm_eps", 1e-6)},
    constants={"position_resampling": "torchvision"},
    activations=_ACTIVATIONS,
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
)

_TIMM_ROWS: dict[str, Row] = {
    "cls_token": ("cls_token",),
    "dist_token": ("dist_token",),
    "reg_tokens": ("reg_token",),
    "pos_embed": ("pos_embed",),
    "patch_embed": ("patch_embed.proj",),
    "norm_pre": ("norm_pre",),
    "blocks.{i}.norm1": ("blocks.{i}.norm1",),
    "blocks.{i}.attn.qkv": ("blocks.{i}.attn.qkv",),
    "blocks.{i}.attn.proj": ("blocks.{i}.attn.proj",),
    "blocks.{i}.ls1.gamma": ("blocks.{i}.ls1.gamma", "blocks.{i}.gamma_1"),
    "blocks.{i}.norm2": ("blocks.{i}.norm2",),
    "blocks.{i}.mlp.fc1": ("blocks.{i}.mlp.fc1",),
    "blocks.{i}.mlp.fc2": ("blocks.{i}.mlp.fc2",),
    "blocks.{i}.ls2.gamma": ("blocks.{i}.ls2.gamma", "blocks.{i}.gamma_2"),
    "norm": ("norm",),
    "attn_pool.latent": ("attn_pool.latent",),
    "attn_pool.qkv.weight": (Spelling(("attn_pool.q.weight", "attn_pool.kv.weight"), shares=(1, 2)),),
    "attn_pool.qkv.bias": (Spelling(("attn_pool.q.bias", "attn_pool.kv.bias"), shares=(1, 2)),),
    "attn_pool.proj": ("attn_pool.proj",),
    "attn_pool.norm": ("attn_pool.norm",),
    "attn_pool.mlp.fc1": ("attn_pool.mlp.fc1",),
    "attn_pool.mlp.fc2": ("attn_pool.mlp.fc2",),
    "head_dist": ("head_dist",),
}

# timm's VisionTransformer and VisionTransformerDistilled: timm/models/vision_transformer.py and deit.py.
# `gamma_1` stands in the original DeiT III files; `pre_logits` in old ones, unused.
TIMM = Table(
    kinds={"VisionTransformer": Kind("head")},
    constants={"position_resampling": "timm"},
    derived="timm",
    rows=_TIMM_ROWS,
    variants={("norm", "pooled"): {"norm": ("fc_norm",)}},
    dropped=("pre_logits.*",),
    processor="TimmTransform",
)


def _resblocks(names: str) -> dict[str, Row]:
    """Rows of the blocks in OpenAI's code, which open_clip keeps."""
    block = names + "transformer.resblocks.{i}."
    return {
        "blocks.{i}.norm1": (block + "ln_1",),
        "blocks.{i}.attn.qkv.weight": (block + "attn.in_proj_weight",),
        "blocks.{i}.attn.qkv.bias": (block + "attn.in_proj_bias",),
        "blocks.{i}.attn.proj": (block + "attn.out_proj",),
        "blocks.{i}.norm2": (block + "ln_2",),
        "blocks.{i}.mlp.fc1": (block + "mlp.c_fc",),
        "blocks.{i}.mlp.fc2": (block + "mlp.c_proj",),
    }


def _open_clip_text(names: str) -> dict[str, Row]:
    return {
        "token_embed": (names + "token_embedding",),
        "pos_embed": (Spelling((names + "positional_embedding",), "flat"),),
        **_resblocks(names),
        "norm": (names + "ln_final",),
    }


_OPEN_CLIP_TEXT = Table(
    config=TextConfig,
    makes="text tower",
    section="text_cfg",
    kinds={"CLIP": Kind()},
    derived="open_clip_text",
    rows=_open_clip_text(""),
)
_OPEN_CLIP_SCALE: dict[str, Row] = {"logit_scale": (Spelling(("logit_scale",), "scalar"),)}

# Both towers in the names of OpenAI's own code: open_clip's CLIP (open_clip/model.py), in laion/CLIP-* and
# timm/vit_*_clip_*. They are described by open_clip_config.json.
OPEN_CLIP = Table(
    model_types=("open_clip",),
    config=CLIPConfig,
    makes="CLIP",
    towers={
        "image": Table(
            section="vision_cfg",
            kinds={"CLIP": Kind()},
            constants={"norm_pre": True, "norm": "pooled", "patch_bias": False, "position_resampling": "timm"},
            derived="open_clip_image",
            rows={},
        ),
        "text": _OPEN_CLIP_TEXT,
    },
    kinds={"CLIP": Kind()},
    rows={
        "image.cls_token": (Spelling(("visual.class_embedding",), "flat"),),
        "image.pos_embed": (Spelling(("visual.positional_embedding",), "flat"),),
        "image.patch_embed": ("visual.conv1",),
        "image.norm_pre": ("visual.ln_pre",),
        **_under("image.", "", _resblocks("visual.")),
        "image.norm": ("visual.ln_post",),
        "image.proj.weight": (Spelling(("visual.proj",), "transposed"),),
        **_under("text.", "", _open_clip_text("")),
        "text.proj.weight": (Spelling(("text_projection",), "transposed"),),
        **_OPEN_CLIP_SCALE,
    },
    processor="TimmTransform",
)

# SigLIP as open_clip has it: an image tower of timm, and its own text tower (open_clip's CustomTextCLIP), in
# timm/ViT-*-SigLIP.
OPEN_CLIP_TIMM = Table(
    model_types=("open_clip_timm",),
    config=CLIPConfig,
    makes="SigLIP",
    towers={
        "image": Table(
            section="vision_cfg",
            kinds={"CLIP": Kind()},
            constants={"position_resampling": "timm"},
            derived="open_clip_trunk",
            rows={},
        ),
        "text": _OPEN_CLIP_TEXT,
    },
    kinds={"CLIP": Kind()},
    constants={"score": "sigmoid"},
    rows={
        **_under("image.", "visual.trunk.", _TIMM_ROWS),
        **_under("text.", "", _open_clip_text("text.")),
        "text.proj": ("text.text_projection",),
        **_OPEN_CLIP_SCALE,
        "logit_bias": (Spelling(("logit_bias",), "scalar"),),
    },
    processor="TimmTransform",
)

# The original .pth of github.com/facebookresearch/dino and dinov2 (vision_transformer.py of either), without and
# with registers: everything that differs between them is in the shapes. The evaluation transform of both.
FACEBOOK = Table(
    kinds={"DinoVisionTransformer": Kind()},
    prefixes=("module.backbone.", "backbone.", "module."),
    constants={"any_size": True, "eps": 1e-6},
    derived="facebook",
    rows={**_TIMM_ROWS, "reg_tokens": ("register_tokens",)},
    variants={
        ("mlp", "swiglu"): {
            "blocks.{i}.mlp.fc1": ("blocks.{i}.mlp.w12",),
            "blocks.{i}.mlp.fc2": ("blocks.{i}.mlp.w3",),
        }
    },
    dropped=("mask_token", "head.*"),
    assumed={
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 256},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
    },
)

_FLAX = "Transformer/encoderblock_{i}/"
_FLAX_ATTENTION = _FLAX + "MultiHeadDotProductAttention_1/"

# The .npz of github.com/google-research/vision_transformer (gs://vit_models): vit_jax/models_vit.py. flax keeps
# kernels as (in, out); timm's _load_weights in vision_transformer.py reads the same files.
JAX = Table(
    kinds={"ViT": Kind("head"), "ViTModel": Kind()},
    prefixes=("opt/target/",),
    constants={"eps": 1e-6, "position_resampling": "npz"},
    derived="jax",
    rows={
        "cls_token": ("cls",),
        "pos_embed": ("Transformer/posembed_input/pos_embedding",),
        **_pair("patch_embed", "embedding", "hwio"),
        **_norm("blocks.{i}.norm1", _FLAX + "LayerNorm_0"),
        "blocks.{i}.attn.qkv.weight": (
            Spelling(_each(_FLAX_ATTENTION, "query/kernel", "key/kernel", "value/kernel"), "heads_out"),
        ),
        "blocks.{i}.attn.qkv.bias": (
            Spelling(_each(_FLAX_ATTENTION, "query/bias", "key/bias", "value/bias"), "heads_bias"),
        ),
        **_pair("blocks.{i}.attn.proj", _FLAX_ATTENTION + "out", "heads_in"),
        **_norm("blocks.{i}.norm2", _FLAX + "LayerNorm_2"),
        **_pair("blocks.{i}.mlp.fc1", _FLAX + "MlpBlock_3/Dense_0"),
        **_pair("blocks.{i}.mlp.fc2", _FLAX + "MlpBlock_3/Dense_1"),
        **_norm("norm", "Transformer/encoder_norm"),
        **_pair("pooler", "pre_logits"),
        **_pair("head", "head"),
    },
    # The transform of google's own copies of these files in transformers (google/vit-*), at the size of the file.
    assumed={"image_processor_type": "ViTImageProcessor", "size": None},
)

_SWIN_FIELDS: dict[str, tuple[str, object]] = {
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 4),
    "channels": ("num_channels", 3),
    "width": ("embed_dim", 96),
    "mlp_ratio": ("mlp_ratio", 4.0),
    "activation": ("hidden_act", "gelu"),
    "qkv_bias": ("qkv_bias", True),
}


def _swin_rows(block: str, merge: str, **names: str) -> dict[str, Row]:
    """Rows of a Swin whose queries, keys and values are one tensor; `names` of what is called otherwise."""
    known = {"norm1": "norm1", "proj": "attn.proj", "norm2": "norm2", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    known |= {"qkv": "attn.qkv", "table": "attn.relative_position_bias_table", **names}
    ours = "stages.{i}.blocks.{j}."
    return {
        ours + "norm1": (block + known["norm1"],),
        ours + "attn.qkv": (block + known["qkv"],),
        ours + "attn.bias_table": (block + known["table"],),
        ours + "attn.proj": (block + known["proj"],),
        ours + "norm2": (block + known["norm2"],),
        ours + "mlp.fc1": (block + known["fc1"],),
        ours + "mlp.fc2": (block + known["fc2"],),
        "stages.{i}.merge.norm": (merge + "norm",),
        "stages.{i}.merge.reduction": (merge + "reduction",),
        "norm": ("norm",),
    }


_HF_SWIN = "encoder.layers.{i}.blocks.{j}."

# microsoft/swin-*: transformers' modeling_swin.py. Second spelling: the module names of transformers 5. Two of its
# LayerNorms have eps 1e-5 whatever config.json says, so only that is known.
HF_SWIN = Table(
    model_types=("swin",),
    config=SwinConfig,
    makes="Swin",
    kinds={"SwinForImageClassification": Kind("classifier"), "SwinModel": Kind()},
    prefixes=("swin.",),
    fields=_SWIN_FIELDS,
    constants={"windowing": "hf"},
    derived="swin",
    fixed={"use_absolute_embeddings": False, "layer_norm_eps": 1e-5},
    activations=_ACTIVATIONS,
    rows={
        "patch_embed": ("embeddings.patch_embeddings.projection",),
        "norm_embed": ("embeddings.norm",),
        **_swin_rows(
            _HF_SWIN,
            "encoder.layers.{i}.downsample.",
            norm1="layernorm_before",
            norm2="layernorm_after",
        ),
        "stages.{i}.blocks.{j}.attn.qkv": (
            _each(_HF_SWIN + "attention.self.", "query", "key", "value"),
            _each(_HF_SWIN + "attention.", "q_proj", "k_proj", "v_proj"),
        ),
        "stages.{i}.blocks.{j}.attn.bias_table": (
            _HF_SWIN + "attention.self.relative_position_bias_table",
            _HF_SWIN + "attention.relative_position_bias.relative_position_bias_table",
        ),
        "stages.{i}.blocks.{j}.attn.proj": (_HF_SWIN + "attention.output.dense", _HF_SWIN + "attention.o_proj"),
        "stages.{i}.blocks.{j}.mlp.fc1": (_HF_SWIN + "intermediate.dense", _HF_SWIN + "mlp.fc1"),
        "stages.{i}.blocks.{j}.mlp.fc2": (_HF_SWIN + "output.dense", _HF_SWIN + "mlp.fc2"),
        "norm": ("layernorm",),
    },
    dropped=("*.relative_position_index", "embeddings.mask_token"),
)

# torchvision's swin_t, swin_s, swin_b: torchvision/models/swin_transformer.py, where stages and mergings alternate.
TORCHVISION_SWIN = Table(
    model_types=("torchvision_swin",),
    config=SwinConfig,
    makes="Swin",
    kinds={"SwinTransformer": Kind("head")},
    fields=_SWIN_FIELDS,
    constants={"windowing": "torchvision"},
    derived="swin",
    activations=_ACTIVATIONS,
    rows={
        "patch_embed": ("features.0.0",),
        "norm_embed": ("features.0.2",),
        **_swin_rows("features.{2i+1}.{j}.", "features.{2i+2}.", fc1="mlp.0", fc2="mlp.3"),
    },
    dropped=("*.relative_position_index",),
    processor="TorchvisionPreset",
)

# timm's swin_*: timm/models/swin_transformer.py. What merges the patches of a stage stands at the start of the next.
TIMM_SWIN = Table(
    config=SwinConfig,
    makes="Swin",
    kinds={"SwinTransformer": Kind("head.fc")},
    constants={"windowing": "timm"},
    derived="timm_swin",
    rows={
        "patch_embed": ("patch_embed.proj",),
        "norm_embed": ("patch_embed.norm",),
        **_swin_rows("layers.{i}.blocks.{j}.", "layers.{i+1}.downsample."),
    },
    dropped=("*.relative_position_index", "*.attn_mask"),
    processor="TimmTransform",
)

FAMILIES = {
    "vit": HF_VIT,
    "deit": HF_DEIT,
    "dinov2": HF_DINOV2,
    "dinov2_with_registers": HF_DINOV2_REGISTERS,
    "dinov3_vit": HF_DINOV3,
    "vit_mae": HF_MAE,
    "clip": HF_CLIP,
    "clip_vision_model": HF_CLIP_VISION,
    "siglip": HF_SIGLIP,
    "siglip_vision_model": HF_SIGLIP_VISION,
    "open_clip": OPEN_CLIP,
    "open_clip_timm": OPEN_CLIP_TIMM,
    "torchvision": TORCHVISION,
    "timm": TIMM,
    "facebook": FACEBOOK,
    "jax": JAX,
    "swin": HF_SWIN,
    "torchvision_swin": TORCHVISION_SWIN,
    "timm_swin": TIMM_SWIN,
}

# Preprocessing: class defaults of transformers' image processors, which stand for every key that a
# preprocessor_config.json leaves out. `square` says whether an int `size` is both sides or the shorter edge.
# The last two are no processors but the transforms of torchvision's weights and of timm's pretrained_cfg.
_HALVES = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
_RESIZED: dict = {
    "square": True,
    "do_resize": True,
    "size": {"height": 224, "width": 224},
    "resample": 2,
    "do_center_crop": False,
    "crop_size": None,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    **_HALVES,
    "float_resize": False,
    "crop_rounding": "down",
}
_CROPPED: dict = {
    **_RESIZED,
    "square": False,
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    **_CLIP,
}
PROCESSORS: dict[str, dict] = {
    "ViT": _RESIZED,
    "DeiT": {**_CROPPED, "square": True, "size": {"height": 256, "width": 256}, **_HALVES},
    "Bit": _CROPPED,
    "CLIP": _CROPPED,
    "Siglip": {**_RESIZED, "square": False, "resample": 3},
    "DINOv3ViT": {**_RESIZED, **_IMAGENET, "float_resize": True},
    "TorchvisionPreset": {**_CROPPED, **_IMAGENET, "size": {"shortest_edge": 256}, "crop_rounding": "even"},
    "TimmTransform": {**_CROPPED, **_IMAGENET, "crop_rounding": "even"},
}
