"""LoRA adapters of PEFT (adapter_config.json): what they add to the parameters of a base, and what they replace."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from minivit.errors import CheckpointError
from minivit.weights.files import ADAPTER, Source, read_json
from minivit.weights.shards import Shards

FILES = ("adapter_model.safetensors", "adapter_model.bin")
_WRAPPER = "base_model.model."  # PEFT's prefix of every name

# Settings that change what an adapter computes, with the values that are supported.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "alora_invocation_tokens": (None,),
    "megatron_config": (None,),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
}


class Adapter:
    """The tensors of one adapter by the names of the base's tensors; each is to be used once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = read_json(folder / ADAPTER)
        for key, values in _SUPPORTED.items():
            if self.config.get(key, values[0]) not in values:
                raise CheckpointError(
                    f"{folder / ADAPTER}: {key} is {self.config[key]!r}, which is not merged; merge it with PEFT: "
                    "model.merge_and_unload().save_pretrained(FOLDER)"
                )
        if not isinstance(self.config.get("r", 8), int) or not isinstance(
            self.config.get("lora_alpha", 8), int | float
        ):
            raise CheckpointError(f"{folder / ADAPTER}: r and lora_alpha must be numbers")
        path = next((folder / file for file in FILES if (folder / file).is_file()), None)
        if path is None:
            raise CheckpointError(f"{folder}: has {ADAPTER} and no weights; expected one of {', '.join(FILES)}")
        source = Source(name=str(folder), revision=None, config={}, preprocessor=None, shards=(path,))
        with Shards(source) as shards:
            self.tensors = {name.removeprefix(_WRAPPER): shards[name].clone() for name in shards.shapes}
        self.left = set(self.tensors)

    def has(self, name: str) -> bool:
        """Return whether the adapter changes this tensor of the base."""
        return any(self._names(name))

    def _names(self, name: str) -> tuple[str, str, str]:
        """Return the names of A, B and of a replacement that the adapter has for a tensor; "" where it has none."""
        module, _, suffix = name.rpartition(".")
        a, b = (f"{module}.lora_{part}.weight" if suffix == "weight" else "" for part in "AB")
        saved = (f"{module}.modules_to_save.{suffix}", f"{module}.modules_to_save.default.{suffix}", name)
        replacement = next((one for one in saved if one in self.tensors), "")
        return (a if a in self.tensors else ""), (b if b in self.tensors else ""), replacement

    def apply(self, name: str, base: Tensor) -> Tensor:
        """Return a tensor of the base with its part of the adapter: W + scale B A, or the tensor that replaces it.

        Computed in float64. Hu et al. 2021 (arXiv:2106.09685), equation 3; peft/tuners/lora/layer.py.

        Raises:
            CheckpointError: the adapter is of another shape, or has one of A and B.
        """
        a, b, replacement = self._names(name)
        if replacement:
            base = self.tensors[replacement]
        result = base.double()
        if a or b:
            if not (a and b):
                raise CheckpointError(f"{self.folder}: the adapter has only one of lora_A and lora_B for {name}")
            down, up = self.tensors[a].double(), self.tensors[b].double()
            try:
                # (r, in, ...) and (out, r, ...) -> the shape of the weight
                delta = (up.flatten(1) @ down.flatten(1)).reshape(result.shape)
            except RuntimeError:
                shapes = f"{list(up.shape)} and {list(down.shape)}"
                raise CheckpointError(
                    f"{self.folder}: lora_B and lora_A of {name} are {shapes}, the base has {list(result.shape)}"
                ) from None
            result = result + self.scale(a.removesuffix(".lora_A.weight")) * delta
        self.left -= {a, b, replacement}
        return result

    def scale(self, module: str) -> float:
        """Return the factor of B A for a module: alpha / r, or with rslora alpha / sqrt(r)."""

        def stated(patterns: str, usual: Any) -> Any:
            for pattern, value in (self.config.get(patterns) or {}).items():
                if re.match(rf"(.*\.)?({pattern})$", module):
                    return value
            return usual

        rank = stated("rank_pattern", self.config.get("r", 8))
        alpha = stated("alpha_pattern", self.config.get("lora_alpha", 8))
        return alpha / (rank**0.5 if self.config.get("use_rslora") else rank)
