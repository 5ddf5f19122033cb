"""Every step of the forward by name: where a hook finds it, its axes, and what other libraries call it."""

from __future__ import annotations

import re
from typing import NamedTuple

from minivit.errors import UsageError
from minivit.model.vit import ViT


class Step(NamedTuple):
    """One named tensor of the forward; `{i}` stands for the number of a block."""

    name: str
    place: str | None  # the module whose output it is, or with ".input" the one that reads it; None: at the seam
    axes: str  # a letter of the legend each; F is what mlp.fc2 reads, G what mlp.fc1 writes, X what the head reads


B = "blocks.{i}."

# In the order of the forward. "At the seam" means where attend(q, k, v) is called.
STEPS = (
    Step("embed.patches", "patch_embed", "BPD"),
    Step("embed.tokens", "blocks.0.input", "BND"),
    Step(B + "norm1", B + "norm1", "BND"),
    Step(B + "q", None, "BANK"),
    Step(B + "k", None, "BANK"),
    Step(B + "v", None, "BANK"),
    Step(B + "attn.scores", None, "BANM"),
    Step(B + "attn.probs", None, "BANM"),
    Step(B + "attn.mix", B + "attn.proj.input", "BANK"),
    Step(B + "attn.out", B + "attn", "BND"),
    Step(B + "resid_mid", B + "norm2.input", "BND"),
    Step(B + "norm2", B + "norm2", "BND"),
    Step(B + "mlp.pre", B + "mlp.fc1", "BNG"),
    Step(B + "mlp.act", B + "mlp.fc2.input", "BNF"),
    Step(B + "mlp.out", B + "mlp", "BND"),
    Step(B + "resid_post", "blocks.{i}", "BND"),
    Step("norm", "norm", "BND"),
    Step("pooled", "head.input", "BX"),
    Step("logits", "", "BL"),
)
BY_NAME = {step.name: step for step in STEPS}

HF4 = "vit.encoder.layer.{i}."
HF5 = "vit.layers.{i}."
TORCHVISION = "encoder.layers.encoder_layer_{i}"


def _transformers5(
    trunk: str, layer: str, attn: str, norm1: str, norm2: str, fc1: str, fc2: str, **others: str
) -> dict:
    """The names of another family of transformers 5: of the parts of a layer, and of what stands around the layers."""
    layer, attn = f"{trunk}.{layer}", f"{trunk}.{layer}.{attn}"
    around = {name.replace("__", "."): f"{trunk}.{place}" for name, place in others.items() if name != "logits"}
    inside = {
        "norm1": f"{layer}.{norm1}",
        "attn.mix": f"{attn}.input",
        "attn.out": attn,
        "resid_mid": f"{layer}.{norm2}.input",
        "norm2": f"{layer}.{norm2}",
        "mlp.pre": f"{layer}.{fc1}",
        "mlp.act": f"{layer}.{fc2}.input",
        "mlp.out": f"{layer}.mlp",
        "resid_post": layer,
    }
    attention = attn.rpartition(".")[0]
    projections = {part: f"{attention}.{part}_proj" for part in "qkv"}
    steps = {B + name: place for name, place in {**projections, **inside}.items()}
    head = others.get("logits")
    return around | steps | ({"pooled": f"{head}.input", "logits": head} if head else {})


_TOWER = (
    "vision_model",
    "encoder.layers.{i}",
    "self_attn.out_proj",
    "layer_norm1",
    "layer_norm2",
    "mlp.fc1",
    "mlp.fc2",
)

# What other libraries call the same tensors. Each is a place in their module tree in the notation of
# Step.place; attentions[{i}] is a field of transformers' output, there under attn_implementation="eager"
# only, and timm's attn.attn_drop runs with fused_attn off only. A step is missing where a library has
# no place that holds it alone (timm's v is a third of attn.qkv). transformers and timm keep q, k, v and
# attn.mix unsplit, as (B, N, D), or with heads; TransformerLens as (B, N, A, K).
ALIASES: dict[str, dict[str, str]] = {
    "transformers4": {  # ViTForImageClassification of transformers 4.x
        "embed.patches": "vit.embeddings.patch_embeddings",
        "embed.tokens": "vit.embeddings",
        B + "norm1": HF4 + "layernorm_before",
        B + "q": HF4 + "attention.attention.query",
        B + "k": HF4 + "attention.attention.key",
        B + "v": HF4 + "attention.attention.value",
        B + "attn.probs": "attentions[{i}]",
        B + "attn.mix": HF4 + "attention.output.dense.input",
        B + "attn.out": HF4 + "attention.output",
        B + "resid_mid": HF4 + "layernorm_after.input",
        B + "norm2": HF4 + "layernorm_after",
        B + "mlp.pre": HF4 + "intermediate.dense",
        B + "mlp.act": HF4 + "intermediate",
        B + "mlp.out": HF4 + "output.dense",
        B + "resid_post": "vit.encoder.layer.{i}",
        "norm": "vit.layernorm",
        "pooled": "classifier.input",
        "logits": "classifier",
    },
    "transformers5": {  # the same class after transformers 5.0 renamed its modules
        "embed.patches": "vit.embeddings.patch_embeddings",
        "embed.tokens": "vit.embeddings",
        B + "norm1": HF5 + "layernorm_before",
        B + "q": HF5 + "attention.q_proj",
        B + "k": HF5 + "attention.k_proj",
        B + "v": HF5 + "attention.v_proj",
        B + "attn.probs": "attentions[{i}]",
        B + "attn.mix": HF5 + "attention.o_proj.input",
        B + "attn.out": HF5 + "attention.o_proj",
        B + "resid_mid": HF5 + "layernorm_after.input",
        B + "norm2": HF5 + "layernorm_after",
        B + "mlp.pre": HF5 + "mlp.fc1",
        B + "mlp.act": HF5 + "mlp.activation_fn",
        B + "mlp.out": HF5 + "mlp",
        B + "resid_post": "vit.layers.{i}",
        "norm": "vit.layernorm",
        "pooled": "classifier.input",
        "logits": "classifier",
    },
    "transformers5-deit": _transformers5(  # DeiTForImageClassificationWithTeacher
        "deit",
        "layers.{i}",
        "attention.o_proj",
        "layernorm_before",
        "layernorm_after",
        "mlp.fc1",
        "mlp.fc2",
        embed__patches="embeddings.patch_embeddings",
        embed__tokens="embeddings",
        norm="layernorm",
        logits="cls_classifier",
    ),
    "transformers5-dinov2": _transformers5(  # Dinov2ForImageClassification, with registers or without
        "dinov2",
        "encoder.layer.{i}",
        "attention.o_proj",
        "norm1",
        "norm2",
        "mlp.fc1",
        "mlp.fc2",
        embed__patches="embeddings.patch_embeddings",
        embed__tokens="embeddings",
        norm="layernorm",
        logits="classifier",
    ),
    "transformers5-dinov3": _transformers5(  # DINOv3ViTModel; its trunk is called "model"
        "model",
        "layer.{i}",
        "attention.o_proj",
        "norm1",
        "norm2",
        "mlp.up_proj",
        "mlp.down_proj",
    )
    | {"embed.patches": "embeddings.patch_embeddings", "embed.tokens": "embeddings", "norm": "norm"},
    "transformers5-clip": _transformers5(  # CLIPModel, CLIPVisionModelWithProjection
        *_TOWER,
        embed__patches="embeddings.patch_embedding",
        embed__tokens="pre_layrnorm",
        norm="post_layernorm",
    ),
    "transformers5-siglip": _transformers5(  # SiglipModel
        *_TOWER,
        embed__patches="embeddings.patch_embedding",
        embed__tokens="embeddings",
        norm="post_layernorm",
    ),
    "torchvision": {  # torchvision.models.VisionTransformer; q, k and v stand inside one nn.MultiheadAttention
        "embed.patches": "conv_proj",
        "embed.tokens": "encoder.dropout",
        B + "norm1": TORCHVISION + ".ln_1",
        B + "attn.out": TORCHVISION + ".self_attention",
        B + "resid_mid": TORCHVISION + ".ln_2.input",
        B + "norm2": TORCHVISION + ".ln_2",
        B + "mlp.pre": TORCHVISION + ".mlp.0",
        B + "mlp.act": TORCHVISION + ".mlp.1",
        B + "mlp.out": TORCHVISION + ".mlp",
        B + "resid_post": TORCHVISION,
        "norm": "encoder.ln",
        "pooled": "heads.head.input",
        "logits": "heads.head",
    },
    "timm": {  # timm.models.vision_transformer.VisionTransformer
        "embed.patches": "patch_embed",
        "embed.tokens": "norm_pre",
        B + "norm1": B + "norm1",
        B + "q": B + "attn.q_norm",
        B + "k": B + "attn.k_norm",
        B + "attn.probs": B + "attn.attn_drop",
        B + "attn.mix": B + "attn.proj.input",
        B + "attn.out": B + "attn",
        B + "resid_mid": B + "norm2.input",
        B + "norm2": B + "norm2",
        B + "mlp.pre": B + "mlp.fc1",
        B + "mlp.act": B + "mlp.fc2.input",
        B + "mlp.out": B + "mlp",
        B + "resid_post": "blocks.{i}",
        "norm": "norm",
        "pooled": "head.input",
        "logits": "head",
    },
    "transformerlens": {  # hook points of TransformerLens, and of ViT-Prisma's HookedViT
        "embed.patches": "hook_embed",
        "embed.tokens": "blocks.0.hook_resid_pre",
        B + "norm1": B + "ln1.hook_normalized",
        B + "q": B + "attn.hook_q",
        B + "k": B + "attn.hook_k",
        B + "v": B + "attn.hook_v",
        B + "attn.scores": B + "attn.hook_attn_scores",
        B + "attn.probs": B + "attn.hook_pattern",
        B + "attn.mix": B + "attn.hook_z",
        B + "attn.out": B + "hook_attn_out",
        B + "resid_mid": B + "hook_resid_mid",
        B + "norm2": B + "ln2.hook_normalized",
        B + "mlp.pre": B + "mlp.hook_pre",
        B + "mlp.act": B + "mlp.hook_post",
        B + "mlp.out": B + "hook_mlp_out",
        B + "resid_post": B + "hook_resid_post",
        "norm": "ln_final.hook_normalized",
    },
}


def step_names(model: ViT) -> list[str]:
    """All names of one model in the order of its forward; `logits` only where there is a head."""
    first = [step.name for step in STEPS if step.name.startswith("embed.")]
    inside = [step.name for step in STEPS if step.name.startswith(B)]
    last = [step.name for step in STEPS if not step.name.startswith(("embed.", B))]
    blocks = [name.replace("{i}", str(i)) for i in range(model.config.depth) for name in inside]
    return [name for name in first + blocks + last if name != "logits" or model.config.classes]


def step_of(name: str) -> tuple[Step, str]:
    """The step behind a name without selector, and the number of its block ("" outside the blocks)."""
    number = re.match(r"blocks\.(\d+)\.", name)
    template = re.sub(r"^blocks\.\d+\.", B, name)
    if template not in BY_NAME:
        raise UsageError(f"no step is called {name!r}; the steps are {', '.join(BY_NAME)}")
    return BY_NAME[template], number[1] if number else ""


def to_alias(name: str, library: str) -> str:
    """What another library calls a step: ("blocks.3.norm2", "transformerlens") -> "blocks.3.ln2.hook_normalized".

    A selector such as "[cls]" is carried over. A name ending in ".input" stands for what that
    module reads, any other for what it returns.

    Raises:
        UsageError: no such step or library, or a step the library has no name for.
    """
    base, bracket, selector = name.partition("[")
    step, i = step_of(base)
    theirs = _aliases(library).get(step.name)
    if theirs is None:
        raise UsageError(f"{library} has no place that holds {base} alone")
    return theirs.replace("{i}", i) + bracket + selector


def from_alias(name: str, library: str) -> str:
    """The step another library calls so: ("blocks.3.attn.hook_pattern", "transformerlens") -> "blocks.3.attn.probs".

    Raises:
        UsageError: no such library, or no step of that name in it.
    """
    for ours, theirs in _aliases(library).items():
        pattern = re.escape(theirs).replace(r"\{i\}", r"(\d+)") + r"(\[[^\]]*\])?"
        if found := re.fullmatch(pattern, name):
            *number, selector = found.groups()
            return ours.replace("{i}", number[0] if number else "") + (selector or "")
    raise UsageError(f"{library} has no step called {name!r}, or minivit has none for it")


def _aliases(library: str) -> dict[str, str]:
    if library not in ALIASES:
        raise UsageError(f"no aliases for {library!r}; known are {', '.join(ALIASES)}")
    return ALIASES[library]
