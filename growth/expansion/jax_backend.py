"""The JAX back end: arrays of the larger model, put together from blocks.

A fold over the account of a tree. The account is known before the first array is read, so the fold
is a pure function that can be compiled. Array for array it gives the bits that
`growth.expansion.numpy_backend` gives.
"""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Bool, Float, Shaped

from growth.blueprints import pytrees
from growth.expansion.accounts import ArrayAccount, TreeAccount
from growth.expansion.blocks import Block, Kind, Region
from growth.expansion.role_views import RoleView
from growth.types import Array, ParamsLike

# Gives one view of an array of the larger model, by its number. Of what it gives, the entries of
# free blocks are used.
InitValues = Callable[[ArrayAccount, int], jax.Array]


def assemble(
    account: TreeAccount,
    tree: ParamsLike,
    init_values: InitValues,
    *,
    exponent: int | None = None,
    like: ParamsLike = None,
) -> ParamsLike:
    """Carries a tree of the smaller model to the larger one.

    Args:
      account: the account of the tree.
      tree: arrays of the smaller model.
      init_values: what the entries of free blocks are.
      exponent: None for parameters. For moments of gradients, which are multiplied by c ** exponent
        where parameters are multiplied by c, and all of whose new entries are free.
      like: a tree of the target to take the containers from, where it holds the same leaves. The
        containers of `tree` may know its sizes.
    """
    arrays = account.of_source(tree)

    def array_of(array: ArrayAccount) -> jax.Array:
        views = []
        for number, blocks in enumerate(array.blocks):
            moments = blocks if exponent is None else [b.as_moment(exponent) for b in blocks]
            views.append(_view(array, number, moments, arrays, init_values))
        return array.layout.join(views, jnp.concatenate)

    return build(account, tree, array_of, like=like)


def build(
    account: TreeAccount,
    tree: ParamsLike,
    array_of: Callable[[ArrayAccount], Any],
    *,
    like: ParamsLike = None,
) -> ParamsLike:
    """A tree of the larger model, with a value for each of its arrays.

    Args:
      account: the account of the tree.
      tree: a tree of the smaller model, whose containers and empty nodes the result has.
      array_of: gives the value for an array.
      like: as for `assemble`.
    """
    leaves = {leaf.path: leaf for leaf in pytrees.leaves(tree)}
    arrays, empty, names = dict(account.arrays), dict(account.empty), dict(account.names)
    nodes = {name: leaves[path].value for path, name in names.items()}
    values: dict[str, Any] = {}
    models: dict[str, pytrees.Leaf] = {}
    for path, leaf in leaves.items():
        here = [(array.target.path, array_of(array)) for array in arrays.get(path, ())]
        here += [(target, nodes[name]) for target, name in empty.get(path, ())]
        here += [] if path in names else [(path, leaf.value)]
        values |= here
        models |= {target: leaves.get(target, leaf) for target, _ in here}
    if like is not None and _has_places(like, values):
        return _in_containers(like, values)
    items = [(pytrees.with_names(m.keys, path), m, values[path]) for path, m in models.items()]
    return pytrees.build(items, tree)


def mask(array: ArrayAccount, kinds: Collection[Kind]) -> Bool[jax.Array, "..."]:
    """Which entries of an array are of some kinds: booleans of its shape."""
    views = [
        _mask(view, [block.target for block in blocks if block.kind in kinds])
        for view, blocks in zip(array.layout.views, array.blocks, strict=True)
    ]
    return array.layout.join(views, jnp.concatenate)


def slice_region(array: jax.Array, region: Region) -> jax.Array:
    """The entries of a box, which must be there: slices that reach too far are cut in silence."""
    assert all(r.stop <= size for r, size in zip(region, array.shape, strict=True)), region
    return jax.lax.slice(array, [r.start for r in region], [r.stop for r in region])


def write_region(
    array: Shaped[jax.Array, "*shape"], region: Region, values: jax.Array
) -> Shaped[jax.Array, "*shape"]:
    """An array with other entries in a box."""
    starts = [r.start for r in region]
    return jax.lax.dynamic_update_slice(array, values.astype(array.dtype), starts)


def _view(
    array: ArrayAccount,
    number: int,
    blocks: Sequence[Block],
    arrays: Mapping[str, Array],
    init_values: InitValues,
) -> jax.Array:
    """One view of an array from its blocks."""
    view, dtype = array.layout.views[number], arrays[array.sources[0][0]].dtype

    def old(block: Block) -> jax.Array:
        units = [
            _multiplied(array.split_source(name, jnp.asarray(arrays[name]))[number], block)
            for name in block.sources
        ]
        if block.kind is Kind.OLD:
            return units[0].astype(dtype)
        return mean(jnp.stack([unit.astype(dtype) for unit in units]), 0)[0]  # over arrays

    if all(block.kind is not Kind.FREE for block in blocks):
        segments = itertools.groupby(blocks, key=lambda block: block.start)
        parts = [_padded(list(segment), old, view, dtype) for _, segment in segments]
        return parts[0] if len(parts) == 1 else jnp.concatenate(parts, view.axes.index("layers"))
    # Blocks are written over free values, in place: each cut and joint would cost a pass.
    result = init_values(array, number).astype(dtype)
    for block in reversed(blocks):  # old entries come first: means are taken of them
        if block.kind is Kind.ZERO:
            zeros = jnp.full(block.shape, block.zero, dtype)
            result = write_region(result, block.target, zeros)
        elif block.kind is Kind.MEAN and block.place is not None:
            kept = slice_region(result, block.averaged)
            values = jnp.broadcast_to(mean(kept, block.place), block.shape)
            result = write_region(result, block.target, values)
        elif block.kind is not Kind.FREE:
            result = write_region(result, block.target, old(block))
    return result


def _padded(
    blocks: Sequence[Block], old: Callable[[Block], jax.Array], view: RoleView, dtype: DTypeLike
) -> jax.Array:
    """A segment without free entries: the old ones, padded with zeros, and means.

    Zeros are all that the other blocks leave, and as padding they cost no pass of their own.
    """
    *others, last = blocks
    if last.kind is Kind.ZERO:
        return jnp.full(last.shape, last.zero, dtype)
    core = old(last)
    behind = [
        0 if axis == "layers" else size - len(entries)
        for axis, size, entries in zip(view.axes, view.shape, last.target, strict=True)
    ]
    padding = next((block.zero for block in others if block.kind is Kind.ZERO), 0.0)
    result = jax.lax.pad(core, jnp.asarray(padding, dtype), [(0, n, 0) for n in behind])
    for block in others:
        if block.kind is Kind.MEAN:
            assert block.place is not None
            kept = slice_region(core, _from(block.averaged, block.start))
            values = jnp.broadcast_to(mean(kept, block.place), block.shape)
        elif block.zero != padding:
            values = jnp.full(block.shape, block.zero, dtype)
        else:
            continue
        result = write_region(result, _from(block.target, block.start), values)
    return result


def _from(region: Region, start: Sequence[int]) -> Region:
    """A box, counted from an entry."""
    return tuple(range(r.start - s, r.stop - s) for r, s in zip(region, start, strict=True))


def _multiplied(source: jax.Array, block: Block) -> jax.Array:
    """The entries of a view of the smaller model that a block continues, multiplied."""
    old = slice_region(source, block.region)
    if block.factor == 1:
        return old
    wide = old.astype(jnp.promote_types(old.dtype, jnp.float32)) + block.offset
    # A compiler may contract a product and the sum that follows it to one rounding, where numpy
    # rounds twice. It cannot see through the selection, which is always the same.
    product = jnp.where(wide == wide, wide * block.factor, wide)
    return product - block.offset if block.offset else product


def mean(array: Float[Array, "..."], place: int) -> Float[jax.Array, "..."]:
    """The mean along an axis, which is kept, in the dtype of the array.

    It is computed in float32 at least, and by halves, so that every back end rounds alike.
    """
    array = jnp.asarray(array)
    wide = jnp.promote_types(array.dtype, jnp.float32)
    number, total = array.shape[place], array.astype(wide)
    if wide != array.dtype:  # a compiler may take the rounding to a lower precision away
        kept = jnp.finfo(array.dtype)
        total = jax.lax.reduce_precision(total, kept.nexp, kept.nmant)
    while (length := total.shape[place]) > 1:
        if length % 8 == 0:  # three halvings in one pass over the array
            total = _sum_of_parts(jnp.split(total, 8, axis=place))
            continue
        half = length // 2
        low, high, rest = (
            jax.lax.slice_in_dim(total, start, stop, axis=place)
            for start, stop in ((0, half), (half, 2 * half), (2 * half, length))
        )
        total = low + high if length % 2 == 0 else jnp.concatenate([low + high, rest], place)
    return (total * jnp.asarray(1 / number, wide)).astype(array.dtype)


def _sum_of_parts(parts: Sequence[jax.Array]) -> jax.Array:
    """The sum of parts that an array is cut into, as halving it again and again would add them."""
    if len(parts) == 1:
        return parts[0]
    half = len(parts) // 2
    return _sum_of_parts([a + b for a, b in zip(parts[:half], parts[half:], strict=True)])


def _mask(view: RoleView, boxes: Sequence[Region]) -> Bool[jax.Array, "..."]:
    inside = jnp.zeros((1,) * len(view.shape), bool)
    for box in boxes:
        here = jnp.ones((1,) * len(view.shape), bool)
        for place, entries in enumerate(box):
            if len(entries) < view.shape[place]:
                shape = [n if p == place else 1 for p, n in enumerate(view.shape)]
                index = jax.lax.broadcasted_iota(jnp.int32, shape, place)
                here &= (index >= entries.start) & (index < entries.stop)
        inside |= here
    return jnp.broadcast_to(inside, view.shape)


def _has_places(like: ParamsLike, values: Mapping[str, Any]) -> bool:
    """Whether a tree holds the arrays that are given by path, and no other leaves."""
    places = {leaf.path for leaf in pytrees.arrays(like)}
    held = {path for path, value in values.items() if not pytrees.is_empty(value)}
    return held <= places <= set(values)


def _in_containers(like: ParamsLike, values: Mapping[str, Any]) -> ParamsLike:
    """The arrays that are given by path, in the containers of a tree that has a place for each."""
    places = [leaf.path for leaf in pytrees.arrays(like)]
    return jax.tree.unflatten(jax.tree.structure(like), [values[path] for path in places])
