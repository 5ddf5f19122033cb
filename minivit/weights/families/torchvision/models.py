"""torchvision's models and weights: what their names say, in the words of a config.json of transformers."""

from __future__ import annotations

from minivit.errors import UsageError
from minivit.weights.families.base import Given, Named, Shapes
from minivit.weights.families.labels import imagenet_labels

# torchvision/models/vision_transformer.py and swin_transformer.py.
SIZES: dict[str, Given] = {
    "vit_b_16": {"patch_size": 16, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "vit_b_32": {"patch_size": 32, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "vit_l_16": {"patch_size": 16, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "vit_l_32": {"patch_size": 32, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "vit_h_14": {"patch_size": 14, "hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16},
    "swin_t": {"embed_dim": 96, "depths": [2, 2, 6, 2], "num_heads": [3, 6, 12, 24]},
    "swin_s": {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24]},
    "swin_b": {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]},
}

# The weights of each model by their enum name, torchvision's DEFAULT first: file, image size in pixels, shorter edge
# before the crop, Pillow's filter (2 bilinear, 3 bicubic). The hexadecimal end of a file name is the beginning
# of its SHA-256.
URL = "https://download.pytorch.org/models/"
WEIGHTS: dict[str, dict[str, tuple[str, int, int, int]]] = {
    "vit_b_16": {
        "IMAGENET1K_V1": ("vit_b_16-c867db91.pth", 224, 256, 2),
        "IMAGENET1K_SWAG_E2E_V1": ("vit_b_16_swag-9ac1b537.pth", 384, 384, 3),
        "IMAGENET1K_SWAG_LINEAR_V1": ("vit_b_16_lc_swag-4e70ced5.pth", 224, 224, 3),
    },
    "vit_b_32": {"IMAGENET1K_V1": ("vit_b_32-d86f8d99.pth", 224, 256, 2)},
    "vit_l_16": {
        "IMAGENET1K_V1": ("vit_l_16-852ce7e3.pth", 224, 242, 2),
        "IMAGENET1K_SWAG_E2E_V1": ("vit_l_16_swag-4f3808c9.pth", 512, 512, 3),
        "IMAGENET1K_SWAG_LINEAR_V1": ("vit_l_16_lc_swag-4d563306.pth", 224, 224, 3),
    },
    "vit_l_32": {"IMAGENET1K_V1": ("vit_l_32-c7638314.pth", 224, 256, 2)},
    "vit_h_14": {
        "IMAGENET1K_SWAG_E2E_V1": ("vit_h_14_swag-80465313.pth", 518, 518, 3),
        "IMAGENET1K_SWAG_LINEAR_V1": ("vit_h_14_lc_swag-c1eb923e.pth", 224, 224, 3),
    },
    "swin_t": {"IMAGENET1K_V1": ("swin_t-704ceda3.pth", 224, 232, 3)},
    "swin_s": {"IMAGENET1K_V1": ("swin_s-5e29d889.pth", 224, 246, 3)},
    "swin_b": {"IMAGENET1K_V1": ("swin_b-68c6b09e.pth", 224, 238, 3)},
}


def published(file: str) -> str | None:
    """Return the name of the weights in a file that torchvision publishes, such as "vit_b_16.IMAGENET1K_V1"."""
    found = (f"{model}.{enum}" for model, weights in WEIGHTS.items() for enum in weights if weights[enum][0] == file)
    return next(found, None)


def head_of(given: Given, shapes: Shapes, *heads: str) -> Given:
    """Return the number of outputs of the head in the file, where only the model's name stands for a config.json."""
    rows = [shapes[f"{head}.weight"][0] for head in heads if f"{head}.weight" in shapes]
    return {"classes": rows[0]} if "weights" in given and rows else {}


def named(model: str) -> Named:
    """Return what config.json and preprocessor_config.json would say for one of torchvision's names.

    Args:
        model: "vit_b_16", or with the name of its weights "vit_b_16.IMAGENET1K_V1".

    Raises:
        UsageError: torchvision has no such model or weights.
    """
    model, _, enum = model.partition(".")
    if model not in WEIGHTS:
        raise UsageError(f"torchvision/{model}: no such model; known are {', '.join(WEIGHTS)}")
    weights = WEIGHTS[model]
    enum = enum or next(iter(weights))
    if enum not in weights:
        raise UsageError(f"torchvision/{model}: no weights {enum}; known are {', '.join(weights)}")
    file, size, edge, resample = weights[enum]
    sizes = SIZES[model]
    vit = "hidden_size" in sizes
    config = {
        "model_type": "torchvision" if vit else "torchvision_swin",
        **({"intermediate_size": 4 * sizes["hidden_size"]} if vit else {}),
        **sizes,
        "image_size": size,
        "weights": enum,
        "id2label": imagenet_labels(),
    }
    preprocessor = {
        "image_processor_type": "TorchvisionPreset",
        "size": {"shortest_edge": edge},
        "crop_size": {"height": size, "width": size},
        "resample": resample,
    }
    return Named(config, preprocessor, file)
