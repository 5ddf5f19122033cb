"""The files of open_clip, which describes both towers in open_clip_config.json: OpenAI's names, and SigLIP of timm."""

from __future__ import annotations

from minivit.model.config import CLIPConfig, TextConfig
from minivit.weights.families.base import Family, Given, Kind, Rows, Shapes, Spelling, under
from minivit.weights.families.processors import CLIP
from minivit.weights.families.timm.shared import transform
from minivit.weights.families.timm.vit import ROWS as TIMM_ROWS
from minivit.weights.families.timm.vit import read_timm

# Keys of open_clip's CLIPVisionCfg and CLIPTextCfg that are read, or have no effect on inference.
_KEYS = frozenset(
    {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio", "context_length", "vocab_size", "heads"}
    | {"norm_kwargs", "act_kwargs", "pool_type", "no_causal_mask", "proj_bias", "embed_dim", "quick_gelu"}
    | {"timm_model_name", "timm_model_pretrained", "timm_pool", "timm_proj", "hf_tokenizer_name", "tokenizer_kwargs"}
    | {"patch_dropout", "timm_drop", "timm_drop_path"}
)


def _block(given: Given, width: int, heads: int) -> Given:
    """Return the values of the blocks of either tower."""
    unknown = {key: value for key, value in given.items() if key not in _KEYS and value}
    tanh = (given.get("act_kwargs") or {}).get("approximate") == "tanh"
    if unknown:
        raise ValueError(f"there is no switch for open_clip's {', '.join(f'{k}={v!r}' for k, v in unknown.items())}")
    return {
        "width": width,
        "depth": given.get("layers", 12),
        "heads": heads,
        "mlp_width": int(width * given.get("mlp_ratio", 4.0)),
        "eps": (given.get("norm_kwargs") or {}).get("eps", 1e-5),
        "activation": "quick_gelu" if given.get("quick_gelu") else "gelu_tanh" if tanh else "gelu",
    }


def _read_image(given: Given, shapes: Shapes) -> Given:
    size, width = given.get("image_size", 224), given.get("width", 768)
    return {
        **_block(given, width, width // given.get("head_width", 64)),
        "image_size": (size, size) if isinstance(size, int) else tuple(size),
        "patch_size": given.get("patch_size", 16),
        "projection": given["embed_dim"],
    }


def _read_trunk(given: Given, shapes: Shapes) -> Given:
    """Return the values of an image tower of timm, whose output is that of its pooling."""
    if (given.get("timm_pool"), given.get("timm_proj")) != ("map", "none"):
        raise ValueError("only timm_pool 'map' with timm_proj 'none' is known")
    size = given.get("image_size", 224)
    named = {"architecture": given.get("timm_model_name"), "model_args": {"img_size": size}, "num_classes": 0}
    return read_timm(named, shapes)


def _read_text(given: Given, shapes: Shapes) -> Given:
    pooling = given.get("pool_type", "argmax")
    if pooling not in ("argmax", "last"):
        raise ValueError(f"pool_type is {pooling!r}; known are argmax and last")
    return {
        **_block(given, given.get("width", 512), given.get("heads", 8)),
        "vocabulary": given.get("vocab_size", 49408),
        "context": given.get("context_length", 77),
        "causal": not given.get("no_causal_mask", False),
        "pooling": pooling,
        "projection": given["embed_dim"],
        "projection_bias": given.get("proj_bias", False),
    }


def _resblocks(names: str) -> Rows:
    """Return the rows of the blocks in OpenAI's code, which open_clip keeps."""
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


def _text_rows(names: str) -> Rows:
    return {
        "token_embed": (names + "token_embedding",),
        "pos_embed": (Spelling((names + "positional_embedding",), "flat"),),
        **_resblocks(names),
        "norm": (names + "ln_final",),
    }


_TEXT = Family(
    name="open_clip_text",
    config=TextConfig,
    makes="text tower",
    section="text_cfg",
    kinds={"CLIP": Kind()},
    read=_read_text,
    rows=_text_rows(""),
)


def _preprocessor(config: Given, size: tuple[int, int]) -> tuple[Given | None, str]:
    """Return preprocessor_config.json from open_clip's preprocess_cfg; mean and std default to those of OpenAI."""
    given = config.get("preprocess_cfg")
    if not isinstance(given, dict):
        return None, ""
    mode = {"shortest": "center", "squash": "squash"}.get(given.get("resize_mode") or "shortest", "longest")
    stated = {key: given[key] for key in ("mean", "std", "interpolation") if key in given}
    defaults = {"mean": CLIP["image_mean"], "std": CLIP["image_std"]}
    words = {**defaults, **stated, "crop_pct": 1.0, "crop_mode": mode}
    return transform(words, *size), "open_clip_config.json"


_SCALE: Rows = {"logit_scale": (Spelling(("logit_scale",), "scalar"),)}


# Both towers in the names of OpenAI's own code: open_clip's CLIP (open_clip/model.py), in laion/CLIP-* and
# timm/vit_*_clip_*.
OPEN_CLIP = Family(
    name="open_clip",
    config=CLIPConfig,
    makes="CLIP",
    towers={
        "image": Family(
            name="open_clip_image",
            section="vision_cfg",
            kinds={"CLIP": Kind()},
            constants={"norm_pre": True, "norm": "pooled", "patch_bias": False, "position_resampling": "timm"},
            read=_read_image,
            rows={},
        ),
        "text": _TEXT,
    },
    kinds={"CLIP": Kind()},
    rows={
        "image.cls_token": (Spelling(("visual.class_embedding",), "flat"),),
        "image.pos_embed": (Spelling(("visual.positional_embedding",), "flat"),),
        "image.patch_embed": ("visual.conv1",),
        "image.norm_pre": ("visual.ln_pre",),
        **under("image.", "", _resblocks("visual.")),
        "image.norm": ("visual.ln_post",),
        "image.proj.weight": (Spelling(("visual.proj",), "transposed"),),
        **under("text.", "", _text_rows("")),
        "text.proj.weight": (Spelling(("text_projection",), "transposed"),),
        **_SCALE,
    },
    variants={
        ("text.projection_bias", True): {
            "text.proj.weight": ("text_projection.weight",),
            "text.proj.bias": ("text_projection.bias",),
        }
    },
    processor="TimmTransform",
    preprocessor=_preprocessor,
)


# SigLIP in open_clip: an image tower of timm and open_clip's own text tower (CustomTextCLIP), in timm/ViT-*-SigLIP.
OPEN_CLIP_TIMM = Family(
    name="open_clip_timm",
    config=CLIPConfig,
    makes="SigLIP",
    towers={
        "image": Family(
            name="open_clip_trunk",
            section="vision_cfg",
            kinds={"CLIP": Kind()},
            constants={"position_resampling": "timm"},
            read=_read_trunk,
            rows={},
        ),
        "text": _TEXT,
    },
    kinds={"CLIP": Kind()},
    constants={"score": "sigmoid"},
    rows={
        **under("image.", "visual.trunk.", TIMM_ROWS),
        **under("text.", "", _text_rows("text.")),
        "text.proj": ("text.text_projection",),
        **_SCALE,
        "logit_bias": (Spelling(("logit_bias",), "scalar"),),
    },
    processor="TimmTransform",
    preprocessor=_preprocessor,
)

REGISTER = (OPEN_CLIP, OPEN_CLIP_TIMM)
