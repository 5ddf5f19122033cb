"""Published checkpoints, shown by `minivit models`: data only."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """One published checkpoint."""

    family: str
    id: str  # what minivit.load takes
    size: str  # of config.SIZES and the patch in pixels; "-" for a size of its own
    image_size: int  # height and width after preprocessing, in pixels
    licence: str
    top1: float | None  # percent on ImageNet-1k, as published
    source: str  # of top1, or the use of the checkpoint


_TIMM = "timm results-imagenet.csv"
_TV_META = "torchvision weights.meta"
_DEIT = "arXiv:2012.12877"
_DINO = "arXiv:2104.14294, linear"
_DINOV2 = "arXiv:2304.07193, linear"
_REGISTERS = "dinov2 README, linear"
_FEATURES = "features; no published head"
_ZERO_SHOT = "images and texts, any labels"
_SWIN = "arXiv:2103.14030, table 1 (a)"
_SWIN_22K = "arXiv:2103.14030, table 1 (b)"
_TOWER = "image tower; no published head"
# torchvision states a licence for its code, none for the weights it trained.
_BSD = "bsd-3-clause (code)"
_APACHE, _SWAG, _DINO3 = "apache-2.0", "cc-by-nc-4.0", "dinov3-license"
_AUGREG = "augreg_in21k_ft_in1k"

CATALOG = (
    Published("vit", "minivit/cifar10-vit", "-", 32, "mit", None, "in the package; 10 classes, 81.27 on CIFAR-10"),
    # The file was made from timm's orig_in21k_ft_in1k, by dates and names; its own card gives no number.
    Published("vit", "google/vit-base-patch16-224", "B/16", 224, _APACHE, 81.782, f"{_TIMM}, orig_in21k_ft_in1k"),
    Published("vit", "google/vit-base-patch16-384", "B/16", 384, _APACHE, 84.212, f"{_TIMM}, orig_in21k_ft_in1k"),
    Published("vit", "google/vit-large-patch32-384", "L/32", 384, _APACHE, 81.508, f"{_TIMM}, orig_in21k_ft_in1k"),
    Published("vit", "google/vit-base-patch16-224-in21k", "B/16", 224, _APACHE, None, _FEATURES),
    Published("vit", "google/vit-huge-patch14-224-in21k", "H/14", 224, _APACHE, None, _FEATURES),
    Published("vit", "facebook/deit-tiny-patch16-224", "Ti/16", 224, _APACHE, 72.2, _DEIT),
    Published("vit", "facebook/deit-small-patch16-224", "S/16", 224, _APACHE, 79.9, _DEIT),
    Published("vit", "facebook/deit-base-patch16-224", "B/16", 224, _APACHE, 81.8, _DEIT),
    Published("vit", "facebook/dino-vits16", "S/16", 224, _APACHE, 77.0, _DINO),
    Published("vit", "facebook/dino-vits8", "S/8", 224, _APACHE, 79.7, _DINO),
    Published("vit", "facebook/dino-vitb16", "B/16", 224, _APACHE, 78.2, _DINO),
    Published("vit", "facebook/dino-vitb8", "B/8", 224, _APACHE, 80.1, _DINO),
    Published("deit", "facebook/deit-tiny-distilled-patch16-224", "Ti/16", 224, _APACHE, 74.5, _DEIT),
    Published("deit", "facebook/deit-small-distilled-patch16-224", "S/16", 224, _APACHE, 81.2, _DEIT),
    Published("deit", "facebook/deit-base-distilled-patch16-224", "B/16", 224, _APACHE, 83.4, _DEIT),
    Published("dinov2", "facebook/dinov2-small", "S/14", 224, _APACHE, 81.1, _DINOV2),
    Published("dinov2", "facebook/dinov2-base", "B/14", 224, _APACHE, 84.5, _DINOV2),
    Published("dinov2", "facebook/dinov2-large", "L/14", 224, _APACHE, 86.3, _DINOV2),
    Published("dinov2", "facebook/dinov2-giant", "g/14", 224, _APACHE, 86.5, _DINOV2),
    Published("dinov2", "facebook/dinov2-small-imagenet1k-1-layer", "S/14", 224, _APACHE, 81.1, _DINOV2),
    Published("dinov2_with_registers", "facebook/dinov2-with-registers-small", "S/14", 224, _APACHE, 80.9, _REGISTERS),
    Published("dinov2_with_registers", "facebook/dinov2-with-registers-base", "B/14", 224, _APACHE, 84.6, _REGISTERS),
    Published("dinov2_with_registers", "facebook/dinov2-with-registers-large", "L/14", 224, _APACHE, 86.7, _REGISTERS),
    Published("dinov2_with_registers", "facebook/dinov2-with-registers-giant", "g/14", 224, _APACHE, 87.1, _REGISTERS),
    Published("dinov3_vit", "facebook/dinov3-vits16-pretrain-lvd1689m", "S/16", 224, _DINO3, None, _FEATURES),
    Published("dinov3_vit", "facebook/dinov3-vitb16-pretrain-lvd1689m", "B/16", 224, _DINO3, None, _FEATURES),
    Published("dinov3_vit", "facebook/dinov3-vitl16-pretrain-lvd1689m", "L/16", 224, _DINO3, None, _FEATURES),
    Published("dinov3_vit", "facebook/dinov3-vit7b16-pretrain-lvd1689m", "7B/16", 224, _DINO3, None, _FEATURES),
    Published("vit_mae", "facebook/vit-mae-base", "B/16", 224, "cc-by-nc-4.0", None, "features; encoder, unmasked"),
    Published("clip", "openai/clip-vit-base-patch32", "B/32", 224, "mit", None, _ZERO_SHOT),
    Published("clip", "openai/clip-vit-base-patch16", "B/16", 224, "mit", None, _ZERO_SHOT),
    Published("clip", "openai/clip-vit-large-patch14", "L/14", 224, "mit", None, _ZERO_SHOT),
    Published("clip", "openai/clip-vit-large-patch14-336", "L/14", 336, "mit", None, _ZERO_SHOT),
    Published("siglip", "google/siglip-base-patch16-224", "B/16", 224, _APACHE, None, _ZERO_SHOT),
    Published("siglip", "google/siglip-base-patch16-256", "B/16", 256, _APACHE, None, _ZERO_SHOT),
    Published("siglip", "google/siglip-base-patch16-384", "B/16", 384, _APACHE, None, _ZERO_SHOT),
    Published("siglip", "google/siglip-base-patch16-512", "B/16", 512, _APACHE, None, _ZERO_SHOT),
    Published("siglip", "google/siglip-large-patch16-256", "L/16", 256, _APACHE, None, _ZERO_SHOT),
    Published("siglip", "google/siglip-large-patch16-384", "L/16", 384, _APACHE, None, _ZERO_SHOT),
    Published("siglip", "google/siglip-so400m-patch14-224", "So400m/14", 224, _APACHE, None, _ZERO_SHOT),
    Published("siglip", "google/siglip-so400m-patch14-384", "So400m/14", 384, _APACHE, None, _ZERO_SHOT),
    Published("torchvision", "torchvision/vit_b_16", "B/16", 224, _BSD, 81.072, _TV_META),
    Published("torchvision", "torchvision/vit_b_16.IMAGENET1K_SWAG_E2E_V1", "B/16", 384, _SWAG, 85.304, _TV_META),
    Published("torchvision", "torchvision/vit_b_16.IMAGENET1K_SWAG_LINEAR_V1", "B/16", 224, _SWAG, 81.886, _TV_META),
    Published("torchvision", "torchvision/vit_b_32", "B/32", 224, _BSD, 75.912, _TV_META),
    Published("torchvision", "torchvision/vit_l_16", "L/16", 224, _BSD, 79.662, _TV_META),
    Published("torchvision", "torchvision/vit_l_16.IMAGENET1K_SWAG_E2E_V1", "L/16", 512, _SWAG, 88.064, _TV_META),
    Published("torchvision", "torchvision/vit_l_16.IMAGENET1K_SWAG_LINEAR_V1", "L/16", 224, _SWAG, 85.146, _TV_META),
    Published("torchvision", "torchvision/vit_l_32", "L/32", 224, _BSD, 76.972, _TV_META),
    Published("torchvision", "torchvision/vit_h_14", "H/14", 518, _SWAG, 88.552, _TV_META),
    Published("torchvision", "torchvision/vit_h_14.IMAGENET1K_SWAG_LINEAR_V1", "H/14", 224, _SWAG, 85.708, _TV_META),
    Published("timm", f"timm/vit_tiny_patch16_224.{_AUGREG}", "Ti/16", 224, _APACHE, 75.452, _TIMM),
    Published("timm", f"timm/vit_small_patch16_224.{_AUGREG}", "S/16", 224, _APACHE, 81.402, _TIMM),
    Published("timm", f"timm/vit_base_patch32_224.{_AUGREG}", "B/32", 224, _APACHE, 80.732, _TIMM),
    Published("timm", f"timm/vit_base_patch16_224.{_AUGREG}", "B/16", 224, _APACHE, 84.534, _TIMM),
    Published("timm", f"timm/vit_base_patch16_384.{_AUGREG}", "B/16", 384, _APACHE, 86.010, _TIMM),
    Published("timm", f"timm/vit_large_patch16_224.{_AUGREG}", "L/16", 224, _APACHE, 85.856, _TIMM),
    Published("timm", f"timm/vit_large_patch16_384.{_AUGREG}", "L/16", 384, _APACHE, 87.096, _TIMM),
    Published("timm", "timm/deit_tiny_patch16_224.fb_in1k", "Ti/16", 224, _APACHE, 72.190, _TIMM),
    Published("timm", "timm/deit_base_distilled_patch16_224.fb_in1k", "B/16", 224, _APACHE, 83.384, _TIMM),
    Published("timm", "timm/vit_small_patch14_reg4_dinov2.lvd142m", "S/14", 518, _APACHE, None, _FEATURES),
    Published("timm", "timm/vit_base_patch16_clip_quickgelu_224.openai", "B/16", 224, "mit", None, _TOWER),
    Published("timm", "timm/vit_base_patch16_siglip_224.webli", "B/16", 224, _APACHE, None, _TOWER),
    Published("open_clip_timm", "timm/ViT-B-16-SigLIP", "B/16", 224, _APACHE, None, _ZERO_SHOT),
    Published("swin", "microsoft/swin-tiny-patch4-window7-224", "Swin-T", 224, _APACHE, 81.2, _SWIN),
    Published("swin", "microsoft/swin-small-patch4-window7-224", "Swin-S", 224, _APACHE, 83.2, _SWIN),
    Published("swin", "microsoft/swin-base-patch4-window7-224", "Swin-B", 224, _APACHE, 83.5, _SWIN),
    Published("swin", "microsoft/swin-base-patch4-window12-384", "Swin-B", 384, _APACHE, 84.5, _SWIN),
    Published("swin", "microsoft/swin-large-patch4-window7-224", "Swin-L", 224, _APACHE, 86.3, _SWIN_22K),
    Published("swin", "microsoft/swin-large-patch4-window12-384", "Swin-L", 384, _APACHE, 87.3, _SWIN_22K),
    Published("torchvision_swin", "torchvision/swin_t", "Swin-T", 224, _BSD, 81.474, _TV_META),
    Published("torchvision_swin", "torchvision/swin_s", "Swin-S", 224, _BSD, 83.196, _TV_META),
    Published("torchvision_swin", "torchvision/swin_b", "Swin-B", 224, _BSD, 83.582, _TV_META),
    Published("timm_swin", "timm/swin_tiny_patch4_window7_224.ms_in1k", "Swin-T", 224, "mit", 81.388, _TIMM),
    Published("facebook", "dino_deitsmall16_pretrain.pth", "S/16", 224, _APACHE, 77.0, _DINO),
    Published("facebook", "dinov2_vits14_pretrain.pth", "S/14", 224, _APACHE, 81.1, _DINOV2),
    Published("jax", "ViT-B_16.npz", "B/16", 224, _APACHE, None, "gs://vit_models, any of its files"),
)
