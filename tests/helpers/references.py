"""Small models of every family, made and saved by the reference library itself, and what it makes of pictures.

Sizes are pairwise different, and primes where the library allows it, so that no swapped axis can pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minivit.model.clip import CLIP
from minivit.model.swin import Swin

Outputs = dict[str, Tensor]


@dataclass(kw_only=True)
class Reference:
    """One reference model with its files."""

    path: Path  # what minivit.load is given
    family: str | None  # and the family, where the files do not say it
    model: nn.Module  # float32
    blocks: nn.ModuleList
    size: tuple[int, int]  # pixels
    run: Callable[[nn.Module, Tensor], Outputs]  # the model's own outputs; "tokens", "pooled", "logits" as it has them
    other_sizes: tuple[tuple[int, int], ...] = ()  # pixels it accepts, too, by its own way of stretching positions
    resized: Callable[[nn.Module, Tensor], Outputs] | None = None  # its outputs for those, `run` where None


@dataclass(kw_only=True)
class Case:
    """A configuration to try; `make` writes the files into an empty folder."""

    family: str
    name: str
    make: Callable[[Path], Reference]
    layout: str | None = None  # the transformers layout `convert` writes it in
    full_size: bool = False

    @property
    def id(self) -> str:
        return f"{self.family}-{self.name}"


CASES: list[Case] = []


def case(family: str, name: str, *, layout: str | None = None, full_size: bool = False) -> Callable:
    def add(make: Callable[[Path], Reference]) -> Callable[[Path], Reference]:
        CASES.append(Case(family=family, name=name, make=make, layout=layout, full_size=full_size))
        return make

    return add


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter a value that matters: fresh models have biases of 0 and norms of 1, which hide faults."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim <= 1:
            centre = 1.0 if name.endswith("weight") or "gamma" in name or "lambda" in name else 0.0
            parameter.copy_(torch.randn_like(parameter) * 0.2 + centre)
        elif parameter.ndim >= 2 and not parameter.any():
            parameter.copy_(torch.randn_like(parameter) * 0.05)
        elif "token" in name or "pos" in name or "probe" in name:
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def in_a_row(out: Any) -> Tensor:
    """What a block returns as (B, N, D): the first of several, and a grid's tokens row by row."""
    out = out[0] if isinstance(out, tuple) else out
    return out.flatten(1, 2) if out.ndim == 4 else out


@torch.no_grad()
def run_reference(reference: Reference, pixels: Tensor, dtype: torch.dtype, resized: bool = False) -> Outputs:
    """Outputs of the reference and of each of its blocks, computed in `dtype` by a copy: half precision is for good."""
    names = {id(module): name for name, module in reference.model.named_modules()}
    model = copy.deepcopy(reference.model).to(dtype)
    blocks: dict[str, Tensor] = {}
    for i, block in enumerate(reference.blocks):
        hook = lambda m, args, out, i=i: blocks.update({f"block {i}": in_a_row(out)})  # noqa: E731
        model.get_submodule(names[id(block)]).register_forward_hook(hook)
    outputs = (reference.resized if resized and reference.resized else reference.run)(model, pixels.to(dtype))
    return blocks | outputs


@torch.no_grad()
def run_minivit(model: Any, pixels: Tensor, resized: bool = False) -> Outputs:
    """The same outputs of a minivit model, in its own dtype."""
    if isinstance(model, CLIP):
        return run_clip(model, pixels, resized)
    if isinstance(model, Swin):
        return run_swin(model, pixels)
    pixels = pixels.to(model.patch_embed.weight.dtype)
    outputs: Outputs = {}
    hooks = [
        block.register_forward_hook(lambda m, args, out, i=i: outputs.update({f"block {i}": out}))
        for i, block in enumerate(model.blocks)
    ]
    outputs["tokens"] = model.features(pixels, resample=resized)
    for hook in hooks:
        hook.remove()
    outputs["pooled"] = model.pool(outputs["tokens"])
    if model.config.cls_token:
        outputs["cls"] = outputs["tokens"][:, 0]
    if model.config.classes or model.config.projection:
        outputs["logits"] = model(pixels, resample=resized)
    if model.head_dist is not None:
        outputs["logits cls"], outputs["logits dist"] = model.both_logits(outputs["tokens"])
    return outputs


@torch.no_grad()
def run_clip(model: CLIP, pixels: Tensor, resized: bool = False) -> Outputs:
    """Outputs of two towers, and of the blocks of the one and then the other."""
    outputs: Outputs = {}
    hooks = [
        block.register_forward_hook(lambda m, args, out, i=i: outputs.update({f"block {i}": out}))
        for i, block in enumerate([*model.image.blocks, *model.text.blocks])
    ]
    ids, pixels = ids_of(pixels), pixels.to(model.logit_scale.dtype)
    outputs["logits"] = model(pixels, ids, resample=resized)
    for hook in hooks:
        hook.remove()
    outputs["tokens"] = model.image.features(pixels, resample=resized)
    outputs["pooled"] = model.image.pool(outputs["tokens"])
    outputs["image embeddings"] = model.encode_image(pixels, resample=resized)
    outputs["text tokens"] = model.text.features(ids)
    outputs["text embeddings"] = model.encode_text(ids)
    return outputs


@torch.no_grad()
def run_swin(model: Swin, pixels: Tensor) -> Outputs:
    """Outputs of all blocks, then of all stages, and of the model."""
    outputs: Outputs = {}
    hooks = [
        module.register_forward_hook(lambda m, args, out, i=i: outputs.update({f"block {i}": out}))
        for i, module in enumerate([*model.blocks, *model.stages])
    ]
    outputs["tokens"] = model.features(pixels.to(model.norm.weight.dtype))
    for hook in hooks:
        hook.remove()
    outputs["pooled"] = model.pool(outputs["tokens"])
    outputs["logits"] = model(pixels.to(model.norm.weight.dtype))
    return outputs


def blocks_of(model: Any) -> int:
    """How many blocks `run_minivit` gives the outputs of."""
    if isinstance(model, Swin):
        return len(model.blocks) + len(model.stages)
    return len(model.image.blocks) + len(model.text.blocks) if isinstance(model, CLIP) else len(model.blocks)


def differences(ours: Outputs, theirs: Outputs) -> dict[str, float]:
    """Largest difference by name, over every output the reference has; a missing one of ours is an error."""
    result = {}
    for name, expected in theirs.items():
        assert ours[name].shape == expected.shape, (name, ours[name].shape, expected.shape)
        result[name] = (ours[name].double() - expected.double()).abs().max().item()
    return result


def pixels_of(size: tuple[int, int], seed: int = 1, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- transformers ---------------------------------------------------------------------------------------------

HF = {
    "hidden_size": 91,
    "num_hidden_layers": 3,
    "num_attention_heads": 7,
    "intermediate_size": 101,
    "image_size": 40,
    "patch_size": 8,
    "num_labels": 11,
    # The eager softmax is float32 even in float64.
    "attn_implementation": "sdpa",
}


def _hf(
    path: Path,
    config_class: str,
    model_class: str,
    blocks: str,
    run: Callable,
    *,
    processor: dict | None = None,
    seed: int = 0,
    other_sizes: tuple[tuple[int, int], ...] = (),
    resized: Callable | None = None,
    make_kwargs: dict | None = None,
    **config: Any,
) -> Reference:
    import transformers

    given = {key: value for key, value in {**HF, **config}.items() if value is not None}
    given = getattr(transformers, config_class)(**given)
    torch.manual_seed(seed)
    model = randomise(getattr(transformers, model_class)(given, **(make_kwargs or {})), seed)
    model.save_pretrained(path)
    size = getattr(given, "vision_config", given).image_size
    size = (size, size) if isinstance(size, int) else tuple(size)
    kind = {"image_processor_type": "ViTImageProcessor", "size": {"height": size[0], "width": size[1]}}
    (path / "preprocessor_config.json").write_text(__import__("json").dumps(processor or kind))
    layers = model.get_submodule(blocks)
    return Reference(
        path=path, family=None, model=model, blocks=layers, size=size, run=run, other_sizes=other_sizes, resized=resized
    )


def _backbone(name: str | None = None, pooled: bool = True, **kwargs: Any) -> Callable:
    """Run a transformers classifier or backbone: tokens, class token, pooled and logits, as far as it has them."""

    def run(model: nn.Module, pixels: Tensor) -> Outputs:
        inner = model.get_submodule(name) if name else model
        out = inner(pixel_values=pixels, **kwargs)
        outputs = {"tokens": out.last_hidden_state, "cls": out.last_hidden_state[:, 0]}
        if pooled and getattr(out, "pooler_output", None) is not None:
            outputs["pooled"] = out.pooler_output
        if name:
            outputs["logits"] = model(pixel_values=pixels, **kwargs).logits
        return outputs

    return run


def _both(*names: Any, **kwargs: Any) -> dict[str, Callable]:
    return {"run": _backbone(*names, **kwargs), "resized": _backbone(*names, **kwargs, interpolate_pos_encoding=True)}


@case("vit", "classifier", layout="vit")
def _(path: Path) -> Reference:
    way = _both("vit")
    return _hf(path, "ViTConfig", "ViTForImageClassification", "vit.layers", **way, other_sizes=((48, 56), (24, 80)))


@case("vit", "oblong-quick-gelu", layout="vit")
def _(path: Path) -> Reference:
    changes = {"image_size": [24, 40], "hidden_act": "quick_gelu", "layer_norm_eps": 1e-6}
    return _hf(path, "ViTConfig", "ViTForImageClassification", "vit.layers", _backbone("vit"), **changes)


@case("vit", "in21k-pooler", layout="vit")
def _(path: Path) -> Reference:
    return _hf(path, "ViTConfig", "ViTModel", "layers", _backbone())


@case("vit", "no-qkv-bias-no-pooler", layout="vit")
def _(path: Path) -> Reference:
    make = {"add_pooling_layer": False}
    return _hf(path, "ViTConfig", "ViTModel", "layers", _backbone(), qkv_bias=False, make_kwargs=make)


def _two_heads(**kwargs: Any) -> Callable:
    def run(model: nn.Module, pixels: Tensor) -> Outputs:
        out = model(pixel_values=pixels, **kwargs)
        tokens = model.deit(pixel_values=pixels, **kwargs).last_hidden_state
        return {
            "tokens": tokens,
            "cls": tokens[:, 0],
            "pooled": tokens[:, :2].mean(dim=1),
            "logits": out.logits,
            "logits cls": out.cls_logits,
            "logits dist": out.distillation_logits,
        }

    return run


@case("deit", "distilled", layout="deit")
def _(path: Path) -> Reference:
    return _hf(
        path,
        "DeiTConfig",
        "DeiTForImageClassificationWithTeacher",
        "deit.layers",
        _two_heads(),
        resized=_two_heads(interpolate_pos_encoding=True),
        other_sizes=((48, 56), (24, 80)),
        processor={"image_processor_type": "DeiTImageProcessor", "size": 47, "crop_size": 40},
    )


@case("deit", "one-head", layout="deit")
def _(path: Path) -> Reference:
    return _hf(path, "DeiTConfig", "DeiTForImageClassification", "deit.layers", _backbone("deit"), num_labels=5)


@case("deit", "backbone-pooler", layout="deit")
def _(path: Path) -> Reference:
    return _hf(path, "DeiTConfig", "DeiTModel", "layers", _backbone(), num_hidden_layers=2)


_BIT = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 47}, "crop_size": 40}
_SIZES = ((40, 40), (48, 56), (24, 80))


def _dinov2(path: Path, model: str, run: Callable, config: str = "Dinov2Config", **changes: Any) -> Reference:
    blocks = ("" if model.endswith("Model") else run.__name__ + ".") + "encoder.layer"
    values = {"image_size": 56, "mlp_ratio": 3, "other_sizes": _SIZES, "processor": _BIT, **changes}
    return _hf(path, config, model, blocks, run, **values)


def _named(run: Callable, name: str) -> Callable:
    run.__name__ = name
    return run


@case("dinov2", "backbone", layout="dinov2")
def _(path: Path) -> Reference:
    return _dinov2(path, "Dinov2Model", _backbone())


@case("dinov2", "giant-swiglu", layout="dinov2")
def _(path: Path) -> Reference:
    return _dinov2(path, "Dinov2Model", _backbone(), use_swiglu_ffn=True, mlp_ratio=4, num_hidden_layers=2)


@case("dinov2", "1-layer", layout="dinov2")
def _(path: Path) -> Reference:
    return _dinov2(path, "Dinov2ForImageClassification", _named(_backbone("dinov2", pooled=False), "dinov2"))


@case("dinov2_with_registers", "backbone", layout="dinov2_with_registers")
def _(path: Path) -> Reference:
    kind = "Dinov2WithRegistersConfig"
    return _dinov2(path, "Dinov2WithRegistersModel", _backbone(), kind, num_register_tokens=4)


@case("dinov2_with_registers", "giant-1-layer", layout="dinov2_with_registers")
def _(path: Path) -> Reference:
    name = "dinov2_with_registers"
    run = _named(_backbone(name, pooled=False), name)
    model = "Dinov2WithRegistersForImageClassification"
    return _dinov2(path, model, run, "Dinov2WithRegistersConfig", num_register_tokens=2, use_swiglu_ffn=True)


_DINOV3 = {
    "hidden_size": 84,
    "num_attention_heads": 7,
    "processor": {"image_processor_type": "DINOv3ViTImageProcessor", "size": 40},
}


@case("dinov3_vit", "registers")
def _(path: Path) -> Reference:
    way = {**_DINOV3, "num_register_tokens": 4, "other_sizes": _SIZES}
    return _hf(path, "DINOv3ViTConfig", "DINOv3ViTModel", "model.layer", _backbone(), **way)


@case("dinov3_vit", "gated-no-bias")
def _(path: Path) -> Reference:
    way = {**_DINOV3, "num_register_tokens": 3, "use_gated_mlp": True, "hidden_act": "silu", "other_sizes": _SIZES}
    biases = {"query_bias": False, "value_bias": False, "rope_theta": 30.0, "layer_norm_eps": 1e-3}
    return _hf(path, "DINOv3ViTConfig", "DINOv3ViTModel", "model.layer", _backbone(), **way, **biases)


def _unmasked(inner: str | None = None, patch: int = 8, **kwargs: Any) -> Callable:
    """MAE shuffles its patches even when it masks none, by the order of the noise: rising noise keeps them in place."""

    def run(model: nn.Module, pixels: Tensor) -> Outputs:
        model = model.get_submodule(inner) if inner else model
        patches = (pixels.shape[2] // patch) * (pixels.shape[3] // patch)
        noise = torch.arange(patches).expand(len(pixels), -1)
        tokens = model(pixel_values=pixels, noise=noise, **kwargs).last_hidden_state
        return {"tokens": tokens, "cls": tokens[:, 0]}

    return run


@case("vit_mae", "pretraining", layout="vit")
def _(path: Path) -> Reference:
    return _hf(
        path,
        "ViTMAEConfig",
        "ViTMAEForPreTraining",
        "vit.layers",
        _unmasked("vit"),
        resized=_unmasked("vit", interpolate_pos_encoding=True),
        other_sizes=((48, 56), (24, 80)),
        mask_ratio=0.0,
        decoder_hidden_size=32,
        decoder_num_attention_heads=4,
        decoder_num_hidden_layers=2,
        decoder_intermediate_size=37,
        hidden_size=84,
    )


@case("vit_mae", "encoder", layout="vit")
def _(path: Path) -> Reference:
    way = {"mask_ratio": 0.0, "hidden_size": 84, "layer_norm_eps": 1e-6}
    return _hf(path, "ViTMAEConfig", "ViTMAEModel", "layers", _unmasked(), **way)


_CLIP = {"image_processor_type": "CLIPImageProcessor", "size": 40, "crop_size": 40}


def _tower(inner: str | None = None, projected: bool = True, **kwargs: Any) -> Callable:
    def run(model: nn.Module, pixels: Tensor) -> Outputs:
        tower = model.get_submodule(inner) if inner else model
        out = tower(pixel_values=pixels, **kwargs)
        outputs = {"tokens": out.last_hidden_state, "pooled": out.pooler_output}
        if inner and projected:
            outputs["logits"] = model.visual_projection(out.pooler_output)
        return outputs

    return run


def _towers(*args: Any, **kwargs: Any) -> dict[str, Any]:
    stretched = _tower(*args, **kwargs, interpolate_pos_encoding=True)
    return {"run": _tower(*args, **kwargs), "resized": stretched, "other_sizes": ((48, 56), (24, 80))}


@case("clip_vision_model", "vision-with-projection", layout="clip_vision_model")
def _(path: Path) -> Reference:
    way = {**_towers("vision_model"), "projection_dim": 53, "processor": _CLIP}
    return _hf(path, "CLIPVisionConfig", "CLIPVisionModelWithProjection", "vision_model.encoder.layers", **way)


@case("clip_vision_model", "vision-gelu", layout="clip_vision_model")
def _(path: Path) -> Reference:
    way = {**_towers(), "hidden_act": "gelu", "processor": _CLIP}
    return _hf(path, "CLIPVisionConfig", "CLIPVisionModel", "encoder.layers", **way)


_TEXT = {
    "vocab_size": 97,
    "hidden_size": 24,
    "intermediate_size": 29,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": 13,
}
_VISION = {k: v for k, v in HF.items() if k not in ("num_labels", "attn_implementation")}


@case("clip_vision_model", "out-of-both", layout="clip_vision_model")
def _(path: Path) -> Reference:
    both = {"text_config": _TEXT, "vision_config": _VISION, "projection_dim": 53, "processor": _CLIP}
    way = _towers("vision_model")
    made = _hf(path, "CLIPConfig", "CLIPModel", "vision_model.encoder.layers", **way, **both)
    made.family = "clip_vision_model"
    return made


def ids_of(pixels: Tensor) -> Tensor:
    """Three texts of 6 ids to go with these pixels. 96 ends a text; the first has more behind it, as padding."""
    seed = int(pixels.double().abs().flatten()[0] * 2**20)
    ids = torch.randint(3, 96, (3, 6), generator=torch.Generator().manual_seed(seed))
    ids[0, 3], ids[0, 4:], ids[1:, 5] = 96, 2, 96
    return ids


def _pair(**kwargs: Any) -> Callable:
    """Run both towers of a transformers model: tokens, embeddings and logits."""

    def run(model: nn.Module, pixels: Tensor) -> Outputs:
        out = model(pixel_values=pixels, input_ids=ids_of(pixels), **kwargs)
        pictures = model.vision_model(pixel_values=pixels, **kwargs)
        return {
            "tokens": pictures.last_hidden_state,
            "pooled": pictures.pooler_output,
            "image embeddings": model.get_image_features(pixel_values=pixels, **kwargs).pooler_output,
            "text tokens": out.text_model_output.last_hidden_state,
            "text embeddings": model.get_text_features(input_ids=ids_of(pixels)).pooler_output,
            "logits": out.logits_per_image,
        }

    return run


def _both_towers(path: Path, kind: str, **changes: Any) -> Reference:
    both = {"text_config": {**_TEXT, **changes.pop("text", {})}, "vision_config": _VISION, **changes}
    stretched = {"resized": _pair(interpolate_pos_encoding=True), "other_sizes": ((48, 56), (24, 80))}
    made = _hf(path, f"{kind}Config", f"{kind}Model", "vision_model", _pair(), **stretched, **both)
    made.blocks = nn.ModuleList([*made.model.vision_model.encoder.layers, *made.model.text_model.encoder.layers])
    return made


@case("clip", "first-end", layout="clip")
def _(path: Path) -> Reference:
    return _both_towers(path, "CLIP", text={"eos_token_id": 96}, projection_dim=53, processor=_CLIP)


@case("clip", "greatest-id", layout="clip")
def _(path: Path) -> Reference:
    # Where the end is 2, as in OpenAI's files, the greatest id is read: no text of ids_of ends in its first 2.
    text = {"eos_token_id": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-3}
    return _both_towers(path, "CLIP", text=text, projection_dim=31, processor=_CLIP)


_SIGLIP = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 40, "width": 40}}


@case("siglip_vision_model", "vision", layout="siglip_vision_model")
def _(path: Path) -> Reference:
    way = {**_towers(), "processor": _SIGLIP}
    return _hf(path, "SiglipVisionConfig", "SiglipVisionModel", "encoder.layers", **way)


@case("siglip_vision_model", "dropped-rest", layout="siglip_vision_model")
def _(path: Path) -> Reference:
    # 30 = 7 * 4 + 2, as the published 384 = 27 * 14 + 6: the convolution leaves out what is too much.
    way = {
        **_towers(),
        "other_sizes": ((33, 31), (20, 42)),
        "processor": {**_SIGLIP, "size": {"height": 30, "width": 30}},
    }
    return _hf(path, "SiglipVisionConfig", "SiglipVisionModel", "encoder.layers", **way, image_size=30, patch_size=4)


@case("siglip_vision_model", "out-of-both", layout="siglip_vision_model")
def _(path: Path) -> Reference:
    way = {**_towers("vision_model", projected=False), "processor": _SIGLIP}
    both = {"text_config": _TEXT, "vision_config": _VISION}
    made = _hf(path, "SiglipConfig", "SiglipModel", "vision_model.encoder.layers", **way, **both)
    made.family = "siglip_vision_model"
    return made


@case("siglip_classifier", "mean-of-patches")
def _(path: Path) -> Reference:
    def run(model: nn.Module, pixels: Tensor) -> Outputs:
        tokens = model.get_submodule("vision_model")(pixel_values=pixels).last_hidden_state
        return {"tokens": tokens, "logits": model(pixel_values=pixels).logits}

    both = {"text_config": _TEXT, "vision_config": _VISION, "num_labels": 11, "processor": _SIGLIP}
    return _hf(path, "SiglipConfig", "SiglipForImageClassification", "vision_model.encoder.layers", run, **both)


@case("siglip", "both-towers", layout="siglip")
def _(path: Path) -> Reference:
    return _both_towers(path, "Siglip", text={"projection_size": 91}, processor=_SIGLIP)


# --- open_clip ------------------------------------------------------------------------------------------------
# Its package is no dependency of the tests. Its names, as open_clip/model.py has them, hold the weights of models of
# transformers and timm, which are the reference.


def _open_clip_names(model: nn.Module) -> dict[str, Tensor]:
    """A CLIPModel's weights in the names and layouts of OpenAI's code."""
    state = dict(model.state_dict())
    result = {
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "visual.proj": state["visual_projection.weight"].T.contiguous(),
        "text_projection": state["text_projection.weight"].T.contiguous(),
        "logit_scale": state["logit_scale"],
    }
    for end in ("weight", "bias"):
        result[f"visual.ln_pre.{end}"] = state[f"vision_model.pre_layrnorm.{end}"]
        result[f"visual.ln_post.{end}"] = state[f"vision_model.post_layernorm.{end}"]
    result |= _open_clip_blocks(state, "vision_model.", "visual.") | _open_clip_texts(state, "text_model.", "")
    return result


def _open_clip_texts(state: dict[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    return _open_clip_blocks(state, theirs, ours) | {
        f"{ours}token_embedding.weight": state[f"{theirs}embeddings.token_embedding.weight"],
        f"{ours}positional_embedding": state[f"{theirs}embeddings.position_embedding.weight"],
        f"{ours}ln_final.weight": state[f"{theirs}final_layer_norm.weight"],
        f"{ours}ln_final.bias": state[f"{theirs}final_layer_norm.bias"],
    }


def _open_clip_blocks(state: dict[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    result = {}
    layers = 1 + max(int(name.split("layers.")[1].split(".")[0]) for name in state if f"{theirs}encoder.layers" in name)
    for i in range(layers):
        old, new = f"{theirs}encoder.layers.{i}.", f"{ours}transformer.resblocks.{i}."
        for end in ("weight", "bias"):
            parts = [state[f"{old}self_attn.{part}_proj.{end}"] for part in "qkv"]
            result[f"{new}attn.in_proj_{end}"] = torch.cat(parts)
            for name, known in (
                ("attn.out_proj", "self_attn.out_proj"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
            ):
                result[f"{new}{name}.{end}"] = state[f"{old}{known}.{end}"]
            result[f"{new}mlp.c_fc.{end}"] = state[f"{old}mlp.fc1.{end}"]
            result[f"{new}mlp.c_proj.{end}"] = state[f"{old}mlp.fc2.{end}"]
    return result


def _write_open_clip(path: Path, state: dict[str, Tensor], model_cfg: dict, safe: bool = True) -> None:
    import json

    from safetensors.torch import save_file

    for file in path.iterdir():
        file.unlink()
    if safe:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path / "open_clip_model.safetensors")
    else:
        torch.save(state, path / "open_clip_pytorch_model.bin")
    given = {"model_cfg": model_cfg, "preprocess_cfg": {"resize_mode": "squash", "interpolation": "bilinear"}}
    (path / "open_clip_config.json").write_text(json.dumps(given))


@case("open_clip", "quick-gelu", layout="clip")
def _(path: Path) -> Reference:
    # Heads in open_clip are 64 wide unless it says otherwise.
    made = _both_towers(path, "CLIP", text={"eos_token_id": 2}, projection_dim=31, processor=_CLIP)
    vision = {"image_size": 40, "layers": 3, "width": 91, "head_width": 13, "patch_size": 8, "mlp_ratio": 101 / 91}
    text = {"context_length": 13, "vocab_size": 97, "width": 24, "heads": 3, "layers": 2, "mlp_ratio": 1.21}
    config = {"embed_dim": 31, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    _write_open_clip(path, _open_clip_names(made.model), config, safe=False)
    made.other_sizes = ()
    return made


class _Siglip(nn.Module):
    """An image tower of timm, a text tower of transformers, and SigLIP's scale and bias."""

    def __init__(self) -> None:
        import timm
        import transformers

        super().__init__()
        text = {**_TEXT, "projection_size": 768, "hidden_act": "gelu", "attn_implementation": "sdpa"}
        self.trunk = timm.create_model("vit_base_patch32_siglip_256", num_classes=0)
        self.text = transformers.SiglipTextModel(transformers.SiglipTextConfig(**text))
        self.logit_scale = nn.Parameter(torch.tensor(2.1))
        self.logit_bias = nn.Parameter(torch.tensor(-3.0))


def _siglip_outputs(model: nn.Module, pixels: Tensor) -> Outputs:
    tokens = model.trunk.forward_features(pixels)
    pictures, texts = model.trunk.forward_head(tokens), model.text(input_ids=ids_of(pixels))
    embeddings = nn.functional.normalize(pictures, dim=-1), nn.functional.normalize(texts.pooler_output, dim=-1)
    return {
        "tokens": tokens,
        "pooled": pictures,
        "image embeddings": pictures,
        "text tokens": texts.last_hidden_state,
        "text embeddings": texts.pooler_output,
        "logits": embeddings[0] @ embeddings[1].T * model.logit_scale.exp() + model.logit_bias,
    }


# --- torchvision ----------------------------------------------------------------------------------------------


@case("torchvision", "new-names", layout="vit")
def _(path: Path) -> Reference:
    return _torchvision(path, old_names=False)


@case("torchvision", "old-names", layout="vit")
def _(path: Path) -> Reference:
    return _torchvision(path, old_names=True)


def _torchvision(path: Path, old_names: bool, published: bool = False) -> Reference:
    """torchvision's class, small. Its files have no config.json, so the one that its table reads stands beside it."""
    import json

    from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

    size, patch, depth, heads, width, hidden = (224, 32, 12, 12, 768, 3072) if published else (40, 8, 3, 7, 91, 101)
    torch.manual_seed(0)
    model = VisionTransformer(size, patch, depth, heads, width, hidden, num_classes=11)
    randomise(model)
    state = model.state_dict()
    if old_names:
        renamed = {".mlp.0.": ".mlp.linear_1.", ".mlp.3.": ".mlp.linear_2."}
        state = {_replaced(name, renamed): tensor for name, tensor in state.items()}
    torch.save(state, path / "model.pth")
    config = {"model_type": "torchvision", "image_size": size, "patch_size": patch, "num_hidden_layers": depth}
    config |= {"num_attention_heads": heads, "hidden_size": width, "intermediate_size": hidden, "num_labels": 11}
    (path / "config.json").write_text(json.dumps(config))

    def run(model: nn.Module, pixels: Tensor) -> Outputs:
        x = model._process_input(pixels)
        tokens = model.encoder(torch.cat([model.class_token.expand(len(x), -1, -1), x], dim=1))
        return {"tokens": tokens, "cls": tokens[:, 0], "pooled": tokens[:, 0], "logits": model.heads(tokens[:, 0])}

    def resized(model: nn.Module, pixels: Tensor) -> Outputs:
        side = pixels.shape[-1]
        other = VisionTransformer(side, patch, depth, heads, width, hidden, num_classes=11).to(pixels.dtype).eval()
        other.load_state_dict(interpolate_embeddings(side, patch, dict(model.state_dict())))
        blocks = other.encoder.layers
        for ours, theirs in zip(model.encoder.layers, blocks, strict=True):
            theirs._forward_hooks = ours._forward_hooks
        return run(other, pixels)

    layers = model.encoder.layers
    return Reference(
        path=path / "model.pth",
        family=None,
        model=model,
        blocks=layers,
        size=(size, size),
        run=run,
        resized=resized,
        other_sizes=((48, 48), (24, 24)),  # its interpolate_embeddings knows squares only
    )


def _replaced(name: str, replacements: dict[str, str]) -> str:
    for old, new in replacements.items():
        name = name.replace(old, new)
    return name


# --- timm -----------------------------------------------------------------------------------------------------

TIMM = {"depth": 3, "embed_dim": 90, "num_heads": 6, "mlp_ratio": 1.3, "num_classes": 11}


def _timm(path: Path, name: str, size: int = 40, **changes: Any) -> Reference:
    """A timm model made small by its own arguments, saved by timm for the hub: config.json and model.safetensors."""
    import timm
    from timm.models import save_for_hf

    kwargs = {**TIMM, "img_size": size, "patch_size": 8, **changes}
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    torch.manual_seed(0)
    model = randomise(timm.create_model(name, **kwargs))
    save_for_hf(model, path, safe_serialization=True, model_args=kwargs)

    def run(model: nn.Module, pixels: Tensor) -> Outputs:
        tokens = model.forward_features(pixels)
        outputs = {"tokens": tokens, "pooled": model.forward_head(tokens, pre_logits=True)}
        if model.num_classes:
            outputs["logits"] = model(pixels)
        if getattr(model, "head_dist", None) is not None and model.num_classes:
            outputs["logits cls"], outputs["logits dist"] = model.head(tokens[:, 0]), model.head_dist(tokens[:, 1])
        return outputs

    def resized(model: nn.Module, pixels: Tensor) -> Outputs:
        other = timm.create_model(name, **{**kwargs, "img_size": tuple(pixels.shape[2:])}).to(pixels.dtype).eval()
        other.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(model.state_dict(), other))
        for ours, theirs in zip(model.blocks, other.blocks, strict=True):
            theirs._forward_hooks = ours._forward_hooks
        return run(other, pixels)

    return Reference(
        path=path,
        family=None,
        model=model,
        blocks=model.blocks,
        size=(size, size),
        run=run,
        resized=resized,
        other_sizes=((48, 56), (24, 80)),
    )


for _name, _architecture, _changes, _layout in [
    ("vit", "vit_base_patch16_224", {}, "vit"),
    ("vit-no-head", "vit_tiny_patch16_224", {"num_classes": 0, "qkv_bias": False}, "vit"),
    ("vit-average", "vit_small_patch16_224", {"global_pool": "avg"}, None),
    ("gap", "vit_medium_patch16_gap_256", {}, None),
    ("registers-all-rows", "test_vit2", {"dynamic_img_size": None}, None),
    ("registers-patch-rows", "vit_medium_patch16_reg4_gap_256", {}, None),
    ("flexivit", "flexivit_small", {}, "vit"),
    ("deit", "deit_tiny_patch16_224", {}, "vit"),
    ("deit-distilled", "deit_base_distilled_patch16_224", {}, "deit"),
    ("deit-distilled-no-head", "deit_base_distilled_patch16_224", {"num_classes": 0}, None),
    ("deit3", "deit3_small_patch16_224", {"num_classes": 0, "mlp_ratio": 2}, "dinov2"),
    ("dino", "vit_small_patch8_224", {"num_classes": 0}, "vit"),
    ("dinov2", "vit_small_patch14_dinov2", {"num_classes": 0, "mlp_ratio": 3}, "dinov2"),
    ("dinov2-reg4", "vit_small_patch14_reg4_dinov2", {"num_classes": 0, "mlp_ratio": 3}, "dinov2_with_registers"),
    ("dinov2-giant", "vit_giant_patch14_dinov2", {"num_classes": 0, "mlp_ratio": 5.33334}, "dinov2"),
    ("clip", "vit_base_patch32_clip_224", {"num_classes": 53}, None),
    ("clip-quickgelu", "vit_base_patch16_clip_quickgelu_224", {"num_classes": 53}, None),
    ("siglip", "vit_base_patch16_siglip_224", {"num_classes": 0, "mlp_ratio": 1.3}, "siglip_vision_model"),
    ("siglip2-head", "vit_so400m_patch16_siglip_256", {}, None),
    ("siglip-384", "vit_so400m_patch14_siglip_384", {"num_classes": 0, "size": 43}, "siglip_vision_model"),
]:
    case("timm", _name, layout=_layout)(lambda path, a=_architecture, c=_changes: _timm(path, a, **c))


# --- facebookresearch's own files -----------------------------------------------------------------------------


def _facebook(
    path: Path, architecture: str, rename: dict[str, str], wrap: str | None = None, **changes: Any
) -> Reference:
    """The original .pth: timm's names but for a few, heads of 64, all sizes from the shapes.

    facebookresearch's code is no package; timm loads these very files, and its model is the reference here.
    """
    import timm

    kwargs: dict[str, Any] = {
        "depth": 3,
        "embed_dim": 128,
        "num_heads": 2,
        "mlp_ratio": 1.3,
        "num_classes": 0,
        "img_size": 56,
    }
    kwargs = {**kwargs, "patch_size": 8, **changes}
    size, width = kwargs["img_size"], kwargs["embed_dim"]
    torch.manual_seed(0)
    model = randomise(timm.create_model(architecture, **kwargs))
    state = {_replaced(name, rename): tensor for name, tensor in model.state_dict().items()}
    if "register_tokens" in state:
        # The file has a position row for the class token; timm adds it to the token instead.
        # Multiples of 1/1024, so that their sum is exact in float32, in which timm takes it.
        row = torch.randint(-512, 512, (1, 1, 128)) / 1024
        state["cls_token"] = torch.randint(-512, 512, (1, 1, 128)) / 1024
        state["pos_embed"] = torch.cat([row, state["pos_embed"]], dim=1)
        model.cls_token.data = state["cls_token"] + row
    if "w12" in str(rename) or "ls1" in str(list(state)):
        state["mask_token"] = torch.zeros(1, width)
    torch.save(
        {wrap: {f"module.backbone.{k}": v for k, v in state.items()}} if wrap else state,
        path / "dino_vits8_pretrain.pth",
    )

    def run(model: nn.Module, pixels: Tensor) -> Outputs:
        tokens = model.forward_features(pixels)
        return {"tokens": tokens, "cls": tokens[:, 0], "pooled": tokens[:, 0]}

    return Reference(
        path=path / "dino_vits8_pretrain.pth",
        family="facebook",
        model=model,
        blocks=model.blocks,
        size=(size, size),
        run=run,
    )


@case("facebook", "dino", layout="vit")
def _(path: Path) -> Reference:
    return _facebook(path, "vit_small_patch8_224", {})


@case("facebook", "dino-teacher", layout="vit")
def _(path: Path) -> Reference:
    return _facebook(path, "vit_small_patch8_224", {}, wrap="teacher")


@case("facebook", "dinov2", layout="dinov2")
def _(path: Path) -> Reference:
    return _facebook(path, "vit_small_patch14_dinov2", {}, mlp_ratio=3)


@case("facebook", "dinov2-reg", layout="dinov2_with_registers")
def _(path: Path) -> Reference:
    return _facebook(path, "vit_small_patch14_reg4_dinov2", {"reg_token": "register_tokens"}, mlp_ratio=3)


@case("facebook", "dinov2-giant", layout="dinov2")
def _(path: Path) -> Reference:
    rename = {"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"}
    return _facebook(path, "vit_giant_patch14_dinov2", rename, mlp_ratio=5.375)


# --- JAX ------------------------------------------------------------------------------------------------------


def _jax(
    path: Path,
    prefix: str = "",
    classes: int = 11,
    compressed: bool = False,
    sizes: tuple[int, ...] = (91, 7, 101, 8, 3, 5),
) -> Reference:
    """A .npz as vision_transformer writes it, with random arrays, read by timm's own npz loader."""
    import timm

    width, heads, hidden, patch, depth, grid = sizes
    rng = np.random.default_rng(0)

    def array(*shape: int, around: float = 0.0) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.2 + around).astype(np.float32)

    arrays = {
        "cls": array(1, 1, width),
        "embedding/kernel": array(patch, patch, 3, width),
        "embedding/bias": array(width),
        "Transformer/posembed_input/pos_embedding": array(1, grid * grid + 1, width),
        "Transformer/encoder_norm/scale": array(width, around=1),
        "Transformer/encoder_norm/bias": array(width),
        "head/kernel": array(width, classes),
        "head/bias": array(classes),
    }
    for i in range(depth):
        block = f"Transformer/encoderblock_{i}/"
        attention = block + "MultiHeadDotProductAttention_1/"
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            arrays[f"{block}{norm}/scale"] = array(width, around=1)
            arrays[f"{block}{norm}/bias"] = array(width)
        for name in ("query", "key", "value"):
            arrays[f"{attention}{name}/kernel"] = array(width, heads, width // heads)
            arrays[f"{attention}{name}/bias"] = array(heads, width // heads)
        arrays[f"{attention}out/kernel"] = array(heads, width // heads, width)
        arrays[f"{attention}out/bias"] = array(width)
        arrays[f"{block}MlpBlock_3/Dense_0/kernel"] = array(width, hidden)
        arrays[f"{block}MlpBlock_3/Dense_0/bias"] = array(hidden)
        arrays[f"{block}MlpBlock_3/Dense_1/kernel"] = array(hidden, width)
        arrays[f"{block}MlpBlock_3/Dense_1/bias"] = array(width)
    file = path / "model.npz"
    (np.savez_compressed if compressed else np.savez)(file, **{prefix + name: value for name, value in arrays.items()})

    def model_of(size: Any) -> nn.Module:
        args = {"depth": depth, "embed_dim": width, "num_heads": heads, "mlp_ratio": hidden / width}
        model = timm.create_model("vit_base_patch16_224", img_size=size, patch_size=patch, num_classes=classes, **args)
        model.load_pretrained(str(file))
        return model.eval()

    def run(model: nn.Module, pixels: Tensor) -> Outputs:
        tokens = model.forward_features(pixels)
        return {"tokens": tokens, "cls": tokens[:, 0], "pooled": tokens[:, 0], "logits": model(pixels)}

    def resized(model: nn.Module, pixels: Tensor) -> Outputs:
        other = model_of(tuple(pixels.shape[2:])).to(pixels.dtype)
        for ours, theirs in zip(model.blocks, other.blocks, strict=True):
            theirs._forward_hooks = ours._forward_hooks
        return run(other, pixels)

    model = model_of(grid * patch)
    return Reference(
        path=file,
        family="jax",
        model=model,
        blocks=model.blocks,
        size=(grid * patch, grid * patch),
        run=run,
        resized=resized,
        other_sizes=((48, 56), (24, 80)),
    )


@case("jax", "npz", layout="vit")
def _(path: Path) -> Reference:
    return _jax(path)


@case("jax", "optimizer-target", layout="vit")
def _(path: Path) -> Reference:
    return _jax(path, prefix="opt/target/", classes=5, compressed=True)


# --- Swin -----------------------------------------------------------------------------------------------------
# A grid of 10 x 14 tokens in windows of 3: padded to 12 x 15, merged to 5 x 7 and 3 x 4, of which one side is a window.

SWIN = {"embed_dim": 14, "depths": [2, 3, 2], "num_heads": [2, 7, 4], "window_size": 3, "mlp_ratio": 1.5}


def _pristine(run: Callable) -> Callable:
    """Run on a copy: transformers' Swin remembers for good that a picture was too small to be shifted."""
    return lambda model, pixels: run(copy.deepcopy(model), pixels)


def _hf_swin(path: Path, kind: str, **changes: Any) -> Reference:
    prefix = "swin." if kind.endswith("Classification") else ""
    run = _backbone(prefix.rstrip(".") or None)

    def tokens_only(model: nn.Module, pixels: Tensor) -> Outputs:
        return {name: tensor for name, tensor in run(model, pixels).items() if name != "cls"}

    plain = dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"))
    given = {**plain, **SWIN, "image_size": [40, 56], "patch_size": 4, **changes}
    made = _hf(path, "SwinConfig", kind, prefix + "encoder.layers", _pristine(tokens_only), **given)
    blocks = [block for stage in made.blocks for block in stage.blocks]
    made.blocks = nn.ModuleList([*blocks, *made.blocks])
    return made


@case("swin", "classifier", layout="swin")
def _(path: Path) -> Reference:
    # 64 x 88: no side is a window; 50 x 61: no whole number of patches, which are padded too.
    sizes = ((64, 88), (50, 61))
    return _hf_swin(path, "SwinForImageClassification", other_sizes=sizes)


@case("swin", "backbone-no-qkv-bias", layout="swin")
def _(path: Path) -> Reference:
    changes = {"qkv_bias": False, "hidden_act": "quick_gelu", "image_size": 56, "window_size": 4}
    return _hf_swin(path, "SwinModel", **changes, depths=[2, 2], num_heads=[2, 4])


def _torchvision_swin(path: Path, published: bool = False) -> Reference:
    import json

    from torchvision.models.swin_transformer import SwinTransformer

    sizes = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7, "mlp_ratio": 4.0}
    sizes = sizes if published else SWIN
    args = {key: value for key, value in sizes.items() if key != "window_size"}
    torch.manual_seed(0)
    model = randomise(SwinTransformer([4, 4], window_size=[sizes["window_size"]] * 2, num_classes=11, **args))
    torch.save(model.state_dict(), path / "model.pth")
    size = [224, 224] if published else [40, 56]
    config = {"model_type": "torchvision_swin", "image_size": size, "num_labels": 11, **sizes}
    (path / "config.json").write_text(json.dumps(config))
    stages = [model.features[i] for i in range(1, len(model.features), 2)]
    ends = [model.features[i] for i in range(2, len(model.features), 2)] + [stages[-1]]

    def run(model: nn.Module, pixels: Tensor) -> Outputs:
        tokens = model.norm(model.features(pixels)).flatten(1, 2)
        return {"tokens": tokens, "pooled": tokens.mean(dim=1), "logits": model(pixels)}

    blocks = nn.ModuleList([*(block for stage in stages for block in stage), *ends])
    # 8 x 40: less than a window, which torchvision alone pads to one.
    others = ((64, 88), (24, 48), (8, 40))
    return Reference(
        path=path / "model.pth", family=None, model=model, blocks=blocks, size=tuple(size), run=run, other_sizes=others
    )


@case("torchvision_swin", "swin")
def _(path: Path) -> Reference:
    return _torchvision_swin(path)


def _timm_swin(path: Path, name: str, size: Any = (40, 56), other_sizes: tuple = (), **changes: Any) -> Reference:
    import timm
    from timm.models import save_for_hf

    small = {**SWIN, "num_classes": 11, "img_size": size, **changes}
    kwargs = {key: value for key, value in small.items() if value is not None}
    torch.manual_seed(0)
    model = randomise(timm.create_model(name, **kwargs))
    save_for_hf(model, path, safe_serialization=True, model_args=kwargs)
    # timm crops squares out of squares; these pictures are oblong.
    (path / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor"}')
    stages = list(model.layers)
    ends = [stage.downsample for stage in stages[1:]] + [stages[-1]]

    def run(model: nn.Module, pixels: Tensor) -> Outputs:
        tokens = model.forward_features(pixels)
        outputs = {"tokens": tokens.flatten(1, 2), "pooled": model.forward_head(tokens, pre_logits=True)}
        return outputs | ({"logits": model(pixels)} if model.num_classes else {})

    blocks = nn.ModuleList([*(block for stage in stages for block in stage.blocks), *ends])
    return Reference(path=path, family=None, model=model, blocks=blocks, size=size, run=run, other_sizes=other_sizes)


@case("timm_swin", "tiny")
def _(path: Path) -> Reference:
    return _timm_swin(path, "swin_tiny_patch4_window7_224")


@case("timm_swin", "stages-of-their-own-window")
def _(path: Path) -> Reference:
    # 56 x 40 pixels: the last stage has 4 x 3 tokens in windows of 2; other sizes shift as the first one does.
    changes = {"window_size": [3, 5, 2], "num_classes": 0, "qkv_bias": False, "dynamic_img_size": True}
    return _timm_swin(path, "swin_s3_tiny_224", (56, 40), ((64, 88),), **changes)


# --- published sizes ------------------------------------------------------------------------------------------
# The smallest published size of every family, whole.

_TI = {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 768}
_S = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
_B = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_224 = {"image_size": 224, "patch_size": 16, "num_labels": 1000, "processor": {"size": 224}}


@case("vit", "Ti-16", full_size=True)
def _(path: Path) -> Reference:
    return _hf(path, "ViTConfig", "ViTForImageClassification", "vit.layers", _backbone("vit"), **_TI, **_224)


@case("deit", "Ti-16-distilled", full_size=True)
def _(path: Path) -> Reference:
    return _hf(path, "DeiTConfig", "DeiTForImageClassificationWithTeacher", "deit.layers", _two_heads(), **_TI, **_224)


_518 = {"image_size": 518, "patch_size": 14, "processor": {"size": 224}, "mlp_ratio": 4}


@case("dinov2", "S-14-at-224", full_size=True)
def _(path: Path) -> Reference:
    made = _hf(path, "Dinov2Config", "Dinov2Model", "encoder.layer", _backbone(), **_S, **_518)
    made.size = (224, 224)
    return made


@case("dinov2_with_registers", "S-14-at-224", full_size=True)
def _(path: Path) -> Reference:
    config, model = "Dinov2WithRegistersConfig", "Dinov2WithRegistersModel"
    made = _hf(path, config, model, "encoder.layer", _backbone(), **_S, **_518, num_register_tokens=4)
    made.size = (224, 224)
    return made


@case("dinov3_vit", "S-16", full_size=True)
def _(path: Path) -> Reference:
    way = {**_S, **_224, "num_register_tokens": 4}
    return _hf(path, "DINOv3ViTConfig", "DINOv3ViTModel", "model.layer", _backbone(), **way)


@case("vit_mae", "B-16", full_size=True)
def _(path: Path) -> Reference:
    way = {**_B, **_224, "mask_ratio": 0.0}
    return _hf(path, "ViTMAEConfig", "ViTMAEModel", "layers", _unmasked(patch=16), **way)


@case("clip_vision_model", "B-32", full_size=True)
def _(path: Path) -> Reference:
    way = {**_B, **_224, "patch_size": 32, "projection_dim": 512}
    layers = "vision_model.encoder.layers"
    return _hf(path, "CLIPVisionConfig", "CLIPVisionModelWithProjection", layers, _tower("vision_model"), **way)


@case("siglip_vision_model", "B-16", full_size=True)
def _(path: Path) -> Reference:
    return _hf(path, "SiglipVisionConfig", "SiglipVisionModel", "encoder.layers", _tower(), **_B, **_224)


@case("open_clip_timm", "SigLIP-B-32", full_size=True)
def _(path: Path) -> Reference:
    torch.manual_seed(0)
    model = randomise(_Siglip())
    state = {f"visual.{name}": tensor for name, tensor in model.state_dict().items() if name.startswith("trunk.")}
    state |= _open_clip_texts(dict(model.text.state_dict()), "", "text.")
    state |= {f"text.text_projection.{end}": getattr(model.text.head, end).detach() for end in ("weight", "bias")}
    state |= {name: getattr(model, name).detach() for name in ("logit_scale", "logit_bias")}
    vision = {"image_size": 256, "timm_model_name": "vit_base_patch32_siglip_256", "timm_pool": "map"}
    text = {"context_length": 13, "vocab_size": 97, "width": 24, "heads": 3, "layers": 2, "mlp_ratio": 1.21}
    text |= {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
    config = {"embed_dim": 768, "init_logit_bias": -10, "vision_cfg": {**vision, "timm_proj": "none"}, "text_cfg": text}
    _write_open_clip(path, state, config)
    blocks = nn.ModuleList([*model.trunk.blocks, *model.text.encoder.layers])
    return Reference(path=path, family=None, model=model, blocks=blocks, size=(256, 256), run=_siglip_outputs)


@case("swin", "T-4-7", full_size=True)
def _(path: Path) -> Reference:
    whole = {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24], "window_size": 7, "mlp_ratio": 4.0}
    return _hf_swin(path, "SwinForImageClassification", **whole, image_size=224, processor={"size": 224})


@case("torchvision_swin", "swin_t", full_size=True)
def _(path: Path) -> Reference:
    return _torchvision_swin(path, published=True)


@case("timm_swin", "swin_tiny_patch4_window7_224", full_size=True)
def _(path: Path) -> Reference:
    return _timm_swin(path, "swin_tiny_patch4_window7_224", (224, 224), **dict.fromkeys(SWIN))


@case("torchvision", "vit_b_32", full_size=True)
def _(path: Path) -> Reference:
    return _torchvision(path, old_names=False, published=True)


@case("timm", "vit_tiny_patch16_224", full_size=True)
def _(path: Path) -> Reference:
    whole = {"patch_size": None, "depth": None, "embed_dim": None, "num_heads": None, "mlp_ratio": None}
    return _timm(path, "vit_tiny_patch16_224", 224, **whole, num_classes=1000)


@case("facebook", "dino-S-16", full_size=True)
def _(path: Path) -> Reference:
    sizes = {"embed_dim": 384, "num_heads": 6, "depth": 12, "mlp_ratio": 4, "img_size": 224, "patch_size": 16}
    return _facebook(path, "vit_small_patch16_224", {}, **sizes)


@case("jax", "Ti-16", full_size=True)
def _(path: Path) -> Reference:
    return _jax(path, classes=1000, sizes=(192, 3, 768, 16, 12, 14))
