"""GradMax: free values that make the first gradient of the zero side largest, on one batch.

New units add nothing, since what they are multiplied with is zero. How fast that learns to be
something else is decided by the free side. Of all free values of a given size these are the ones
under which the zero side's first gradient has the largest norm.

The objective is that of Evci et al., GradMax (arXiv 2201.05125, equation 6), and so is the
constraint, that new units are orthogonal to each other. They solve it in closed form for one MLP
with the zeros on its other side; here it is gradient ascent through the real network, so that it
holds for every transformation, activation and model.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from growth.expansion.accounts import ArrayAccount, TreeAccount
from growth.expansion.blocks import Kind
from growth.expansion.init_values import by_policy, from_arrays
from growth.expansion.initialization import GradMax, InitPolicy
from growth.expansion.jax_backend import (
    InitValues,
    assemble,
    build,
    mask,
    slice_region,
    write_region,
)
from growth.types import Array, Params, ParamsLike

Loss = Callable[[Params], jax.Array]

# How much of the values before a step is left after it, beside the gradient's direction. It damps
# the ascent where the gradient is not linear in the values.
_INERTIA = 0.1


def maximize_first_gradient(
    account: TreeAccount, params: Params, grown: Params, loss: Loss, policy: InitPolicy
) -> Params:
    """Moves the free values that a policy leaves to GradMax.

    Kernels move; each block of new units keeps its norm. Biases and gains stay as they are.

    Args:
      account: the account of `params`.
      params: parameters of the smaller model.
      grown: what `growth.expand` made of them.
      loss: parameters of the larger model to the loss of one batch.
      policy: which free values move, and for how many steps.
    """
    steps = max(method.steps for method in policy.methods if isinstance(method, GradMax))
    zero_side = zero_sides(account, params, like=grown)

    def objective(params: Params) -> jax.Array:
        return first_gradient(loss, params, zero_side)

    def ascend(step: jax.Array, here: Params) -> Params:
        arrays = account.of_target(here)
        slopes = account.of_target(jax.grad(objective)(here))
        kept, moved = from_arrays(arrays), _moved(arrays, slopes)

        def moves(method: GradMax) -> InitValues:
            return lambda *view: jnp.where(step < method.steps, moved(*view), kept(*view))

        values = {m: moves(m) if isinstance(m, GradMax) else kept for m in policy.methods}
        return assemble(account, params, by_policy(policy, values), like=here)

    return jax.lax.fori_loop(0, steps, ascend, grown)


def first_gradient(loss: Loss, params: Params, zero_side: ParamsLike) -> jax.Array:
    """Half the squared norm of the gradient of the entries that are marked with 1."""
    gradient = jax.grad(loss)(params)
    squares = jax.tree.map(lambda g, mark: jnp.sum(mark * g * g), gradient, zero_side)
    return jnp.sum(jnp.stack(jax.tree.leaves(squares))) / 2


def zero_sides(account: TreeAccount, params: Params, *, like: Params = None) -> ParamsLike:
    """A tree of the larger model, 1 where an entry is new and its value is fixed, 0 elsewhere.

    Args:
      account: the account of `params`.
      params: parameters of the smaller model.
      like: a tree of the larger model to take the containers from.
    """
    arrays = account.of_source(params)

    def marks(array: ArrayAccount) -> jax.Array:
        fixed = mask(array, (Kind.ZERO, Kind.MEAN))
        return fixed.astype(arrays[array.sources[0][0]].dtype)

    return build(account, params, marks, like=like)


def _moved(arrays: dict[str, Array], slopes: dict[str, Array]) -> InitValues:
    """One step: the values, and the direction in which the objective rises, made orthogonal."""

    def values(array: ArrayAccount, number: int) -> jax.Array:
        axes = array.layout.views[number].axes
        result, slope = (
            array.layout.split(jnp.asarray(tree[array.name]))[number] for tree in (arrays, slopes)
        )
        for block in array.blocks[number]:
            if block.kind is Kind.FREE and block.axis is not None:
                here, there = (slice_region(view, block.target) for view in (result, slope))
                moved = _step(here, there, axes, block.axis)
                result = write_region(result, block.target, moved)
        return result

    return values


def _step(block: jax.Array, slope: jax.Array, axes: Sequence[str], new_axis: str) -> jax.Array:
    """A block of new units after a step; of each layer by itself.

    The units of a block are what is new in it: dimensions of the stream, or columns of heads and of
    the MLP. A matrix has one row for each, and its rows are made orthogonal.
    """
    inner = [a for a, name in enumerate(axes) if name not in ("embed", "layers")]
    units = [axes.index("embed")] if new_axis == "embed" else inner
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
