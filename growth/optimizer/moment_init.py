"""How second moments of new entries begin, other than at zero.

With a zero second moment and an old count, Adam's first update of an entry is (1 − β₁)/√(1 − β₂)
times the learning rate, whatever its gradient is.
"""

from typing import Any

import jax.numpy as jnp

from growth.blueprints import pytrees
from growth.blueprints.blueprint import Blueprint
from growth.expansion.jax_backend import old_entries
from growth.rules.growth_plan import GrowthPlan

POLICIES = ("zeros", "mean", "probe")


def with_initial_moments(
    larger: Any, tree: Any, plan: GrowthPlan, blueprint: Blueprint, gradient: Any
) -> Any:
    """Squares of gradients, in which new entries begin as a mean or as the square of a gradient.

    The mean is that of the old entries of the array; of all arrays of its kind, in all layers,
    where the array has none. Entries whose gradient is zero take the mean too: free sides of
    products have none at first.

    Args:
      larger: the squares, in which new entries are zero.
      tree: the squares before growth.
      plan: the growth step.
      blueprint: what the arrays are.
      gradient: a tree of the grown parameters; None: all take the mean.
    """
    old = old_entries(tree, plan, blueprint, like=larger)
    located = blueprint.parameters(larger, plan.target)
    values, marks = (
        {leaf.path: leaf.value for leaf in pytrees.leaves(t) if leaf.path in located}
        for t in (larger, old)
    )
    probes = {leaf.path: leaf.value for leaf in pytrees.leaves(gradient or {})}
    sums: dict[Any, tuple[Any, Any]] = {}
    own = {}
    for path, value in values.items():
        if pytrees.is_empty(value):
            continue
        total, count = jnp.sum(jnp.where(marks[path], value, 0)), jnp.sum(marks[path])
        own[path] = total, count
        kind = located[path].kind
        before = sums.get(kind, (0.0, 0))
        sums[kind] = before[0] + total, before[1] + count

    def filled(path: str, value: Any) -> Any:
        total, count = own[path]
        kind_total, kind_count = sums[located[path].kind]
        mean = jnp.where(
            count > 0, total / jnp.maximum(count, 1), kind_total / jnp.maximum(kind_count, 1)
        )
        begin = jnp.full(value.shape, mean)
        if path in probes:
            square = jnp.square(probes[path])
            begin = jnp.where(square > 0, square, begin)
        return jnp.where(marks[path], value, begin).astype(value.dtype)

    items = [
        (leaf.keys, leaf, filled(leaf.path, leaf.value) if leaf.path in own else leaf.value)
        for leaf in pytrees.leaves(larger)
    ]
    return pytrees.build(items, larger)
