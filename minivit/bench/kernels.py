"""Where kernels come from: a kernel file, or an attention of PyTorch as a baseline."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from minivit.bench import device as devices
from minivit.bench.checks.cases import Spec
from minivit.bench.checks.mutants import MUTANTS
from minivit.errors import UsageError
from minivit.model.attention import attend_reference, attend_sdpa

HALVES = (torch.float16, torch.bfloat16)
SOURCES = (".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".py")


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """An attention function, and what its file declares about it."""

    name: str
    attention: Callable[..., Any]
    takes_scale: bool  # a kernel without the keyword is judged at 1 / sqrt(K)
    supports: Callable[[Spec], bool | str] = lambda spec: True  # True, or the reason why not
    deterministic: bool = True  # False where the file says DETERMINISTIC = False

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Any:
        """Return the kernel's output, of whatever type, at `scale` or (None) at 1 / sqrt(K)."""
        if self.takes_scale:
            out = self.attention(q, k, v, scale=q.shape[-1] ** -0.5 if scale is None else scale)
        elif scale is None:
            out = self.attention(q, k, v)
        else:
            raise UsageError(f"{self.name} takes no scale")
        devices.finish(q)
        return out


def load_kernel(reference: str) -> Kernel:
    """Return the kernel of "my_kernel.py", "my_kernel.py:name", a name in BASELINES or "mutant:NAME".

    A file is imported, that is, run. Without a name, its function is `attention` or `attend`. The file may also define
    `supports(spec)`, which returns True or the reason why it does not support this cases.Spec, and
    DETERMINISTIC = False.

    Raises:
        UsageError: no such file, baseline or function.
        Exception: whatever the file raises when it is imported.
    """
    if file := kernel_file(reference):
        return _from_file(*file)
    if reference.startswith("mutant:"):
        mutant = MUTANTS[reference.removeprefix("mutant:")]
        return Kernel(name=reference, attention=mutant.attention, takes_scale=True)
    baseline = BASELINES[reference]
    return Kernel(name=reference, attention=baseline.attention, takes_scale=True, supports=baseline.supports)


def kernel_file(reference: str) -> tuple[Path, str | None] | None:
    """Return the file and the function name of a reference, or None for a baseline or mutant; nothing is run.

    Raises:
        UsageError: there is no such file or name.
    """
    if reference in BASELINES or reference in (f"mutant:{name}" for name in MUTANTS):
        return None
    path, _, name = reference.partition(".py:") if ".py:" in reference else (reference.removesuffix(".py"), "", "")
    file = Path(f"{path}.py")
    if not file.is_file():
        known = ", ".join(BASELINES)
        raise UsageError(f"{reference}: no such file; give my_kernel.py, my_kernel.py:name or one of {known}")
    return file, name or None


def sha256(reference: str) -> str | None:
    """Return the digest of the kernel's file and of sources with the same stem (NAME.cpp beside NAME.py), by name.

    None for a baseline or mutant, which the version of minivit identifies.
    """
    file = kernel_file(reference)
    if file is None:
        return None
    digest = hashlib.sha256()
    for path in sorted(file[0].parent.iterdir()):
        if path.stem == file[0].stem and path.suffix in SOURCES and path.is_file():
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _from_file(file: Path, name: str | None) -> Kernel:
    module_name = f"minivit_kernel_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses, pickle and triton look a function's module up by name
    spec.loader.exec_module(module)
    wanted = [name] if name else ["attention", "attend"]
    attention = next((getattr(module, one) for one in wanted if hasattr(module, one)), None)
    if not callable(attention):
        there = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise UsageError(f"{file}: no function {' or '.join(wanted)} in it; it has {', '.join(there) or 'none'}")
    try:
        parameters = inspect.signature(attention).parameters.values()
        takes_scale = any(one.name == "scale" or one.kind == one.VAR_KEYWORD for one in parameters)
    except ValueError:  # a function of C tells nothing of its arguments
        takes_scale = False
    optional = {"supports": module.supports} if hasattr(module, "supports") else {}
    return Kernel(
        name=f"{file}:{name}" if name else str(file),
        attention=attention,
        takes_scale=takes_scale,
        deterministic=getattr(module, "DETERMINISTIC", True),
        **optional,
    )


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """An attention that PyTorch provides."""

    about: str
    attention: Callable[..., Tensor]
    supports: Callable[[Spec], bool | str] = lambda spec: True


def _sdpa(backend: SDPBackend) -> Callable[..., Tensor]:
    def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
        with sdpa_kernel(backend):  # raises where this backend cannot, instead of taking another
            return attend_sdpa(q, k, v, scale=scale)

    return attend


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function)


def _flex(q: Tensor, k: Tensor, v: Tensor, *, scale: float) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    return _compiled(flex_attention)(q, k, v, scale=scale)


def _flex_supports(spec: Spec) -> bool | str:
    if torch.__version__ < "2.7":  # only heads of a power of two there, and on the CPU no views of dynamic shapes
        return "flex needs torch 2.7"
    if spec.dtype == torch.float64:
        return "flex has no float64"
    if spec.device == "cpu" and spec.tokens % 8 == 0:  # whole registers of keys; seen with torch 2.14
        return "flex answers zeros for nan on the CPU where 8 divides the keys"
    return "flex has no gradients on the CPU" if spec.grads and spec.device == "cpu" else True


def _cuda_only(*dtypes: torch.dtype) -> Callable[[Spec], bool | str]:
    def supports(spec: Spec) -> bool | str:
        if not spec.device.startswith("cuda"):
            return "needs CUDA"
        return spec.dtype in dtypes or f"has no {spec.dtype}"

    return supports


def _flash_supports(spec: Spec) -> bool | str:
    return spec.device == "cpu" or spec.dtype in HALVES or f"has no {spec.dtype} on {spec.device}"


BASELINES = {
    "eager": Baseline(about="softmax(scale q k^T) v, operation by operation", attention=attend_reference),
    "sdpa": Baseline(about="scaled_dot_product_attention, which picks a backend", attention=attend_sdpa),
    "sdpa:math": Baseline(about="its plain backend", attention=_sdpa(SDPBackend.MATH)),
    "sdpa:flash": Baseline(
        about="its FlashAttention backend", attention=_sdpa(SDPBackend.FLASH_ATTENTION), supports=_flash_supports
    ),
    "sdpa:efficient": Baseline(
        about="its memory-efficient backend",
        attention=_sdpa(SDPBackend.EFFICIENT_ATTENTION),
        supports=_cuda_only(*HALVES, torch.float32),
    ),
    "sdpa:cudnn": Baseline(
        about="its cuDNN backend", attention=_sdpa(SDPBackend.CUDNN_ATTENTION), supports=_cuda_only(*HALVES)
    ),
    "flex": Baseline(
        about="compiled flex_attention; needs a C++ compiler on the CPU", attention=_flex, supports=_flex_supports
    ),
    "compiled": Baseline(
        about="torch.compile of eager; needs a C++ compiler on the CPU",
        attention=lambda q, k, v, *, scale: _compiled(attend_reference)(q, k, v, scale=scale),
    ),
}
