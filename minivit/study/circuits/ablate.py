"""Interventions: remove parts of a model, or replace their activations by those of another image.

Each is a context manager that restores the model, on an error too, or a function that uses one. It changes the forward
passes of the thread that opened it. Traces and maps, inside or around it, show what runs. See `study.changes`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from minivit.errors import ShapeError, UsageError
from minivit.model.block import Block
from minivit.model.capabilities import require_vit
from minivit.model.config import TokenLayout
from minivit.model.vit import ViT
from minivit.study.changes import AttendChange, ModuleChange, at_attention, at_module
from minivit.study.circuits.lens import lens
from minivit.study.selectors import Selected, read_keep, token_rows
from minivit.study.tracing import Trace

Token = str | int | tuple[int, int]
Tokens = Token | Collection[Token]
SCANS = ("heads", "mlps", "patches")
HOWS = ("zero", "mean")


@contextmanager
def ablate(
    model: ViT,
    *,
    heads: Iterable[tuple[int, int]] = (),
    mlps: Iterable[int] = (),
    tokens: Tokens = (),
    how: str | Tensor = "zero",
) -> Iterator[None]:
    """Run forward passes inside without these heads, MLPs and tokens: `with minivit.ablate(model, heads={(10, 3)}):`.

    Of a head its attention output (B, N, K) is replaced, under any kernel; of an MLP its output (B, N, D), before the
    layer scale; of a token the input of the first block (D), its position included. Biases of the output projection
    stay. Other tokens can still attend to an ablated token; `knockout` prevents it.

    Args:
        heads: (block, head), counted from 0.
        mlps: blocks.
        tokens: "cls", "dist", "registers", "patches", a position in the sequence, (row, column) of a patch, or a
            list or set of these.
        how: the replacement. "zero"; "mean", its mean over all tokens of the same image, which keeps what they have in
            common; or a tensor that broadcasts to each shape named above, such as a mean over a data set.

    Raises:
        UsageError: nothing to ablate, no such head, block or token, or another `how`.
        ShapeError: the tensor does not broadcast; raised by the forward pass, as an unknown token is.
    """
    config = require_vit(model, "ablate").config
    heads, mlps, tokens = sorted(set(heads)), sorted(set(mlps)), _several(tokens)
    _check_how(how)
    if not (heads or mlps or tokens):
        raise UsageError("nothing to ablate: give heads, mlps or tokens")
    for block, head in heads:
        if not (0 <= block < config.depth and 0 <= head < config.heads):
            raise UsageError(f"no head {block}.{head}: there are blocks 0 to {config.depth - 1} with heads 0 to "
                             f"{config.heads - 1}")  # fmt: skip
    _check_blocks(model, mlps)

    def without_tokens(tokens_BND: Tensor) -> Tensor:
        return _replace_tokens(tokens_BND, _places(layouts[0], tokens), how)

    with _layouts(model) as layouts, ExitStack() as stack:
        for block in {block for block, _ in heads}:
            gone = [(slice(None), head) for layer, head in heads if layer == block]
            stack.enter_context(at_attention(_block(model, block).attn, _without(gone, how)))
        for block in mlps:
            stack.enter_context(_mlp_replaced(_block(model, block), how))
        if tokens:
            stack.enter_context(at_module(model.blocks[0], ModuleChange(input=without_tokens)))
        yield


@contextmanager
def knockout(
    model: ViT,
    queries: Tokens,
    keys: Tokens,
    *,
    blocks: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
) -> Iterator[None]:
    """Run forward passes inside without attention from some tokens to others: their scores are minus infinity.

    Attention knock-out (Geva et al. 2023, arXiv:2304.14767, section 5): the flow from `keys` to `queries` is cut, and
    the queries attend to the other tokens. The attention interface has no mask, so in these blocks PyTorch's attention
    runs instead of the model's own kernel; besides the knock-out the result differs from that by rounding. A kernel
    that differs by more is refused.

    Args:
        queries, keys: tokens as in `ablate`.
        blocks: the blocks; None is all.
        heads: the heads in these blocks; None is all.

    Raises:
        UsageError: no such token, block or head, a query without any key left, or a kernel that is no softmax
            attention; tokens, queries and kernels are checked in the forward pass.
    """
    config = require_vit(model, "knockout").config
    queries, keys = _several(queries), _several(keys)
    where = range(config.depth) if blocks is None else sorted(set(blocks))
    _check_blocks(model, where)
    which = list(range(config.heads)) if heads is None else sorted(set(heads))
    if not set(which) <= set(range(config.heads)):
        raise UsageError(f"heads {which}: there are heads 0 to {config.heads - 1}")
    if not (len(where) and which):
        raise UsageError("no block or no head to knock attention out of")

    def allowed(q: Tensor, k: Tensor) -> Tensor:
        allowed_ANM = torch.ones(q.shape[1], q.shape[2], k.shape[2], dtype=torch.bool, device=q.device)
        from_, to = _places(layouts[0], queries), _places(layouts[0], keys)
        allowed_ANM[torch.tensor(which)[:, None, None], torch.tensor(from_)[:, None], torch.tensor(to)] = False
        return allowed_ANM

    change = AttendChange(allowed=allowed, softmax="knockout")
    with _layouts(model) as layouts, ExitStack() as stack:
        for block in where:
            stack.enter_context(at_attention(_block(model, block).attn, change))
        yield


@contextmanager
def patched(model: ViT, source: Trace, names: Iterable[str] | None = None) -> Iterator[None]:
    """Activation patching: run forward passes inside with activations of another image, at the places its trace kept.

    `source = trace(model, other, keep=["blocks.4.resid_post[cls]", "blocks.3.attn.mix[heads=2]"])`, then `with
    study.patched(model, source): model(pixels)`: everything else comes from `pixels` (Meng et al. 2022,
    arXiv:2202.05262, section 2; Zhang & Nanda 2023, arXiv:2309.16042, on what it shows). The information at these
    places is how far the answer moves towards that of the other image.

    Args:
        source: the trace of one image, which is put into each image of a batch, or of as many as the batch has.
        names: tensors of the trace, as it names them; None is all.

    Raises:
        UsageError: a tensor that the trace does not have; scores or probabilities, which no kernel takes (use q, k, v
            or attn.mix); resid_mid, which has two readers (use attn.out or resid_post).
        ShapeError: another number of tokens or another batch size; raised in the forward pass.
    """
    require_vit(model, "patched")
    names = list(source if names is None else names)
    missing = [name for name in names if name not in source.tensors]
    if missing or not names:
        raise UsageError(f"the trace holds {', '.join(source) or 'nothing'}; to patch: {', '.join(missing)}")
    selected = read_keep(names, model)
    for item in selected:
        if item.step.name.endswith(("attn.scores", "attn.probs")):
            raise UsageError(f"{item.key} is no input of a kernel; patch q, k, v or attn.mix")
        if item.step.name.endswith("resid_mid"):
            raise UsageError(f"{item.key} has two readers, the MLP and the residual sum; patch attn.out or "
                             "resid_post")  # fmt: skip

    def put(item: Selected, x: Tensor) -> Tensor:
        if layouts[0] != source.layout:
            raise ShapeError(f"the trace is of {source.layout.count} tokens, this image has {layouts[0].count}")
        return _put(item, x, source.tensors[item.key], source.layout, model.config.heads)

    def at_attend(item: Selected) -> AttendChange:
        place = "qkv".index(item.step.name[-1])

        def inputs(*qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            q, k, v = (put(item, x) if i == place else x for i, x in enumerate(qkv))
            return q, k, v

        return AttendChange(inputs=inputs)

    with _layouts(model) as layouts, ExitStack() as stack:
        for item in selected:
            if item.step.place is None:
                assert item.block is not None
                stack.enter_context(at_attention(_block(model, item.block).attn, at_attend(item)))
                continue
            place = item.step.place.replace("{i}", str(item.block))
            edit, into = partial(put, item), place.endswith(".input")
            change = ModuleChange(input=edit) if into else ModuleChange(output=edit)
            stack.enter_context(at_module(model.get_submodule(place.removesuffix(".input")), change))
        yield


@torch.no_grad()
def scan(
    model: ViT,
    pixels_BCHW: Tensor,
    what: str = "heads",
    *,
    how: str | Tensor = "zero",
    batch_size: int = 8,
    report: Callable[[int, int], None] | None = None,
    resample: bool = False,
) -> Tensor:
    """Return the answer without each head, MLP or patch in turn; the same as `ablate` one by one, but faster.

    Each run begins at the block where something is removed, from its input, and several run in one batch.

    Args:
        what: "heads", "mlps" or "patches".
        how: as in `ablate`.
        batch_size: sequences in a batch; bounds the memory.
        report: called with the number of answers so far and in all.
        resample: as in `ViT.embed`.

    Returns:
        Logits, or of a model without a head its output: heads (B, layers, A, L), mlps (B, layers, L),
        patches (B, h, w, L).

    Raises:
        UsageError: no such scan or `how`; ShapeError: pixels that the model refuses.
    """
    require_vit(model, "scan")
    if what not in SCANS:
        raise UsageError(f"scan is of {', '.join(SCANS)}, not of {what!r}")
    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}; it must be at least 1")
    _check_how(how)
    layout = model.layout_of(pixels_BCHW, resample=resample)
    rope = model.rope(layout)
    stream_BND = model.embed(pixels_BCHW, resample=resample)
    batch, depth, heads = len(stream_BND), model.config.depth, model.config.heads
    shape = {"heads": (depth, heads), "mlps": (depth,), "patches": layout.grid}[what]
    total = math.prod(shape)
    at_once = max(1, batch_size // batch)  # a batch of images stays together
    answers: list[Tensor] = []

    def finish(x: Tensor, first: int) -> None:
        """Run the rest of the model from a block on: (units * B, N, D)."""
        for block in model.blocks[first:]:
            x = block(x, rope)
        answers.extend(lens(model, [x])[0, :, 0].split(batch))
        if report:
            report(len(answers), total)

    if what == "patches":
        for places in torch.arange(layout.prefix, layout.count).split(at_once):
            finish(torch.cat([_replace_tokens(stream_BND, [place], how) for place in places.tolist()]), 0)
    else:
        for i in range(depth):
            block = _block(model, i)
            for units in torch.arange(heads if what == "heads" else 1).split(at_once):
                x = stream_BND.repeat(len(units), 1, 1)
                gone = [(slice(j * batch, (j + 1) * batch), head) for j, head in enumerate(units.tolist())]
                with _mlp_replaced(block, how) if what == "mlps" else at_attention(block.attn, _without(gone, how)):
                    x = block(x, rope)
                finish(x, i + 1)
            stream_BND = block(stream_BND, rope)
    # units of (B, L) -> (B, units, L) -> (B, ..., L)
    return torch.stack(answers, dim=1).unflatten(1, shape)


def _replacement(how: str | Tensor, own: Tensor, among: Tensor | None = None) -> Tensor:
    """What replaces an activation (..., N, X): zeros, the mean over the tokens of `among` or itself, or a tensor."""
    if isinstance(how, Tensor):
        try:
            return how.to(own).expand_as(own)
        except RuntimeError:
            raise ShapeError(f"how is {tuple(how.shape)}, what is ablated {tuple(own.shape)}") from None
    if how == "zero":
        return torch.zeros_like(own)
    return (own if among is None else among).mean(dim=-2, keepdim=True).expand_as(own)


def _without(gone: list[tuple[slice, int]], how: str | Tensor) -> AttendChange:
    """A change of the attention output: heads replaced, each in some sequences of a batch."""

    def output(output_BANK: Tensor) -> Tensor:
        for sequences, head in gone:
            output_BANK[sequences, head] = _replacement(how, output_BANK[sequences, head])
        return output_BANK

    return AttendChange(output=output)


def _mlp_replaced(block: Block, how: str | Tensor) -> AbstractContextManager[None]:
    return at_module(block.mlp, ModuleChange(output=partial(_replacement, how)))


def _replace_tokens(tokens_BND: Tensor, places: list[int], how: str | Tensor) -> Tensor:
    result_BND = tokens_BND.clone()
    result_BND[:, places] = _replacement(how, tokens_BND[:, places], among=tokens_BND)
    return result_BND


def _put(item: Selected, x: Tensor, value: Tensor, layout: TokenLayout, heads: int) -> Tensor:
    """A tensor of the forward pass with a trace's value at the tokens and heads of its selector."""
    axes, whole = item.step.axes, x.clone()
    # The input of the projection, (B, N, A*K) -> (B, A, N, K); q, k and v have that shape already.
    view = whole.unflatten(-1, (heads, -1)).transpose(1, 2) if axes == "BANK" and x.ndim == 3 else whole
    index: list[Any] = [slice(None)] * view.ndim
    rows = item.selector.rows(layout)
    if item.selector.heads is not None:
        index[1] = torch.tensor(item.selector.heads)
    if rows is not None:
        first = layout.prefix if "P" in axes else 0
        index[axes.index("P" if "P" in axes else "N")] = torch.tensor(rows) - first
    if rows is not None and item.selector.heads is not None:
        index[1] = index[1][:, None]
    there = view[tuple(index)]
    if len(value) not in (1, len(there)) or value.shape[1:] != there.shape[1:]:
        raise ShapeError(f"{item.key} is {tuple(value.shape)} in the trace and {tuple(there.shape)} here")
    view[tuple(index)] = value.to(x)
    return whole


@contextmanager
def _layouts(model: ViT) -> Iterator[list[TokenLayout]]:
    """A list of one: the layout of the image in the current forward pass."""
    layouts = [model.config.layout]

    def begin(pixels_BCHW: Tensor, *_: Any) -> None:
        height, width = pixels_BCHW.shape[2:]
        layouts[0] = model.config.layout_for((height, width))

    with at_module(model.patch_embed, ModuleChange(record_input=begin)):
        yield layouts


def _several(tokens: Tokens) -> list[Token]:
    """One token or a collection of them as a list; two numbers in a tuple are a patch."""
    if isinstance(tokens, (str, int)):
        return [tokens]
    one = isinstance(tokens, tuple) and len(tokens) == 2 and all(isinstance(each, int) for each in tokens)
    return cast("list[Token]", [tokens] if one else list(tokens))


def _places(layout: TokenLayout, tokens: Iterable[Token]) -> list[int]:
    return sorted({place for token in tokens for place in token_rows(layout, token)})


def _block(model: ViT, i: int) -> Block:
    return cast(Block, model.blocks[i])


def _check_blocks(model: ViT, blocks: Iterable[int]) -> None:
    for block in blocks:
        if not 0 <= block < model.config.depth:
            raise UsageError(f"no block {block}: there are blocks 0 to {model.config.depth - 1}")


def _check_how(how: str | Tensor) -> None:
    if not isinstance(how, Tensor) and how not in HOWS:
        raise UsageError(f"how is {how!r}; it must be {', '.join(HOWS)} or a tensor")
