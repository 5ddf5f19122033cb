"""What a layer or the whole model attends to: attention, relevance, tokens, windows, and how good such a map is.

`compute(model, pixels, method)` returns the maps of any method of METHODS.
"""

from typing import TYPE_CHECKING, Any

from minivit.study.maps.table import METHODS

if TYPE_CHECKING:
    from minivit.study.maps.methods import Maps, compute

__all__ = ["METHODS", "Maps", "compute"]


def __getattr__(name: str) -> Any:
    if name in ("Maps", "compute"):
        from minivit.study.maps import methods

        return getattr(methods, name)
    raise AttributeError(f"module 'minivit.study.maps' has no attribute {name!r}")
