"""Where the values of free entries come from, as arrays: fresh parameters, or copies.

Each function here gives an `InitValues`: a view of an array of the larger model, in which the
entries of free blocks have values.
"""

import math
import zlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from growth.expansion.accounts import ArrayAccount, TreeAccount
from growth.expansion.blocks import Block, Kind
from growth.expansion.initialization import InitMethod, InitPolicy
from growth.expansion.jax_backend import InitValues, slice_region, write_region
from growth.types import Array

_SMALL = 1 << 14  # entries of a block whose noise is drawn together with that of others


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


def copies(
    account: TreeAccount, arrays: Mapping[str, Array], *, key: jax.Array, signal_to_noise: float
) -> InitValues:
    """Copies of existing units, in turn, plus noise.

    A new layer is a copy of the layer that it is like. Layers of one array that are not new have
    the same noise: no two units of a layer are equal, and there is less to draw.

    Args:
      account: the account of the tree.
      arrays: the smaller model's arrays by name.
      key: a PRNG key for the noise.
      signal_to_noise: the standard deviation of an array over that of the noise.
    """
    noise = _noise(account, key)

    def values(array: ArrayAccount, number: int) -> jax.Array:
        view = array.layout.views[number]
        result = jnp.zeros(view.shape, arrays[array.sources[0][0]].dtype)
        for block in array.blocks[number]:
            if block.kind is Kind.FREE:
                old = jnp.asarray(arrays[block.source])
                source = array.split_source(block.source, old)[number]
                copy = block.take_from(source, jnp.take)
                drawn = noise[_noise_of(array, number, block)]
                added = jnp.std(source) / signal_to_noise * drawn
                result = write_region(result, block.target, copy + added.astype(copy.dtype))
        return result

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


def _noise_of(array: ArrayAccount, number: int, block: Block) -> tuple[str, tuple[int, ...]]:
    """What noise a block has, by name, and its shape."""
    name, shape = f"{array.name}:{number}:{block.axis}", list(block.shape)
    axes = array.layout.views[number].axes
    if "layers" in axes:
        place = axes.index("layers")
        if block.axis == "layers":
            name += f":{block.start[place]}"
        else:
            shape[place] = 1
    return name, tuple(shape)


def _noise(account: TreeAccount, key: jax.Array) -> dict[tuple[str, tuple[int, ...]], jax.Array]:
    """Normal noise for every free block.

    Each draw by itself is a program of its own to compile, and one whose loops run over five axes
    takes many times as long as one over a single axis. So noise is drawn along one axis, and that
    of small blocks all at once, each from the first entries of a row. Of threefry that changes no
    bit: it makes an entry of the key and of its index alone, under any mesh.
    """
    blocks = {
        _noise_of(array, number, block): None
        for array in account
        for number, view in enumerate(array.blocks)
        for block in view
        if block.kind is Kind.FREE
    }
    if not blocks:
        return {}
    codes = jnp.asarray([zlib.crc32(name.encode()) for name, _ in blocks], jnp.uint32)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, codes)
    sizes = [math.prod(shape) for _, shape in blocks]
    small = [place for place, size in enumerate(sizes) if size <= _SMALL]
    drawn: dict[int, jax.Array] = {}
    if small:
        length = max(sizes[place] for place in small)
        rows = jax.vmap(lambda one: jax.random.normal(one, (length,)))(keys[np.array(small)])
        drawn = {place: rows[row, : sizes[place]] for row, place in enumerate(small)}
    return {
        (name, shape): (
            drawn[place] if place in drawn else jax.random.normal(keys[place], (sizes[place],))
        ).reshape(shape)
        for place, (name, shape) in enumerate(blocks)
    }
