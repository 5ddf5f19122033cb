"""Random models and checkpoints: their sizes, and values that hide no fault."""

from __future__ import annotations

import torch

# Sizes are pairwise different, primes where they can be, so that no swapped axis can pass: grid 3 x 5,
# 16 tokens, width 7 heads of 13, MLP 101, 11 classes, patches of 8.
HF_SIZES = {
    "image_size": [24, 40],
    "patch_size": 8,
    "hidden_size": 91,
    "num_hidden_layers": 3,
    "num_attention_heads": 7,
    "intermediate_size": 101,
    "num_labels": 11,
}


@torch.no_grad()
def randomise(model: torch.nn.Module) -> None:
    """Give every parameter a value that matters: fresh models have biases of 0 and norms of 1, which hide faults."""
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.copy_(torch.randn_like(parameter) * 0.2 + ("norm" in name and name.endswith("weight")))
