"""The configuration of every model as frozen dataclasses: sizes, switches and the layout of its tokens. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from minivit.errors import ShapeError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "silu", "relu")
MLPS = ("plain", "swiglu")
POSITIONS = ("learned", "learned_all", "learned_patches", "rope")
POSITION_RESAMPLINGS = ("hf", "dinov2", "timm", "dino", "torchvision", "npz", "jax")  # see embed.resample_positions
NORMS = ("tokens", "pooled")
POOLINGS = ("cls", "mean", "cls+mean", "cls&dist", "map")
POOLING_WORDS = {
    "cls": "class token",
    "mean": "mean of the patches",
    "cls+mean": "class token and the mean of the patches",
    "cls&dist": "class token and, a second one, on the distillation token",
    "map": "attention pool",
}  # the input of the head, by ViTConfig.pooling
HEADS = ("linear", "cosine")
SCORES = ("softmax", "sigmoid", "none")  # of one class among all, of each class on its own, the logits themselves
SCORE_WORDS = {
    "softmax": "softmax over all classes",
    "sigmoid": "sigmoid, each class on its own",
    "none": "none: the outputs themselves",
}  # what the scores are, by ViTConfig.score
WINDOWINGS = ("hf", "torchvision", "timm")  # see swin.windows_of
TEXT_POOLINGS = ("argmax", "end", "last")


@dataclass(frozen=True, kw_only=True)
class TokenLayout:
    """The order of the N tokens of a sequence: prefix tokens first, then the patches row by row."""

    cls: int = 1  # class tokens, 0 or 1
    dist: int = 0  # distillation tokens (DeiT), 0 or 1
    registers: int = 0  # register tokens (DINOv2 with registers)
    grid: tuple[int, int]  # patches as (rows, columns)

    @property
    def prefix(self) -> int:
        """Number of tokens before the first patch."""
        return self.cls + self.dist + self.registers

    @property
    def patches(self) -> int:
        """P, the number of patches."""
        return self.grid[0] * self.grid[1]

    @property
    def count(self) -> int:
        """N, the number of tokens."""
        return self.prefix + self.patches

    def to_grid(self, x: Tensor, dim: int = 1) -> Tensor:
        """Return `x` with axis `dim` reshaped to the grid of patches: (..., N or P, ...) -> (..., rows, columns, ...).

        The prefix tokens of an axis of N tokens are dropped.

        Raises:
            ShapeError: the axis has neither N nor P entries; the message has all three numbers.
        """
        length = x.shape[dim]
        if length == self.count:
            x = x.narrow(dim, self.prefix, self.patches)
        elif length != self.patches:
            rows, columns = self.grid
            raise ShapeError(
                f"axis {dim} has {length} entries; a {rows} x {columns} grid has {self.patches} patches "
                f"and {self.count} tokens with its {self.prefix} prefix token(s)"
            )
        return x.unflatten(dim, self.grid)


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """The sizes and switches of one ViT (Dosovitskiy et al. 2021, arXiv:2010.11929)."""

    image_size: tuple[int, int] = (224, 224)  # pixels (height, width) the positions were trained for; 32: (32, 32)
    patch_size: int = 16  # pixels along each side of a patch
    channels: int = 3  # C
    width: int = 768  # D, the size of a token
    depth: int = 12  # number of blocks
    heads: int = 12  # A, attention heads per block
    mlp_width: int = 3072  # F, the hidden size of the MLP
    classes: int = 1000  # L, outputs of the head; 0 means no head: the model returns pooled_BD

    # Tokens and positions
    cls_token: bool = True  # a class token is the first token
    dist_token: bool = False  # a distillation token follows it (DeiT)
    registers: int = 0  # register tokens between those and the patches (DINOv2 with registers, DINOv3)
    positions: str = "learned"  # rows for all but registers; _all: for those too; _patches: for patches; or "rope"
    rope_theta: float = 100.0  # base of the rotary frequencies, where positions is "rope"
    position_resampling: str = "hf"  # how learned positions are resampled to another size, one of POSITION_RESAMPLINGS
    any_size: bool = False  # accepts images of other sizes without resample=True (DINOv2, DINOv3)
    drop_rest: bool = False  # drops pixels at the right and bottom that do not fill a patch (SigLIP); else refuses them
    patch_bias: bool = True  # the patch embedding has a bias; not in CLIP

    # Blocks
    eps: float = 1e-6  # of every LayerNorm; 1e-12 in the files of google/vit-*
    activation: str = "gelu"  # of the MLP, one of ACTIVATIONS; "gelu" is the exact one (erf)
    mlp: str = "plain"  # or "swiglu": activation(gate) * value, both F wide
    qkv_bias: bool = True  # queries, keys and values have a bias
    layer_scale: bool = False  # a learned factor per channel on both branches of a block, before the addition
    norm_pre: bool = False  # a LayerNorm before the first block (CLIP)

    # From tokens to logits
    norm: str = "tokens"  # the final LayerNorm is applied to all "tokens", or to the "pooled" vector alone
    pooling: str = "cls"  # input of the head, one of POOLINGS; "cls&dist": a head for each; "map": an attention pool
    pooler: bool = False  # a linear layer and tanh between pooling and head, as in the *-in21k files
    projection: int = 0  # E, size of the space shared with texts (CLIP); a linear layer without bias; 0 means none
    head: str = "linear"  # or "cosine": similarity of the image to the text of each class (CLIP, SigLIP)
    score: str = "softmax"  # how logits become scores, one of SCORES

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", _two_sides(self.image_size))
        _check(self, positive=("patch_size", "channels", "width", "depth", "heads", "mlp_width"), choices=_CHOICES)
        if not self._makes_patches(self.image_size):
            raise UsageError(f"image_size {self.image_size} is not a whole number of patches of {self.patch_size}")
        _check_heads(self.width, self.heads)
        for name in ("classes", "registers", "projection"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be 0 (none) or more")
        self._check_parts_fit()

    def _check_parts_fit(self) -> None:
        """Raise UsageError for switches that contradict each other."""
        if "cls" in self.pooling and not self.cls_token:
            raise UsageError(f"pooling {self.pooling} needs a class token")
        if self.pooling == "cls&dist" and not self.dist_token:
            raise UsageError("pooling cls&dist needs a distillation token")
        if self.positions == "rope" and self.head_dim % 4:
            raise UsageError(f"positions rope needs a head_dim divisible by 4, not {self.head_dim} (width / heads)")
        if self.classes and self.projection and self.head == "linear":
            raise UsageError(
                f"classes {self.classes} and projection {self.projection} exclude each other with a linear head; "
                "use head cosine"
            )

    @property
    def head_dim(self) -> int:
        """K, the size of one head's queries, keys and values."""
        return self.width // self.heads

    @property
    def positioned_prefix(self) -> int:
        """Number of prefix tokens, from the first, that have a row in the learned positions."""
        special = int(self.cls_token) + int(self.dist_token)
        return {"learned": special, "learned_all": special + self.registers}.get(self.positions, 0)

    @property
    def layout(self) -> TokenLayout:
        """The tokens of an image of `image_size`."""
        return self.layout_for(self.image_size)

    def layout_for(self, image_size: tuple[int, int]) -> TokenLayout:
        """Return the tokens of an image of another size.

        Args:
            image_size: (height, width) in pixels.

        Raises:
            ShapeError: the image is not a whole number of patches, or with `drop_rest` smaller than one patch.
        """
        height, width = image_size
        if not self._makes_patches(image_size):
            raise ShapeError(f"an image of {height} x {width} is not a whole number of patches of {self.patch_size}")
        return TokenLayout(
            cls=int(self.cls_token),
            dist=int(self.dist_token),
            registers=self.registers,
            grid=(height // self.patch_size, width // self.patch_size),
        )

    def _makes_patches(self, image_size: tuple[int, int]) -> bool:
        patch = self.patch_size
        return all(side >= patch and (self.drop_rest or side % patch == 0) for side in image_size)

    @classmethod
    def preset(cls, name: str, **changes: Any) -> ViTConfig:
        """Return a named size such as "B/16": a row of SIZES and a patch size in pixels; `changes` sets other fields.

        Raises:
            UsageError: no such row or patch size; the message lists them. Or a field is refused.
        """
        size, _, patch = name.partition("/")
        if size not in SIZES or patch not in ("8", "14", "16", "32"):
            raise UsageError(f"no preset {name!r}; sizes are {', '.join(SIZES)}, patches /8, /14, /16, /32")
        return cls(**{"patch_size": int(patch), **SIZES[size], **changes})


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The sizes and switches of the text tower beside a ViT (CLIP, arXiv:2103.00020; SigLIP, arXiv:2303.15343)."""

    vocabulary: int = 49408  # number of token ids
    context: int = 77  # most tokens of a text, its start and end token included
    width: int = 512  # D, the size of a token
    depth: int = 12  # number of blocks
    heads: int = 8  # A, attention heads per block
    mlp_width: int = 2048  # F, the hidden size of the MLP
    eps: float = 1e-5  # of every LayerNorm
    activation: str = "quick_gelu"  # of the MLP, one of ACTIVATIONS
    causal: bool = True  # a token attends to itself and earlier tokens (CLIP), or to all (SigLIP)
    pooling: str = "end"  # the token that is pooled: the first `end`, the "last", or the "argmax" of ids (text.py)
    end: int = 49407  # id of the token that ends every text, for pooling "end"
    projection: int = 512  # E, size of the space shared with images
    projection_bias: bool = False  # the projection has a bias (SigLIP)

    # A Block reads these; text towers do not vary them.
    mlp: ClassVar[str] = "plain"
    qkv_bias: ClassVar[bool] = True
    layer_scale: ClassVar[bool] = False

    def __post_init__(self) -> None:
        positive = ("vocabulary", "context", "width", "depth", "heads", "mlp_width", "projection")
        _check(self, positive=positive, choices={"activation": ACTIVATIONS, "pooling": TEXT_POOLINGS})
        _check_heads(self.width, self.heads)
        if self.pooling == "end" and not 0 <= self.end < self.vocabulary:
            raise UsageError(f"end is {self.end}; there are ids 0 to {self.vocabulary - 1}")

    @property
    def head_dim(self) -> int:
        """K, the size of one head's queries, keys and values."""
        return self.width // self.heads


@dataclass(frozen=True, kw_only=True)
class CLIPConfig:
    """An image tower and a text tower whose embeddings share one space."""

    image: ViTConfig
    text: TextConfig
    score: str = "softmax"  # how logits become scores; "sigmoid" (SigLIP): each text on its own, with a learned bias

    def __post_init__(self) -> None:
        if self.image.classes:
            raise UsageError(f"the image tower has {self.image.classes} classes; in a CLIP it must have 0")
        ends = self.image.projection or self.image.width
        if ends != self.text.projection:
            raise UsageError(
                f"image embeddings have size {ends} and text embeddings {self.text.projection}; they must be equal"
            )
        if self.score not in SCORES[:2]:
            raise UsageError(f"score is {self.score!r}; it must be one of {', '.join(SCORES[:2])}")


@dataclass(frozen=True, kw_only=True)
class SwinStage:
    """The sizes and switches of the blocks of one stage of a Swin."""

    width: int  # D, the size of a token
    heads: int  # A, attention heads per block
    mlp_width: int  # F, the hidden size of the MLP
    window: int  # patches along each side of a window
    eps: float
    activation: str
    qkv_bias: bool

    # A Block reads these; Swin does not vary them.
    mlp: ClassVar[str] = "plain"
    layer_scale: ClassVar[bool] = False

    @property
    def head_dim(self) -> int:
        """K, the size of one head's queries, keys and values."""
        return self.width // self.heads


@dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """The sizes and switches of one Swin (Liu et al. 2021, arXiv:2103.14030)."""

    image_size: tuple[int, int] = (224, 224)  # pixels (height, width); 32: (32, 32)
    patch_size: int = 4  # pixels along each side of a patch
    channels: int = 3  # C
    width: int = 96  # D of the first stage; it doubles from stage to stage
    depths: tuple[int, ...] = (2, 2, 6, 2)  # blocks in each stage
    heads: tuple[int, ...] = (3, 6, 12, 24)  # A in each stage
    window: tuple[int, ...] = (7, 7, 7, 7)  # tokens along each side of a window, in each stage
    mlp_ratio: float = 4.0  # F / D
    eps: float = 1e-5  # of every LayerNorm
    activation: str = "gelu"  # of the MLP, one of ACTIVATIONS
    qkv_bias: bool = True  # queries, keys and values have a bias
    classes: int = 1000  # L, outputs of the head; 0 means no head: the model returns pooled_BD
    score: str = "softmax"  # how logits become scores, one of SCORES
    windowing: str = "hf"  # how grids are padded and shifted, one of WINDOWINGS; see swin.windows_of
    any_size: bool = True  # accepts images of other sizes: it has no position embeddings to resample

    # Fields of ViTConfig that other code reads; Swin does not vary them.
    patch_bias: ClassVar[bool] = True
    cls_token: ClassVar[bool] = False
    projection: ClassVar[int] = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_size", _two_sides(self.image_size))
        choices = {"activation": ACTIVATIONS, "windowing": WINDOWINGS, "score": SCORES}
        _check(self, positive=("patch_size", "channels", "width"), choices=choices)
        stages = {name: len(getattr(self, name)) for name in ("depths", "heads", "window")}
        if not self.depths or len(set(stages.values())) != 1:
            raise UsageError(
                f"depths, heads and window have {', '.join(map(str, stages.values()))} stages; they must agree"
            )
        if min((*self.depths, *self.heads, *self.window)) < 1:
            raise UsageError(f"depths {self.depths}, heads {self.heads} and window {self.window} must be at least 1")
        for stage in self.stages:
            _check_heads(stage.width, stage.heads)
        if self.classes < 0:
            raise UsageError(f"classes is {self.classes}; it must be 0 (none) or more")
        if min(self.image_size) < 1:
            raise UsageError(f"image_size is {self.image_size}; it must be at least 1 x 1")

    @property
    def stages(self) -> tuple[SwinStage, ...]:
        """The stages, first to last."""
        return tuple(
            SwinStage(
                width=self.width * 2**i,
                heads=heads,
                mlp_width=int(self.width * 2**i * self.mlp_ratio),
                window=window,
                eps=self.eps,
                activation=self.activation,
                qkv_bias=self.qkv_bias,
            )
            for i, (heads, window) in enumerate(zip(self.heads, self.window, strict=True))
        )

    @property
    def depth(self) -> int:
        """Number of blocks in all stages together."""
        return sum(self.depths)

    def grid(self, image_size: tuple[int, int] | None = None, stage: int = 0) -> tuple[int, int]:
        """Return the tokens of a stage as (rows, columns), for an image of `image_size` or of the config's own.

        Raises:
            ShapeError: the image is not a whole number of patches, and the reference library does not pad it.
        """
        height, width = image_size or self.image_size
        patch = self.patch_size
        if height < 1 or width < 1 or (self.windowing != "hf" and (height % patch or width % patch)):
            raise ShapeError(f"an image of {height} x {width} is not a whole number of patches of {patch}")
        side = patch * 2**stage  # pixels along each side of a token; odd grids are padded before they are merged
        return -(-height // side), -(-width // side)

    def layout_for(self, image_size: tuple[int, int]) -> TokenLayout:
        """Return the tokens of the last stage for an image of this size; raises as `grid`."""
        return TokenLayout(cls=0, grid=self.grid(image_size, len(self.depths) - 1))

    @property
    def layout(self) -> TokenLayout:
        """The tokens of the last stage for an image of `image_size`."""
        return self.layout_for(self.image_size)


def _two_sides(given: object) -> tuple[int, int]:
    """Return (height, width) of an image size; one number is both.

    Raises:
        UsageError: neither one whole number nor two.
    """
    sides = (given, given) if type(given) is int else given
    if not isinstance(sides, (tuple, list)) or len(sides) != 2 or not all(type(side) is int for side in sides):
        raise UsageError(f"image_size is {given!r}; expected (height, width) in pixels, or one number for a square")
    return sides[0], sides[1]


def _check(
    config: ViTConfig | TextConfig | SwinConfig, *, positive: tuple[str, ...], choices: dict[str, tuple[str, ...]]
) -> None:
    """Raise UsageError for a size below 1, an eps that is not between 0 and 1, or a word that is not a choice."""
    for name in positive:
        if getattr(config, name) < 1:
            raise UsageError(f"{name} is {getattr(config, name)}; it must be at least 1")
    if not 0 < config.eps < 1:
        raise UsageError(f"eps is {config.eps}; it must lie between 0 and 1")
    for name, known in choices.items():
        if getattr(config, name) not in known:
            raise UsageError(f"{name} is {getattr(config, name)!r}; it must be one of {', '.join(known)}")


def _check_heads(width: int, heads: int) -> None:
    """Raise UsageError for a width that the heads cannot share."""
    if width % heads:
        raise UsageError(f"width {width} is not divisible by {heads} heads")


# The configurations that a Block accepts.
BlockConfig = ViTConfig | TextConfig | SwinStage

_CHOICES = {
    "activation": ACTIVATIONS,
    "mlp": MLPS,
    "positions": POSITIONS,
    "position_resampling": POSITION_RESAMPLINGS,
    "norm": NORMS,
    "pooling": POOLINGS,
    "head": HEADS,
    "score": SCORES,
}

# Ti and S: Touvron et al. 2021 (DeiT, arXiv:2012.12877), table 1; Zhai et al. 2022 (arXiv:2106.04560), table 2.
# B, L and H: Dosovitskiy et al. 2021 (arXiv:2010.11929), table 1.
SIZES = {
    "Ti": {"width": 192, "depth": 12, "heads": 3, "mlp_width": 768},
    "S": {"width": 384, "depth": 12, "heads": 6, "mlp_width": 1536},
    "B": {"width": 768, "depth": 12, "heads": 12, "mlp_width": 3072},
    "L": {"width": 1024, "depth": 24, "heads": 16, "mlp_width": 4096},
    "H": {"width": 1280, "depth": 32, "heads": 16, "mlp_width": 5120},
}
