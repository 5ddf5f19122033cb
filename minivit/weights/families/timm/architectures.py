"""timm's Vision Transformers by name: the arguments in which each differs from the defaults. Data only."""

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

_TINY = {"embed_dim": 192, "num_heads": 3}
_SMALL = {"embed_dim": 384, "num_heads": 6}
_MEDIUM = {"embed_dim": 512, "num_heads": 8}
_BETWIXT = {"embed_dim": 640, "num_heads": 10}
_BASE: Given = {}
_LARGE = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
_HUGE = {"embed_dim": 1280, "depth": 32, "num_heads": 16}
_GIANT = {"embed_dim": 1408, "mlp_ratio": 48 / 11, "depth": 40, "num_heads": 16}
_GIGANTIC = {"embed_dim": 1664, "mlp_ratio": 64 / 13, "depth": 48, "num_heads": 16}
_SO400M = {"embed_dim": 1152, "depth": 27, "num_heads": 16, "mlp_ratio": 3.7362}

_CLIP = {"pre_norm": True, "eps": 1e-5}
_QUICK = {**_CLIP, "act_layer": "quick_gelu"}
_SIGLIP = {"class_token": False, "global_pool": "map"}
_SIGLIP2 = {**_SIGLIP, "act_layer": "gelu_tanh"}
_AVERAGED = {"class_token": False, "global_pool": "avg", "fc_norm": False}
_GAP = {**_AVERAGED, "qkv_bias": False, "init_values": 1e-6}
_REG_GAP = {"class_token": False, "no_embed_class": True, "global_pool": "avg"}
_DINOV2 = {"patch_size": 14, "img_size": 518, "init_values": 1e-5}
_REG4 = {**_DINOV2, "reg_tokens": 4, "no_embed_class": True}
_DINOV2_GIANT = {
    "embed_dim": 1536,
    "depth": 40,
    "num_heads": 24,
    "mlp_ratio": 2.66667 * 2,
    "mlp_layer": "swiglu_packed",
    "act_layer": "silu",
}
_DEIT3 = {"no_embed_class": True, "init_values": 1e-6}


def _timm(name: str, *parts: Given, **changes: object) -> dict[str, Given]:
    """Return one entry; patch and image size are in the name (vit_base_patch16_224), unless `parts` replace them."""
    sizes: Given = {}
    for word in name.split("_"):
        if word.startswith("patch"):
            sizes["patch_size"] = int(word.removeprefix("patch"))
    if name.rpartition("_")[2].isdecimal():
        sizes["img_size"] = int(name.rpartition("_")[2])
    arguments: Given = {}
    for part in (sizes, *parts, changes):
        arguments.update(part)
    return {name: arguments}


ARCHITECTURES: dict[str, Given] = {
    **_timm("vit_tiny_patch16_224", _TINY),
    **_timm("vit_tiny_patch16_384", _TINY),
    **_timm("vit_small_patch32_224", _SMALL),
    **_timm("vit_small_patch32_384", _SMALL),
    **_timm("vit_small_patch16_224", _SMALL),
    **_timm("vit_small_patch16_384", _SMALL),
    **_timm("vit_small_patch8_224", _SMALL),
    **_timm("vit_base_patch32_224", _BASE),
    **_timm("vit_base_patch32_384", _BASE),
    **_timm("vit_base_patch16_224", _BASE),
    **_timm("vit_base_patch16_384", _BASE),
    **_timm("vit_base_patch8_224", _BASE),
    **_timm("vit_base_patch16_224_miil", _BASE, qkv_bias=False),
    **_timm("vit_large_patch32_224", _LARGE),
    **_timm("vit_large_patch32_384", _LARGE),
    **_timm("vit_large_patch16_224", _LARGE),
    **_timm("vit_large_patch16_384", _LARGE),
    **_timm("vit_large_patch14_224", _LARGE),
    **_timm("vit_huge_patch14_224", _HUGE),
    **_timm("vit_giant_patch14_224", _GIANT),
    **_timm("vit_gigantic_patch14_224", _GIGANTIC),
    # averaged patches instead of a class token
    **_timm("vit_medium_patch16_gap_240", _MEDIUM, _GAP),
    **_timm("vit_medium_patch16_gap_256", _MEDIUM, _GAP),
    **_timm("vit_medium_patch16_gap_384", _MEDIUM, _GAP),
    **_timm("vit_betwixt_patch16_gap_256", _BETWIXT, _GAP),
    **_timm("vit_base_patch16_gap_224", _AVERAGED, num_heads=16),
    **_timm("vit_huge_patch14_gap_224", _HUGE, _AVERAGED),
    **_timm("vit_huge_patch16_gap_448", _HUGE, _AVERAGED),
    **_timm("vit_giant_patch16_gap_224", _GIANT, _AVERAGED),
    **_timm("eva_large_patch14_196", _LARGE, global_pool="avg"),
    **_timm("eva_large_patch14_336", _LARGE, global_pool="avg"),
    **_timm("vit_medium_patch16_reg1_gap_256", _MEDIUM, _REG_GAP, reg_tokens=1, init_values=1e-5),
    **_timm("vit_medium_patch16_reg4_gap_256", _MEDIUM, _REG_GAP, reg_tokens=4, init_values=1e-5),
    **_timm("vit_mediumd_patch16_reg4_gap_256", _MEDIUM, _REG_GAP, depth=20, reg_tokens=4, init_values=1e-5),
    **_timm("vit_mediumd_patch16_reg4_gap_384", _MEDIUM, _REG_GAP, depth=20, reg_tokens=4, init_values=1e-5),
    **_timm("vit_betwixt_patch16_reg1_gap_256", _BETWIXT, _REG_GAP, reg_tokens=1, init_values=1e-5),
    **_timm("vit_betwixt_patch16_reg4_gap_256", _BETWIXT, _REG_GAP, reg_tokens=4, init_values=1e-5),
    **_timm("vit_betwixt_patch16_reg4_gap_384", _BETWIXT, _REG_GAP, reg_tokens=4, init_values=1e-5),
    **_timm("vit_base_patch16_reg4_gap_256", _REG_GAP, reg_tokens=4),
    # positions without a row for the class token
    **_timm("flexivit_small", _SMALL, no_embed_class=True, img_size=240),
    **_timm("flexivit_base", _BASE, no_embed_class=True, img_size=240),
    **_timm("flexivit_large", _LARGE, no_embed_class=True, img_size=240),
    # CLIP. OpenAI trained with quick GELU: the names without it run those weights with the exact one.
    **_timm("vit_base_patch32_clip_224", _CLIP),
    **_timm("vit_base_patch32_clip_256", _CLIP),
    **_timm("vit_base_patch32_clip_384", _CLIP),
    **_timm("vit_base_patch32_clip_448", _CLIP),
    **_timm("vit_base_patch16_clip_224", _CLIP),
    **_timm("vit_base_patch16_clip_384", _CLIP),
    **_timm("vit_large_patch14_clip_224", _LARGE, _CLIP),
    **_timm("vit_large_patch14_clip_336", _LARGE, _CLIP),
    **_timm("vit_huge_patch14_clip_224", _HUGE, _CLIP),
    **_timm("vit_huge_patch14_clip_336", _HUGE, _CLIP),
    **_timm("vit_huge_patch14_clip_378", _HUGE, _CLIP),
    **_timm("vit_giant_patch14_clip_224", _GIANT, _CLIP),
    **_timm("vit_gigantic_patch14_clip_224", _GIGANTIC, _CLIP),
    **_timm("vit_base_patch32_clip_quickgelu_224", _QUICK),
    **_timm("vit_base_patch16_clip_quickgelu_224", _QUICK),
    **_timm("vit_large_patch14_clip_quickgelu_224", _LARGE, _QUICK),
    **_timm("vit_large_patch14_clip_quickgelu_336", _LARGE, _QUICK),
    **_timm("vit_huge_patch14_clip_quickgelu_224", _HUGE, _QUICK),
    **_timm("vit_huge_patch14_clip_quickgelu_378", _HUGE, _QUICK),
    # SigLIP
    **_timm("vit_base_patch32_siglip_256", _SIGLIP2),
    **_timm("vit_base_patch16_siglip_224", _SIGLIP),
    **_timm("vit_base_patch16_siglip_256", _SIGLIP),
    **_timm("vit_base_patch16_siglip_384", _SIGLIP),
    **_timm("vit_base_patch16_siglip_512", _SIGLIP),
    **_timm("vit_large_patch16_siglip_256", _LARGE, _SIGLIP),
    **_timm("vit_large_patch16_siglip_384", _LARGE, _SIGLIP),
    **_timm("vit_large_patch16_siglip_512", _LARGE, _SIGLIP2),
    **_timm("vit_so400m_patch14_siglip_224", _SO400M, _SIGLIP),
    **_timm("vit_so400m_patch14_siglip_378", _SO400M, _SIGLIP),
    **_timm("vit_so400m_patch14_siglip_384", _SO400M, _SIGLIP),
    **_timm("vit_so400m_patch16_siglip_256", _SO400M, _SIGLIP2),
    **_timm("vit_so400m_patch16_siglip_384", _SO400M, _SIGLIP2),
    **_timm("vit_so400m_patch16_siglip_512", _SO400M, _SIGLIP2),
    # DINOv2
    **_timm("vit_small_patch14_dinov2", _SMALL, _DINOV2),
    **_timm("vit_base_patch14_dinov2", _DINOV2),
    **_timm("vit_large_patch14_dinov2", _LARGE, _DINOV2),
    **_timm("vit_giant_patch14_dinov2", _DINOV2_GIANT, _DINOV2),
    **_timm("vit_small_patch14_reg4_dinov2", _SMALL, _REG4),
    **_timm("vit_base_patch14_reg4_dinov2", _REG4),
    **_timm("vit_large_patch14_reg4_dinov2", _LARGE, _REG4),
    **_timm("vit_giant_patch14_reg4_dinov2", _DINOV2_GIANT, _REG4),
    # DeiT and DeiT III
    **_timm("deit_tiny_patch16_224", _TINY),
    **_timm("deit_small_patch16_224", _SMALL),
    **_timm("deit_base_patch16_224", _BASE),
    **_timm("deit_base_patch16_384", _BASE),
    **_timm("deit_tiny_distilled_patch16_224", _TINY, distilled=True),
    **_timm("deit_small_distilled_patch16_224", _SMALL, distilled=True),
    **_timm("deit_base_distilled_patch16_224", _BASE, distilled=True),
    **_timm("deit_base_distilled_patch16_384", _BASE, distilled=True),
    **_timm("deit3_small_patch16_224", _SMALL, _DEIT3),
    **_timm("deit3_small_patch16_384", _SMALL, _DEIT3),
    **_timm("deit3_medium_patch16_224", _MEDIUM, _DEIT3),
    **_timm("deit3_base_patch16_224", _DEIT3),
    **_timm("deit3_base_patch16_384", _DEIT3),
    **_timm("deit3_large_patch16_224", _LARGE, _DEIT3),
    **_timm("deit3_large_patch16_384", _LARGE, _DEIT3),
    **_timm("deit3_huge_patch14_224", _HUGE, _DEIT3),
    # timm's own very small ones
    **_timm("test_vit", embed_dim=64, depth=6, num_heads=2, mlp_ratio=3, dynamic_img_size=True, img_size=160),
    **_timm(
        "test_vit2",
        {"embed_dim": 64, "depth": 8, "num_heads": 2, "mlp_ratio": 3, "class_token": False, "reg_tokens": 1},
        global_pool="avg",
        init_values=1e-5,
        dynamic_img_size=True,
        img_size=160,
    ),
}
