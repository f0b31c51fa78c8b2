"""How far a model's own rounding moves its logits.

The same function summed in another order shows in what precision a model computes inside. Where
that is float32 among float64, its parameters are moved by a rounding of float32 as well: growth
multiplies, and so rounds anew what a mere change of order rounds alike.
"""

from collections.abc import Callable, Collection

import jax
import numpy as np

from growth.architecture import Architecture
from growth.blueprints import pytrees
from growth.blueprints.blueprint import Blueprint
from growth.expansion.role_views import RoleView, layout_of
from growth.rules.tolerances import LARGEST_ROUNDING, PROMISED
from growth.types import Array, Params

# Axes whose order no model knows. One that does, such as the dimensions of the stream where
# positions are sinusoidal, moves logits by more than rounding, and is left out.
_ORDERS = (("embed",), ("mlp", "v"))


def own_rounding(
    logits: Callable[[Params], jax.Array],
    params: Params,
    architecture: Architecture,
    blueprint: Blueprint,
) -> float:
    """The largest change of a logit by rounding, relative to the largest logit.

    Args:
      logits: parameters to logits, any shape.
      params: parameters of the architecture.
      architecture: the architecture.
      blueprint: what the parameters are.
    """
    before = np.asarray(logits(params), np.float64)

    def change(other: Params) -> float:
        after = np.asarray(logits(other), np.float64)
        return float(np.abs(after - before).max() / np.abs(before).max())

    changes = [change(permuted(params, architecture, blueprint, axes)) for axes in _ORDERS]
    found = max((error for error in changes if error <= LARGEST_ROUNDING), default=0.0)
    if found <= PROMISED["float64"]:
        return found
    return max(found, min(change(_rounded_anew(params)), LARGEST_ROUNDING))


def permuted(
    params: Params, architecture: Architecture, blueprint: Blueprint, axes: Collection[str]
) -> Params:
    """Parameters of the same function, whose units along some axes stand in another order.

    Args:
      params: parameters of the architecture.
      architecture: the architecture.
      blueprint: what the parameters are.
      axes: the axes, none of them an index in a path.
    """
    parameters = blueprint.parameters(params, architecture)

    def reordered(part: np.ndarray, view: RoleView) -> np.ndarray:
        for place in (place for place, axis in enumerate(view.axes) if axis in axes):
            # By its length alone: all that belongs to one unit must move together.
            order = np.random.default_rng(part.shape[place]).permutation(part.shape[place])
            part = np.take(part, order, axis=place)
        return part

    def value(leaf: pytrees.Leaf) -> np.ndarray:
        if leaf.path not in parameters or pytrees.is_empty(leaf.value):
            return leaf.value
        array = np.asarray(leaf.value)
        layout = layout_of(parameters[leaf.path], architecture, array.shape)
        parts = zip(layout.split(array), layout.views, strict=True)
        return layout.join([reordered(part, view) for part, view in parts], np.concatenate)

    return pytrees.build(
        [(leaf.keys, leaf, value(leaf)) for leaf in pytrees.leaves(params)], params
    )


def _rounded_anew(params: Params) -> Params:
    """Parameters that differ by half a unit of float32's last place, up or down at random."""
    random = np.random.default_rng(0)
    half = float(np.finfo(np.float32).eps) / 2

    def moved(leaf: Array) -> np.ndarray:
        array = np.asarray(leaf)
        return array + array * (half * random.choice([-1, 1], size=array.shape)).astype(array.dtype)

    return jax.tree.map(moved, params)
