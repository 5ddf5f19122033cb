"""timm's Vision Transformers by name: the arguments in which each differs from the defaults."""

from __future__ import annotations

from minivit.weights.families.base import Given

# timm's VisionTransformer: arguments this model has a switch for, with their defaults (timm/models/
# vision_transformer.py). `eps` stands for its norm_layer, `distilled` for VisionTransformerDistilled.
DEFAULTS: Given = {
    "img_size": 224,
    "patch_size": 16,
    "in_chans": 3,
    "num_classes": None,  # as many as the file's head has
    "global_pool": "token",
    "embed_dim": 768,
    "depth": 12,
    "num_heads": 12,
    "mlp_ratio": 4.0,
    "qkv_bias": True,
    "init_values": None,
    "class_token": True,
    "no_embed_class": False,
    "reg_tokens": 0,
    "pre_norm": False,
    "fc_norm": None,
    "dynamic_img_size": False,
    "act_layer": None,
    "mlp_layer": None,
    "eps": 1e-6,
    "distilled": False,
}

# Arguments of training and of initialisation, which have no effect on inference.
TRAINING = frozenset(
    {"drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate"}
    | {"weight_init", "fix_init", "strict_img_size", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
)

# Arguments that a word in a name stands for; "base" stands for the defaults.
WORDS: dict[str, Given] = {
    "tiny": {"embed_dim": 192, "num_heads": 3},
    "small": {"embed_dim": 384, "num_heads": 6},
    "medium": {"embed_dim": 512, "num_heads": 8},
    "mediumd": {"embed_dim": 512, "num_heads": 8, "depth": 20},
    "betwixt": {"embed_dim": 640, "num_heads": 10},
    "large": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "huge": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
    "giant": {"embed_dim": 1408, "mlp_ratio": 48 / 11, "depth": 40, "num_heads": 16},
    "gigantic": {"embed_dim": 1664, "mlp_ratio": 64 / 13, "depth": 48, "num_heads": 16},
    "so400m": {"embed_dim": 1152, "depth": 27, "num_heads": 16, "mlp_ratio": 3.7362},
    "reg1": {"reg_tokens": 1},
    "reg4": {"reg_tokens": 4},
    "distilled": {"distilled": True},
    "quickgelu": {"act_layer": "quick_gelu"},
}

_CLIP = {"pre_norm": True, "eps": 1e-5}
_SIGLIP = {"class_token": False, "global_pool": "map"}
_AVERAGED = {"class_token": False, "global_pool": "avg", "fc_norm": False}
_REG_GAP = {"class_token": False, "no_embed_class": True, "global_pool": "avg"}
_DINOV2 = {"patch_size": 14, "img_size": 518, "init_values": 1e-5}
_DINOV2_GIANT: Given = {**_DINOV2, "embed_dim": 1536, "depth": 40, "num_heads": 24, "mlp_ratio": 2.66667 * 2}
_DINOV2_GIANT |= {"mlp_layer": "swiglu_packed", "act_layer": "silu"}
_TEST = {"embed_dim": 64, "num_heads": 2, "mlp_ratio": 3, "dynamic_img_size": True, "img_size": 160}

# Arguments of several architectures, and their names. What the words of a name say comes first.
GROUPS: tuple[tuple[Given, str], ...] = (
    (
        {},
        """
        vit_tiny_patch16_224 vit_tiny_patch16_384
        vit_small_patch32_224 vit_small_patch32_384 vit_small_patch16_224 vit_small_patch16_384 vit_small_patch8_224
        vit_base_patch32_224 vit_base_patch32_384 vit_base_patch16_224 vit_base_patch16_384 vit_base_patch8_224
        vit_large_patch32_224 vit_large_patch32_384 vit_large_patch16_224 vit_large_patch16_384 vit_large_patch14_224
        vit_huge_patch14_224 vit_giant_patch14_224 vit_gigantic_patch14_224
        deit_tiny_patch16_224 deit_small_patch16_224 deit_base_patch16_224 deit_base_patch16_384
        deit_tiny_distilled_patch16_224 deit_small_distilled_patch16_224
        deit_base_distilled_patch16_224 deit_base_distilled_patch16_384
        """,
    ),
    ({"qkv_bias": False}, "vit_base_patch16_224_miil"),
    # The mean of the patches instead of a class token.
    (
        {**_AVERAGED, "qkv_bias": False, "init_values": 1e-6},
        "vit_medium_patch16_gap_240 vit_medium_patch16_gap_256 vit_medium_patch16_gap_384 vit_betwixt_patch16_gap_256",
    ),
    ({**_AVERAGED, "num_heads": 16}, "vit_base_patch16_gap_224"),
    (_AVERAGED, "vit_huge_patch14_gap_224 vit_huge_patch16_gap_448 vit_giant_patch16_gap_224"),
    ({"global_pool": "avg"}, "eva_large_patch14_196 eva_large_patch14_336"),
    (
        {**_REG_GAP, "init_values": 1e-5},
        """
        vit_medium_patch16_reg1_gap_256 vit_medium_patch16_reg4_gap_256
        vit_mediumd_patch16_reg4_gap_256 vit_mediumd_patch16_reg4_gap_384
        vit_betwixt_patch16_reg1_gap_256 vit_betwixt_patch16_reg4_gap_256 vit_betwixt_patch16_reg4_gap_384
        """,
    ),
    (_REG_GAP, "vit_base_patch16_reg4_gap_256"),
    # Positions without a row for the class token.
    ({"no_embed_class": True, "img_size": 240}, "flexivit_small flexivit_base flexivit_large"),
    # CLIP. OpenAI trained with quick GELU: the names without it run those weights with the exact one.
    (
        _CLIP,
        """
        vit_base_patch32_clip_224 vit_base_patch32_clip_256 vit_base_patch32_clip_384 vit_base_patch32_clip_448
        vit_base_patch16_clip_224 vit_base_patch16_clip_384 vit_large_patch14_clip_224 vit_large_patch14_clip_336
        vit_huge_patch14_clip_224 vit_huge_patch14_clip_336 vit_huge_patch14_clip_378
        vit_giant_patch14_clip_224 vit_gigantic_patch14_clip_224
        vit_base_patch32_clip_quickgelu_224 vit_base_patch16_clip_quickgelu_224
        vit_large_patch14_clip_quickgelu_224 vit_large_patch14_clip_quickgelu_336
        vit_huge_patch14_clip_quickgelu_224 vit_huge_patch14_clip_quickgelu_378
        """,
    ),
    # SigLIP, and SigLIP 2 with another GELU.
    (
        _SIGLIP,
        """
        vit_base_patch16_siglip_224 vit_base_patch16_siglip_256 vit_base_patch16_siglip_384 vit_base_patch16_siglip_512
        vit_large_patch16_siglip_256 vit_large_patch16_siglip_384
        vit_so400m_patch14_siglip_224 vit_so400m_patch14_siglip_378 vit_so400m_patch14_siglip_384
        """,
    ),
    (
        {**_SIGLIP, "act_layer": "gelu_tanh"},
        """
        vit_base_patch32_siglip_256 vit_large_patch16_siglip_512
        vit_so400m_patch16_siglip_256 vit_so400m_patch16_siglip_384 vit_so400m_patch16_siglip_512
        """,
    ),
    (_DINOV2, "vit_small_patch14_dinov2 vit_base_patch14_dinov2 vit_large_patch14_dinov2"),
    (_DINOV2_GIANT, "vit_giant_patch14_dinov2"),
    (
        {**_DINOV2, "no_embed_class": True},
        "vit_small_patch14_reg4_dinov2 vit_base_patch14_reg4_dinov2 vit_large_patch14_reg4_dinov2",
    ),
    ({**_DINOV2_GIANT, "no_embed_class": True}, "vit_giant_patch14_reg4_dinov2"),
    # DeiT III
    (
        {"no_embed_class": True, "init_values": 1e-6},
        """
        deit3_small_patch16_224 deit3_small_patch16_384 deit3_medium_patch16_224 deit3_base_patch16_224
        deit3_base_patch16_384 deit3_large_patch16_224 deit3_large_patch16_384 deit3_huge_patch14_224
        """,
    ),
    # Very small models for timm's own tests.
    ({**_TEST, "depth": 6}, "test_vit"),
    (
        {**_TEST, "depth": 8, "class_token": False, "reg_tokens": 1, "global_pool": "avg", "init_values": 1e-5},
        "test_vit2",
    ),
)


def _of_name(name: str) -> Given:
    """Return the arguments that a name says: "vit_large_patch16_224" -> a large model, patches of 16, images of 224."""
    arguments: Given = {}
    for word in name.split("_"):
        arguments |= WORDS.get(word, {})
        if word.startswith("patch"):
            arguments["patch_size"] = int(word.removeprefix("patch"))
    if word.isdecimal():
        arguments["img_size"] = int(word)
    return arguments


ARCHITECTURES = {name: _of_name(name) | arguments for arguments, names in GROUPS for name in names.split()}
