"""The layouts in which files store a parameter, each with its inverse."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

Shape = tuple[int, ...]


class Operation(NamedTuple):
    """One layout. `heads` is A, a separate axis in some layouts."""

    file_shape: Callable[[Shape, int], Shape]  # shape in the model, heads -> shape in the file
    load: Callable[[Tensor], Tensor]  # from the file's layout, up to leading axes of 1
    save: Callable[[Tensor, int], Tensor]  # and back: tensor, heads


def _squeezed(shape: Shape) -> Shape:
    return shape[1:] if len(shape) > 1 and shape[0] == 1 else shape


def _flat(tensor: Tensor) -> Tensor:
    return tensor.reshape(_squeezed(_squeezed(tuple(tensor.shape))))


# Layouts of JAX: flax keeps kernels as (in, out), convolutions as (height, width, in, out), heads as an axis.
OPERATIONS = {
    "same": Operation(lambda shape, heads: shape, lambda t: t, lambda t, heads: t),
    # (1, N, D) -> (N, D) and (1, 1, D) -> (D): leading axes of 1 left out
    "flat": Operation(lambda shape, heads: _squeezed(_squeezed(shape)), lambda t: t, lambda t, heads: _flat(t)),
    # one number: (1) -> ()
    "scalar": Operation(lambda shape, heads: (), lambda t: t.reshape(1), lambda t, heads: t.reshape(())),
    # (out, in) -> (in, out)
    "transposed": Operation(lambda shape, heads: shape[::-1], lambda t: t.T, lambda t, heads: t.T),
    # (D, C, P, P) -> (P, P, C, D)
    "hwio": Operation(
        lambda shape, heads: (*shape[2:], shape[1], shape[0]),
        lambda t: t.permute(3, 2, 0, 1),
        lambda t, heads: t.permute(2, 3, 1, 0),
    ),
    # queries, keys, values: (A*K, D) -> (D, A, K)
    "heads_out": Operation(
        lambda shape, heads: (shape[1], heads, shape[0] // heads),
        lambda t: t.flatten(1).T,
        lambda t, heads: t.T.view(t.shape[1], heads, -1),
    ),
    # their biases: (A*K) -> (A, K)
    "heads_bias": Operation(
        lambda shape, heads: (heads, shape[0] // heads), lambda t: t.flatten(), lambda t, heads: t.view(heads, -1)
    ),
    # the output projection of the heads: (D, A*K) -> (A, K, D)
    "heads_in": Operation(
        lambda shape, heads: (heads, shape[1] // heads, shape[0]),
        lambda t: t.flatten(0, 1).T,
        lambda t, heads: t.T.view(heads, -1, t.shape[0]),
    ),
}
