"""GradMax: free values that make the first gradient of the zero side largest, on one batch.

New units add nothing, since what they are multiplied with is zero. How fast that learns to be
something else is decided by the free side. Of all free values of a given size these are the ones
under which the zero side's first gradient has the largest norm.

The objective is that of Evci et al., GradMax (arXiv 2201.05125, equation 6), and so is the
constraint, that new units are orthogonal to each other. They solve it in closed form for one MLP
with the zeros on its other side; here it is gradient ascent through the real network, so that it
holds for every transformation, activation and model.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from growth.blueprints.blueprint import Blueprint
from growth.expansion import init_values
from growth.expansion.init_values import FreeValues
from growth.expansion.initialization import GradMax, InitPolicy
from growth.expansion.jax_backend import by_name, grow, old_entries
from growth.expansion.role_views import Section, split
from growth.expansion.segments import Piece
from growth.rules.growth_plan import GrowthPlan

Loss = Callable[[Any], jax.Array]

# How much of the values before a step is left after it, beside the gradient's direction. It damps
# the ascent where the gradient is not linear in the values.
_INERTIA = 0.1


def gradmax(
    loss: Loss, tree: Any, grown: Any, plan: GrowthPlan, blueprint: Blueprint, policy: InitPolicy
) -> Any:
    """Moves the free values that a policy leaves to GradMax.

    Kernels move; each block of new units keeps its norm. Biases and gains stay as they are.

    Args:
      loss: parameters of `plan.target` to the loss of one batch.
      tree: parameters of `plan.source`.
      grown: what `growth.expand` made of them.
      plan: the growth step.
      blueprint: what the parameters are.
      policy: which free values move, and for how many steps.
    """
    steps = max(source.steps for source in policy.methods if isinstance(source, GradMax))
    zero_side = _zero_side(tree, plan, blueprint)

    def objective(params: Any) -> jax.Array:
        return first_gradient(loss, params, zero_side)

    def ascend(step: jax.Array, params: Any) -> Any:
        here = by_name(params, blueprint, plan.target)
        slopes = by_name(jax.grad(objective)(params), blueprint, plan.target)
        kept, moved = init_values.from_tree(here, plan), _moved(here, slopes, plan)

        def moves(source: GradMax) -> FreeValues:
            return lambda *part: jnp.where(step < source.steps, moved(*part), kept(*part))

        values = {s: moves(s) if isinstance(s, GradMax) else kept for s in policy.methods}
        free = init_values.chosen(policy, values, plan)
        return grow(tree, plan, blueprint, free, like=params)

    return jax.lax.fori_loop(0, steps, ascend, grown)


def first_gradient(loss: Loss, params: Any, zero_side: Any) -> jax.Array:
    """Half the squared norm of the gradient of the entries that are marked with 1."""
    gradient = jax.grad(loss)(params)
    squares = jax.tree.map(lambda g, mark: jnp.sum(mark * g * g), gradient, zero_side)
    return jnp.sum(jnp.stack(jax.tree.leaves(squares))) / 2


def _zero_side(tree: Any, plan: GrowthPlan, blueprint: Blueprint) -> Any:
    """1 where an entry is new and its value is fixed, 0 elsewhere."""
    old = old_entries(tree, plan, blueprint)
    free = grow(jax.tree.map(jnp.zeros_like, tree), plan, blueprint, init_values.ones)
    return jax.tree.map(lambda is_old, f: (~is_old & (f <= 0)).astype(f.dtype), old, free)


def _moved(here: Any, slopes: Any, plan: GrowthPlan) -> FreeValues:
    """One step: the values, and the direction in which the objective rises, made orthogonal."""

    def values(pieces: Sequence[Piece], section: Section, number: int) -> jax.Array:
        target = pieces[0].target
        result, slope = (
            split(arrays[target.name], target, plan.target)[number] for arrays in (here, slopes)
        )
        for piece in pieces:
            for axis, starts, shape in init_values.blocks(piece, section, number, plan):
                cut = functools.partial(
                    jax.lax.dynamic_slice, start_indices=starts, slice_sizes=shape
                )
                block = _step(cut(result), cut(slope), section.axes, axis)
                result = jax.lax.dynamic_update_slice(result, block, starts)
        return result

    return values


def _step(block: jax.Array, slope: jax.Array, axes: Sequence[str], new: str) -> jax.Array:
    """A block of new units after a step; of each layer by itself.

    The units of a block are what is new in it: dimensions of the stream, or columns of heads and of
    the MLP. A matrix has one row for each, and its rows are made orthogonal.
    """
    inner = [a for a, name in enumerate(axes) if name not in ("embed", "layers")]
    units = [axes.index("embed")] if new == "embed" else inner
    rest = [a for a, name in enumerate(axes) if a not in units and name != "layers"]
    stacked = [a for a, name in enumerate(axes) if name == "layers"]
    rows, columns = (math.prod(block.shape[a] for a in side) for side in (units, rest))
    if not rest or "embed" not in axes or columns == 1:
        return block
    order = (*stacked, *units, *rest)
    wide = jnp.promote_types(block.dtype, jnp.float32)

    def matrices(array: jax.Array) -> jax.Array:
        return array.astype(wide).transpose(order).reshape(-1, rows, columns)

    def unit(matrix: jax.Array) -> jax.Array:
        return matrix / (jnp.linalg.norm(matrix, axis=(1, 2), keepdims=True) + 1e-30)

    before = matrices(block)
    left, _, right = jnp.linalg.svd(
        unit(matrices(slope)) + _INERTIA * unit(before), full_matrices=False
    )
    after = unit(left @ right) * jnp.linalg.norm(before, axis=(1, 2), keepdims=True)
    after = after.reshape([block.shape[a] for a in order])
    return after.transpose([order.index(a) for a in range(block.ndim)]).astype(block.dtype)
