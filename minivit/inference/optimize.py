"""The fast path: a loaded model as an equal, faster one on this machine. The readable modules are its reference.

Five changes make it faster; in exact arithmetic none of them changes a number:

1. Every weight is packed once for oneDNN's GEMM; `F.linear` packs it at every call, or runs without.
2. GELU and the residual addition are fused into the GEMM. Layer scale is folded into the weights before it, and
   1 / sqrt(K) into the weights of the queries.
3. Attention is SDPA or two batched GEMMs, whichever was measured to be faster: see `attend_fast`.
4. When the head reads only the first tokens, the last block computes only those.
5. The memory of one pass is reused by the next: see `keep_memory`.

The operators behind 1 and 2 are private to PyTorch (`torch.ops.mkldnn`, `torch.ops.onednn`). Their results are
compared with the plain path, at the model's own sizes, before they are used; if one is missing or wrong, the plain
path runs, and `FastViT.paths` says why.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivit.errors import UsageError
from minivit.model.attention import Attend, SelfAttention, attend_sdpa, rotate
from minivit.model.block import MLP, Block, LayerScale, QuickGELU, SwiGLU
from minivit.model.capabilities import ImageModel, Model
from minivit.model.vit import ViT

DTYPES = ("float32", "bfloat16", "float16", "float64", "int8")
TOKENS_THAT_PAY = 1000  # see `pays`
TOKENS_AT_ONCE = 2048  # of one pass through the blocks: more was not faster and took memory
INT8_TOKENS_AT_ONCE = 1024  # between int8 GEMMs the numbers are float32, and take more memory
KEPT_BYTES = 31 * 2**20  # see `keep_memory`
READ_ROWS = {"cls": 1, "cls&dist": 2}  # pooling -> how many of the first tokens the head uses; others use all


# --- linear layers: all of a block except its norms and its attention ------------------------------------------


class FusedLinear(Protocol):
    """activation(x W^T + b), (..., I) -> (..., O); or add + x W^T + b. Both x and `add` may be overwritten."""

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor: ...


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
}
_FUSED = {"none": ("none", ""), "gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"), "silu": ("swish", "")}
_FUSED["relu"] = ("relu", "")


class PlainLinear:
    """The reference of the faster ones, and the fallback."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, activation: str = "none"):
        self.weight_OI, self.bias_O, self.activation = weight_OI.clone(), bias_O, ACTIVATIONS[activation]

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        y = self.activation(F.linear(x, self.weight_OI, self.bias_O))
        return y if add is None else add + y


class PackedLinear:
    """The same by oneDNN, with a weight packed once, and the activation or the addition fused."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, activation: str = "none"):
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI)
        self.bias_O, self.activation = bias_O, _FUSED[activation]

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        if add is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, add, self.weight, self.bias_O, "add")
        name, algorithm = self.activation
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias_O, name, [], algorithm)


class QuantisedLinear:
    """The same in int8 by oneDNN: weights have a scale per output channel, inputs one scale, computed at every call.

    Inputs are 8-bit numbers around 128, because the dot product instructions of x86 need them unsigned. `add` is
    added to in place.
    """

    def __init__(
        self, weight_OI: Tensor, bias_O: Tensor | None, activation: str = "none", dtype: torch.dtype = torch.float32
    ):
        largest_O = weight_OI.float().abs().amax(dim=1)
        self.scale_O = torch.where(largest_O > 0, largest_O / 127, 1.0)
        eight_bits = (weight_OI.float() / self.scale_O[:, None]).round().to(torch.int8)
        self.weight = torch.ops.onednn.qlinear_prepack(eight_bits, None)
        self.zero_O = torch.zeros(len(weight_OI), dtype=torch.int64)
        self.bias_O = None if bias_O is None else bias_O.float()
        self.activation, self.dtype = _FUSED[activation], dtype

    def __call__(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        eight_bits, scale = quantise(x)
        weight = (eight_bits, scale, 128, self.weight, self.scale_O, self.zero_O)
        if add is not None:
            out = 1.0, 0, add.dtype, 1.0, 0
            return torch.ops.onednn.qlinear_pointwise.binary(
                *weight, add, self.bias_O, *out, "sum", 1.0, "none", [], ""
            )
        name, algorithm = self.activation
        return torch.ops.onednn.qlinear_pointwise(*weight, self.bias_O, 1.0, 0, self.dtype, name, [], algorithm)


def quantise(x: Tensor) -> tuple[Tensor, float]:
    """Return x, which is overwritten, as 8-bit numbers, and their step: x = (eight_bits - 128) * step."""
    x = x.float()
    low, high = torch.aminmax(x)
    step = max(-low.item(), high.item()) / 127 or 1.0
    # Few passes over the numbers: truncation after adding 128.5 rounds them, and all stay in 1 to 255.
    return x.mul_(1 / step).add_(128.5).to(torch.uint8), step


# --- attention --------------------------------------------------------------------------------------------------


def attend_products(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Return attention as two batched GEMMs, without conversion to float32: the probabilities have the dtype of q.

    The rows of each head are made contiguous first: transposed keys would be copied number by number.
    """
    heads = q.shape[:2]
    q, k, v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    logits = torch.bmm(q, k.transpose(1, 2))
    return torch.bmm((logits if scale == 1 else logits * scale).softmax(dim=-1), v).unflatten(0, heads)


def attend_fast(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    """Return attention by SDPA, or by `attend_products` where that was measured to be faster.

    That is in bfloat16, on two Zen 4 cores: 1.6 times as fast at 197 tokens, 1.5 times at 577, but 0.9 times at 1025,
    where the probabilities no longer fit the cache. In float32 SDPA was as fast or faster from 50 to 1025 tokens.
    """
    products = q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[2] <= 768
    return (attend_products if products else attend_sdpa)(q, k, v, scale=scale)


# --- the block --------------------------------------------------------------------------------------------------

Make = Callable[[Tensor, "Tensor | None", str], FusedLinear]


def constants_folded(block: Block) -> list[tuple[Tensor, Tensor | None, str]]:
    """Return weight, bias and activation of qkv, proj, fc1 and fc2, constant factors folded in; float32 or more.

    Layer scale multiplies the rows of proj and fc2, and 1 / sqrt(K) those of the queries, unless an attend of the
    user's asks for it. Quick GELU, x sigmoid(1.702 x), is silu(1.702 x) / 1.702: its factors go before and behind.
    """
    attn, mlp = block.attn, block.mlp

    def scaled(linear: nn.Linear, rows_O: Tensor | float, columns: float = 1.0) -> tuple[Tensor, Tensor | None]:
        """The weight with rows and columns multiplied and the bias with the rows; as they are where that is all 1."""
        weight_OI, bias_O = linear.weight.detach(), None if linear.bias is None else linear.bias.detach()
        if isinstance(rows_O, float) and rows_O * columns == 1:
            return weight_OI, bias_O
        at_least_float32 = torch.promote_types(weight_OI.dtype, torch.float32)
        rows_O = torch.as_tensor(rows_O, dtype=at_least_float32, device=weight_OI.device).expand(len(weight_OI))
        return weight_OI * (rows_O[:, None] * columns), None if bias_O is None else bias_O * rows_O

    queries: Tensor | float = 1.0
    if attn.attend is attend_sdpa:
        queries = torch.ones(3, attn.qkv.in_features, dtype=torch.float64)
        queries[0] = attn.scale
        queries = queries.flatten()
    ls1, ls2 = (scale.gamma.detach() if isinstance(scale, LayerScale) else 1.0 for scale in (block.ls1, block.ls2))
    activation, factor = _activation_of(mlp.act) if isinstance(mlp, MLP) else ("none", 1.0)
    return [
        (*scaled(attn.qkv, queries), "none"),
        (*scaled(attn.proj, ls1), "none"),
        (*scaled(mlp.fc1, factor), activation),
        (*scaled(mlp.fc2, ls2, 1 / factor), "none"),
    ]


def _activation_of(act: nn.Module) -> tuple[str, float]:
    """The name in ACTIVATIONS of an activation, and the factor that goes before it and, inverted, behind."""
    if isinstance(act, QuickGELU):
        return "silu", 1.702
    if isinstance(act, nn.GELU):
        return ("gelu" if act.approximate == "none" else "gelu_tanh"), 1.0
    if isinstance(act, nn.ReLU):
        return "relu", 1.0
    assert isinstance(act, nn.SiLU)
    return "silu", 1.0


class FastBlock(nn.Module):
    """What a Block computes, (B, N, D) -> (B, N, D), out of four products."""

    def __init__(self, block: Block, dtype: torch.dtype, make: Make, make_qkv: Make):
        """`make_qkv` makes the product whose result goes to `attend_fast`; another attend gets that of `make`."""
        super().__init__()
        self.heads = block.attn.heads
        self.own_attend = block.attn.attend is attend_sdpa  # another one is the user's, and runs as it is
        self.attend: Attend = attend_fast if self.own_attend else block.attn.attend
        self.scale = 1.0 if self.own_attend else block.attn.scale
        self.norm1, self.norm2 = (
            copy.deepcopy(norm).to(dtype).requires_grad_(False) for norm in (block.norm1, block.norm2)
        )
        arguments = [
            (weight_OI.to(dtype), None if bias_O is None else bias_O.to(dtype, copy=True), activation)
            for weight_OI, bias_O, activation in constants_folded(block)
        ]
        makers = [make_qkv if self.own_attend else make, make, make, make]
        self.qkv, self.proj, self.fc1, self.fc2 = (m(*a) for m, a in zip(makers, arguments, strict=True))
        self.gate = block.mlp.act if isinstance(block.mlp, SwiGLU) else None

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor] | None = None, rows: int | None = None) -> Tensor:
        """With `rows`, only the first so many tokens of the result: (B, rows, D)."""
        # (B, N, 3*D) -> (B, N, 3, A, K) -> (3, B, A, N, K)
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if rope is not None:
            angles = rope[0].to(q.dtype), rope[1].to(q.dtype)
            q, k = rotate(q, angles), rotate(k, angles)
        if rows is not None:
            x = x[:, :rows].contiguous()
            q = q[:, :, :rows] if self.own_attend else q
        mix_BANK = self.attend(q, k, v, scale=self.scale)
        if not self.own_attend:
            mix_BANK = mix_BANK[:, :, :rows].clone()  # it may be kept, and proj may overwrite it
        # (B, A, N, K) -> (B, N, A, K) -> (B, N, D)
        x = self.proj(mix_BANK.transpose(1, 2).flatten(2), add=x)
        hidden_BNF = self.fc1(self.norm2(x))
        if self.gate is not None:
            gate, value = hidden_BNF.chunk(2, dim=-1)
            hidden_BNF = self.gate(gate) * value
        return self.fc2(hidden_BNF, add=x)

    @property
    def attn(self) -> SelfAttention:
        raise UsageError("an optimised model has no internals to inspect; use the model it was made from")

    mlp = attn


# --- the model --------------------------------------------------------------------------------------------------


class FastViT(ViT):
    """A snapshot of a ViT that predicts faster; made by `optimize`.

    It is called as the model is, and has its config, image_spec, labels, name, revision, features, pool and answer.
    It takes pixels in float32 or in its own dtype, keeps no gradients, and stays in the place it was made for.
    To look inside, to train or to save, use the model it was made from.

    Attributes:
        paths: what runs, and why where it is not the fastest: "products", and "blocks.{i}" for a block of the user's.
    """

    def __init__(self, model: ViT, blocks: list[nn.Module], dtype: torch.dtype, paths: Mapping[str, str]):
        nn.Module.__init__(self)
        # A copy of all but the blocks and the attend, which is the user's and no part of what is converted.
        rest = copy.deepcopy(model, {id(model.blocks): nn.ModuleList(), id(model.attend): model.attend})
        del rest.blocks, rest.attend
        self.__dict__.update(rest.to(dtype).requires_grad_(False).eval().__dict__)
        self.attend = model.attend
        self.blocks = nn.ModuleList(blocks)
        self.paths = dict(paths)
        self.tokens_at_once = TOKENS_AT_ONCE
        self.step: Callable[[Tensor, bool, bool], Tensor] = self._pass

    def forward(self, pixels_BCHW: Tensor, resample: bool = False) -> Tensor:
        """As the model: pixels (B, C, H, W) -> logits_BL; without a head, pooled_BD or its projection."""
        return self._in_passes(pixels_BCHW, resample, answer=True)

    def features(self, pixels_BCHW: Tensor, *, resample: bool = False) -> Tensor:
        """As the model: pixels (B, C, H, W) -> tokens_BND after the final norm, where it covers all tokens."""
        return self._in_passes(pixels_BCHW, resample, answer=False)

    def _in_passes(self, pixels_BCHW: Tensor, resample: bool, answer: bool) -> Tensor:
        """Run a few images at a time, so that the activations between operators stay small."""
        own = self.patch_embed.weight
        tokens = self.layout_of(pixels_BCHW, resample=resample).count  # refuses what is no batch of pixels
        if pixels_BCHW.dtype not in (torch.float32, own.dtype):
            takes = " or ".join(dict.fromkeys(["float32", _name(own.dtype)]))
            raise UsageError(f"pixels are {_name(pixels_BCHW.dtype)}; this model takes {takes}")
        if pixels_BCHW.requires_grad and torch.is_grad_enabled():
            raise UsageError("an optimised model has no gradients; take them of the model it was made from")
        if not len(pixels_BCHW):  # the operators of int8 want at least one
            return self._in_passes(pixels_BCHW.new_zeros(1, *pixels_BCHW.shape[1:]), resample, answer)[:0]
        passes = max(1, -(-len(pixels_BCHW) * tokens // self.tokens_at_once))
        # Its dtype is fixed, under autocast too: packed weights go with inputs of their own dtype alone.
        with torch.no_grad(), torch.autocast(own.device.type, enabled=False):
            parts = [self.step(pixels.to(own.dtype), resample, answer) for pixels in pixels_BCHW.chunk(passes)]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _pass(self, pixels_BCHW: Tensor, resample: bool, answer: bool) -> Tensor:
        x = self.embed(pixels_BCHW, resample=resample)
        rope = self.rope(self.layout_of(pixels_BCHW, resample=resample))
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x, rope)
            x = x if isinstance(block, FastBlock) else x.clone()  # it may be kept, and the next block may overwrite it
        rows = READ_ROWS.get(self.config.pooling) if answer else None
        x = last(x, rope, rows) if isinstance(last, FastBlock) else last(x, rope)
        x = self.norm(x) if self.config.norm == "tokens" else x
        return self.answer(x) if answer else x

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Raise UsageError: packed weights are not a checkpoint."""
        raise UsageError("an optimised model cannot be saved; save the model it was made from")

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Raise UsageError: packed weights cannot be replaced."""
        raise UsageError("an optimised model takes no other weights; load them into the model, then optimize it again")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise UsageError("an optimised model cannot be copied or pickled; optimize the model it was made from again")

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        raise UsageError("an optimised model stays as it was made; move or convert the model, then optimize it again")


class Replayed:
    """A step on CUDA as a graph, captured once for every shape of pixels. Written where no GPU was: read, not run."""

    KEPT = 8  # graphs; each holds the memory of its step

    def __init__(self, step: Callable[..., Tensor]):
        self.step = step
        self.graphs: dict[Any, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    def __call__(self, pixels_BCHW: Tensor, *arguments: bool) -> Tensor:
        key = (pixels_BCHW.shape, *arguments)
        if key not in self.graphs:
            if len(self.graphs) == self.KEPT:
                del self.graphs[next(iter(self.graphs))]
            self.graphs[key] = self._capture(pixels_BCHW, *arguments)
        graph, read, written = self.graphs[key]
        read.copy_(pixels_BCHW)
        graph.replay()
        return written.clone()

    def _capture(self, pixels_BCHW: Tensor, *arguments: bool) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        read = pixels_BCHW.clone()
        aside = torch.cuda.Stream(read.device)
        aside.wait_stream(torch.cuda.current_stream(read.device))
        with torch.cuda.stream(aside):  # libraries choose their kernels and workspaces before the capture
            for _ in range(3):
                self.step(read, *arguments)
        torch.cuda.current_stream(read.device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            written = self.step(read, *arguments)
        return graph, read, written


# --- choosing what runs -----------------------------------------------------------------------------------------


def optimize(
    model: Model, dtype: str | torch.dtype | None = None, *, compile: bool = False, graphs: bool = False
) -> FastViT:
    """Return a snapshot of a loaded model that predicts the same, faster; later changes of the model do not affect it.

    float32 stays float32: logits differ from the model's by rounding, 1e-4 at most. An `attend` of the user's runs as
    it is, and so does a block that is not as minivit built it (`FastViT.paths` names it).

    Args:
        model: as `minivit.load` returns it, its weights where they are to run.
        dtype: of the arithmetic, one of DTYPES; the model's own when None. "int8" has products of 8-bit numbers, the
            weights quantised once for every channel, the inputs at every call, and float32 or bfloat16 between them;
            the images of a pass share a scale, so a result depends slightly on the other images of its batch.
        compile: hand the model to torch.compile too; on CUDA only, where nothing is packed.
        graphs: capture CUDA graphs, one for every shape of pixels; on CUDA only, and not with `compile`.

    Raises:
        UsageError: not a ViT as it was loaded, an argument that cannot be honoured on the model's device, or int8
            where the processor has no instruction for it or this PyTorch no right operator.
    """
    if type(model) is not ViT:
        given = type(model).__name__
        tower = "; its image tower, model.image, is one" if hasattr(model, "encode_image") else ""
        raise UsageError(f"optimize takes a minivit ViT as it was loaded, not a {given}{tower}")
    weight = model.patch_embed.weight
    wanted = _name(dtype or weight.dtype)
    if wanted not in DTYPES:
        raise UsageError(f"dtype is {wanted}; it must be one of {', '.join(DTYPES)}")
    if (compile or graphs) and (not weight.is_cuda or (compile and graphs)):
        raise UsageError(f"compile and graphs are for CUDA, one of them; the model is on {weight.device.type}")
    make: Make
    make_qkv: Make
    if wanted == "int8":
        kind, make, make_qkv = torch.float32, QuantisedLinear, QuantisedLinear
        if has_bfloat16():
            make_qkv = partial(QuantisedLinear, dtype=torch.bfloat16)
        paths = {"products": "int8 by oneDNN, GELU and addition fused"}
        if why := no_int8(weight.device) or fault(QuantisedLinear, model, kind, limit=0.1):
            raise UsageError(f"dtype int8 is unavailable: {why}; use float32 or bfloat16")
    else:
        kind, make = getattr(torch, wanted), PackedLinear
        paths = {"products": "packed by oneDNN, GELU and addition fused"}
        limit = 1e-5 if kind == torch.float32 else 1e-2
        if why := fault(PackedLinear, model, kind, limit):
            make, paths = PlainLinear, {"products": f"plain: {why}"}
        make_qkv = make
    if weight.device.type == "cpu":
        keep_memory()
    blocks: list[nn.Module] = []
    for i, block in enumerate(model.blocks):
        if why := modified(block):
            paths[f"blocks.{i}"] = f"runs as it is: {why}"
            blocks.append(copy.deepcopy(block).to(kind).requires_grad_(False))
        else:
            blocks.append(FastBlock(cast(Block, block), kind, make, make_qkv))
    fast = FastViT(model, blocks, kind, paths)
    if wanted == "int8":
        fast.tokens_at_once = INT8_TOKENS_AT_ONCE
    elif weight.device.type != "cpu":
        fast.tokens_at_once = sys.maxsize
    if compile:
        fast.step = torch.compile(fast.step)
    if graphs:
        fast.step = Replayed(fast.step)
    return fast


def pays(model: ImageModel, images: int) -> bool:
    """Return whether `optimize` takes less time than it saves on so many images.

    Packing reads and writes every weight once; an image saves in proportion to weights times tokens. So what counts
    is the tokens of all images together. Measured on two Zen 4 cores with a ViT-B/16 (197 tokens per image):
    0.25 s in float32, and 0.055 s less per image; 0.13 s in bfloat16, and 0.025 s less.
    """
    on_cpu = type(model) is ViT and model.patch_embed.weight.device.type == "cpu"
    return on_cpu and images * model.config.layout.count >= TOKENS_THAT_PAY


def keep_memory() -> None:
    """Let glibc keep up to 62 MiB that a pass has freed for the next one, instead of handing it back every time.

    Whoever takes it from the system anew pays a page fault for every 4 KiB. glibc (malloc/malloc.c, dynamic mmap
    threshold) keeps twice as much as the largest block of up to 32 MiB that was ever freed, and by itself that is what
    loading happened to free: little for a small model. Other allocators lose nothing: no page is touched.
    """
    torch.empty(KEPT_BYTES, dtype=torch.uint8)


def fault(kind: Callable[..., FusedLinear], model: ViT, dtype: torch.dtype, limit: float) -> str | None:
    """Return why a kind of linear layer cannot be used; None if it equals the plain one in the first block."""
    if model.patch_embed.weight.device.type != "cpu":
        return "weights are packed for the CPU only"
    block = next((block for block in model.blocks if not modified(block)), None)
    tokens, draw = model.config.layout.count, torch.Generator().manual_seed(0)
    for weight_OI, bias_O, activation in constants_folded(cast(Block, block)) if block else []:
        arguments = weight_OI.to(dtype), None if bias_O is None else bias_O.to(dtype), activation
        x, add = (torch.randn(1, tokens, width, generator=draw).to(dtype) for width in reversed(weight_OI.shape))
        plain = PlainLinear(*arguments)
        try:
            fast = kind(*arguments)
            results = [(fast(x.clone()), plain(x))]
            if activation == "none":
                results.append((fast(x.clone(), add=add.clone()), plain(x, add=add)))
        except (AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
            return f"torch {torch.__version__}: {str(error).strip().splitlines()[0]}"
        for result, expected in results:
            if not (result - expected).double().norm() <= limit * expected.double().norm():
                return f"torch {torch.__version__}: the packed product differs from the plain one"
    return None


def modified(block: nn.Module) -> str | None:
    """Return how a block differs from the one that minivit built, or None if it does not."""
    for name, module in block.named_modules():
        if f"{name}.".startswith("attn.attend."):
            continue
        if type(module) not in PARTS.get(name, ()):
            return f"{name or 'it'} is a {type(module).__name__}"
        if module._forward_hooks or module._forward_pre_hooks or {"forward", "split"} & vars(module).keys():
            return f"{name or 'it'} has a hook or a method of its own"
    return None


PARTS: dict[str, tuple[type[nn.Module], ...]] = {
    "": (Block,),
    "norm1": (nn.LayerNorm,),
    "attn": (SelfAttention,),
    "attn.qkv": (nn.Linear,),
    "attn.proj": (nn.Linear,),
    "ls1": (LayerScale, nn.Identity),
    "norm2": (nn.LayerNorm,),
    "mlp": (MLP, SwiGLU),
    "mlp.fc1": (nn.Linear,),
    "mlp.act": (nn.GELU, nn.SiLU, QuickGELU),
    "mlp.fc2": (nn.Linear,),
    "ls2": (LayerScale, nn.Identity),
}


def no_int8(device: torch.device) -> str | None:
    """Return why int8 GEMMs would not be fast here; None if the processor has an instruction for them."""
    if device.type != "cpu":
        return f"it is for the CPU, the model is on {device.type}"
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    vnni = known.get("avx512_vnni") or known.get("avx_vnni") or getattr(torch.cpu, "_is_vnni_supported", bool)()
    return None if vnni else "this processor has no int8 dot product (AVX512-VNNI or AVX-VNNI)"


def has_bfloat16() -> bool:
    """Return whether the processor multiplies bfloat16 itself; elsewhere it is slower than float32."""
    known = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(known.get("avx512_bf16") or getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


def _name(dtype: str | torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
