"""Where the values of free entries come from, as arrays: fresh parameters, or copies.

Each function here gives an `InitValues`: a view of an array of the larger model, in which the
entries of free blocks have values.
"""

import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from growth.expansion.accounts import ArrayAccount
from growth.expansion.blocks import Block, Kind
from growth.expansion.initialization import InitMethod, InitPolicy
from growth.expansion.jax_backend import InitValues, slice_region, write_region
from growth.types import Array


def zeros(array: ArrayAccount, number: int) -> jax.Array:
    """Zeros: how moments of new entries start. Never right for parameters."""
    return jnp.zeros(array.layout.views[number].shape)


def from_arrays(arrays: Mapping[str, Array]) -> InitValues:
    """The entries of freshly initialized parameters at the target size.

    Args:
      arrays: by name, each with the target's shape.
    """

    def values(array: ArrayAccount, number: int) -> jax.Array:
        return array.layout.split(jnp.asarray(arrays[array.name]))[number]

    return values


def copies(arrays: Mapping[str, Array], *, key: jax.Array, signal_to_noise: float) -> InitValues:
    """Copies of existing units, in turn, plus noise.

    A new layer is a copy of the layer below it. Layers of one array that are not new have the same
    noise: no two units of a layer are equal, and there is less to draw.

    Args:
      arrays: the smaller model's arrays by name.
      key: a PRNG key for the noise.
      signal_to_noise: the standard deviation of an array over that of the noise.
    """

    def values(array: ArrayAccount, number: int) -> jax.Array:
        view = array.layout.views[number]
        result = jnp.zeros(view.shape, arrays[array.sources[0][0]].dtype)
        for block in array.blocks[number]:
            if block.kind is Kind.FREE:
                old = jnp.asarray(arrays[block.source])
                source = array.split_source(block.source, old)[number]
                copy = block.take_from(source, jnp.take)
                noise = jnp.std(source) / signal_to_noise * drawn(array, number, block)
                result = write_region(result, block.target, copy + noise.astype(copy.dtype))
        return result

    def drawn(array: ArrayAccount, number: int, block: Block) -> jax.Array:
        name, shape = f"{array.name}:{number}:{block.axis}", list(block.shape)
        axes = array.layout.views[number].axes
        if "layers" in axes:
            place = axes.index("layers")
            if block.axis == "layers":
                name += f":{block.start[place]}"
            else:
                shape[place] = 1
        return jax.random.normal(jax.random.fold_in(key, zlib.crc32(name.encode())), shape)

    return values


def by_policy(policy: InitPolicy, values: Mapping[InitMethod, InitValues]) -> InitValues:
    """For each free block the values of the method that a policy names.

    Args:
      policy: the policy.
      values: those of each of its methods.
    """

    def chosen(array: ArrayAccount, number: int) -> jax.Array:
        view = array.layout.views[number]
        methods = {
            block: policy.method(view.role, block.axis)
            for block in array.blocks[number]
            if block.kind is Kind.FREE and block.axis is not None
        }
        given = {m: values[m](array, number) for m in dict.fromkeys(methods.values())}
        if len(given) == 1:
            return given.popitem()[1]
        result = jnp.zeros(view.shape, jnp.result_type(*given.values()) if given else None)
        for block, method in methods.items():
            result = write_region(result, block.target, slice_region(given[method], block.target))
        return result

    return chosen
