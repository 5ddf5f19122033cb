"""The checks of numbers: forward, needles, isolation of nan and inf, gradients. ask() runs any check on a kernel."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Generator, Tensor

from minivit.bench import device as devices
from minivit.bench.checks import side_effects
from minivit.bench.checks.cases import Case, Spec
from minivit.bench.checks.findings import Finding, KernelError, judged, output_of, raised, refuse_non_finite
from minivit.bench.checks.inputs import VALUES, Triple, lay_out, needles, normal, rounded
from minivit.bench.checks.tolerance import judge_gradients, judge_rows, pick_rows
from minivit.bench.kernels import Kernel
from minivit.model.attention import attend_reference


def forward(kernel: Kernel, spec: Spec, generator: Generator, *, values: str) -> Finding:
    """Sampled rows of every head are within the tolerance; every element is finite and no larger than its values."""
    qkv = rounded(VALUES[values](spec, generator), spec)
    # The kernel runs before the reference, so that no memory that it gets can hold the right output.
    out = output_of(kernel, lay_out(qkv, spec).qkv)
    refuse_non_finite(out)
    largest = qkv[2].abs().max().item()
    if out.abs().max().item() > largest * (1 + 8 * torch.finfo(spec.dtype).eps):
        raise KernelError(f"an average of values up to {largest:.4g} came out as {out.abs().max().item():.4g}")
    return judged(judge_rows(out, *qkv, rows=pick_rows(spec.tokens, generator), scale=spec.scale))


def needle(kernel: Kernel, spec: Spec, generator: Generator) -> Finding:
    """Every row of the output is a known row of v. The message names the first query, head and column that is wrong."""
    *values, permutation = needles(spec, generator)
    q, k, v = rounded((values[0], values[1], values[2]), spec)
    out = output_of(kernel, lay_out((q, k, v), spec).qkv)
    indices = permutation.to(v.device)[..., None].expand_as(v)
    expected = v.gather(2, indices)
    error = (out - expected).abs().float().amax(-1)
    relative = error / (4 * torch.finfo(spec.dtype).eps * expected.abs().float().amax(-1))
    wrong = (~(relative <= 1)).nonzero()  # nan is wrong
    numbers = {"of_limit": relative.max().item(), "largest_error": error.max().item(), "wrong_rows": float(len(wrong))}
    if len(wrong):
        batch, head, query = wrong[0].tolist()
        columns = (~((out - expected)[batch, head, query].abs() <= expected.abs().amax() * 1e-2)).nonzero()
        where = f", from column {columns[0].item()} on" if len(columns) else ""
        raise KernelError(
            f"{len(wrong)} of {relative.numel()} rows are not the row of v that their query asks for; the first: batch "
            f"{batch}, head {head}, query {query}, which asks for key {permutation[batch, head, query]}{where}",
            numbers,
        )
    return Finding(status="pass", numbers=numbers)


def isolation(kernel: Kernel, spec: Spec, generator: Generator, *, planted: float) -> Finding:
    """One nan in k, or one inf in v, of one head appears where it must, and no other head changes."""
    clean = rounded(normal(spec, generator), spec)
    q, k, v = (x.clone() for x in clean)
    batch, head, key, column = (
        int(torch.randint(n, (), generator=generator)) for n in (spec.batch, spec.heads, spec.tokens, spec.head_dim)
    )
    (k if planted != planted else v)[batch, head, key, column] = planted
    out = output_of(kernel, lay_out((q, k, v), spec).qkv)

    # (B, A, N, K) -> (1, B*A - 1, N, K): all heads but the planted one
    others = torch.arange(spec.batch * spec.heads, device=q.device) != batch * spec.heads + head
    other_out, other_q, other_k, other_v = (x.flatten(0, 1)[others][None] for x in (out, *clean))
    refuse_non_finite(other_out, f"{planted} spilled: the output of the other heads")
    finding = judged(
        judge_rows(other_out, other_q, other_k, other_v, rows=pick_rows(spec.tokens, generator), scale=spec.scale),
        "the other heads",
    )
    here = out[batch, head]
    truth = attend_reference(
        q[batch, head].double(), k[batch, head].double(), v[batch, head].double(), scale=spec.scale
    )
    for kind, test in (("nan", torch.isnan), ("inf", torch.isinf)):
        lost, made = int((test(truth) & ~test(here)).sum()), int((test(here) & ~test(truth)).sum())
        if lost:
            raise KernelError(f"{lost} of {int(test(truth).sum())} values that must be {kind} are not")
        if made:
            raise KernelError(f"{planted} spilled: {made} values of its own head are {kind} and must not be")
    return finding


def backward(
    kernel: Kernel, spec: Spec, generator: Generator, *, wanted: str = "qkv", cotangent: str = "random"
) -> Finding:
    """The output and the gradients of the wanted inputs are within the tolerance in all rows."""
    qkv = rounded(normal(spec, generator), spec)
    g = _cotangent(cotangent, rounded(normal(spec, generator), spec)[0])
    before = g.clone()
    out, leaves = _trained(kernel, qkv, spec, wanted)
    if not out.requires_grad:
        if wanted != "qkv" and _trained(kernel, qkv, spec, "qkv")[0].requires_grad:
            raise KernelError(f"no gradient where only {wanted} asks for one")
        return Finding(status="unsupported", detail="not differentiable: the output requires no gradient")
    try:
        got = torch.autograd.grad(out, list(leaves.values()), g, allow_unused=True)
        devices.finish(g)
    except Exception as error:
        raise raised(error, " in backward") from error
    if not torch.equal(g, before):
        raise KernelError("backward changed the gradient it was given")

    outputs = {"out": out.detach(), **{f"d{x}": y for x, y in zip(leaves, got, strict=True)}}
    for name, value in outputs.items():
        if value is None:
            raise KernelError(f"no {name}: the output does not depend on {name[1:]}")
        if value.dtype != spec.dtype or value.shape != g.shape:
            raise KernelError(f"{name} is {value.dtype} {tuple(value.shape)}")
        refuse_non_finite(value, name)
    verdicts = judge_gradients(outputs, qkv, g, scale=spec.scale)
    findings = [judged(verdict, name) for name, verdict in verdicts.items()]
    return max(findings, key=lambda finding: finding.numbers["of_limit"])


def _trained(kernel: Kernel, qkv: Triple, spec: Spec, wanted: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output, where the wanted inputs require gradients, and those inputs by name."""
    inputs = [x.detach().requires_grad_(name in wanted) for name, x in zip("qkv", lay_out(qkv, spec).qkv, strict=True)]
    out = output_of(kernel, (inputs[0], inputs[1], inputs[2]))
    return out, {name: x for name, x in zip("qkv", inputs, strict=True) if name in wanted}


def _cotangent(kind: str, g: Tensor) -> Tensor:
    """Return a gradient of the output: contiguous; stride 0, as from out.sum(); or BNHD in memory, as in a model."""
    if kind == "expanded":
        return torch.ones((), dtype=g.dtype, device=g.device).expand_as(g)
    # (B, A, N, K) -> (B, N, A, K) in memory
    return g.transpose(1, 2).contiguous().transpose(1, 2) if kind == "strided" else g


CHECKS: dict[str, Callable[[Kernel, Spec, Generator], Finding]] = {
    **{f"forward/{name}": partial(forward, values=name) for name in VALUES},
    "needle/permutation": needle,
    "isolation/nan": partial(isolation, planted=float("nan")),
    "isolation/inf": partial(isolation, planted=float("inf")),
    "backward/random": backward,
    "backward/strided": partial(backward, cotangent="strided"),
    "backward/expanded": partial(backward, cotangent="expanded"),
    "backward/only-q": partial(backward, wanted="q"),
    "backward/only-k": partial(backward, wanted="k"),
    "backward/only-v": partial(backward, wanted="v"),
    **{f"conduct/{name}": check for name, check in side_effects.CHECKS.items()},
}


def ask(kernel: Kernel, case: Case, *, seed: int) -> Finding:
    """Return the finding of one case. The kernel's errors become findings; global state is restored."""
    try:
        supported = kernel.supports(case.spec)
    except Exception as error:
        return Finding(status="fail", detail=f"supports(spec) {raised(error)}")
    if supported is not True:
        if isinstance(supported, str):
            return Finding(status="unsupported", detail=supported)
        return Finding(status="fail", detail=f"supports(spec) returned {supported!r}, not True or a reason")
    before = side_effects.global_state()
    try:
        return CHECKS[case.check](kernel, case.spec, case.generator(seed))
    except KernelError as wrong:
        return Finding(status="fail", detail=str(wrong), numbers=wrong.numbers)
    except Exception as error:  # of the check's own arithmetic: the kernel has not passed
        return Finding(status="fail", detail=f"the check itself {raised(error)}")
    finally:
        side_effects.restore(before)
