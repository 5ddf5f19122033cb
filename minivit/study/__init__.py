"""Look inside: tensors in, tensors out. Nothing here draws, and nothing changes what the model computes."""

from minivit.study.attention import attention_map, fuse_heads, query_weights, rollout, rollout_matrix
from minivit.study.names import ALIASES, from_alias, step_names, to_alias
from minivit.study.relevance import grad_rollout, input_gradients, integrated_gradients, legrad, per_patch, relevance
from minivit.study.tokens import norms, patch_filters, pca, position_similarity, similarity
from minivit.study.trace import Trace, trace
from minivit.study.windows import WindowProbs, window_attention, window_map

__all__ = [
    "ALIASES",
    "Trace",
    "WindowProbs",
    "attention_map",
    "from_alias",
    "fuse_heads",
    "grad_rollout",
    "input_gradients",
    "integrated_gradients",
    "legrad",
    "norms",
    "patch_filters",
    "pca",
    "per_patch",
    "position_similarity",
    "query_weights",
    "relevance",
    "rollout",
    "rollout_matrix",
    "similarity",
    "step_names",
    "to_alias",
    "trace",
    "window_attention",
    "window_map",
]
