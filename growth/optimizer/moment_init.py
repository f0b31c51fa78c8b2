"""How second moments of new entries begin, other than at zero.

With a zero second moment and an old count, Adam's first update of an entry is (1 − β₁)/√(1 − β₂)
times the learning rate, whatever its gradient is.
"""

from typing import Any

import jax
import jax.numpy as jnp

from growth.blueprints import pytrees
from growth.expansion.accounts import TreeAccount
from growth.expansion.blocks import Kind
from growth.expansion.jax_backend import mask
from growth.types import ParamsLike

POLICIES = ("zeros", "mean", "probe")


def with_initial_moments(
    larger: ParamsLike, account: TreeAccount, gradient: ParamsLike
) -> ParamsLike:
    """Squares of gradients, in which new entries begin as a mean or as the square of a gradient.

    The mean is that of the old entries of the array; of all arrays of its kind, in all layers,
    where the array has none. Entries whose gradient is zero take the mean too: free sides of
    products have none at first.

    Args:
      larger: the squares, in which new entries are zero.
      account: the account of the squares before growth.
      gradient: a tree of the grown parameters; None: all take the mean.
    """
    squares = {leaf.name: leaf.value for leaf in pytrees.leaves(larger)}
    probes = {leaf.name: leaf.value for leaf in pytrees.leaves(gradient or {})}
    is_old: dict[str, jax.Array] = {}
    sums: dict[str, tuple[jax.Array, jax.Array]] = {}
    of_kind: dict[Any, tuple[jax.Array | float, jax.Array | int]] = {}
    kinds = {array.name: array.target.kind for array in account}
    for array in account:
        name, kind = array.name, array.target.kind
        if pytrees.is_empty(squares[name]):  # a new layer may be in another group of the optimizer
            continue
        is_old[name] = mask(array, (Kind.OLD,))
        total = jnp.sum(jnp.where(is_old[name], squares[name], 0))
        sums[name] = total, jnp.sum(is_old[name])
        before = of_kind.get(kind, (0.0, 0))
        of_kind[kind] = before[0] + total, before[1] + sums[name][1]

    def filled(name: str) -> jax.Array:
        square, (total, count), (all_total, all_count) = (
            squares[name],
            sums[name],
            of_kind[kinds[name]],
        )
        mean = jnp.where(
            count > 0, total / jnp.maximum(count, 1), all_total / jnp.maximum(all_count, 1)
        )
        begin = jnp.full(square.shape, mean)
        if name in probes:
            probed = jnp.square(probes[name])
            begin = jnp.where(probed > 0, probed, begin)
        return jnp.where(is_old[name], square, begin).astype(square.dtype)

    items = [
        (leaf.keys, leaf, filled(leaf.name) if leaf.name in is_old else leaf.value)
        for leaf in pytrees.leaves(larger)
    ]
    return pytrees.build(items, larger)
