"""Where two implementations of one model part, and why: steps compared by name, causes found by trying them out."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minivit.model.attention import Attend
from minivit.model.block import Block, activation
from minivit.model.config import ACTIVATIONS, POSITION_RESAMPLINGS
from minivit.model.vit import ViT
from minivit.study.names import step_names
from minivit.study.tracing import trace

# In float64 a sum of some thousand products is right to 1e-12 of the greatest number, and a few dozen blocks add
# little; another formula differs by more than this share.
EXACT = 1e-9
# In float32 each side is off by its own rounding. Ours is measured against float64; the other's is of its kind,
# which leaves eight times ours, and four units in the last place where we happen to be right.
ROUNDINGS = 8
LAST_PLACES = 4


class Measure(NamedTuple):
    """How far two tensors of one shape are apart."""

    max_abs: float  # greatest difference
    max_rel: float  # the same as a share of the greatest magnitude
    cosine: float  # of all numbers as one vector
    tolerance: float  # how great max_abs may be

    @property
    def equal(self) -> bool:
        return self.max_abs <= self.tolerance


@dataclass(frozen=True, kw_only=True)
class Row:
    """One step of the table."""

    name: str
    shape: tuple[int, ...]
    theirs: tuple[int, ...]  # the other side's shape
    measures: dict[str, Measure]  # "float64", "float32", as far as the other side has them; none of another shape

    @property
    def equal(self) -> bool:
        return self.shape == self.theirs and all(measure.equal for measure in self.measures.values())

    @property
    def broken(self) -> str | None:
        """The dtype in which it broke, the finer one first; None where shapes differ or nothing broke."""
        return next((dtype for dtype, measure in self.measures.items() if not measure.equal), None)


def measure(ours: Tensor, theirs: Tensor, tolerance: float) -> Measure:
    """Compare two tensors of one shape, in float64."""
    a, b = ours.double(), theirs.double()
    apart = float((a - b).abs().max())
    # nan is neither near nor far: it is apart.
    apart = float("inf") if apart != apart else apart
    greatest = float(b.abs().max())
    lengths = float(a.norm() * b.norm())
    cosine = float((a * b).sum()) / lengths if lengths else float(not apart)
    return Measure(apart, apart / greatest if greatest else float(apart > 0), cosine, tolerance)


class Cause(NamedTuple):
    """What the other side does differently, proven by doing the same."""

    cause: str  # eps, GELU form, head order, qkv order, missing bias, scale, ...
    says: str  # in words
    before: float  # greatest difference at the step as we compute it; infinite where shapes differ
    after: float  # and with the change


def diff(model: ViT, pixels_BCHW: Tensor, theirs: Mapping[str, Mapping[str, Tensor]]) -> tuple[list[Row], list[Cause]]:
    """Where another implementation of a model parts from it, and what it does differently there.

    Args:
        model: ours, in float32; a copy of it runs in float64.
        pixels_BCHW: what the other side's steps were made of.
        theirs: {"float64": {step: tensor}, "float32": {step: tensor}}, one or both; steps as `trace` names them.

    Returns:
        The table, up to and with the first step out of tolerance as `compare` says, and the causes `find_causes` found.
    """
    steps = list({**theirs.get("float64", {}), **theirs.get("float32", {})})
    exact = copy.deepcopy(model).double()
    ours = {
        "float64": trace(exact, pixels_BCHW.double(), keep=steps, limit=None),
        "float32": trace(model, pixels_BCHW.float(), keep=steps, limit=None),
    }
    rows = list(compare(ours, theirs))
    if not rows or rows[-1].equal:
        return rows, []
    step, agreed = rows[-1].name, [row.name for row in rows[:-1]]
    dtype, tolerance = tolerance_of(rows[-1], theirs)
    return rows, find_causes(exact, pixels_BCHW.double(), step, theirs[dtype], agreed, tolerance)


def tolerance_of(row: Row, theirs: Mapping[str, Mapping[str, Tensor]]) -> tuple[str, float]:
    """The dtype in which a step is looked into, and how near to the other side's numbers a cause must come there."""
    dtype = row.broken or next(dtype for dtype in theirs if row.name in theirs[dtype])
    if row.measures:
        return dtype, row.measures[dtype].tolerance
    # Of another shape.
    return dtype, (EXACT if dtype == "float64" else 1e-5) * float(theirs[dtype][row.name].abs().max())


def compare(ours: Mapping[str, Mapping[str, Tensor]], theirs: Mapping[str, Mapping[str, Tensor]]) -> Iterator[Row]:
    """Steps side by side in the order of ours, up to and with the first that is out of tolerance.

    In float64 a step may differ by EXACT of its greatest magnitude: what is more is another formula. In float32 by
    ROUNDINGS times our own rounding error, which is measured against float64, and at least by LAST_PLACES units in the
    last place of the greatest magnitude.

    Args:
        ours: {"float64": {step: tensor}, "float32": {step: tensor}}, both.
        theirs: the same, with one dtype or both; a step that is missing is not compared. Tensors of fewer bits
            are judged as float32.
    """
    for name, exact in ours["float64"].items():
        there = {dtype: theirs[dtype][name] for dtype in ("float64", "float32") if name in theirs.get(dtype, {})}
        if not there:
            continue
        shapes = {tuple(tensor.shape) for tensor in there.values()}
        shape = next((shape for shape in shapes if shape != exact.shape), tuple(exact.shape))
        measures = {}
        if shape == exact.shape:
            rounded = ours["float32"][name]
            greatest = float(exact.abs().max())
            own = float((rounded.double() - exact).abs().max())
            allowed = {
                "float64": EXACT * greatest,
                "float32": max(ROUNDINGS * own, LAST_PLACES * torch.finfo(torch.float32).eps * greatest),
            }
            mine = {"float64": exact, "float32": rounded}
            measures = {dtype: measure(mine[dtype], tensor, allowed[dtype]) for dtype, tensor in there.items()}
        row = Row(name=name, shape=tuple(exact.shape), theirs=shape, measures=measures)
        yield row
        if not row.equal:
            return


Edit = Callable[[ExitStack, ViT, int], None]  # changes a model for as long as the stack is open; the number of a block


class Hypothesis(NamedTuple):
    """One thing another implementation may do, as changes to our model."""

    cause: str
    says: str
    edits: tuple[tuple[str, Edit], ...]  # with the first step each shows in; "{i}" in it: in every block
    slack: float = 0.0  # how near it comes at best, as a share of the greatest magnitude


@torch.no_grad()
def find_causes(
    model: ViT,
    pixels_BCHW: Tensor,
    step: str,
    theirs: Mapping[str, Tensor],
    agreed: Sequence[str],
    tolerance: float,
) -> list[Cause]:
    """Why a step differs: every hypothesis under which our own model makes the other side's numbers of it.

    The step is recomputed from its correct input, the last agreed state of the residual stream, with one
    thing changed at a time, and only in what lies between the last step that agreed and this one. Nothing is
    concluded from the name of the step.

    Args:
        model: ours, in float64.
        pixels_BCHW: in float64.
        step: the first that differs, as a pattern `trace` understands.
        theirs: the other side's steps, among them this one.
        agreed: the steps before it that agreed, in the order of the forward.
        tolerance: of the step, as `compare` found it.

    Returns:
        The nearest first; empty when nothing tried reproduces the numbers.
    """
    search = _Search(model, pixels_BCHW, step, {name: tensor.double() for name, tensor in theirs.items()}, agreed)
    ours, wanted = search.run(()), theirs[step].double()
    comparable = ours.shape == wanted.shape
    before = float((ours - wanted).abs().max()) if comparable else float("inf")
    found: list[Cause] = []

    def consider(tried: Iterable[tuple[str, str, Callable[[], Tensor | None], float]]) -> None:
        for cause, says, make, slack in tried:
            candidate = make()
            if candidate is not None and candidate.shape == wanted.shape:
                after = float((candidate - wanted).abs().max())
                if after <= max(tolerance, slack * float(wanted.abs().max())) and after < before / 2:
                    found.append(Cause(cause, says, before, after))

    def redone(tried: Iterable[Hypothesis]) -> Iterator[tuple[str, str, Callable[[], Tensor | None], float]]:
        for hypothesis in tried:
            edits = search.inside(hypothesis.edits)
            if edits:
                yield hypothesis.cause, hypothesis.says, partial(search.run, edits), hypothesis.slack

    # What people do, then settings read off the numbers, then what can only be said of the numbers themselves.
    rounds = [redone(hypotheses(model))]
    if comparable:
        rounds += [redone(search.solved(wanted)), _rearranged(ours, wanted, step)]
    for tried in rounds:
        consider(tried)
        if found:
            return sorted(found, key=lambda cause: cause.after)
    return _rounded(ours, theirs[step], before) if comparable else []


class _Search:
    """Our model between the last step that agreed and the one that does not."""

    def __init__(self, model: ViT, pixels_BCHW: Tensor, step: str, theirs: dict[str, Tensor], agreed: Sequence[str]):
        self.model, self.pixels, self.step = model, pixels_BCHW, step
        self.order = {name: place for place, name in enumerate(step_names(model))}
        self.at = self.order[step.partition("[")[0]]
        self.last = max((self.order[name.partition("[")[0]] for name in agreed), default=-1)
        # The residual stream where it was last known to be right; block `first` reads it.
        streams = ["embed.tokens", *(f"blocks.{i}.resid_post" for i in range(model.config.depth))]
        known = [i for i, name in enumerate(streams) if self.order[name] <= self.last]
        self.first = known[-1] if known else 0
        self.stream: Tensor | None = None
        if known:
            name = streams[self.first]
            ours = trace(model, pixels_BCHW, keep=name, limit=None)[name]
            self.stream = theirs[name] if name in theirs and theirs[name].shape == ours.shape else ours

    def inside(self, edits: tuple[tuple[str, Edit], ...]) -> tuple[tuple[Edit, int], ...]:
        """Those edits that first show after the last agreed step and not behind this one, with the block of each."""
        found = []
        for where, edit in edits:
            blocks = range(self.model.config.depth) if "{i}" in where else [-1]
            for i in blocks:
                place = self.order.get(where.replace("{i}", str(i)), self.order["pooled"])
                if self.last < place <= self.at:
                    found.append((edit, i))
        return tuple(found)

    @torch.no_grad()
    def run(self, edits: tuple[tuple[Edit, int], ...], step: str | None = None) -> Tensor:
        """The step, or another, as our model makes it with some edits, from the last agreed stream if there is one."""
        model, step = self.model, step or self.step
        with ExitStack() as stack:
            if self.stream is not None:
                stream = self.stream

                def embed(pixels_BCHW: Tensor, *, resample: bool = False) -> Tensor:
                    model.patch_embed(pixels_BCHW)  # where a trace begins
                    return stream

                swap(stack, model, "embed", embed)
                for block in model.blocks[: self.first]:
                    swap(stack, block, "forward", lambda x, rope=None: x)
            for edit, i in edits:
                edit(stack, model, i)
            return trace(model, self.pixels, keep=step, limit=None)[step].double()

    def solved(self, wanted: Tensor) -> Iterator[Hypothesis]:
        """Settings that can be read off the other side's numbers: any eps from a norm, any scale from attention."""
        name, selected = self.step.partition("[")[0].split(".")[-1], "[" in self.step
        block = int(self.step.split(".")[1]) if self.step.startswith("blocks.") else -1
        if name in ("norm1", "norm2", "norm") and not selected:
            norm = getattr(self.model.blocks[block] if block >= 0 else self.model, name)
            eps = self._eps(norm, wanted)
            if eps is not None:
                yield Hypothesis("eps", f"eps of the LayerNorm is {eps:.3g}, here {norm.eps:.3g}", _eps_edits(eps))
        if name in ("scores", "probs") and block >= 0 and not selected:
            scale = self._scale(block, wanted, name)
            if scale:
                yield _scale_is(self.model, scale, f"{scale:.4g}")

    def _eps(self, norm: nn.LayerNorm, wanted: Tensor) -> float | None:
        """LayerNorm divides by sqrt(var + eps), so the ratio of both sides' lengths gives eps, token by token."""
        inputs: list[Tensor] = []
        handle = norm.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
        ours = self.run(())
        handle.remove()
        a, b = ours - norm.bias, wanted - norm.bias
        ratio = (a * b).sum(dim=-1) / (a * a).sum(dim=-1)
        variance = inputs[-1].var(dim=-1, correction=0)
        eps = float(((variance + norm.eps) / ratio**2 - variance).median())
        return float(f"{eps:.3g}") if 0 < eps < 1 else None

    def _scale(self, block: int, wanted: Tensor, name: str) -> float | None:
        """Scores are proportional to the scale, and the logarithms of probabilities but for a constant in each row."""
        scores = self.run((), f"blocks.{block}.attn.scores")
        theirs = wanted.clamp(min=1e-300).log() if name == "probs" else wanted
        if theirs.shape != scores.shape:
            return None
        if name == "probs":
            theirs, scores = (x - x.mean(dim=-1, keepdim=True) for x in (theirs, scores))
        ratio = float((theirs * scores).sum() / (scores * scores).sum())
        own = cast(Block, self.model.blocks[block]).attn.scale
        return ratio * own if ratio > 0 else None


def swap(stack: ExitStack, owner: nn.Module, name: str, value: object) -> None:
    """Put something else in the place of a parameter, module or attribute until the stack closes."""
    homes: tuple[dict[str, Any], ...] = (owner._parameters, owner._modules, owner.__dict__)
    home = next((home for home in homes if name in home), None)
    if home is None:
        stack.callback(owner.__dict__.pop, name)
        owner.__dict__[name] = value
    else:
        stack.callback(home.__setitem__, name, home[name])
        home[name] = value


# --- what another implementation may do -----------------------------------------------------------------------

B = "blocks.{i}."
EPS = (1e-12, 1e-8, 1e-6, 1e-5, 1e-3)


def hypotheses(model: ViT) -> list[Hypothesis]:
    """All that is tried on this model, the likely before the odd."""
    return [
        *_eps_hypotheses(model),
        *_activation_hypotheses(model),
        *_order_hypotheses(model),
        *_bias_hypotheses(model),
        *_scale_hypotheses(model),
        *_token_hypotheses(model),
        *_norm_hypotheses(model),
        *_dtype_hypotheses(model),
        *_other_hypotheses(model),
    ]


def _block(model: ViT, i: int) -> Block:
    return cast(Block, model.blocks[i])


def _put(path: str, name: str, value: object) -> Edit:
    """Something else as an attribute of a block's module, or outside the blocks of the model's ("" is itself)."""

    def edit(stack: ExitStack, model: ViT, i: int) -> None:
        owner = (model.blocks[i] if i >= 0 else model).get_submodule(path)
        # A module of its own for each block: they are told apart by the hooks on them.
        swap(stack, owner, name, copy.deepcopy(value) if isinstance(value, nn.Module) else value)

    return edit


def _configured(**changes: Any) -> Edit:
    """Another configuration."""
    return lambda stack, model, i: swap(stack, model, "config", replace(model.config, **changes))


def _eps_edits(eps: float) -> tuple[tuple[str, Edit], ...]:
    def of(place: str) -> Edit:
        def edit(stack: ExitStack, model: ViT, i: int) -> None:
            norm = getattr(model.blocks[i] if i >= 0 else model, place)
            if isinstance(norm, nn.LayerNorm):
                swap(stack, norm, "eps", eps)

        return edit

    places = {"embed.tokens": "norm_pre", B + "norm1": "norm1", B + "norm2": "norm2", "norm": "norm"}
    return tuple((step, of(place)) for step, place in places.items())


def _eps_hypotheses(model: ViT) -> Iterator[Hypothesis]:
    own = model.config.eps
    for eps in EPS:
        if eps != own:
            yield Hypothesis("eps", f"eps of the LayerNorm is {eps:g}, here {own:g}", _eps_edits(eps))


def _activation_hypotheses(model: ViT) -> Iterator[Hypothesis]:
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
            says = f"the MLP bends by {words[name]}, here by {words[model.config.activation]}"
            yield Hypothesis("GELU form", says, ((B + "mlp.act", _put("mlp", "act", act)),))


def _qkv_rows(index: Tensor) -> Edit:
    """The rows of the fused projection in another order."""

    def edit(stack: ExitStack, model: ViT, i: int) -> None:
        qkv = _block(model, i).attn.qkv
        swap(stack, qkv, "weight", qkv.weight[index])
        if qkv.bias is not None:
            swap(stack, qkv, "bias", qkv.bias[index])

    return edit


def _merge(how: Callable[[Tensor], Tensor]) -> Edit:
    """Heads laid side by side in another way: (B, A, N, K) -> (B, N, D)."""

    def edit(stack: ExitStack, model: ViT, i: int) -> None:
        attn = _block(model, i).attn
        own: Attend = attn.attend

        def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
            merged_BND = how(own(q, k, v, scale=scale))
            # (B, N, D) -> (B, N, A, K) -> (B, A, N, K), which the module merges back to the very same
            return merged_BND.unflatten(-1, (q.shape[1], -1)).transpose(1, 2)

        swap(stack, attn, "attend", attend)

    return edit


def _order_hypotheses(model: ViT) -> Iterator[Hypothesis]:
    config = model.config
    width, heads, size = config.width, config.heads, config.head_dim
    rows = torch.arange(3 * width)
    for order in itertools.permutations(range(3)):
        if order != (0, 1, 2):
            letters = ", ".join("qkv"[part] for part in order)
            place = B + ("q" if order[0] != 0 else "k")
            # Their q is the rows of our part order.index(0), and so on.
            index = torch.cat([rows.view(3, width)[order.index(part)] for part in range(3)])
            says = f"rows of the fused projection are taken as {letters}, here as q, k, v"
            yield Hypothesis("qkv order", says, ((place, _qkv_rows(index)),))
    packings = {
        "per head as (head, qkv, channel)": rows.view(heads, 3, size).transpose(0, 1),
        "per head as (head, channel, qkv)": rows.view(heads, size, 3).permute(2, 0, 1),
        "per channel as (channel, head, qkv)": rows.view(size, heads, 3).permute(2, 1, 0),
    }
    for name, packed in packings.items():
        says = f"rows of the fused projection are packed {name}, here as (qkv, head, channel)"
        yield Hypothesis("qkv order", says, ((B + "q", _qkv_rows(packed.flatten())),))

    interleaved = rows.view(3, size, heads).transpose(1, 2).flatten()
    split: tuple[str, Edit] = (B + "q", _qkv_rows(interleaved))
    # (B, A, N, K) -> (B, N, K, A) -> (B, N, D)
    mixed: tuple[str, Edit] = (B + "attn.mix", _merge(lambda x: x.permute(0, 2, 3, 1).flatten(2)))
    inner = "heads are the inner axis, channel c of head a at c * heads + a"
    yield Hypothesis("head order", f"{inner}, when split and when merged; here a * head_dim + c", (split, mixed))
    yield Hypothesis("head order", f"{inner}, when split; here a * head_dim + c", (split,))
    yield Hypothesis("head order", f"{inner}, when merged; here a * head_dim + c", (mixed,))
    # (B, A, N, K) read as (B, N, D)
    flat: Edit = _merge(lambda x: x.reshape(len(x), x.shape[2], -1))
    yield Hypothesis("head order", "heads are merged without bringing the tokens in front", ((B + "attn.mix", flat),))
    edits = []
    for step, turn in ((B + "q", True), (B + "attn.mix", False)):
        backwards = rows.view(3, heads, size).flip(1).flatten()
        edits.append((step, _qkv_rows(backwards) if turn else _merge(lambda x: x.flip(1).transpose(1, 2).flatten(2))))
    yield Hypothesis("head order", "heads stand in the opposite order", tuple(edits))


def _without(stack: ExitStack, module: nn.Module | None, rows: slice = slice(None)) -> None:
    if module is not None and getattr(module, "bias", None) is not None:
        bias = cast(Tensor, module.bias).clone()
        bias[rows] = 0
        swap(stack, module, "bias", bias)


def _bias_hypotheses(model: ViT) -> Iterator[Hypothesis]:
    width = model.config.width

    def inside(path: str, rows: slice = slice(None)) -> Edit:
        return lambda stack, m, i: _without(stack, _block(m, i).get_submodule(path), rows)

    def around(path: str) -> Edit:
        return lambda stack, m, i: _without(stack, getattr(m, path))

    for name, step, rows in (
        ("queries, keys and values have", "q", slice(None)),
        ("queries have", "q", slice(width)),
        ("keys have", "k", slice(width, 2 * width)),
        ("values have", "v", slice(2 * width, None)),
    ):
        yield Hypothesis("missing bias", f"{name} no bias", ((B + step, inside("attn.qkv", rows)),))
    for path, step in (
        ("attn.proj", "attn.out"),
        ("mlp.fc1", "mlp.pre"),
        ("mlp.fc2", "mlp.out"),
        ("norm1", "norm1"),
        ("norm2", "norm2"),
    ):
        yield Hypothesis("missing bias", f"{path} has no bias", ((B + step, inside(path)),))
    for path, step in (("patch_embed", "embed.patches"), ("norm", "norm"), ("head", "logits")):
        yield Hypothesis("missing bias", f"{path} has no bias", ((step, around(path)),))


def _scale_is(model: ViT, scale: float, words: str) -> Hypothesis:
    own = model.config.head_dim**-0.5

    says = f"scores are scaled by {words}, here by 1/sqrt(head_dim) = {own:.4g}"
    return Hypothesis("scale", says, ((B + "attn.scores", _put("attn", "scale", scale)),))


def _scale_hypotheses(model: ViT) -> Iterator[Hypothesis]:
    width, size = model.config.width, model.config.head_dim
    for scale, words in (
        (1.0, "nothing"),
        (width**-0.5, f"1/sqrt(width) = {width**-0.5:.4g}"),
        (1 / size, f"1/head_dim = {1 / size:.4g}"),
        (size**0.5, "sqrt(head_dim)"),
        (model.config.heads**-0.5, "1/sqrt(heads)"),
    ):
        yield _scale_is(model, scale, words)


def _token_hypotheses(model: ViT) -> Iterator[Hypothesis]:
    config = model.config
    if config.positions != "rope":
        for rule in POSITION_RESAMPLINGS:
            if rule != config.position_resampling:
                says = f"positions are stretched by the rule {rule!r}, here by {config.position_resampling!r}"
                # Some rules stretch in float32 whatever the dtype; a port may not.
                edit = _configured(position_resampling=rule)
                yield Hypothesis("position resampling", says, (("embed.tokens", edit),), 2.0**-21)

    def embedded(arrange: Callable[[list[Tensor], Tensor, Tensor], list[Tensor]]) -> Edit:
        """Another way from prefix tokens (1, n, D) each, patches (B, P, D) and positions (1, N, D) to tokens."""

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
        """Parts (prefix tokens, then the patches) in another order; positions go along, or stay where they are."""

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
        words = f"tokens stand as {', '.join(names[i] for i in order)}, here as {', '.join(names)}"
        yield Hypothesis(
            "prefix order", f"{words}, with their positions", (("embed.tokens", embedded(ordered(order, True))),)
        )
        kept = (("embed.tokens", embedded(ordered(order, False))),)
        yield Hypothesis("prefix order", f"{words}, over positions that stay", kept)

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
            ("positions run down the columns, here along the rows", turned),
        ):
            yield Hypothesis("positions", says, (("embed.tokens", embedded(arrange)),))


def _norm_hypotheses(model: ViT) -> Iterator[Hypothesis]:
    def post_norm(stack: ExitStack, m: ViT, i: int) -> None:
        block = _block(m, i)

        def forward(x: Tensor, rope: tuple[Tensor, Tensor] | None = None) -> Tensor:
            x = block.norm1(x + block.ls1(block.attn(x, rope)))
            return block.norm2(x + block.ls2(block.mlp(x)))

        swap(stack, block, "forward", forward)

    def late_residual(stack: ExitStack, m: ViT, i: int) -> None:
        block = _block(m, i)

        def forward(x: Tensor, rope: tuple[Tensor, Tensor] | None = None) -> Tensor:
            x = block.norm1(x)
            x = block.norm2(x + block.ls1(block.attn(x, rope)))
            return x + block.ls2(block.mlp(x))

        swap(stack, block, "forward", forward)

    before = "norm before attention and MLP"
    yield Hypothesis("norm placement", f"norms stand behind the residual sums (post-norm), here {before}",
                     ((B + "norm1", post_norm),))  # fmt: skip
    yield Hypothesis("norm placement", "the residual is taken behind the norm, here in front of it",
                     ((B + "resid_mid", late_residual),))  # fmt: skip
    for name in ("norm1", "norm2"):
        yield Hypothesis("norm placement", f"there is no {name}", ((B + name, _put("", name, nn.Identity())),))
    yield Hypothesis("norm placement", "there is no final norm", (("norm", _put("", "norm", nn.Identity())),))
    where = {"tokens": "covers what is pooled, here all tokens", "pooled": "covers all tokens, here what is pooled"}
    yield Hypothesis(
        "norm placement",
        f"the final norm {where[model.config.norm]}",
        (("norm", _configured(norm="pooled" if model.config.norm == "tokens" else "tokens")),),
    )
    if model.config.norm_pre:
        yield Hypothesis(
            "norm placement",
            "there is no norm in front of the blocks",
            (("embed.tokens", _put("", "norm_pre", nn.Identity())),),
        )


def _coarse(x: Tensor, bits: int) -> Tensor:
    """Numbers rounded to so many bits behind the binary point of the mantissa."""
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp((mantissa * 2 ** (bits + 1)).round() / 2 ** (bits + 1), exponent)


def _dtype_hypotheses(model: ViT) -> Iterator[Hypothesis]:
    """Weights that went through a lower precision, and products whose factors were rounded to one."""
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
        yield Hypothesis("dtype", f"the weights went through {name}", tuple(edits))
    for bits, name in ((10, "TF32"), (7, "bfloat16")):
        edits = [(B + step, multiplied(path, bits)) for path, step in paths.items()] + [
            ("logits", multiplied("head", bits))
        ]
        yield Hypothesis("dtype", f"matrix products round their factors to {name}", tuple(edits))


def _other_hypotheses(model: ViT) -> Iterator[Hypothesis]:
    if model.config.layer_scale:
        gone = nn.Identity()
        edits = ((B + "resid_mid", _put("", "ls1", gone)), (B + "resid_post", _put("", "ls2", gone)))
        yield Hypothesis("layer scale", "there is no layer scale", edits)

    def filters(change: Callable[[Tensor], Tensor]) -> Edit:
        return lambda stack, m, i: swap(stack, m.patch_embed, "weight", change(m.patch_embed.weight))

    for says, change in (
        ("the colours of the pixels stand as BGR, here as RGB", lambda w: w.flip(1)),
        ("rows and columns inside a patch are exchanged", lambda w: w.transpose(2, 3)),
    ):
        yield Hypothesis("pixel order", says, (("embed.patches", filters(change)),))
    for pooling in ("cls", "mean"):
        if pooling != model.config.pooling and (pooling != "cls" or model.config.cls_token):
            says = f"the head reads the {pooling} of the tokens, here {model.config.pooling}"
            yield Hypothesis("pooling", says, (("pooled", _configured(pooling=pooling)),))


def _rearranged(
    ours: Tensor, wanted: Tensor, step: str
) -> Iterator[tuple[str, str, Callable[[], Tensor | None], float]]:
    """What can be said of a step's own numbers: its heads in another order, all of it times a constant."""
    if ours.ndim == 4 and ours.shape[1] > 1:
        apart_AA = (ours[:, :, None] - wanted[:, None]).abs().amax(dim=(0, 3, 4))
        order = apart_AA.argmin(dim=0)
        if len(set(order.tolist())) == len(order):
            words = f"heads stand as {', '.join(map(str, order.tolist()))}, here from 0 up"
            yield "head order", words, lambda: ours[:, order], 0.0
    factor = float((ours * wanted).sum() / (ours * ours).sum()) if ours.any() else 1.0
    cause = "scale" if step.partition("[")[0].endswith((".q", ".k", ".v", ".attn.scores")) else "factor"
    yield cause, f"the step is {factor:.4g} times ours", lambda: ours * factor, 0.0


def _rounded(ours: Tensor, theirs: Tensor, before: float) -> list[Cause]:
    """A step all of whose numbers fit a lower precision, and are as near to ours as that lets them be."""
    greatest = float(ours.abs().max())
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        finer = torch.finfo(theirs.dtype).eps < torch.finfo(dtype).eps or theirs.dtype == dtype != torch.float32
        fits = torch.equal(theirs.double(), theirs.to(dtype).double())
        # A few products and sums in that precision; not another formula.
        if finer and fits and before <= 8 * torch.finfo(dtype).eps * greatest:
            name = str(dtype).removeprefix("torch.")
            after = float((ours.to(dtype).double() - theirs.double()).abs().max())
            return [Cause("dtype", f"all its numbers are {name}", before, after)]
    return []
