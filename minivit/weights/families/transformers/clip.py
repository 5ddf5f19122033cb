"""openai/clip-vit-*, both towers or the image tower alone: transformers' modeling_clip.py."""

from __future__ import annotations

from minivit.model.config import CLIPConfig, TextConfig
from minivit.weights.families.base import Family, Given, Kind, Reference, Shapes, Spelling, under, vit_steps
from minivit.weights.families.transformers.shared import (
    ACTIVATIONS,
    OTHER_TOWER,
    POSITION_IDS,
    TEXT_FIELDS,
    TEXT_ROWS,
    TOWER_FIELDS,
    TOWER_ROWS,
)

_REFERENCE = Reference("transformers", "transformers5-clip", trunk="vision_model.", module="vision_model")


def _read_text(given: Given, shapes: Shapes) -> Given:
    """Return the pooling. Old files give the end token the id 2 and mean the greatest id (see TextTower.pool)."""
    return {"pooling": "argmax" if given.get("eos_token_id", 49407) == 2 else "end"}


def _write_text(config: TextConfig) -> Given:
    return {"eos_token_id": 2} if config.pooling == "argmax" else {}


# The image tower. transformers 5 writes the tower alone without the prefix.
CLIP_VISION = Family(
    name="clip_vision_model",
    section="vision_config",
    kinds={
        "CLIPModel": Kind(),
        "CLIPVisionModelWithProjection": Kind(),
        "CLIPVisionModel": Kind(None, {"projection": 0}),
    },
    prefixes=("vision_model.",),
    fields={
        **TOWER_FIELDS,
        "patch_size": ("patch_size", 32),
        "eps": ("layer_norm_eps", 1e-5),
        "activation": ("hidden_act", "quick_gelu"),
        "projection": ("projection_dim", 512),
    },
    constants={"norm_pre": True, "norm": "pooled", "patch_bias": False},
    activations=ACTIVATIONS,
    rows={**TOWER_ROWS, "proj": ("visual_projection",)},
    dropped=OTHER_TOWER,
    processor="CLIPImageProcessor",
    saved=True,
    steps={"transformers5-clip": vit_steps(TOWER_ROWS, "vision_model.", "pre_layrnorm")},
    reference=_REFERENCE,
)


# Both towers. In transformers, texts are 77 tokens by default.
CLIP = Family(
    name="clip",
    config=CLIPConfig,
    makes="CLIP",
    towers={
        "image": CLIP_VISION,
        "text": Family(
            name="clip_text_model",
            config=TextConfig,
            makes="text tower",
            section="text_config",
            kinds={"CLIPModel": Kind()},
            fields={**TEXT_FIELDS, "projection": ("projection_dim", 512), "end": ("eos_token_id", 49407)},
            read=_read_text,
            write=_write_text,
            activations=ACTIVATIONS,
            rows=TEXT_ROWS,
        ),
    },
    kinds={"CLIPModel": Kind()},
    rows={
        **under("image.", "vision_model.", TOWER_ROWS),
        "image.proj": ("visual_projection",),
        **under("text.", "text_model.", TEXT_ROWS),
        "text.proj": ("text_projection",),
        "logit_scale": (Spelling(("logit_scale",), "scalar"),),
    },
    dropped=POSITION_IDS,
    processor="CLIPImageProcessor",
    saved=True,
    reference=_REFERENCE,
)

REGISTER = (CLIP, CLIP_VISION)
