"""Every tensor of a forward pass by name, without changing what runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, cast, overload

import torch
from torch import Tensor

from minivit.errors import UsageError
from minivit.model.attention import attention_probs
from minivit.model.block import Block
from minivit.model.capabilities import require_vit
from minivit.model.config import TokenLayout
from minivit.model.embed import check_pixels
from minivit.model.vit import ViT
from minivit.study.changes import AttendCall, AttendChange, ModuleChange, at_attention, at_module, knocked_out
from minivit.study.selectors import Selected, read_keep, read_limit
from minivit.weights.shards import save_file

Keep = str | list[str] | tuple[str, ...]


class Trace(Mapping[str, Tensor]):
    """The tensors of a forward pass by name: `t["blocks.3.attn.probs[cls]"]`.

    A name without its selector is understood when it was kept with one selector only. `print(t)`
    shows a table.

    Attributes:
        layout: the token layout, for the size of the images that were traced.
        attention: every block's probs_BANM as a sequence; see LayerProbs.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.scales: dict[int, float] = {}  # of every block's attention
        self.allowed: dict[int, Tensor] = {}  # of blocks with knocked-out attention: (A, N, M), bool
        self.grid_layout: TokenLayout | None = None

    @property
    def layout(self) -> TokenLayout:
        if self.grid_layout is None:
            raise UsageError("the trace is empty: no forward pass has run in it yet")
        return self.grid_layout

    @property
    def attention(self) -> LayerProbs:
        return LayerProbs(self)

    def __getitem__(self, name: str) -> Tensor:
        if name in self.tensors:
            return self.tensors[name]
        variants = [key for key in self.tensors if key.partition("[")[0] == name]
        if len(variants) == 1:
            return self.tensors[variants[0]]
        kept = f"kept are {', '.join(variants or self.tensors)}" if self.tensors else "nothing is kept yet"
        raise KeyError(f"{name}: {kept}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all kept tensors together."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def __str__(self) -> str:
        rows = [["name", "shape", "dtype", "bytes", "mean", "std", "absmax"]]
        for name, tensor in self.tensors.items():
            x = tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
            std, mean = torch.std_mean(x, correction=0)
            numbers = (f"{float(value):.4g}" for value in (mean, std, x.abs().max()))
            shape = " x ".join(str(side) for side in tensor.shape)
            rows.append([name, shape, str(tensor.dtype).removeprefix("torch."), f"{tensor.nbytes:,}", *numbers])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = []
        for row in rows:
            left = [cell.ljust(width) for cell, width in zip(row[:3], widths[:3], strict=True)]
            right = [cell.rjust(width) for cell, width in zip(row[3:], widths[3:], strict=True)]
            lines.append("  ".join(left + right))
        return "\n".join([*lines, f"{len(self)} tensors, {self.nbytes:,} bytes"])

    def __repr__(self) -> str:
        return f"<Trace of {len(self)} tensors, {self.nbytes:,} bytes>"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all tensors, the layout and the scales as one safetensors file."""
        layout = self.layout
        about = {
            "layout": {"cls": layout.cls, "dist": layout.dist, "registers": layout.registers, "grid": layout.grid},
            "scales": self.scales,
            "names": list(self),  # in the order of the forward pass, which safetensors does not keep
            "knocked_out": list(self.allowed),  # blocks
        }
        masks = {_mask_name(block): allowed for block, allowed in self.allowed.items()}
        save_file({**self.tensors, **masks}, path, metadata={"minivit.trace": json.dumps(about)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Trace:
        """Return a trace written by `save`, on the CPU.

        Raises:
            UsageError: no such file, or not a trace.
        """
        from safetensors import SafetensorError, safe_open

        trace = cls()
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["minivit.trace"])
                trace.tensors = {name: file.get_tensor(name) for name in about["names"]}
                blocks = about.get("knocked_out", [])  # not in older files
                trace.allowed = {block: file.get_tensor(_mask_name(block)) for block in blocks}
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise UsageError(f"{os.fspath(path)}: not a trace written by minivit ({error})") from None
        trace.grid_layout = TokenLayout(**{**about["layout"], "grid": tuple(about["layout"]["grid"])})
        trace.scales = {int(block): scale for block, scale in about["scales"].items()}
        return trace


def _mask_name(block: int) -> str:
    return f"blocks.{block}.attn.allowed"


class LayerProbs(Sequence[Tensor]):
    """probs_BANM of every block, computed on access.

    Taken from `blocks.{i}.attn.probs` where it was kept whole, else computed from `blocks.{i}.q` and
    `blocks.{i}.k`, which take much less memory: 2 B N D numbers instead of B A N N.
    """

    def __init__(self, trace: Trace):
        self.trace = trace

    def __len__(self) -> int:
        return len(self.trace.scales)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        block = range(len(self))[index]
        tensors = self.trace.tensors
        probs, q, k = (tensors.get(f"blocks.{block}.{name}") for name in ("attn.probs", "q", "k"))
        if probs is not None:
            return probs
        if q is None or k is None:
            raise UsageError(f"the attention of block {block} needs its q and k: keep blocks.*.q and blocks.*.k whole")
        allowed = self.trace.allowed.get(block)
        return attention_probs(q, k, scale=self.trace.scales[block], bias=knocked_out(allowed, q))


@overload
def trace(
    model: ViT, pixels_BCHW: None = None, *, keep: Keep = ..., limit: str | int | None = ..., grad: bool = ...
) -> AbstractContextManager[Trace]: ...


@overload
def trace(
    model: ViT,
    pixels_BCHW: Tensor,
    *,
    keep: Keep = ...,
    limit: str | int | None = ...,
    grad: bool = ...,
    resample: bool = ...,
) -> Trace: ...


def trace(
    model: ViT,
    pixels_BCHW: Tensor | None = None,
    *,
    keep: Keep = "*",
    limit: str | int | None = "512M",
    grad: bool = False,
    resample: bool = False,
) -> Trace | AbstractContextManager[Trace]:
    """Return named tensors of a forward pass: `trace(model, pixels, keep=...)`, or `with trace(model, keep=...) as t`.

    Only the model's `attend` is replaced, by a function that records and calls it: the output is the same to the last
    bit under any kernel, and all hooks are removed afterwards, on an error too. Attention scores and probabilities are
    computed beside the kernel from the q and k it received (after a rotation, where the model has one, and after
    interventions), for the selected heads and query rows only. It records the forward passes of its own thread.

    Args:
        pixels_BCHW: run the model on them, without gradients unless `grad`. Without pixels the result
            is a context manager, and every forward pass inside it replaces the tensors of the one before.
        keep: names or patterns with `*`, each perhaps with a selector: "blocks.*.attn.probs[cls]".
        limit: bytes the kept tensors may take together, "512M" being 512 * 10^6; None for no limit.
        grad: keep the tensors inside the autograd graph; else they are detached and their own memory.
        resample: passed on to the model, with pixels only.

    Raises:
        UsageError: a pattern that matches nothing, or more bytes than `limit`, before anything is computed.
    """
    require_vit(model, "trace")
    recording = _recording(model, read_keep(keep, model), read_limit(limit), grad)
    if pixels_BCHW is None:
        if resample:
            raise UsageError("resample=True goes to the model's own call where trace is a context manager")
        return recording
    check_pixels(pixels_BCHW, model.patch_embed.weight)
    with recording as result, torch.set_grad_enabled(grad):
        model(pixels_BCHW, resample=resample)
    return result


@contextmanager
def _recording(model: ViT, selected: list[Selected], limit: int | None, grad: bool) -> Iterator[Trace]:
    result = Trace()

    def begin(pixels_BCHW: Tensor, *others: Any) -> None:
        """Before the first step of a forward pass: clear the last one, find the layout, check the limit."""
        batch, _, height, width = pixels_BCHW.shape
        result.tensors.clear()
        result.allowed.clear()
        result.grid_layout = model.config.layout_for((height, width))
        result.scales = dict(enumerate(cast(Block, layer).attn.scale for layer in model.blocks))
        numbers = sum(_numel(item, model, batch, result.layout) for item in selected)
        bytes_needed = numbers * model.patch_embed.weight.itemsize
        if limit is not None and bytes_needed > limit:
            raise UsageError(
                f"the trace would take {bytes_needed:,} bytes, more than the limit of {limit:,}; "
                "keep less, or raise the limit"
            )

    def put(item: Selected, x: Tensor) -> None:
        result.tensors[item.key] = x if grad else _own(x.detach())

    def record(items: list[Selected]) -> Callable[..., None]:
        def recorded(x: Tensor, *others: Any) -> None:
            for item in items:
                # (B, N, A*K) -> (B, N, A, K) -> (B, A, N, K)
                split = x.unflatten(-1, (model.config.heads, -1)).transpose(1, 2) if item.step.axes == "BANK" else x
                put(item, _select(split, item, result.layout))

        return recorded

    def record_attention(block: int, items: list[Selected]) -> Callable[[AttendCall], None]:
        def recorded(call: AttendCall) -> None:
            result.scales[block] = call.scale
            if call.allowed is not None:
                result.allowed[block] = call.allowed
            with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
                for item in items:
                    put(item, _at_attend(item, call, result.layout))

        return recorded

    places: dict[str, list[Selected]] = {}
    at_attend: dict[int, list[Selected]] = {}
    for item in selected:
        if item.step.place is None:
            assert item.block is not None
            at_attend.setdefault(item.block, []).append(item)
        else:
            places.setdefault(item.step.place.replace("{i}", str(item.block)), []).append(item)

    with ExitStack() as stack:
        stack.enter_context(at_module(model.patch_embed, ModuleChange(record_input=begin)))
        for place, items in places.items():
            into = place.endswith(".input")
            change = ModuleChange(record_input=record(items)) if into else ModuleChange(record_output=record(items))
            stack.enter_context(at_module(model.get_submodule(place.removesuffix(".input")), change))
        for block, items in at_attend.items():
            at_block = AttendChange(record=record_attention(block, items))
            stack.enter_context(at_attention(cast(Block, model.blocks[block]).attn, at_block))
        yield result


def _at_attend(item: Selected, call: AttendCall, layout: TokenLayout) -> Tensor:
    """The tensor of one name of the attention, computed from what the kernel receives."""
    name = item.step.name.removeprefix("blocks.{i}.")
    if name in ("q", "k", "v"):
        return _select({"q": call.q, "k": call.k, "v": call.v}[name], item, layout)
    q_BARK = _select(call.q, item, layout)
    k_BAMK = call.k if item.selector.heads is None else call.k[:, list(item.selector.heads)]
    bias = None if call.bias is None else _select(call.bias[None], item, layout)
    if name == "attn.scores":
        scores_BARM = (q_BARK @ k_BAMK.transpose(-2, -1)) * call.scale
        return scores_BARM if bias is None else scores_BARM + bias
    return attention_probs(q_BARK, k_BAMK, scale=call.scale, bias=bias)


def _select(x: Tensor, item: Selected, layout: TokenLayout) -> Tensor:
    """The tokens and heads of a selector, of a tensor with the axes of its step."""
    rows, heads, axes = item.selector.rows(layout), item.selector.heads, item.step.axes
    if rows is not None and "P" in axes:
        rows = _patches_only(rows, item, layout)
    if rows is not None:
        x = x.index_select(axes.index("P" if "P" in axes else "N"), torch.tensor(rows, device=x.device))
    if heads is not None:
        x = x.index_select(axes.index("A"), torch.tensor(heads, device=x.device))
    return x


def _patches_only(rows: list[int], item: Selected, layout: TokenLayout) -> list[int]:
    if min(rows) < layout.prefix:
        raise UsageError(f"keep {item.key!r}: holds the patches only, no prefix tokens")
    return [row - layout.prefix for row in rows]


def _numel(item: Selected, model: ViT, batch: int, layout: TokenLayout) -> int:
    """The number of elements of a kept tensor, before anything runs."""
    config = model.config
    rows = item.selector.rows(layout)
    if rows is not None and "P" in item.step.axes:
        _patches_only(rows, item, layout)
    sides = {
        "B": batch,
        "N": layout.count if rows is None else len(rows),
        "P": layout.patches if rows is None else len(rows),
        "M": layout.count,
        "A": config.heads if item.selector.heads is None else len(item.selector.heads),
        "K": config.head_dim,
        "D": config.width,
        "L": config.classes,
        "X": _head_input(model),
    }
    if item.block is not None:
        mlp = cast(Block, model.blocks[item.block]).mlp
        sides |= {"F": mlp.fc2.in_features, "G": mlp.fc1.out_features}
    numel = 1
    for axis in item.step.axes:
        numel *= sides[axis]
    return numel


def _head_input(model: ViT) -> int:
    """The size of the head's input; without a head, of the model's output."""
    config = model.config
    return config.projection or config.width * (2 if config.pooling == "cls+mean" else 1)


def _own(x: Tensor) -> Tensor:
    """The tensor in its own memory; a view would keep the whole tensor behind it alive."""
    alone = x.is_contiguous() and x.untyped_storage().nbytes() == x.nbytes
    return x if alone else x.clone(memory_format=torch.contiguous_format)
