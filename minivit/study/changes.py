"""What open contexts change and record inside a model; no other file of study touches modules.

A context belongs to the thread that opened it: it changes and records the forward passes of this thread, and other
threads run the whole model at the same time. Contexts may close in any order; the last one leaves the model as it was.
At one place all changes are made first, in the order in which their contexts were opened, then the result is recorded:
a trace shows what ran, wherever it was opened. While a context is open, compiled models run eagerly in its thread,
because compiled code does not see new hooks.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import RLock, get_ident
from typing import Any, ClassVar, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from minivit.errors import UsageError
from minivit.model.attention import AttentionPool, SelfAttention, attend_reference, attend_sdpa
from minivit.model.block import Block
from minivit.model.vit import ViT

# Relative to the largest output: above it a kernel is no softmax attention. Half precision inside is refused too.
SAME_ATTENTION = {torch.float64: 1e-6, torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}


class AttendCall(NamedTuple):
    """What an attention kernel receives, after all changes; see `attention.Attend`."""

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    bias: Tensor | None  # the model's own bias, and minus infinity where attention is knocked out
    allowed: Tensor | None  # (A, N, M), bool: False where attention is knocked out; None: it is nowhere


@dataclass(frozen=True, eq=False, kw_only=True)
class AttendChange:
    """What one context does at one attention. All callables are optional."""

    inputs: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]] | None = None  # new q, k, v
    allowed: Callable[[Tensor, Tensor], Tensor] | None = None  # of q and k: (A, N, M), bool
    kernel: Callable[[AttendCall], Tensor] | None = None  # softmax attention, in place of the model's own
    output: Callable[[Tensor], Tensor] | None = None  # a new attention output, from one in its own memory
    record: Callable[[AttendCall], None] | None = None
    softmax: str | None = None  # what would be wrong where the model's own kernel is no softmax attention


@dataclass(frozen=True, eq=False, kw_only=True)
class ModuleChange:
    """What one context does at one module: a new first input or output, or what records it."""

    input: Callable[[Tensor], Tensor] | None = None
    output: Callable[[Tensor], Tensor] | None = None
    record_input: Callable[..., None] | None = None  # receives all positional arguments
    record_output: Callable[[Tensor], None] | None = None


@contextmanager
def at_attention(attn: SelfAttention | AttentionPool, change: AttendChange) -> Iterator[None]:
    """Run forward passes of this thread with a change of `attn.attend` inside."""
    attributes = attn.__dict__
    with _LOCK:
        attend = attributes.get("attend")
        if not isinstance(attend, _Attend):
            attend = attributes["attend"] = _Attend(attn.attend, registered="attend" not in attributes)
        entry = (get_ident(), change)
        attend.changes.append(entry)
    try:
        with _without_compile():
            yield
    finally:
        with _LOCK:
            attend.changes.remove(entry)
            if not attend.changes:
                attend.leave(attributes)


@contextmanager
def softmax_needed(model: ViT, what: str) -> Iterator[None]:
    """Refuse, in forward passes inside, a model whose own kernel is no softmax attention; UsageError with two numbers.

    Args:
        what: what would be wrong, as the message names it.
    """
    with ExitStack() as stack:
        for block in model.blocks:
            stack.enter_context(at_attention(cast(Block, block).attn, AttendChange(softmax=what)))
        yield


@contextmanager
def at_module(module: nn.Module, change: ModuleChange) -> Iterator[None]:
    """Run forward passes of this thread with a change of a module's input or output inside."""
    with _LOCK:
        hooks = _HOOKS.get(module)
        if hooks is None:
            hooks = _HOOKS[module] = _Hooks(module)
        entry = (get_ident(), change)
        hooks.changes.append(entry)
    try:
        with _without_compile():
            yield
    finally:
        with _LOCK:
            hooks.changes.remove(entry)
            if not hooks.changes:
                hooks.leave()
                del _HOOKS[module]


class _Attend:
    """Stands in for a module's `attend` while contexts are open."""

    def __init__(self, own: Callable[..., Tensor], registered: bool):
        self.own = own
        self.registered = registered  # a child module, which this hides without unregistering it
        self.changes: list[tuple[int, AttendChange]] = []
        self.inherited: tuple[list[tuple[int, AttendChange]], ...] = ()  # of the model that was copied inside a context

    def __deepcopy__(self, memo: dict[int, Any]) -> _Attend:
        other = _Attend(copy.deepcopy(self.own, memo), self.registered)
        other.inherited = (*self.inherited, self.changes)
        return other

    def leave(self, attributes: dict[str, Any]) -> None:
        """Put back what was there. The attribute never misses, because another thread may be reading it."""
        if self.inherited:
            return
        if self.registered:
            attributes.pop("attend", None)
        else:
            attributes["attend"] = self.own

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float, bias: Tensor | None = None) -> Tensor:
        changes = _mine(*self.inherited, self.changes)
        for change in changes:
            q, k, v = change.inputs(q, k, v) if change.inputs else (q, k, v)
        masks = [change.allowed(q, k) for change in changes if change.allowed]
        allowed = _all_of(masks)
        call = AttendCall(q, k, v, scale, _masked(bias, allowed, q), allowed)
        for change in changes:
            if change.record:
                change.record(call)
        kernels = [change.kernel for change in changes if change.kernel]
        why = [change.softmax for change in changes if change.softmax]
        if why and self.own not in (attend_sdpa, attend_reference):
            self._check_softmax(call._replace(bias=bias), why[-1])
        if kernels:
            output = kernels[-1](call)
        elif allowed is not None:
            output = attend_sdpa(q, k, v, scale=scale, bias=call.bias)
        else:
            output = self._run_own(call)
        edits = [change.output for change in changes if change.output]
        output = output.clone() if edits else output  # a kernel may keep its memory
        for edit in edits:
            output = edit(output)
        return output

    def _run_own(self, call: AttendCall) -> Tensor:
        bias = {} if call.bias is None else {"bias": call.bias}
        with _as_before():
            return self.own(call.q, call.k, call.v, scale=call.scale, **bias)

    @torch.no_grad()
    def _check_softmax(self, call: AttendCall, why: str) -> None:
        """Raise UsageError where the model's own kernel returns something else than softmax attention."""
        own = self._run_own(call).double()
        plain = attend_reference(call.q, call.k, call.v, scale=call.scale, bias=call.bias).double()
        apart = (own - plain).abs().flatten()
        if not float(apart.max()) <= SAME_ATTENTION.get(call.q.dtype, 1e-3) * float(plain.abs().max()):
            place = int(apart.argmax())
            raise UsageError(
                f"{why} needs softmax attention, and the model's attention kernel computes something else: one "
                f"number of its output is {float(own.flatten()[place]):.4g} where softmax attention has "
                f"{float(plain.flatten()[place]):.4g}; input gradients, integrated gradients, ablate and a trace of q, "
                "k, v and attn.mix work under any kernel"
            )


class _Hooks:
    """The two hooks of a module while contexts are open."""

    def __init__(self, module: nn.Module):
        self.changes: list[tuple[int, ModuleChange]] = []
        self.handles = [module.register_forward_pre_hook(self.before), module.register_forward_hook(self.after)]

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hooks:
        return self  # a copy of the model made inside a context follows it until it closes

    def leave(self) -> None:
        for handle in self.handles:
            handle.remove()

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        changes, x = _mine(self.changes), args[0]
        for change in changes:
            x = change.input(x) if change.input else x
        for change in changes:
            if change.record_input:
                change.record_input(x, *args[1:])
        return None if x is args[0] else (x, *args[1:])

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        changes, x = _mine(self.changes), output
        for change in changes:
            x = change.output(x) if change.output else x
        for change in changes:
            if change.record_output:
                change.record_output(x)
        return None if x is output else x


for _function in (_Attend.__call__, _Hooks.before, _Hooks.after):
    setattr(_function, "_torchdynamo_disable", True)  # noqa: B010  # as torch.compiler.disable, without its import

_LOCK = RLock()
_HOOKS: WeakKeyDictionary[nn.Module, _Hooks] = WeakKeyDictionary()  # of the modules with open contexts


class _Stance(threading.local):
    """Stands in for the stance of torch.compile: eager in a thread with open contexts, else what it was.

    torch.compiler.set_stance holds for all threads, so overlapping contexts could not restore it.
    """

    open = 0  # contexts of this thread
    total: ClassVar[int] = 0  # of all threads
    prior: ClassVar[Any] = None

    @property
    def stance(self) -> str:
        return "force_eager" if self.open else self.prior.stance

    @property
    def skip_guard_eval_unsafe(self) -> bool:
        return self.prior.skip_guard_eval_unsafe

    @property
    def backend(self) -> Any:
        return self.prior.backend


_STANCE = _Stance()


@contextmanager
def _without_compile() -> Iterator[None]:
    """Run compiled models of this thread eagerly: their code does not see hooks that came later."""
    with _LOCK:
        compiler = sys.modules.get("torch._dynamo.eval_frame")  # only where something may have been compiled
        if compiler is not None and compiler._stance is not _STANCE:
            _Stance.prior = compiler._set_stance(_STANCE)
        _Stance.total += 1
        _STANCE.open += 1
    try:
        yield
    finally:
        with _LOCK:
            _STANCE.open -= 1
            _Stance.total -= 1
            compiler = sys.modules.get("torch._dynamo.eval_frame")
            if compiler is not None and not _Stance.total and compiler._stance is _STANCE:
                compiler._set_stance(_Stance.prior)


@contextmanager
def _as_before() -> Iterator[None]:
    """Run what is compiled in this thread as outside of contexts: an attention kernel may be, and has no hooks."""
    before, _STANCE.open = _STANCE.open, 0
    try:
        yield
    finally:
        _STANCE.open = before


def _mine(*lists: list[tuple[int, Any]]) -> list[Any]:
    """The changes of this thread, in the order in which their contexts were opened."""
    return [change for changes in lists for thread, change in tuple(changes) if thread == get_ident()]


def _all_of(masks: list[Tensor]) -> Tensor | None:
    if not masks:
        return None
    allowed = torch.stack(masks).all(dim=0)
    if not allowed.any(dim=-1).all():
        raise UsageError(f"a knock-out of all {allowed.shape[-1]} keys leaves the queries no key")
    return allowed


def _masked(bias: Tensor | None, allowed: Tensor | None, like: Tensor) -> Tensor | None:
    """The model's bias with minus infinity where attention is knocked out."""
    if allowed is None:
        return bias
    cut = torch.zeros(allowed.shape, dtype=like.dtype, device=like.device).masked_fill(~allowed, -torch.inf)
    return cut if bias is None else bias + cut


def knocked_out(allowed: Tensor | None, like: Tensor) -> Tensor | None:
    """Return the bias of a knock-out, (A, N, M): 0, and minus infinity where attention is cut; None without one."""
    return _masked(None, allowed, like)
