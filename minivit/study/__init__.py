"""Look inside a model: tensors in, tensors out. Nothing here draws, and nothing changes what the model computes.

The names are imported from their modules when they are first used, so that `minivit --help` needs no torch.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from minivit.study import maps
    from minivit.study.circuits.ablate import ablate, knockout, patched, scan
    from minivit.study.circuits.attribution import Attribution, attribute
    from minivit.study.circuits.effects import AblationEffect, ScanEffect, ablation_effect, scan_effect
    from minivit.study.circuits.heads import (
        HeadSummary,
        attention_distance,
        attention_entropy,
        attention_mass,
        head_statistics,
        summarise_heads,
    )
    from minivit.study.circuits.lens import LensReading, divergence, lens, lens_reading
    from minivit.study.exploration import Exploration, explore
    from minivit.study.maps.attention import (
        attention_map,
        fuse_heads,
        pool_attention,
        query_weights,
        rollout,
        rollout_matrix,
    )
    from minivit.study.maps.faithfulness import (
        Curves,
        Faithfulness,
        MapScore,
        agreement,
        box_cover,
        centre_gaussian,
        curves,
        faithfulness,
        map_score,
        plain_map,
        pointing,
        random_maps,
        randomisation_check,
        randomised,
        spearman,
        survives,
    )
    from minivit.study.maps.methods import MAPS, method_map
    from minivit.study.maps.relevance import (
        grad_rollout,
        input_gradients,
        integrated_gradients,
        legrad,
        per_patch,
        relevance,
        relevance_by_start,
    )
    from minivit.study.maps.tokens import norms, patch_filters, pca, position_similarity, similarity
    from minivit.study.maps.windows import WindowProbs, window_attention, window_map
    from minivit.study.names import ALIASES, from_alias, step_names, to_alias
    from minivit.study.tracing import Trace, trace

_HOME = {
    "circuits.ablate": "ablate knockout patched scan",
    "circuits.attribution": "Attribution attribute",
    "circuits.effects": "AblationEffect ScanEffect ablation_effect scan_effect",
    "circuits.heads": "HeadSummary attention_distance attention_entropy attention_mass head_statistics summarise_heads",
    "circuits.lens": "LensReading divergence lens lens_reading",
    "exploration": "Exploration explore",
    "maps.attention": "attention_map fuse_heads pool_attention query_weights rollout rollout_matrix",
    "maps.faithfulness": "Curves Faithfulness MapScore agreement box_cover centre_gaussian curves faithfulness "
    "map_score plain_map pointing random_maps randomisation_check randomised spearman survives",
    "maps.methods": "MAPS method_map",
    "maps.relevance": "grad_rollout input_gradients integrated_gradients legrad per_patch relevance relevance_by_start",
    "maps.tokens": "norms patch_filters pca position_similarity similarity",
    "maps.windows": "WindowProbs window_attention window_map",
    "names": "ALIASES from_alias step_names to_alias",
    "tracing": "Trace trace",
}
_MODULES = {name: module for module, names in _HOME.items() for name in names.split()}
# Former names, which are in minivit.parity now.
_FORMER = ["Cause", "Row", "compare", "diff", "diff_swin", "find_causes", "swin_step_names", "swin_steps"]

__all__ = [
    "ALIASES",
    "MAPS",
    "AblationEffect",
    "Attribution",
    "Curves",
    "Exploration",
    "Faithfulness",
    "HeadSummary",
    "LensReading",
    "MapScore",
    "ScanEffect",
    "Trace",
    "WindowProbs",
    "ablate",
    "ablation_effect",
    "agreement",
    "attention_distance",
    "attention_entropy",
    "attention_map",
    "attention_mass",
    "attribute",
    "box_cover",
    "centre_gaussian",
    "curves",
    "divergence",
    "explore",
    "faithfulness",
    "from_alias",
    "fuse_heads",
    "grad_rollout",
    "head_statistics",
    "input_gradients",
    "integrated_gradients",
    "knockout",
    "legrad",
    "lens",
    "lens_reading",
    "map_score",
    "maps",
    "method_map",
    "norms",
    "patch_filters",
    "patched",
    "pca",
    "per_patch",
    "plain_map",
    "pointing",
    "pool_attention",
    "position_similarity",
    "query_weights",
    "random_maps",
    "randomisation_check",
    "randomised",
    "relevance",
    "relevance_by_start",
    "rollout",
    "rollout_matrix",
    "scan",
    "scan_effect",
    "similarity",
    "spearman",
    "step_names",
    "summarise_heads",
    "survives",
    "to_alias",
    "trace",
    "window_attention",
    "window_map",
]


def __getattr__(name: str) -> Any:
    if name == "maps":
        return import_module("minivit.study.maps")
    if name in _FORMER:
        warnings.warn(f"minivit.study.{name} is minivit.parity.{name} now", DeprecationWarning, stacklevel=2)
        return getattr(import_module("minivit.parity"), name)
    if name not in _MODULES:
        raise AttributeError(f"module 'minivit.study' has no attribute {name!r}")
    value = getattr(import_module(f"minivit.study.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
