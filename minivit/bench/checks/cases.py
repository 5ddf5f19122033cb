"""The cases of a check: shapes, dtypes and layouts of Vision Transformers, and plans that cover them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, product
from typing import Any

import torch

from minivit.errors import UsageError

# One key, the powers of two and their neighbours, and the token counts of published models: 224 pixels in patches
# of 16 give 196 + 1, 384 give 577, 512 give 1025, 224 in patches of 14 give 257.
TOKENS = (1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 196, 197, 257, 577, 1025)
HEAD_DIMS = (32, 64, 72, 80, 96, 128)
HEADS = (3, 4, 6, 8, 12, 16)
BATCHES = (1, 2, 7, 32, 256)
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
LAYOUTS = ("contiguous", "packed", "bnhd", "padded", "misaligned")  # see inputs.lay_out


def name_of(dtype: torch.dtype) -> str:
    """Return the name of a dtype, such as float32."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One shape, dtype and layout, as a kernel's `supports(spec)` receives it; q, k and v are each (B, A, N, K)."""

    batch: int
    heads: int
    tokens: int
    head_dim: int
    dtype: torch.dtype
    layout: str  # one of LAYOUTS
    device: str = "cpu"
    grads: bool = False  # gradients are needed

    def __str__(self) -> str:
        shape = f"{self.batch}x{self.heads}x{self.tokens}x{self.head_dim}"
        return f"{shape}/{name_of(self.dtype)}/{self.layout}"

    def key(self) -> dict[str, Any]:
        """Return the fields of its JSON records."""
        return {
            "batch": self.batch,
            "heads": self.heads,
            "tokens": self.tokens,
            "head_dim": self.head_dim,
            "dtype": name_of(self.dtype),
            "layout": self.layout,
            "device": self.device,
        }

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5

    @property
    def elements(self) -> int:
        """Numbers in q."""
        return self.batch * self.heads * self.tokens * self.head_dim

    @property
    def work(self) -> int:
        """Multiplications of q k^T."""
        return self.elements * self.tokens


@dataclass(frozen=True, kw_only=True)
class Case:
    """A check of numerics.CHECKS with a Spec. Its text is its name for --case."""

    check: str
    spec: Spec

    def __str__(self) -> str:
        return f"{self.check}/{self.spec}"

    def generator(self, seed: int) -> torch.Generator:
        """Return a generator for this case only, so that the case can be repeated alone."""
        digest = hashlib.sha256(f"{seed} {self}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))

    @staticmethod
    def parse(text: str, *, device: str) -> Case:
        """Return the case of this name, the inverse of str().

        Raises:
            UsageError: not the name of a case.
        """
        example = "forward/normal/2x3x197x64/float32/packed"
        try:
            group, check, shape, dtype, layout = text.split("/")
            batch, heads, tokens, head_dim = (int(size) for size in shape.split("x"))
        except ValueError:
            raise UsageError(f"--case {text}: not of the form {example}") from None
        if dtype not in DTYPES or layout not in LAYOUTS or min(batch, heads, tokens, head_dim) < 1:
            raise UsageError(f"--case {text}: dtypes are {', '.join(DTYPES)}; layouts are {', '.join(LAYOUTS)}")
        spec = Spec(
            batch=batch,
            heads=heads,
            tokens=tokens,
            head_dim=head_dim,
            dtype=DTYPES[dtype],
            layout=layout,
            device=device,
            grads=group == "backward",
        )
        return Case(check=f"{group}/{check}", spec=spec)


Point = dict[str, Any]  # one value for each axis
Target = frozenset[tuple[str, Any]]  # values that have to occur together in some point


def covering(
    axes: Mapping[str, Sequence], *, pairs: Iterable[tuple[str, ...]], allowed: Callable[[Point], bool]
) -> Iterator[Point]:
    """Yield few points that contain every value of every axis, and every combination of values of each of `pairs`.

    Greedy, after Cohen et al. 1997, "The AETG System": each point starts from a missing target; of 30 allowed random
    completions, it is the one that meets most other targets. Targets without an allowed point are left out. The random
    numbers are always the same, so all kernels get the same cases.
    """
    rng = random.Random(0)
    missing: dict[Target, None] = {}  # a set that keeps its order
    for names in (*pairs, *((name,) for name in axes)):
        for values in product(*(axes[name] for name in names)):
            missing[frozenset(zip(names, values, strict=True))] = None

    def meets(point: Point) -> list[Target]:
        return [target for target in missing if target <= point.items()]

    while missing:
        target = next(iter(missing))
        tries = ({name: rng.choice(axes[name]) for name in axes} | dict(target) for _ in range(1000))
        points = list(islice(filter(allowed, tries), 30))
        if points:
            best = max(points, key=lambda point: len(meets(point)))
            yield best
        for met in meets(best) if points else [target]:
            del missing[met]


SIZES = {"tokens": TOKENS, "head_dim": HEAD_DIMS, "heads": HEADS, "batch": BATCHES}
# One number of heads for each head_dim: a kernel that compiles for every pair (such as flex_attention, seconds each)
# compiles six times in a quick check, not thirty-six times.
HEADS_OF = dict(zip(HEAD_DIMS, (3, 12, 4, 16, 8, 6), strict=True))
SMALL_SIZES = {"tokens": (2, 17, 65, 197), "head_dim": (32, 64, 80), "heads": (3, 4), "batch": (2, 3)}


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How many cases a plan has, and how large they are."""

    pairs: Callable[[Iterable[str]], Iterable[tuple[str, ...]]]  # the combinations of axes to cover
    work: int  # maximum of multiplications of q k^T in a case
    sizes: Mapping[str, Sequence[int]]
    heads_of: Mapping[int, int] | None = None  # by head_dim; None: any


def _every_pair(axes: Iterable[str]) -> Iterable[tuple[str, ...]]:
    return combinations(axes, 2)


def _dtypes(axes: Iterable[str]) -> Iterable[tuple[str, ...]]:
    return [("check", "dtype")]


def _dtypes_and_layouts(axes: Iterable[str]) -> Iterable[tuple[str, ...]]:
    return [("check", "dtype"), ("check", "layout"), ("tokens", "dtype")]


def _every_pair_and_layout(axes: Iterable[str]) -> Iterable[tuple[str, ...]]:
    return [("check", "dtype", "layout"), *combinations(axes, 2)]


EFFORTS = {
    "small": Effort(pairs=_dtypes, work=10**8, sizes=SMALL_SIZES),
    "quick": Effort(pairs=_dtypes_and_layouts, work=2 * 10**8, sizes=SIZES, heads_of=HEADS_OF),
    "default": Effort(pairs=_every_pair, work=10**9, sizes=SIZES),
    "full": Effort(pairs=_every_pair_and_layout, work=6 * 10**10, sizes=SIZES),  # 256 x 3 x 1025 x 64 is 5.2e10
}
MAX_ELEMENTS = 6 * 10**7  # in q: 240 MB of float32
MAX_WORK_WHOLE = 10**8  # for checks that compute every probability in float64


def plan(checks: Sequence[str], effort: Effort, *, device: str, dtypes: Sequence[torch.dtype]) -> list[Case]:
    """Return the cases that cover the checks, group by group, small shapes first so that a bad kernel fails early."""
    cases = []
    groups: dict[str, list[str]] = {}
    for check in checks:
        groups.setdefault(check.partition("/")[0], []).append(check)
    for group, names in groups.items():
        axes = {"check": names, **effort.sizes, "dtype": dtypes, "layout": LAYOUTS}
        sampled = group in ("forward", "needle")
        most = effort.work if sampled else min(effort.work, MAX_WORK_WHOLE)
        if not sampled:  # with one key, q and k have no gradient
            axes["tokens"] = [tokens for tokens in effort.sizes["tokens"] if tokens > 1]

        def case(point: Point, group: str = group) -> Case:
            sizes = {name: value for name, value in point.items() if name != "check"}
            return Case(check=point["check"], spec=Spec(**sizes, device=device, grads=group == "backward"))

        def fits(point: Point, most: int = most) -> bool:
            spec = case(point).spec
            if effort.heads_of and effort.heads_of[spec.head_dim] != spec.heads:
                return False
            return spec.work <= most and spec.elements <= MAX_ELEMENTS

        found = {case(point): None for point in covering(axes, pairs=effort.pairs(axes), allowed=fits)}
        cases += sorted(found, key=lambda case: case.spec.work)
    return cases
