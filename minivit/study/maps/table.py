"""The methods that make maps, as data: what each takes, what its numbers are, how it is called. No torch here."""

from __future__ import annotations

from dataclasses import dataclass

# Every setting, with the default that a title names; None: no number stands in the title.
SETTINGS: dict[str, float | str | None] = {
    "layer": None,
    "head": None,
    "query": None,
    "class": None,
    "start_layer": 0,
    "residual": 0.5,
    "discard": 0.0,
    "steps": 32,
    "grid": None,
    "scale": "each",
}


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method."""

    takes: frozenset[str]  # its names of SETTINGS
    unit: str  # what its numbers are
    title: str  # its name over a picture
    source: str = ""  # paper


def _method(takes: str, unit: str, title: str, source: str = "") -> Method:
    return Method(takes=frozenset(takes.split()), unit=unit, title=title, source=source)


METHODS: dict[str, Method] = {
    "raw": _method("layer head query grid scale", "attention probability", "Attention", "Vaswani et al. 2017"),
    "pool": _method(
        "head",
        "attention probability of the pool's query",
        "Attention of the attention pool",
        "Zhai et al. 2022, arXiv:2106.04560",
    ),
    "rollout": _method(
        "head query start_layer residual discard",
        "fraction of the query after all layers",
        "Attention rollout",
        "Abnar & Zuidema 2020, arXiv:2005.00928",
    ),
    "grad-rollout": _method(
        "head query class start_layer residual",
        "fraction, weighted by gradients",
        "Gradient attention rollout",
        "Gildenblat 2020, vit-explain",
    ),
    "relevance": _method(
        "query class start_layer",
        "relevance",
        "Relevance (Chefer et al. 2021)",
        "Chefer, Gur & Wolf 2021, arXiv:2103.15679",
    ),
    "legrad": _method(
        "class start_layer", "mean positive gradient of attention", "LeGrad", "Bousselham et al. 2024, arXiv:2404.03214"
    ),
    "gradients": _method("class", "sum of |gradient| in a patch", "Gradients", "Simonyan et al. 2013, arXiv:1312.6034"),
    "integrated-gradients": _method(
        "class steps",
        "sum of |contribution| in a patch",
        "Integrated gradients",
        "Sundararajan et al. 2017, arXiv:1703.01365",
    ),
    "similarity": _method("layer query scale", "cosine with the query", "Cosine similarity of the tokens"),
    "norms": _method(
        "layer scale", "L2 norm of the token", "L2 norm of the tokens", "Darcet et al. 2023, arXiv:2309.16588"
    ),
    "pca": _method(
        "layer",
        "principal components as red, green, blue",
        "Principal components of the tokens",
        "Oquab et al. 2023, arXiv:2304.07193",
    ),
}
