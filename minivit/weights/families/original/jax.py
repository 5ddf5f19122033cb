"""The .npz files of github.com/google-research/vision_transformer (gs://vit_models): vit_jax/models_vit.py."""

from __future__ import annotations

from minivit.weights.families.base import Family, Given, Kind, Named, Rows, Shapes, Spelling, depth_of, each, has_module


def _read_jax(given: Given, shapes: Shapes) -> Given:
    """Return ViTConfig values from the shapes of the file; flax keeps the heads as an axis."""
    patch, _, channels, width = shapes["embedding/kernel"]
    side = round((shapes["Transformer/posembed_input/pos_embedding"][1] - 1) ** 0.5)
    block = "Transformer/encoderblock_0"
    return {
        "image_size": (side * patch, side * patch),
        "patch_size": patch,
        "channels": channels,
        "width": width,
        "depth": depth_of(shapes, r"Transformer/encoderblock_(\d+)/"),
        "heads": shapes[f"{block}/MultiHeadDotProductAttention_1/query/kernel"][1],
        "mlp_width": shapes[f"{block}/MlpBlock_3/Dense_0/kernel"][1],
        "classes": shapes.get("head/kernel", (0, 0))[1],
        "pooler": has_module(shapes, "pre_logits"),
    }


def _pair(canonical: str, name: str, weight: str = "transposed", bias: str = "same") -> Rows:
    """Return the rows of a linear layer in flax: kernel and bias, each in its layout."""
    return {
        f"{canonical}.weight": (Spelling((f"{name}/kernel",), weight),),
        f"{canonical}.bias": (Spelling((f"{name}/bias",), bias),),
    }


def _norm(canonical: str, name: str) -> Rows:
    """Return the rows of a LayerNorm in flax."""
    return {f"{canonical}.weight": (f"{name}/scale",), f"{canonical}.bias": (f"{name}/bias",)}


_FLAX = "Transformer/encoderblock_{i}/"
_FLAX_ATTENTION = _FLAX + "MultiHeadDotProductAttention_1/"


def _preprocessor(config: Given, size: tuple[int, int]) -> tuple[Given | None, str]:
    """Return the transform of google's copies of these files in transformers (google/vit-*), at the model's size."""
    height, width = size
    values = {"image_processor_type": "ViTImageProcessor", "size": {"height": height, "width": width}}
    return values, "assumed for the family"


# flax keeps kernels as (in, out); timm's _load_weights in vision_transformer.py reads the same files.
JAX = Family(
    name="jax",
    by_model_type=False,
    by_name=lambda model: Named({}),
    kinds={"ViT": Kind("head"), "ViTModel": Kind()},
    prefixes=("opt/target/",),
    constants={"eps": 1e-6, "position_resampling": "npz"},
    read=_read_jax,
    rows={
        "cls_token": ("cls",),
        "pos_embed": ("Transformer/posembed_input/pos_embedding",),
        **_pair("patch_embed", "embedding", "hwio"),
        **_norm("blocks.{i}.norm1", _FLAX + "LayerNorm_0"),
        "blocks.{i}.attn.qkv.weight": (
            Spelling(each(_FLAX_ATTENTION, "query/kernel", "key/kernel", "value/kernel"), "heads_out"),
        ),
        "blocks.{i}.attn.qkv.bias": (
            Spelling(each(_FLAX_ATTENTION, "query/bias", "key/bias", "value/bias"), "heads_bias"),
        ),
        **_pair("blocks.{i}.attn.proj", _FLAX_ATTENTION + "out", "heads_in"),
        **_norm("blocks.{i}.norm2", _FLAX + "LayerNorm_2"),
        **_pair("blocks.{i}.mlp.fc1", _FLAX + "MlpBlock_3/Dense_0"),
        **_pair("blocks.{i}.mlp.fc2", _FLAX + "MlpBlock_3/Dense_1"),
        **_norm("norm", "Transformer/encoder_norm"),
        **_pair("pooler", "pre_logits"),
        **_pair("head", "head"),
    },
    preprocessor=_preprocessor,
)

REGISTER = (JAX,)
