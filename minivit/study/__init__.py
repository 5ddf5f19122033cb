"""Look inside: tensors in, tensors out. Nothing here draws, and nothing changes what the model computes."""

from minivit.study.ablate import ablate, knockout, patched, scan
from minivit.study.attention import attention_map, fuse_heads, query_weights, rollout, rollout_matrix
from minivit.study.attribution import Attribution, attribute
from minivit.study.heads import attention_distance, attention_entropy, attention_mass, head_statistics
from minivit.study.lens import divergence, lens
from minivit.study.names import ALIASES, from_alias, step_names, to_alias
from minivit.study.relevance import grad_rollout, input_gradients, integrated_gradients, legrad, per_patch, relevance
from minivit.study.tokens import norms, patch_filters, pca, position_similarity, similarity
from minivit.study.trace import Trace, trace
from minivit.study.windows import WindowProbs, window_attention, window_map

__all__ = [
    "ALIASES",
    "Attribution",
    "Trace",
    "WindowProbs",
    "ablate",
    "attention_distance",
    "attention_entropy",
    "attention_map",
    "attention_mass",
    "attribute",
    "divergence",
    "from_alias",
    "fuse_heads",
    "grad_rollout",
    "head_statistics",
    "input_gradients",
    "integrated_gradients",
    "knockout",
    "legrad",
    "lens",
    "norms",
    "patch_filters",
    "patched",
    "pca",
    "per_patch",
    "position_similarity",
    "query_weights",
    "relevance",
    "rollout",
    "rollout_matrix",
    "scan",
    "similarity",
    "step_names",
    "to_alias",
    "trace",
    "window_attention",
    "window_map",
]
