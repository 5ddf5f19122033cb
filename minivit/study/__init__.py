"""Look inside: tensors in, tensors out. Nothing here draws, and nothing changes what the model computes."""

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
    agreement,
    box_cover,
    centre_gaussian,
    curves,
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

__all__ = [
    "ALIASES",
    "MAPS",
    "AblationEffect",
    "Attribution",
    "Curves",
    "Exploration",
    "HeadSummary",
    "LensReading",
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
