"""The checks of side effects: memory that is read, written or returned, reuse between calls, global state."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from minivit.bench import device as devices
from minivit.bench.checks.cases import Spec
from minivit.bench.checks.findings import Finding, KernelError, judged, output_of, refuse_non_finite, same_bits
from minivit.bench.checks.inputs import lay_out, normal, rounded
from minivit.bench.checks.tolerance import judge_rows, pick_rows
from minivit.bench.kernels import Kernel


def output(kernel: Kernel, spec: Spec, generator: Generator) -> Finding:
    """The output is a plain tensor with its own memory for every element."""
    laid = lay_out(normal(spec, generator), spec)
    out = output_of(kernel, laid.qkv)
    if type(out) is not Tensor:
        raise KernelError(f"the output is a {type(out).__name__}, not a plain tensor: its work may not have been done")
    if out.requires_grad:
        raise KernelError("the output requires a gradient where no input does")
    strides = sorted((stride, size) for stride, size in zip(out.stride(), out.shape, strict=True) if size > 1)
    reach = 1  # elements that the dimensions so far can lie in without meeting
    for stride, size in strides:
        if stride < reach:
            raise KernelError(f"elements of the output share memory: shape {tuple(out.shape)}, stride {out.stride()}")
        reach = stride * size
    for name, x in zip("qkv", laid.qkv, strict=True):
        if _overlap(out, x):
            raise KernelError(f"the output lies in the memory of {name}")
    return Finding(status="pass")


def _overlap(a: Tensor, b: Tensor) -> bool:
    """Return whether their allocations share a byte."""
    (a_start, a_size), (b_start, b_size) = (
        (x.untyped_storage().data_ptr(), x.untyped_storage().nbytes()) for x in (a, b)
    )
    return a_start < b_start + b_size and b_start < a_start + a_size


def inputs_unchanged(kernel: Kernel, spec: Spec, generator: Generator) -> Finding:
    """q, k and v are unchanged, bit by bit."""
    laid = lay_out(normal(spec, generator), spec)
    before = [x.clone() for x in laid.qkv]
    output_of(kernel, laid.qkv)
    changed = [name for name, x, y in zip("qkv", laid.qkv, before, strict=True) if not same_bits(x, y)]
    if changed:
        raise KernelError(f"changed its input {' and '.join(changed)}")
    return Finding(status="pass")


def writes_inside(kernel: Kernel, spec: Spec, generator: Generator) -> Finding:
    """The memory around the inputs is unchanged. (The memory around the output belongs to the kernel.)"""
    laid = lay_out(normal(spec, generator), spec)
    before = [buffer.clone() for buffer in laid.buffers]
    inputs = [x.clone() for x in laid.qkv]
    output_of(kernel, laid.qkv)
    for view, values in zip(laid.qkv, inputs, strict=True):
        view.copy_(values)  # a changed input is another check's
    if not all(same_bits(a, b) for a, b in zip(laid.buffers, before, strict=True)):
        raise KernelError("wrote outside its inputs, into the memory around them")
    return Finding(status="pass")


def reads_inside(kernel: Kernel, spec: Spec, generator: Generator) -> Finding:
    """The output is the same whatever lies around the inputs: nan, large numbers or zeros."""
    qkv = rounded(normal(spec, generator), spec)
    with_zero, with_large, with_nan = (
        output_of(kernel, lay_out(qkv, spec, fill=fill).qkv) for fill in (0.0, 1000.0, float("nan"))
    )
    for name, out in (("nan", with_nan), ("numbers", with_large)):
        if not _close(out, with_zero):
            raise KernelError(f"read outside its inputs: {name} in the memory around them changed the answer")
    return Finding(status="pass")


def uninitialised(kernel: Kernel, spec: Spec, generator: Generator) -> Finding:
    """The output is the same when new memory is filled with nan."""
    qkv = rounded(normal(spec, generator), spec)
    plain = output_of(kernel, lay_out(qkv, spec).qkv)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "warn only" about operations without a deterministic form
        torch.use_deterministic_algorithms(True, warn_only=True)  # torch.empty is filled with nan; ask() undoes it
        poisoned = output_of(kernel, lay_out(qkv, spec).qkv)
    if not _close(poisoned, plain):
        raise KernelError("uses memory that was never written: with nan in fresh memory the answer is another")
    return Finding(status="pass")


def _close(a: Tensor, b: Tensor) -> bool:
    """Return whether a and b are equal up to the order of sums; nan equals nothing."""
    difference = (a.double() - b.double()).norm()
    return bool(difference <= 4 * torch.finfo(a.dtype).eps * b.double().norm())


def outputs_kept(kernel: Kernel, spec: Spec, generator: Generator) -> Finding:
    """An output is unchanged after two more calls with other inputs, and shares no memory with their outputs."""
    laid = [lay_out(normal(spec, generator), spec) for _ in range(3)]
    first = output_of(kernel, laid[0].qkv)
    copy = first.clone()
    later = [output_of(kernel, other.qkv) for other in laid[1:]]
    if any(_overlap(first, out) for out in later) or not same_bits(first, copy):
        raise KernelError("a later call wrote over an earlier output")
    return Finding(status="pass")


def fresh_values(kernel: Kernel, spec: Spec, generator: Generator) -> Finding:
    """New values in the same memory give a new, right output; so do the old values again."""
    old, new = (rounded(normal(spec, generator), spec) for _ in range(2))
    laid = lay_out(old, spec)
    output_of(kernel, laid.qkv)
    for what, qkv in (("new values", new), ("the first values again", old)):
        laid.overwrite(qkv)
        out = output_of(kernel, laid.qkv)
        try:
            rows = pick_rows(spec.tokens, generator)
            finding = judged(judge_rows(out, *qkv, rows=rows, scale=spec.scale))
        except KernelError as wrong:
            raise KernelError(f"{what} in the same memory were not answered: {wrong}", wrong.numbers) from None
    return finding


def deterministic(kernel: Kernel, spec: Spec, generator: Generator) -> Finding:
    """Twenty equal calls agree bit by bit, unless the kernel declares DETERMINISTIC = False."""
    qkv = rounded(normal(spec, generator), spec)
    laid = lay_out(qkv, spec)
    first = output_of(kernel, laid.qkv).clone()
    differ = 0
    for _ in range(19):
        laid.overwrite(qkv)
        differ += not same_bits(output_of(kernel, laid.qkv), first)
    if differ and kernel.deterministic:
        raise KernelError(
            f"{differ} of 20 calls differ from the first; a kernel that means to says DETERMINISTIC = False"
        )
    if differ:
        return Finding(status="note", detail=f"not deterministic, as it says: {differ} of 20 calls differ")
    return Finding(status="pass")


def scale(kernel: Kernel, spec: Spec, generator: Generator) -> Finding:
    """Two scales other than 1 / sqrt(K) are honoured."""
    if not kernel.takes_scale:
        return Finding(status="unsupported", detail="takes no scale; judged at 1 / sqrt(head_dim)")
    qkv = rounded(normal(spec, generator), spec)
    findings = []
    for factor in (0.5, 1.7):
        wanted = factor * spec.scale
        out = output_of(kernel, lay_out(qkv, spec).qkv, scale=wanted)
        refuse_non_finite(out)
        verdict = judge_rows(out, *qkv, rows=pick_rows(spec.tokens, generator), scale=wanted)
        findings.append(judged(verdict, f"scale={wanted:.4g} is not honoured"))
    return max(findings, key=lambda finding: finding.numbers["of_limit"])


def delegation(kernel: Kernel, spec: Spec, generator: Generator) -> Finding:
    """Delegation to PyTorch's own attention is never wrong, but it is noted."""
    from torch.autograd.profiler_legacy import profile  # sees what C++ calls too; the newer one writes to stderr

    laid = lay_out(normal(spec, generator), spec)
    with profile() as seen:
        output_of(kernel, laid.qkv)
    names = {event.name for event in seen.function_events}
    used = sorted(name for name in names if "scaled_dot_product" in name or "flex_attention" in name)
    if used:
        return Finding(status="note", detail=f"delegates to {', '.join(used)}")
    return Finding(status="pass")


# --- global state: how to read it, and how to restore it


def _flush_denormal() -> bool:
    return (torch.tensor([1e-310], dtype=torch.float64) * 1.0).item() == 0.0


def _sdp_backends() -> tuple[bool, ...]:
    on = torch.backends.cuda
    return on.flash_sdp_enabled(), on.mem_efficient_sdp_enabled(), on.math_sdp_enabled(), on.cudnn_sdp_enabled()


def _set_sdp_backends(enabled: tuple[bool, ...]) -> None:
    on = torch.backends.cuda
    setters = (on.enable_flash_sdp, on.enable_mem_efficient_sdp, on.enable_math_sdp, on.enable_cudnn_sdp)
    for setter, wanted in zip(setters, enabled, strict=True):
        setter(wanted)


def _deterministic_mode() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_rng_state(state: list[int]) -> None:
    torch.set_rng_state(torch.tensor(state, dtype=torch.uint8))


COMPILERS = ("TORCHINDUCTOR_", "_TORCHINDUCTOR_", "TRITON_")


def _environment() -> dict[str, str]:
    """Return the environment without the variables that torch.compile sets for itself and its compilers."""
    return {name: value for name, value in os.environ.items() if not name.startswith(COMPILERS)}


def _set_environment(wanted: dict[str, str]) -> None:
    for name in _environment().keys() - wanted.keys():
        del os.environ[name]
    os.environ.update(wanted)


STATE: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "the number of threads": (torch.get_num_threads, torch.set_num_threads),
    "the default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "the default device": (torch.get_default_device, torch.set_default_device),
    "the precision of float32 matmul": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "deterministic mode": (
        _deterministic_mode,
        lambda mode: torch.use_deterministic_algorithms(mode[0], warn_only=mode[1]),
    ),
    "autocast": (
        lambda: torch.is_autocast_enabled("cpu"),
        lambda on: torch.set_autocast_enabled("cpu", on),
    ),
    "the backends of scaled_dot_product_attention": (_sdp_backends, _set_sdp_backends),
    "the flushing of denormals": (_flush_denormal, torch.set_flush_denormal),
    "the random state of torch": (lambda: torch.get_rng_state().tolist(), _set_rng_state),
    "the random state of Python": (random.getstate, random.setstate),
    "the working directory": (os.getcwd, os.chdir),
    "the environment": (_environment, _set_environment),
    **devices.STATE,
}


def global_state() -> dict[str, Any]:
    """Return the current value of everything in STATE."""
    return {name: read() for name, (read, _) in STATE.items()}


def restore(before: dict[str, Any]) -> list[str]:
    """Restore everything in STATE that has changed; return its names."""
    changed = []
    for name, (read, write) in STATE.items():
        if before[name] is not None and read() != before[name]:
            changed.append(name)
            write(before[name])
    return changed


def state_kept(kernel: Kernel, spec: Spec, generator: Generator) -> Finding:
    """Global state (see STATE) is unchanged."""
    laid = lay_out(normal(spec, generator), spec)
    before = global_state()
    output_of(kernel, laid.qkv)
    if changed := restore(before):
        raise KernelError(f"changed {', '.join(changed)}")
    return Finding(status="pass")


CHECKS: dict[str, Callable[[Kernel, Spec, Generator], Finding]] = {
    "output": output,
    "inputs-unchanged": inputs_unchanged,
    "writes-inside": writes_inside,
    "reads-inside": reads_inside,
    "uninitialised": uninitialised,
    "outputs-kept": outputs_kept,
    "fresh-values": fresh_values,
    "deterministic": deterministic,
    "scale": scale,
    "global-state": state_kept,
    "delegation": delegation,
}
