"""The reference libraries' models of the same files, and their steps under our names."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from minivit.errors import CheckpointError, UsageError
from minivit.model.attention import attention_probs
from minivit.model.config import SwinConfig, ViTConfig
from minivit.parity.swin import swin_place
from minivit.study.names import step_of, to_alias
from minivit.weights.families.registry import FAMILIES
from minivit.weights.files import Source, read_json

LIBRARIES = ("transformers", "timm", "torchvision")

# config.json's model_type -> where transformers has the steps of this family.
TRANSFORMERS = {
    name: family.reference
    for name, family in FAMILIES.items()
    if family.reference and family.reference.library == "transformers"
}


@dataclass(kw_only=True)
class ReferenceModel:
    """A reference library's model of a checkpoint."""

    library: str
    version: str
    module: nn.Module  # in eval mode
    config: ViTConfig | SwinConfig  # ours
    place: Callable[[str], str]  # a step's name -> where it stands in `module`; UsageError where nowhere
    forward: Callable[[Tensor], Any]  # pixels_BCHW -> the library's output
    prepare: Callable[[Image.Image], Tensor] | None = None  # an upright RGB image -> the library's own pixels_1CHW

    @torch.no_grad()
    def steps(self, pixels_BCHW: Tensor, names: list[str]) -> dict[str, Tensor]:
        """Return those of the named steps that this library has, computed in the dtype of the pixels.

        Nothing is replaced: its modules have hooks, and the function that every library calls for attention,
        scaled_dot_product_attention, is observed while it runs. Attention scores and probabilities are computed from
        the q, k and scale that it received.
        """
        self.module.to(pixels_BCHW.dtype)
        found: dict[str, Tensor] = {}
        block: list[int] = []  # the block that is running

        def hook_for(name: str, axes: str) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], *output: Any) -> None:
                x = output[0] if output else args[0] if args else next(iter(kwargs.values()))
                found[name] = self._laid_out(x[0] if isinstance(x, tuple) else x, axes).clone()

            return hook

        def observe(q: Tensor, k: Tensor, v: Tensor, out: Tensor, scale: float) -> None:
            if not block:
                return
            at_call = {
                "q": lambda: q,
                "k": lambda: k,
                "v": lambda: v,
                "attn.scores": lambda: q @ k.transpose(-2, -1) * scale,
                "attn.probs": lambda: attention_probs(q, k, scale=scale),
                "attn.mix": lambda: out,
            }
            for part, value in at_call.items():
                name = f"blocks.{block[-1]}.{part}"
                if name in names:
                    found[name] = value().clone()

        with ExitStack() as stack:
            stack.enter_context(_observed_attention(observe))
            for i in range(self.config.depth):
                layer = self.module.get_submodule(self.place(f"blocks.{i}.resid_post"))
                stack.callback(layer.register_forward_pre_hook(lambda m, args, i=i: block.append(i)).remove)
                stack.callback(layer.register_forward_hook(lambda m, args, out: block.clear()).remove)
            for name in names:
                try:
                    place = self.place(name)
                    module = self.module.get_submodule(place.removesuffix(".input"))
                except (UsageError, AttributeError):
                    continue
                if name.endswith((".q", ".k", ".v", ".attn.probs")):
                    continue  # as the kernel receives them, rotated where the model rotates them
                hook = hook_for(name, "BND" if isinstance(self.config, SwinConfig) else step_of(name)[0].axes)
                if place.endswith(".input"):
                    handle = module.register_forward_pre_hook(lambda m, a, k, h=hook: h(m, a, k), with_kwargs=True)
                else:
                    handle = module.register_forward_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
            output = self.forward(pixels_BCHW)
        for name, keys in OUTPUT_FIELDS.items():
            value = _first(output, keys)
            if name in names and value is not None and (name not in found or name == "logits"):
                found[name] = value
        return {name: found[name] for name in names if name in found}

    def _laid_out(self, x: Tensor, axes: str) -> Tensor:
        """A tensor of the library in our axes."""
        if isinstance(self.config, SwinConfig):
            return x.flatten(1, 2) if x.ndim == 4 else x  # (B, h, w, D) -> (B, P, D)
        if axes == "BPD" and x.ndim == 4:
            # (B, D, h, w) or timm's (B, h, w, D) -> (B, P, D)
            return x.flatten(1, 2) if x.shape[-1] == self.config.width else x.flatten(2).transpose(1, 2)
        if axes == "BANK" and x.ndim == 3:
            # (B, N, A*K) -> (B, N, A, K) -> (B, A, N, K)
            return x.unflatten(-1, (self.config.heads, -1)).transpose(1, 2)
        return x


# Steps that are no module's output but a field of what the model returns; "" is that itself.
OUTPUT_FIELDS = {"pooled": ("image_embeds", "pooler_output"), "logits": ("logits", "")}


def _first(output: Any, keys: tuple[str, ...]) -> Tensor | None:
    """The first of several fields of an output that is there; "" is the output itself, where it is a tensor."""
    for key in keys:
        value = getattr(output, key, None) if key else output
        if isinstance(value, Tensor):
            return value
    return None


@contextmanager
def _observed_attention(observe: Callable[[Tensor, Tensor, Tensor, Tensor, float], None]) -> Iterator[None]:
    """Report every call of F.scaled_dot_product_attention; nn.MultiheadAttention calls it too, off its fast path."""
    own, fast = F.scaled_dot_product_attention, torch.backends.mha.get_fastpath_enabled()

    def observed(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        out = own(query, key, value, *args, **kwargs)
        scale = kwargs.get("scale")
        observe(query, key, value, out, query.shape[-1] ** -0.5 if scale is None else scale)
        return out

    F.scaled_dot_product_attention = observed
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        F.scaled_dot_product_attention = own
        torch.backends.mha.set_fastpath_enabled(fast)


def load_reference(
    library: str, source: Source, config: ViTConfig | SwinConfig, family: str | None = None
) -> ReferenceModel:
    """Return the model that a reference library makes of the same files.

    Args:
        library: one of LIBRARIES.
        source: the files, as `weights.find` returns them.
        config: as minivit reads them.
        family: as in `minivit.load`.

    Raises:
        UsageError: the library is not installed, or cannot load these files.
        CheckpointError: it refuses them.
    """
    loaders = {"transformers": _transformers, "timm": _timm, "torchvision": _torchvision}
    if library not in loaders:
        raise UsageError(
            f"no library {library!r} to compare with; known are {', '.join(LIBRARIES)}, or a FILE.safetensors"
        )
    try:
        importlib.import_module(library)
    except ImportError as error:
        raise UsageError(f"{library} is not installed ({error}): pip install 'minivit[diff]'") from None
    try:
        reference = loaders[library](source, config, family)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        first = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{source.name}: {library} cannot load it: {type(error).__name__}: {first}") from None
    reference.module.eval()
    return reference


def _transformers(source: Source, config: ViTConfig | SwinConfig, family: str | None) -> ReferenceModel:
    import transformers
    from transformers.utils import logging

    kind = source.config.get("model_type")
    if kind not in TRANSFORMERS:
        other = "torchvision" if str(kind).startswith("torchvision") else "timm"
        raise UsageError(f"{source.name}: not files of transformers; compare with --against {other}")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = str(source.shards[0].parent)
    names = source.config.get("architectures") or ["AutoModel"]
    # MAE as it is used: nothing masked. A pooler that is in no file would be random.
    changes: dict[str, Any] = {"mask_ratio": 0.0} if kind == "vit_mae" else {}
    if isinstance(config, ViTConfig) and names[0] in ("ViTModel", "DeiTModel"):
        changes["add_pooling_layer"] = config.pooler
    model = getattr(transformers, names[0]).from_pretrained(
        folder, attn_implementation="sdpa", dtype=torch.float32, local_files_only=True, **changes
    )
    _, table, trunk, own = TRANSFORMERS[kind]
    alone = not hasattr(model, own)

    def place(name: str) -> str:
        if isinstance(config, SwinConfig):
            there = swin_place(config, name, table)
            return there if alone or there.startswith("classifier") else f"{own}.{there}"
        there = to_alias(name, table)
        if config.mlp == "swiglu" and name.endswith(".mlp.pre"):
            raise UsageError("transformers has gate and value in two modules")
        if there.startswith(trunk) and trunk:
            return there.removeprefix(trunk) if alone else f"{own}.{there.removeprefix(trunk)}"
        return there if hasattr(model, there.partition(".")[0]) else there.removeprefix("cls_")

    def forward(pixels_BCHW: Tensor) -> Any:
        if kind == "vit_mae":
            # It shuffles even what it does not mask, by the order of this noise.
            patches = config.layout_for((pixels_BCHW.shape[2], pixels_BCHW.shape[3])).patches
            encoder = model if alone else model.vit
            return encoder(pixel_values=pixels_BCHW, noise=torch.arange(patches).expand(len(pixels_BCHW), -1))
        if kind == "clip":
            return {"image_embeds": model.visual_projection(model.vision_model(pixel_values=pixels_BCHW)[1])}
        if kind == "siglip":
            return model.vision_model(pixel_values=pixels_BCHW)
        return model(pixel_values=pixels_BCHW)

    processor = _processor(source, folder)
    return ReferenceModel(
        library="transformers",
        version=transformers.__version__,
        module=model,
        config=config,
        place=place,
        forward=lambda pixels: _fields(forward(pixels)),
        prepare=processor and (lambda image: processor(images=image, return_tensors="pt")["pixel_values"]),
    )


class _fields:  # noqa: N801
    """The entries of a model's output as attributes, whatever class of the library it is."""

    def __init__(self, output: Any):
        self.__dict__.update(output.items())


def _processor(source: Source, folder: str) -> Any:
    """transformers' image processor of Pillow for these files, or its only one; None where no file names one."""
    import transformers

    if source.preprocessor is None:
        return None
    given = source.preprocessor
    named = str(given.get("image_processor_type") or given.get("feature_extractor_type") or "ViTImageProcessor")
    short = re.sub(r"(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", named)
    kinds = (getattr(transformers, short + ending, None) for ending in ("ImageProcessorPil", "ImageProcessor"))
    kind = next((kind for kind in kinds if kind), None)
    return kind and kind.from_pretrained(folder, local_files_only=True)


def _timm(source: Source, config: ViTConfig | SwinConfig, family: str | None) -> ReferenceModel:
    import timm

    owner, _, model_name = (family or "").partition("/")
    if owner == "timm" and model_name:
        file = str(source.shards[0])
        model = timm.create_model(model_name, num_classes=config.classes, checkpoint_path=file)
    elif "architecture" in source.config:
        folder, architecture = source.shards[0].parent, source.config["architecture"]
        if read_json(folder / "config.json").get("architecture") == architecture:
            model = timm.create_model(f"local-dir:{folder}", pretrained=True)
        else:  # a name with another activation than the files it shares
            file = str(source.shards[0])
            model = timm.create_model(architecture, num_classes=config.classes, checkpoint_path=file)
    else:
        torchvisions = str(source.config.get("model_type")).startswith("torchvision")
        other = "torchvision" if torchvisions else "transformers"
        raise UsageError(f"{source.name}: not files of timm; compare with --against {other}")
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))

    def place(name: str) -> str:
        if isinstance(config, SwinConfig):
            return swin_place(config, name, "timm")
        return "fc_norm" if name == "norm" and config.norm == "pooled" else to_alias(name, "timm")

    return ReferenceModel(
        library="timm",
        version=timm.__version__,
        module=model,
        config=config,
        place=place,
        forward=model,
        prepare=lambda image: transform(image)[None],
    )


def _torchvision(source: Source, config: ViTConfig | SwinConfig, family: str | None) -> ReferenceModel:
    import torchvision
    from torchvision.models.swin_transformer import SwinTransformer
    from torchvision.models.vision_transformer import VisionTransformer
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification

    from minivit.images.spec import RESAMPLES
    from minivit.weights.shards import load_pickle

    if source.config.get("model_type") not in ("torchvision", "torchvision_swin"):
        other = "timm" if "architecture" in source.config else "transformers"
        raise UsageError(f"{source.name}: not files of torchvision; compare with --against {other}")
    if isinstance(config, SwinConfig):
        patch, window = ([side, side] for side in (config.patch_size, config.window[0]))
        of_stages = (list(config.depths), list(config.heads))
        model: nn.Module = SwinTransformer(
            patch, config.width, *of_stages, window, config.mlp_ratio, num_classes=config.classes
        )
    else:
        sizes = (config.image_size[0], config.patch_size, config.depth, config.heads, config.width, config.mlp_width)
        model = VisionTransformer(*sizes, num_classes=config.classes)
    model.load_state_dict(load_pickle(source.shards[0]).tensors)
    given, transform = source.preprocessor, None
    if given:
        transform = ImageClassification(
            crop_size=given["crop_size"]["height"],
            resize_size=given["size"]["shortest_edge"],
            interpolation=InterpolationMode(RESAMPLES[given["resample"]]),
        )
    return ReferenceModel(
        library="torchvision",
        version=torchvision.__version__,
        module=model,
        config=config,
        place=lambda name: (
            swin_place(config, name, "torchvision") if isinstance(config, SwinConfig) else to_alias(name, "torchvision")
        ),
        forward=model,
        prepare=transform and (lambda image: transform(image)[None]),
    )
