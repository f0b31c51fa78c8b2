"""Digests of arrays: a few characters that change when any bit of an array does.

They are computed where the arrays are, in one pass and without the host, and do not depend on how
an array is split over devices: a state that was saved on one mesh is checked on another.
"""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from growth.types import Array

# Where the keys of the two halves of a digest begin.
_SALTS = (0x9E3779B9, 0x7F4A7C15)


def array_digests(tree: Any) -> dict[str, str]:
    """The digest of each array of a tree, by path: 16 hexadecimal digits.

    One word that changes always shows; any other difference escapes once in 2⁶³.
    """
    leaves, _ = jax.tree.flatten_with_path(tree)
    by_devices: dict[Any, dict[str, Array]] = {}
    for path, leaf in leaves:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        devices = leaf.sharding.device_set if isinstance(leaf, jax.Array) else None
        by_devices.setdefault(devices and frozenset(devices), {})[name] = leaf
    # One program after the other: several that wait for all devices wait for each other for ever.
    halves = {n: half for arrays in by_devices.values() for n, half in _digests(arrays).items()}
    names = (jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves)
    return {name: "{:08x}{:08x}".format(*map(int, halves[name])) for name in names}


def array_shapes(tree: Any) -> dict[str, str]:
    """The dtype and shape of each array of a tree, by path, as they are written: float32[16,3]."""

    def describe(leaf: Any) -> str:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"

    leaves, _ = jax.tree.flatten_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): describe(leaf)
        for path, leaf in leaves
    }


def host_digest(*arrays: np.ndarray) -> str:
    """One digest of arrays of the host: 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()


def _digests(arrays: dict[str, Array]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The halves of the digests of arrays on the same devices, on the host."""
    return jax.device_get(_program(arrays))


@jax.jit
def _program(arrays: dict[str, Array]) -> dict[str, tuple[jax.Array, jax.Array]]:
    return {name: _digest(array) for name, array in arrays.items()}


def _digest(array: Array) -> tuple[jax.Array, jax.Array]:
    """Two sums, modulo 2³², of all words [uint32], each times a number that its place decides."""
    if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    words = _words(jnp.asarray(array))
    place = jnp.zeros(words.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(words.ndim)):
        count = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        place += count * jnp.uint32(stride % 2**32)
        stride *= words.shape[axis]
    high, low = (
        jnp.sum(words * (_scrambled(place + jnp.uint32(salt)) | jnp.uint32(1)), dtype=jnp.uint32)
        for salt in _SALTS
    )
    return high, low


def _words(array: jax.Array) -> jax.Array:
    """The bits of an array, as uint32."""
    if array.dtype == jnp.bool_:
        return array.astype(jnp.uint32)
    size = array.dtype.itemsize
    if size in (1, 2):
        unsigned = jnp.uint8 if size == 1 else jnp.uint16
        return jax.lax.bitcast_convert_type(array, unsigned).astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(array, jnp.uint32)  # two words for one of 64 bits


def _scrambled(number: jax.Array) -> jax.Array:
    """The last steps of MurmurHash3: each bit of the result depends on all bits of `number`."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        number = (number ^ (number >> shift)) * jnp.uint32(factor)
    return number ^ (number >> 16)
