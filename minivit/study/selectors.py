"""Which tensors a trace keeps: patterns such as `blocks.*.attn.probs[cls]`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import NamedTuple

from minivit.errors import UsageError
from minivit.model.config import TokenLayout
from minivit.model.vit import ViT
from minivit.study.names import Step, step_names, step_of

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}

GRAMMAR = (
    "a selector lists tokens, [cls], [dist], [registers], [patches], [5] for token 5, [(3,7)] for the patch in row 3 "
    "and column 7, or heads, [heads=0,2], or both, [cls; heads=0,2]"
)


class Selector(NamedTuple):
    """The tokens and heads of a selector; None means all."""

    tokens: tuple[str | int | tuple[int, int], ...] | None = None
    heads: tuple[int, ...] | None = None

    def rows(self, layout: TokenLayout) -> list[int] | None:
        """Return the positions of the tokens in the sequence.

        Raises:
            UsageError: a token that this layout does not have.
        """
        if self.tokens is None:
            return None
        return [row for token in self.tokens for row in token_rows(layout, token)]


class Selected(NamedTuple):
    """One tensor that a pattern selects."""

    key: str  # the name with its selector
    step: Step
    block: int | None
    selector: Selector


def token_rows(layout: TokenLayout, token: str | int | tuple[int, int]) -> list[int]:
    """Return the positions of a token, or of a kind of tokens, in the sequence.

    Args:
        token: "cls", "dist", "registers", "patches", the position itself, or (row, column) of a patch.

    Raises:
        UsageError: a token that this layout does not have; the message lists what it has.
    """
    kinds = {
        "cls": range(layout.cls),
        "dist": range(layout.cls, layout.cls + layout.dist),
        "registers": range(layout.cls + layout.dist, layout.prefix),
        "patches": range(layout.prefix, layout.count),
    }
    rows, columns = layout.grid
    if isinstance(token, str):
        places = list(kinds.get(token, ()))
    elif isinstance(token, int):
        places = [token] if 0 <= token < layout.count else []
    else:
        row, column = token
        places = [layout.prefix + row * columns + column] if 0 <= row < rows and 0 <= column < columns else []
    if not places:
        there = ", ".join(f"{len(place)} {kind}" for kind, place in kinds.items() if place)
        raise UsageError(f"no token {token}: this model has {layout.count} tokens, {there} in {rows} rows of {columns}")
    return places


def read_keep(keep: str | list[str] | tuple[str, ...], model: ViT) -> list[Selected]:
    """Return the tensors that patterns select, in the order of the forward pass, each once.

    Args:
        keep: one pattern or several; `*` and `?` as in a shell (`*` also crosses dots), and at the
            end perhaps a selector in brackets (GRAMMAR).

    Raises:
        UsageError: a pattern that matches nothing, or a selector that its tensors do not have.
    """
    names = step_names(model)
    selected: dict[str, Selected] = {}
    for pattern in [keep] if isinstance(keep, str) else keep:
        glob, selector, text = read_pattern(pattern)
        matched = [name for name in names if fnmatchcase(name, glob)]
        if not matched:
            raise UsageError(f"keep {pattern!r} matches no step; for example {', '.join(names[:3])}, ... {names[-1]}")
        for name in matched:
            step, i = step_of(name)
            if name == "norm" and model.config.norm == "pooled":
                step = step._replace(axes="BD")  # the final norm of this model follows the pooling
            if selector.tokens and not set("NP") & set(step.axes):
                raise UsageError(f"keep {pattern!r}: {name} has no axis of tokens")
            if selector.heads and "A" not in step.axes:
                raise UsageError(f"keep {pattern!r}: {name} has no axis of heads")
            if selector.heads and max(selector.heads) >= model.config.heads:
                raise UsageError(f"keep {pattern!r}: there are heads 0 to {model.config.heads - 1}")
            selected[name + text] = Selected(name + text, step, int(i) if i else None, selector)
    order = {name: place for place, name in enumerate(names)}
    return sorted(selected.values(), key=lambda item: order[item.key.partition("[")[0]])


def read_pattern(pattern: str) -> tuple[str, Selector, str]:
    """Return a pattern as its glob, its selector, and the selector in its normal spelling."""
    found = re.fullmatch(r"([^\[\]]+)(?:\[([^\[\]]*)\])?", pattern.strip())
    if not found:
        raise UsageError(f"keep {pattern!r} is not a name with perhaps one selector at its end; {GRAMMAR}")
    glob, inside = found.groups()
    if inside is None:
        return glob, Selector(), ""
    tokens: list[str | int | tuple[int, int]] = []
    heads: list[int] = []
    for part in inside.replace(" ", "").split(";"):
        if part.startswith("heads="):
            heads += [_number(text, pattern) for text in part.removeprefix("heads=").split(",")]
            continue
        for text in re.split(r",(?![^(]*\))", part):  # commas outside of parentheses
            pair = re.fullmatch(r"\((\d+),(\d+)\)", text)
            if pair:
                tokens.append((int(pair[1]), int(pair[2])))
            elif text in ("cls", "dist", "registers", "patches"):
                tokens.append(text)
            else:
                tokens.append(_number(text, pattern))
    selector = Selector(tuple(tokens) or None, tuple(heads) or None)
    parts = [spell_tokens(tokens)] if tokens else []
    parts += ["heads=" + ",".join(str(head) for head in heads)] if heads else []
    return glob, selector, f"[{'; '.join(parts)}]"


def spell_tokens(tokens: Iterable[str | int | tuple[int, int]]) -> str:
    """Return tokens in the spelling of a selector: "cls,5,(3,7)"."""
    return ",".join(str(token).replace(" ", "") for token in tokens)


def _number(text: str, pattern: str) -> int:
    if not text.isdecimal():
        raise UsageError(f"keep {pattern!r}: {text!r} is no token or head; {GRAMMAR}")
    return int(text)


def read_limit(limit: str | int | None) -> int | None:
    """Return a number of bytes: 512M is 512 * 10^6; None is no limit.

    Raises:
        UsageError: not a number with K, M, G or nothing behind it.
    """
    if limit is None or isinstance(limit, int):
        return limit
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?)B?", limit.strip().upper())
    if not found:
        raise UsageError(f"limit is {limit!r}; write a number of bytes, with K, M or G behind it, or None")
    return int(float(found[1]) * UNITS[found[2]])
