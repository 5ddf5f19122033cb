"""The causes that are tried on a ViT: each has a name, the steps where it shows, and an edit of our model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivit.model.attention import Attend
from minivit.model.block import activation
from minivit.model.config import ACTIVATIONS, POSITION_RESAMPLINGS
from minivit.model.vit import ViT
from minivit.parity.edits import B, Candidate, Edit, at, block_of, configured, put, qkv_rows, swap

QKV = (B + "q", B + "k", B + "v")
MERGED = (B + "attn.mix", B + "attn.out")  # a dump may hold the kernel's output or the merged one
EPS = (1e-12, 1e-8, 1e-6, 1e-5, 1e-3)


def candidates(model: ViT) -> list[Candidate]:
    """Return all that is tried on this model, the likely before the rare."""
    return [
        *_eps_candidates(model),
        *_activation_candidates(model),
        *_order_candidates(model),
        *_bias_candidates(model),
        *_scale_candidates(model),
        *_token_candidates(model),
        *_norm_candidates(model),
        *_dtype_candidates(model),
        *_other_candidates(model),
    ]


def eps_is(eps: float, words: str, own: str) -> Candidate:
    """Return the candidate of another eps of every LayerNorm."""

    def of(place: str) -> Edit:
        def edit(stack: ExitStack, model: ViT, i: int) -> None:
            norm = getattr(model.blocks[i] if i >= 0 else model, place)
            if isinstance(norm, nn.LayerNorm):
                swap(stack, norm, "eps", eps)

        return edit

    places = {"embed.tokens": "norm_pre", B + "norm1": "norm1", B + "norm2": "norm2", "norm": "norm"}
    says = f"eps of the LayerNorm is {words}, here {own}"
    return Candidate("eps", says, tuple((step, of(place)) for step, place in places.items()))


def _eps_candidates(model: ViT) -> Iterator[Candidate]:
    own = model.config.eps
    for eps in EPS:
        if eps != own:
            yield eps_is(eps, f"{eps:g}", f"{own:g}")


def _activation_candidates(model: ViT) -> Iterator[Candidate]:
    words = {
        "gelu": "the exact GELU (erf)",
        "gelu_tanh": "the tanh approximation of GELU",
        "quick_gelu": "quick GELU, x sigmoid(1.702 x)",
        "silu": "SiLU",
        "relu": "ReLU",
    }
    for name in (*ACTIVATIONS, "relu"):
        if name != model.config.activation:
            act = nn.ReLU() if name == "relu" else activation(name)
            says = f"the activation of the MLP is {words[name]}, here {words[model.config.activation]}"
            yield Candidate("GELU form", says, ((B + "mlp.act", put("mlp", "act", act)),))


def _merge(how: Callable[[Tensor], Tensor]) -> Edit:
    """Merge the heads in another way: (B, A, N, K) -> (B, N, D)."""

    def edit(stack: ExitStack, model: ViT, i: int) -> None:
        attn = block_of(model, i).attn
        own: Attend = attn.attend

        def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
            merged_BND = how(own(q, k, v, scale=scale))
            # (B, N, D) -> (B, N, A, K) -> (B, A, N, K), which the module merges back to the very same
            return merged_BND.unflatten(-1, (q.shape[1], -1)).transpose(1, 2)

        swap(stack, attn, "attend", attend)

    return edit


def _order_candidates(model: ViT) -> Iterator[Candidate]:
    config = model.config
    width, heads, size = config.width, config.heads, config.head_dim
    rows = torch.arange(3 * width)
    for order in itertools.permutations(range(3)):
        if order != (0, 1, 2):
            letters = ", ".join("qkv"[part] for part in order)
            # Their q is the rows of our part order.index(0), and so on.
            index = torch.cat([rows.view(3, width)[order.index(part)] for part in range(3)])
            says = f"rows of the fused projection are taken as {letters}, here as q, k, v"
            moved = [B + "qkv"[part] for part in range(3) if order[part] != part]
            yield Candidate("qkv order", says, at(moved, qkv_rows(index)))
    packings = {
        "per head as (head, qkv, channel)": rows.view(heads, 3, size).transpose(0, 1),
        "per head as (head, channel, qkv)": rows.view(heads, size, 3).permute(2, 0, 1),
        "per channel as (channel, head, qkv)": rows.view(size, heads, 3).permute(2, 1, 0),
    }
    for name, packed in packings.items():
        says = f"rows of the fused projection are packed {name}, here as (qkv, head, channel)"
        yield Candidate("qkv order", says, at(QKV, qkv_rows(packed.flatten())))

    interleaved = rows.view(3, size, heads).transpose(1, 2).flatten()
    split = at(QKV, qkv_rows(interleaved))
    # (B, A, N, K) -> (B, N, K, A) -> (B, N, D)
    mixed = at(MERGED, _merge(lambda x: x.permute(0, 2, 3, 1).flatten(2)))
    inner = "the heads are the inner axis (channel c of head a at c * heads + a)"
    yield Candidate("head order", f"{inner}, when split and when merged; here a * head_dim + c", split + mixed)
    yield Candidate("head order", f"{inner}, when split; here a * head_dim + c", split)
    yield Candidate("head order", f"{inner}, when merged; here a * head_dim + c", mixed)
    # (B, A, N, K) read as (B, N, D)
    flat: Edit = _merge(lambda x: x.reshape(len(x), x.shape[2], -1))
    says = "the heads are merged without moving the tokens to the front"
    yield Candidate("head order", says, at(MERGED, flat))
    backwards = at(QKV, qkv_rows(rows.view(3, heads, size).flip(1).flatten()))
    merged = at(MERGED, _merge(lambda x: x.flip(1).transpose(1, 2).flatten(2)))
    yield Candidate("head order", "the heads are in the opposite order", backwards + merged)


def _without(stack: ExitStack, module: nn.Module | None, rows: slice = slice(None)) -> None:
    if module is not None and getattr(module, "bias", None) is not None:
        bias = cast(Tensor, module.bias).clone()
        bias[rows] = 0
        swap(stack, module, "bias", bias)


def _bias_candidates(model: ViT) -> Iterator[Candidate]:
    width = model.config.width

    def inside(path: str, rows: slice = slice(None)) -> Edit:
        return lambda stack, m, i: _without(stack, block_of(m, i).get_submodule(path), rows)

    def around(path: str) -> Edit:
        return lambda stack, m, i: _without(stack, getattr(m, path))

    all_three = at(QKV, inside("attn.qkv"))
    yield Candidate("missing bias", "queries, keys and values have no bias", all_three, whole=True)
    for name, step, rows in (
        ("queries have", "q", slice(width)),
        ("keys have", "k", slice(width, 2 * width)),
        ("values have", "v", slice(2 * width, None)),
    ):
        yield Candidate("missing bias", f"{name} no bias", ((B + step, inside("attn.qkv", rows)),))
    for path, step in (
        ("attn.proj", "attn.out"),
        ("mlp.fc1", "mlp.pre"),
        ("mlp.fc2", "mlp.out"),
        ("norm1", "norm1"),
        ("norm2", "norm2"),
    ):
        yield Candidate("missing bias", f"{path} has no bias", ((B + step, inside(path)),))
    for path, step in (("patch_embed", "embed.patches"), ("norm", "norm"), ("head", "logits")):
        yield Candidate("missing bias", f"{path} has no bias", ((step, around(path)),))


def scale_is(model: ViT, scale: float, words: str) -> Candidate:
    """Return the candidate of another scale of the scores."""
    own = model.config.head_dim**-0.5
    says = f"scores are scaled by {words}, here by 1/sqrt(head_dim) = {own:.4g}"
    return Candidate("scale", says, ((B + "attn.scores", put("attn", "scale", scale)),))


def _scale_candidates(model: ViT) -> Iterator[Candidate]:
    width, size = model.config.width, model.config.head_dim
    for scale, words in (
        (1.0, "nothing"),
        (width**-0.5, f"1/sqrt(width) = {width**-0.5:.4g}"),
        (1 / size, f"1/head_dim = {1 / size:.4g}"),
        (size**0.5, "sqrt(head_dim)"),
        (model.config.heads**-0.5, "1/sqrt(heads)"),
    ):
        yield scale_is(model, scale, words)


def _token_candidates(model: ViT) -> Iterator[Candidate]:
    config = model.config
    if config.positions != "rope":
        for rule in POSITION_RESAMPLINGS:
            if rule != config.position_resampling:
                says = f"positions are resampled by the rule {rule!r}, here by {config.position_resampling!r}"
                # Some rules resample in float32 whatever the dtype; a port may not.
                edit = configured(position_resampling=rule)
                yield Candidate("position resampling", says, (("embed.tokens", edit),), slack=2.0**-21)

    def embedded(arrange: Callable[[list[Tensor], Tensor, Tensor], list[Tensor]]) -> Edit:
        """Another way from prefix tokens (1, n, D) each, patches (B, P, D) and positions (1, N, D) to the tokens."""

        def edit(stack: ExitStack, m: ViT, i: int) -> None:
            def embed(pixels_BCHW: Tensor, *, resample: bool = False) -> Tensor:
                layout = m.layout_of(pixels_BCHW, resample=resample)
                patches_BPD = m.patch_embed(pixels_BCHW)
                tokens: list[Tensor] = [t for t in (m.cls_token, m.dist_token, m.reg_tokens) if t is not None]
                positions_1ND = patches_BPD.new_zeros(1, layout.count, config.width)
                if m.pos_embed is not None:
                    positions_1ND = m.positions(layout)
                parts = arrange(tokens, patches_BPD, positions_1ND)
                return m.norm_pre(torch.cat([part.expand(len(patches_BPD), -1, -1) for part in parts], dim=1))

            swap(stack, m, "embed", embed)

        return edit

    def ordered(order: Sequence[int], along: bool) -> Callable[[list[Tensor], Tensor, Tensor], list[Tensor]]:
        """Prefix tokens and patches in another order, with their positions or without them."""

        def arrange(tokens: list[Tensor], patches: Tensor, positions: Tensor) -> list[Tensor]:
            parts = [*tokens, patches]
            if along:
                rows = positions.split([part.shape[1] for part in parts], dim=1)
                return [parts[i] + rows[i] for i in order]
            rows = positions.split([parts[i].shape[1] for i in order], dim=1)
            return [parts[i] + row for i, row in zip(order, rows, strict=True)]

        return arrange

    names = ["class", "distillation", "registers"]
    there = [config.cls_token, config.dist_token, config.registers]
    names = [*(name for name, has in zip(names, there, strict=True) if has), "patches"]
    for order in itertools.permutations(range(len(names))):
        if list(order) == sorted(order):
            continue
        words = f"the tokens are in the order {', '.join(names[i] for i in order)}, here {', '.join(names)}"
        yield Candidate(
            "prefix order", f"{words}, with their positions", (("embed.tokens", embedded(ordered(order, True))),)
        )
        kept = (("embed.tokens", embedded(ordered(order, False))),)
        yield Candidate("prefix order", f"{words}, with positions that do not move", kept)

    def shifted(tokens: list[Tensor], patches: Tensor, positions: Tensor) -> list[Tensor]:
        return [*tokens, patches + positions[:, positions.shape[1] - patches.shape[1] :]]

    def none(tokens: list[Tensor], patches: Tensor, positions: Tensor) -> list[Tensor]:
        return [*tokens, patches]

    def turned(tokens: list[Tensor], patches: Tensor, positions: Tensor) -> list[Tensor]:
        prefix = positions.shape[1] - patches.shape[1]
        first, rest = positions.split([prefix, patches.shape[1]], dim=1)
        rows, columns = config.layout.grid
        if rows * columns == patches.shape[1]:
            rest = rest.unflatten(1, (columns, rows)).transpose(1, 2).flatten(1, 2)
        return [torch.cat(tokens, dim=1) + first if tokens else first, patches + rest]

    if config.positions != "rope":
        for says, arrange in (
            ("the prefix tokens have no position", shifted),
            ("no positions are added", none),
            ("positions run along the columns, here along the rows", turned),
        ):
            yield Candidate("positions", says, (("embed.tokens", embedded(arrange)),))


def _norm_candidates(model: ViT) -> Iterator[Candidate]:
    def post_norm(stack: ExitStack, m: ViT, i: int) -> None:
        block = block_of(m, i)

        def forward(x: Tensor, rope: tuple[Tensor, Tensor] | None = None) -> Tensor:
            x = block.norm1(x + block.ls1(block.attn(x, rope)))
            return block.norm2(x + block.ls2(block.mlp(x)))

        swap(stack, block, "forward", forward)

    def late_residual(stack: ExitStack, m: ViT, i: int) -> None:
        block = block_of(m, i)

        def forward(x: Tensor, rope: tuple[Tensor, Tensor] | None = None) -> Tensor:
            x = block.norm1(x)
            x = block.norm2(x + block.ls1(block.attn(x, rope)))
            return x + block.ls2(block.mlp(x))

        swap(stack, block, "forward", forward)

    before = "norm before attention and MLP"
    yield Candidate("norm placement", f"the norms follow the residual sums (post-norm), here {before}",
                     ((B + "norm1", post_norm),))  # fmt: skip
    yield Candidate("norm placement", "the residual is taken after the norm, here before it",
                     ((B + "resid_mid", late_residual),))  # fmt: skip
    for name in ("norm1", "norm2"):
        yield Candidate("norm placement", f"there is no {name}", ((B + name, put("", name, nn.Identity())),))
    yield Candidate("norm placement", "there is no final norm", (("norm", put("", "norm", nn.Identity())),))
    where = {"tokens": "covers what is pooled, here all tokens", "pooled": "covers all tokens, here what is pooled"}
    yield Candidate(
        "norm placement",
        f"the final norm {where[model.config.norm]}",
        (("norm", configured(norm="pooled" if model.config.norm == "tokens" else "tokens")),),
    )
    if model.config.norm_pre:
        yield Candidate(
            "norm placement",
            "there is no norm before the blocks",
            (("embed.tokens", put("", "norm_pre", nn.Identity())),),
        )


def _coarse(x: Tensor, bits: int) -> Tensor:
    """Round to `bits` bits of the mantissa."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2 ** (bits + 1)).round() / 2 ** (bits + 1), exponent)


def _dtype_candidates(model: ViT) -> Iterator[Candidate]:
    """Weights stored in a lower precision, and matrix products of rounded inputs."""
    paths = {
        "attn.qkv": "q",
        "attn.proj": "attn.out",
        "mlp.fc1": "mlp.pre",
        "mlp.fc2": "mlp.out",
        "norm1": "norm1",
        "norm2": "norm2",
    }
    around = {"patch_embed": "embed.patches", "norm": "norm", "head": "logits"}

    def stored(path: str, dtype: torch.dtype) -> Edit:
        def edit(stack: ExitStack, m: ViT, i: int) -> None:
            module = (m.blocks[i] if i >= 0 else m).get_submodule(path)
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    swap(stack, module, name, parameter.to(dtype).to(parameter))

        return edit

    def tokens(dtype: torch.dtype) -> Edit:
        def edit(stack: ExitStack, m: ViT, i: int) -> None:
            for name in ("cls_token", "dist_token", "reg_tokens", "pos_embed"):
                if m._parameters.get(name) is not None:
                    swap(stack, m, name, getattr(m, name).to(dtype).to(getattr(m, name)))

        return edit

    def multiplied(path: str, bits: int) -> Edit:
        def edit(stack: ExitStack, m: ViT, i: int) -> None:
            linear = (m.blocks[i] if i >= 0 else m).get_submodule(path)
            if isinstance(linear, nn.Linear):
                weight = _coarse(linear.weight, bits)
                swap(stack, linear, "forward", lambda x: F.linear(_coarse(x, bits), weight, linear.bias))

        return edit

    for dtype in (torch.bfloat16, torch.float16):
        edits = [(B + step, stored(path, dtype)) for path, step in paths.items()]
        edits += [(step, stored(path, dtype)) for path, step in around.items()] + [("embed.tokens", tokens(dtype))]
        name = str(dtype).removeprefix("torch.")
        yield Candidate("dtype", f"the weights were stored in {name}", tuple(edits))
    for bits, name in ((10, "TF32"), (7, "bfloat16")):
        edits = [(B + step, multiplied(path, bits)) for path, step in paths.items()] + [
            ("logits", multiplied("head", bits))
        ]
        yield Candidate("dtype", f"matrix products round their inputs to {name}", tuple(edits))


def _other_candidates(model: ViT) -> Iterator[Candidate]:
    if model.config.layer_scale:
        gone = nn.Identity()
        edits = ((B + "resid_mid", put("", "ls1", gone)), (B + "resid_post", put("", "ls2", gone)))
        yield Candidate("layer scale", "there is no layer scale", edits)

    def filters(change: Callable[[Tensor], Tensor]) -> Edit:
        return lambda stack, m, i: swap(stack, m.patch_embed, "weight", change(m.patch_embed.weight))

    for says, change in (
        ("the channels of the pixels are in the order BGR, here RGB", lambda w: w.flip(1)),
        ("rows and columns inside a patch are exchanged", lambda w: w.transpose(2, 3)),
    ):
        yield Candidate("pixel order", says, (("embed.patches", filters(change)),))
    for pooling in ("cls", "mean"):
        if pooling != model.config.pooling and (pooling != "cls" or model.config.cls_token):
            says = f"the head reads the pooling {pooling}, here {model.config.pooling}"
            yield Candidate("pooling", says, (("pooled", configured(pooling=pooling)),))
