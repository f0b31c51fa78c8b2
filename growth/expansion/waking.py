"""Copies of units that a ReLU never lets through are turned, so that they can learn.

A unit whose input is negative on all data has no gradient, and a copy of it has none either. Which
ones these are no weight shows: it takes a batch. Negated, the copy lets through what the unit does
not; it is on the free side of its product, so the function stays.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from growth.architecture import Architecture
from growth.expansion.accounts import ArrayAccount, TreeAccount
from growth.expansion.blocks import Kind
from growth.expansion.initialization import Copy, InitPolicy
from growth.expansion.jax_backend import assemble, slice_region, write_region
from growth.types import Params

# New along one of these, all of a unit is new.
_WHOLE_UNITS = ("mlp", "layers")


def may_sleep(architecture: Architecture, policy: InitPolicy) -> bool:
    """Whether units are copied that may be inactive on all data."""
    copied = any(isinstance(policy.method("mlp_in", axis), Copy) for axis in _WHOLE_UNITS)
    return copied and architecture.activation == "relu" and not architecture.gated_mlp


def wake(
    account: TreeAccount,
    params: Params,
    grown: Params,
    loss: Callable[[Params], jax.Array],
    policy: InitPolicy,
) -> Params:
    """Negates the copied units that are inactive on a batch.

    What a unit writes has a gradient where it is active on anything, also where it writes zero.

    Args:
      account: the account of `params`.
      params: parameters of the smaller model.
      grown: what `growth.expand` made of them.
      loss: parameters of the larger model to the loss of one batch.
      policy: which units are copied.
    """
    arrays = account.of_target(grown)
    slopes = account.of_target(jax.grad(loss)(grown))
    asleep: dict[range, tuple[tuple[str, ...], jax.Array]] = {}
    for array in account:
        parts = array.layout.split(jnp.asarray(slopes[array.name]))
        for view, part in zip(array.layout.views, parts, strict=True):
            if view.role == "mlp_out" and "mlp" in view.axes:
                others = [i for i, axis in enumerate(view.axes) if axis not in _WHOLE_UNITS]
                names = tuple(axis for axis in view.axes if axis in _WHOLE_UNITS)
                asleep[array.target.layers] = names, ~jnp.any(part != 0, axis=others)

    def values(array: ArrayAccount, number: int) -> jax.Array:
        view = array.layout.views[number]
        result = array.layout.split(jnp.asarray(arrays[array.name]))[number]
        if view.role != "mlp_in" or array.target.layers not in asleep:
            return result
        names, sleeping = asleep[array.target.layers]
        order = sorted(range(len(names)), key=lambda at: view.axes.index(names[at]))
        shape = [n if a in names else 1 for a, n in zip(view.axes, view.shape, strict=True)]
        sign = jnp.where(sleeping.transpose(order).reshape(shape), -1, 1).astype(result.dtype)
        turned = result * sign
        for block in array.blocks[number]:
            whole = block.kind is Kind.FREE and block.axis in _WHOLE_UNITS
            if whole and isinstance(policy.method(view.role, str(block.axis)), Copy):
                result = write_region(result, block.target, slice_region(turned, block.target))
        return result

    return assemble(account, params, values, like=grown)
