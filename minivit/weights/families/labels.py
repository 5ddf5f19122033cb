"""The names of classes: of ImageNet-1k, and from a file of one name a line, a JSON file or a CSV file."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import NamedTuple

from minivit.errors import UsageError

TAGS = "selected_tags.csv"  # beside the weights of taggers: the names of their classes in the order of the outputs


class ClassNames(NamedTuple):
    """The names of the classes in a file."""

    labels: dict[int, str]
    categories: dict[int, str] | None  # of the column `category`


def imagenet_labels() -> dict[int, str]:
    """Return the 1000 classes of ImageNet-1k in the order every checkpoint uses, under torchvision's names for them."""
    names = (Path(__file__).parents[1] / "imagenet_labels.txt").read_text(encoding="utf-8").splitlines()
    return dict(enumerate(names))


def read_class_names(path: str | Path, classes: int) -> ClassNames:
    """Return the names of all classes of a head with `classes` outputs, from a file.

    The suffix says what the file is. `.json`: a list of names, or an object {index: name}. `.csv`: a header with a
    column `name`, and perhaps `category`; a row for each class in the order of the outputs. Else: one name a line.

    Raises:
        UsageError: the file cannot be read, has no such column, or has not one name for every output.
    """
    path = Path(path)
    categories: list[str] | None = None
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".json":
            names = _names_of_json(json.loads(text))
        elif path.suffix.lower() == ".csv":
            rows = list(csv.DictReader(io.StringIO(text, newline="")))
            if rows and "name" not in rows[0]:
                raise ValueError(f"the columns are {', '.join(map(str, rows[0]))}; one must be called name")
            names = [row["name"] for row in rows]
            if rows and "category" in rows[0]:
                categories = [row["category"] for row in rows]
            if None in (*names, *(categories or ())):
                raise ValueError("a row has fewer values than the header")
        else:
            names = [line.strip() for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise UsageError(f"{path}: no class names can be read ({error})") from None
    if len(names) != classes:
        raise UsageError(f"{path}: has {len(names)} class names; the model has {classes} outputs")
    return ClassNames(dict(enumerate(names)), dict(enumerate(categories)) if categories else None)


def _names_of_json(value: object) -> list[str]:
    """Return the names in a list or in an object {index: name}; ValueError for anything else."""
    if isinstance(value, dict):
        if sorted(value, key=str) != sorted(map(str, range(len(value)))):
            raise ValueError(f"an object of {len(value)} names needs the keys 0 to {len(value) - 1}")
        value = [value[str(index)] for index in range(len(value))]
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError("expected a list of names or an object of index: name")
    return value
