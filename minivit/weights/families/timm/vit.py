"""timm's VisionTransformer and VisionTransformerDistilled: timm/models/vision_transformer.py and deit.py."""

from __future__ import annotations

from minivit.weights.families.base import B, Family, Given, Kind, Reference, Rows, Shapes, Spelling, vit_steps
from minivit.weights.families.timm.architectures import ARCHITECTURES, DEFAULTS
from minivit.weights.families.timm.shared import arguments, labels, named, preprocessor

_ACTIVATIONS = {None: "gelu", "gelu": "gelu", "gelu_tanh": "gelu_tanh", "quick_gelu": "quick_gelu", "silu": "silu"}
_POOLINGS = {"token": "cls", "avg": "mean", "map": "map"}


def read_timm(given: Given, shapes: Shapes) -> Given:
    """Return ViTConfig values from `architecture`, `model_args` and `pretrained_cfg`: timm's VisionTransformer."""
    name = given.get("architecture")
    if name not in ARCHITECTURES:
        near = [known for known in ARCHITECTURES if str(name).split("_")[0] == known.split("_")[0]]
        raise ValueError(f"architecture {name!r} is not among the known, such as {', '.join(near[:6] or ['deit_*'])}")
    args = arguments(given, DEFAULTS, ARCHITECTURES[name], {"act_layer": _ACTIVATIONS, "global_pool": _POOLINGS})
    classes = args["num_classes"]
    size = (args["img_size"],) * 2 if isinstance(args["img_size"], int) else tuple(args["img_size"])
    hidden = int(args["embed_dim"] * args["mlp_ratio"])
    swiglu = args["mlp_layer"] == "swiglu_packed"
    averaged = args["global_pool"] == "avg"
    positions = "learned_patches" if args["no_embed_class"] else "learned_all" if args["reg_tokens"] else "learned"
    return {
        "image_size": size,
        "patch_size": args["patch_size"],
        "drop_rest": any(side % args["patch_size"] for side in size),  # of 384 pixels 378, in patches of 14
        "channels": args["in_chans"],
        "width": args["embed_dim"],
        "depth": args["depth"],
        "heads": args["num_heads"],
        "mlp": "swiglu" if swiglu else "plain",
        "mlp_width": hidden // 2 if swiglu else hidden,
        "classes": shapes.get("head.weight", (0,))[0] if classes is None else classes,
        "cls_token": args["class_token"],
        "dist_token": args["distilled"],
        "registers": args["reg_tokens"],
        "positions": positions,
        "any_size": args["dynamic_img_size"],
        "patch_bias": not args["pre_norm"],
        "eps": args["eps"],
        "activation": _ACTIVATIONS[args["act_layer"]],
        "qkv_bias": args["qkv_bias"],
        "layer_scale": args["init_values"] is not None,
        "norm_pre": args["pre_norm"],
        "norm": "pooled" if (averaged if args["fc_norm"] is None else args["fc_norm"]) else "tokens",
        "pooling": "cls&dist" if args["distilled"] else _POOLINGS[args["global_pool"]],
    }


ROWS: Rows = {
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


# attn.attn_drop runs with fused_attn off only; v is a third of attn.qkv.
_ELSEWHERE = {
    B + "q": B + "attn.q_norm",
    B + "k": B + "attn.k_norm",
    B + "attn.probs": B + "attn.attn_drop",
    B + "attn.out": B + "attn",
}

# `gamma_1` is in the original DeiT III files; `pre_logits` in old files, unused.
TIMM = Family(
    name="timm",
    by_model_type=False,
    architectures=ARCHITECTURES,
    by_name=named,
    wrappers=("state_dict_ema", "model_ema", "state_dict", "model"),  # timm/models/_helpers.py, load_state_dict
    kinds={
        "VisionTransformer": Kind("head"),
        # transformers' wrapper around timm's models.
        "TimmWrapperModel": Kind(None, {"classes": 0}),
        "TimmWrapperForImageClassification": Kind("head"),  # last: a head that is stated must be in the file
    },
    prefixes=("timm_model.",),
    constants={"position_resampling": "timm"},
    read=read_timm,
    rows=ROWS,
    variants={("norm", "pooled"): {"norm": ("fc_norm",)}},
    dropped=("pre_logits.*",),
    processor="TimmTransform",
    preprocessor=preprocessor,
    labels=labels,
    steps={"timm": vit_steps(ROWS, "", "norm_pre", "head", _ELSEWHERE)},
    reference=Reference("timm", "timm"),
)

REGISTER = (TIMM,)
