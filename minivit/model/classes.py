"""The classes of a model: found by number or name, and as they are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from minivit.errors import UsageError
from minivit.model.capabilities import ImageModel

if TYPE_CHECKING:
    from torch import Tensor


def find_class(model: ImageModel, asked: str | int) -> int:
    """Return the index of a class, given its index or its name.

    A name is the whole label, one of its parts between commas, or else any part of one label only; case does not count.

    Raises:
        UsageError: no such class, or several of that name.
    """
    if not model.config.classes:
        raise UsageError(
            f"{model.name}: has no classifier, so no class can be followed back; use another --method, "
            "or where it has a text tower --labels"
        )
    text = str(asked)
    if text.isdecimal():
        if int(text) >= model.config.classes:
            raise UsageError(f"--class {text}: there are classes 0 to {model.config.classes - 1}")
        return int(text)
    labels, name = model.labels or {}, text.casefold()
    exact = [i for i, label in labels.items() if name in _parts(label)]
    containing = [i for i, label in labels.items() if name in label.casefold()]
    for found in (exact, containing):
        if len(found) == 1:
            return found[0]
        if found:
            some = ", ".join(class_name(model, index) for index in found[:6])
            raise UsageError(f"--class {text}: {len(found)} classes have that name: {some}; give the index")
    raise UsageError(
        f"--class {text}: no class of that name among {len(labels)}; minivit info {model.name} --json lists them"
    )


def _parts(label: str) -> list[str]:
    """A label such as "Samoyed, Samoyede" and its parts."""
    label = label.casefold()
    return [part.strip() for part in [label, *label.split(",")]]


def class_name(model: ImageModel, index: int) -> str:
    """Return a class as it is shown: "Samoyed (258)", or "class 258" where the checkpoint names none."""
    return f"{model.labels[index]} ({index})" if model.labels else f"class {index}"


def score_of(model: ImageModel) -> str:
    """Return how the logits of a model become scores: config.score, and "none" where a softmax has one class only."""
    config = model.config
    return "none" if config.score == "softmax" and config.classes == 1 else config.score


def class_scores(logits: Tensor, score: str) -> Tensor:
    """Return the scores of logits (..., L), float64: probabilities, or with "none" the logits themselves.

    Args:
        score: as `score_of` returns it.
    """
    exact = logits.double()
    return {"softmax": lambda: exact.softmax(dim=-1), "sigmoid": exact.sigmoid, "none": lambda: exact}[score]()
