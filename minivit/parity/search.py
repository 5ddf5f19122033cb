"""Where two implementations of one model differ, and why: the first step out of tolerance, and the causes of it.

A cause is found by trying it: our model is edited to do what the other side may do, only between the last step that
agreed and the one that does not, and the step is computed again. Nothing is concluded from the name of a step. One
search serves a ViT and a Swin; `causes` and `swin_causes` list what is tried.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from minivit.errors import ShapeError
from minivit.model.capabilities import ImageModel, require_vit
from minivit.parity import causes, swin_causes
from minivit.parity.comparison import Row, compare, name_of, tolerance_of
from minivit.parity.edits import Candidate, Edit, block_of, swap
from minivit.parity.swin import swin_step_names, swin_steps
from minivit.study.names import step_names
from minivit.study.tracing import trace

# cause, in words, the step under it, slack, whether another step of the other side speaks against it
Tried = tuple[str, str, Callable[[], Tensor | None], float, Callable[[], bool]]


class Cause(NamedTuple):
    """What the other side does differently, proven by doing the same."""

    cause: str  # the candidate's short name
    says: str  # in words
    before: float  # largest difference at the step as we compute it; infinite where shapes differ
    after: float  # the same with the edit


def diff(
    model: ImageModel, pixels_BCHW: Tensor, theirs: Mapping[str, Mapping[str, Tensor]]
) -> tuple[list[Row], list[Cause]]:
    """Return where another implementation differs from a model, and what it does differently there.

    Args:
        model: ours, a ViT or a Swin in float32; a copy of it runs in float64.
        pixels_BCHW: the input of the other side's steps.
        theirs: {"float64": {step: tensor}, "float32": {step: tensor}}, one or both; steps as `all_step_names` lists
            them, of a ViT with selectors as `trace` takes them.

    Returns:
        The table, up to and with the first step out of tolerance as `compare` says, and the causes `find_causes` found.
    """
    steps = list({**theirs.get("float64", {}), **theirs.get("float32", {})})
    if model.windowed:  # without selectors: what is no step, as the pixels of a file, is not compared
        steps = [name for name in swin_step_names(model.config) if name in steps]
    exact = copy.deepcopy(model).double()
    ours = {
        "float64": steps_of(exact, pixels_BCHW.double(), steps),
        "float32": steps_of(model, pixels_BCHW.float(), steps),
    }
    halves = {tensor.dtype for tensor in theirs.get("float32", {}).values()} & {torch.bfloat16, torch.float16}
    for half in halves:  # our own rounding error in the other side's precision
        ours[name_of(half)] = steps_of(copy.deepcopy(model).to(half), pixels_BCHW.to(half), steps)
    rows = list(compare(ours, theirs))
    if not rows or rows[-1].equal:
        return rows, []
    step, agreed = rows[-1].name, [row.name for row in rows[:-1]]
    dtype, tolerance = tolerance_of(rows[-1], theirs)
    return rows, find_causes(exact, pixels_BCHW.double(), step, theirs[dtype], agreed, tolerance)


diff_swin = diff  # the older name for a Swin


def all_step_names(model: ImageModel) -> list[str]:
    """Return the names of all steps of a ViT or a Swin, in the order of the forward pass."""
    return swin_step_names(model.config) if model.windowed else step_names(model)


def steps_of(model: ImageModel, pixels_BCHW: Tensor, steps: Sequence[str]) -> Mapping[str, Tensor]:
    """Return the named steps of a forward pass, in its order."""
    if model.windowed:
        return swin_steps(model, pixels_BCHW, steps)
    return trace(model, pixels_BCHW, keep=list(steps), limit=None)


@torch.no_grad()
def find_causes(
    model: ImageModel,
    pixels_BCHW: Tensor,
    step: str,
    theirs: Mapping[str, Tensor],
    agreed: Sequence[str],
    tolerance: float,
) -> list[Cause]:
    """Return every candidate under which our own model computes the other side's numbers of a step, the nearest first.

    A ViT is run again from the last agreed state of its residual stream, a Swin from the pixels.

    Args:
        model: ours, in float64.
        pixels_BCHW: in float64.
        step: the first that differs, as a pattern `trace` understands.
        theirs: the other side's steps, among them this one.
        agreed: the steps before it that agreed, in the order of the forward pass.
        tolerance: of the step, as `compare` found it.
    """
    exact = {name: tensor.double() for name, tensor in theirs.items()}
    search = _Search(model, pixels_BCHW, step, exact, agreed, tolerance)
    ours, target = search.run(()), theirs[step].double()
    assert ours is not None
    comparable = ours.shape == target.shape
    before = float((ours - target).abs().max()) if comparable else float("inf")
    # What people do, then settings read off the numbers, then what can only be said of the numbers themselves.
    rounds: list[Iterable[Tried]] = [search.tried(search.candidates())]
    if model.windowed:  # first the step's own block alone: a sparse trace may hide a fault that is in one block
        rounds.insert(0, search.tried(search.candidates(), alone=True))
    if comparable and not model.windowed:
        rounds += [search.tried(search.solved(target)), _rearranged(ours, target, step)]
    for tried in rounds:
        found = []
        for cause, says, compute, slack, refuted in tried:
            result = compute()
            if result is not None and result.shape == target.shape:
                after = float((result - target).abs().max())
                near = after <= max(tolerance, slack * float(target.abs().max())) and after < before / 2
                if near and not refuted():
                    found.append(Cause(cause, says, before, after))
        if found:
            return sorted(found, key=lambda cause: cause.after)
    return search.rounded(ours, theirs[step], before) if comparable and not model.windowed else []


class _Search:
    """Our model between the last step that agreed and the one that does not."""

    def __init__(
        self,
        model: ImageModel,
        pixels_BCHW: Tensor,
        step: str,
        theirs: dict[str, Tensor],
        agreed: Sequence[str],
        tolerance: float,
    ):
        self.model, self.pixels, self.step, self.theirs = model, pixels_BCHW, step, theirs
        self.relative = tolerance / float(theirs[step].abs().max() or 1)  # the tolerance of the step, for others
        self.order = {name: place for place, name in enumerate(all_step_names(model))}
        self.at = self.order[step.partition("[")[0]]
        self.last = max((self.order[name.partition("[")[0]] for name in agreed), default=-1)
        self.first, self.stream = 0, None  # the residual stream where it was last right, the input of block `first`
        if not model.windowed:
            streams = ["embed.tokens", *(f"blocks.{i}.resid_post" for i in range(model.config.depth))]
            known = [i for i, name in enumerate(streams) if self.order[name] <= self.last]
            if known:
                self.first, name = known[-1], streams[known[-1]]
                ours = steps_of(model, pixels_BCHW, [name])[name]
                self.stream = theirs[name] if name in theirs and theirs[name].shape == ours.shape else ours

    def candidates(self) -> Iterable[Candidate]:
        """All that is tried on a model of this kind."""
        return swin_causes.candidates(self.model) if self.model.windowed else causes.candidates(self.model)

    def tried(self, candidates: Iterable[Candidate], *, alone: bool = False) -> Iterator[Tried]:
        """Those candidates that edit anything between the last agreed step and this one, or `alone` in its block."""
        for candidate in candidates:
            if edits := self.inside(candidate.edits, alone=alone):
                refuted = partial(self.refuted, candidate, edits)
                yield candidate.cause, candidate.says, partial(self.run, edits), candidate.slack, refuted

    def refuted(self, candidate: Candidate, edits: tuple[tuple[Edit, int], ...]) -> bool:
        """Whether another step of this block that the candidate changes is known, and is not what it computes."""
        if not self.step.startswith("blocks."):
            return False
        block = self.step.split(".")[1]
        steps = [(where.replace("{i}", block), edit) for where, edit in candidate.edits if "{i}" in where]
        later = list(edits)
        for name, edit in sorted(steps, key=lambda step: self.order[step[0]]):
            if self.order[name] <= self.at:
                continue
            later += [(edit, int(block))] if (edit, int(block)) not in later else []
            if name not in self.theirs:
                if candidate.whole:
                    return True
                continue
            made, known = self.run(tuple(later), name), self.theirs[name]
            if made is None or made.shape != known.shape:
                return True
            allowed = 10 * max(self.relative, candidate.slack) * float(known.abs().max())
            if float((made - known).abs().max()) > allowed:
                return True
        return False

    def inside(self, edits: tuple[tuple[str, Edit], ...], *, alone: bool = False) -> tuple[tuple[Edit, int], ...]:
        """Those edits that first show after the last agreed step and not behind this one, with the block of each."""
        own, found = self.step.split(".")[:2], []
        for where, edit in edits:
            for i in range(self.model.config.depth) if "{i}" in where else [-1]:
                name = where.replace("{i}", str(i))
                # Without a head the last step is "pooled"; a stage of a Swin is no block.
                place = self.order.get(name, self.order["pooled"] if i < 0 else -1)
                inside = self.last < place <= self.at and (not alone or name.split(".")[:2] == own)
                if inside and (edit, i) not in found:
                    found.append((edit, i))
        return tuple(found)

    @torch.no_grad()
    def run(
        self, edits: tuple[tuple[Edit, int], ...], step: str | None = None, dtype: torch.dtype = torch.float64
    ) -> Tensor | None:
        """The step, or another, under some edits; None where the model then refuses the image."""
        model, step = self.model, step or self.step
        if dtype != torch.float64:
            model = copy.deepcopy(model).to(dtype)
        with ExitStack() as stack:
            if self.stream is not None:
                stream = self.stream.to(dtype)

                def embed(pixels_BCHW: Tensor, *, resample: bool = False) -> Tensor:
                    model.patch_embed(pixels_BCHW)  # where a trace begins
                    return stream

                swap(stack, model, "embed", embed)
                for block in model.blocks[: self.first]:
                    swap(stack, block, "forward", lambda x, rope=None: x)
            for edit, i in edits:
                edit(stack, model, i)
            try:
                return steps_of(model, self.pixels.to(dtype), [step])[step].double()
            except ShapeError:  # another rule of padding
                return None

    def rounded(self, ours: Tensor, theirs: Tensor, before: float) -> list[Cause]:
        """A step whose numbers all fit a lower precision, where rounding to it or computing in it explains them."""
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            finer = torch.finfo(theirs.dtype).eps < torch.finfo(dtype).eps or theirs.dtype == dtype != torch.float32
            if finer and torch.equal(theirs.double(), theirs.to(dtype).double()):
                redone = [ours.to(dtype).double(), self.run((), dtype=dtype)]
                after = min(float((x - theirs.double()).abs().max()) for x in redone if x is not None)
                if after < before / 2:
                    return [Cause("dtype", f"all its numbers are {str(dtype).removeprefix('torch.')}", before, after)]
        return []

    def solved(self, target: Tensor) -> Iterator[Candidate]:
        """Settings that can be read off the other side's numbers: any eps of a norm, any scale of attention."""
        name, selected = self.step.partition("[")[0].split(".")[-1], "[" in self.step
        block = int(self.step.split(".")[1]) if self.step.startswith("blocks.") else -1
        if name in ("norm1", "norm2", "norm") and not selected:
            norm = getattr(self.model.blocks[block] if block >= 0 else self.model, name)
            if (eps := self._eps(norm, target)) is not None:
                yield causes.eps_is(eps, f"{eps:.3g}", f"{norm.eps:.3g}")
        if name in ("scores", "probs") and block >= 0 and not selected and (scale := self._scale(block, target, name)):
            yield causes.scale_is(require_vit(self.model, "diff"), scale, f"{scale:.4g}")

    def _eps(self, norm: nn.LayerNorm, target: Tensor) -> float | None:
        """LayerNorm divides by sqrt(var + eps), so the ratio of both sides' norms gives eps, token by token."""
        inputs: list[Tensor] = []
        handle = norm.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
        ours = self.run(())
        handle.remove()
        assert ours is not None
        a, b = ours - norm.bias, target - norm.bias
        ratio = (a * b).sum(dim=-1) / (a * a).sum(dim=-1)
        variance = inputs[-1].var(dim=-1, correction=0)
        eps = float(((variance + norm.eps) / ratio**2 - variance).median())
        return float(f"{eps:.3g}") if 0 < eps < 1 else None

    def _scale(self, block: int, target: Tensor, name: str) -> float | None:
        """Scores are proportional to the scale; so are the logarithms of probabilities, up to a constant per row."""
        scores = self.run((), f"blocks.{block}.attn.scores")
        theirs = target.clamp(min=1e-300).log() if name == "probs" else target
        if scores is None or theirs.shape != scores.shape:
            return None
        if name == "probs":
            theirs, scores = (x - x.mean(dim=-1, keepdim=True) for x in (theirs, scores))
        ratio = float((theirs * scores).sum() / (scores * scores).sum())
        return ratio * block_of(self.model, block).attn.scale if ratio > 0 else None


def _rearranged(ours: Tensor, target: Tensor, step: str) -> Iterator[Tried]:
    """What can be said of a step's own numbers: its heads in another order, all of it times a constant."""
    if ours.ndim == 4 and ours.shape[1] > 1:
        apart_AA = (ours[:, :, None] - target[:, None]).abs().amax(dim=(0, 3, 4))
        order = apart_AA.argmin(dim=0)
        if len(set(order.tolist())) == len(order):
            words = f"the heads are in the order {', '.join(map(str, order.tolist()))}, here from 0 up"
            yield "head order", words, lambda: ours[:, order], 0.0, lambda: False
    factor = float((ours * target).sum() / (ours * ours).sum()) if ours.any() else 1.0
    cause = "scale" if step.partition("[")[0].endswith((".q", ".k", ".v", ".attn.scores")) else "factor"
    yield cause, f"the step is {factor:.4g} times ours", lambda: ours * factor, 0.0, lambda: False
