"""Sources of free values.

A source is a function of the pieces of a target array, one of its sections and that section's
number. It gives an array shaped as the section, in which the entries that are new along any axis
have values; old ones are written over it.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from growth.blueprints.notation import BlueprintError
from growth.expansion import initialization, role_views
from growth.expansion.role_views import Section, split
from growth.expansion.segments import Piece
from growth.rules.growth_plan import GrowthPlan

FreeValues = Callable[[Sequence[Piece], Section, int], jax.Array]


def zeros(pieces: Sequence[Piece], section: Section, number: int) -> jax.Array:
    """Zeros: how moments of new entries start. Never right for parameters."""
    return jnp.zeros(section.shape)


def ones(pieces: Sequence[Piece], section: Section, number: int) -> jax.Array:
    """Ones: they show which entries are free."""
    return jnp.ones(section.shape)


def from_tree(fresh: Mapping[str, jax.Array], plan: GrowthPlan) -> FreeValues:
    """The entries of freshly initialized parameters at the target size.

    Args:
      fresh: arrays by name, each with the target's shape.
      plan: the growth step.
    """

    def values(pieces: Sequence[Piece], section: Section, number: int) -> jax.Array:
        target = pieces[0].target
        part = split(fresh[target.name], target, plan.target)[number]
        if part.shape != section.shape:  # in an axis that the architecture does not know
            raise BlueprintError(
                f"{target.path}: the fresh array's shape {fresh[target.name].shape} "
                f"differs from the parameter's in an axis that does not grow"
            )
        return part

    return values


def copies(
    arrays: Mapping[str, jax.Array], plan: GrowthPlan, key: jax.Array, signal_to_noise: float
) -> FreeValues:
    """Copies of existing units, in turn, plus noise.

    A new layer is a copy of the layer below it. Layers of one array that are not new have the same
    noise: no two units of a layer are equal, and there is less to draw.

    Args:
      arrays: the source's arrays by name.
      plan: the growth step.
      key: a PRNG key for the noise.
      signal_to_noise: the standard deviation of an array over that of the noise.
    """

    def values(pieces: Sequence[Piece], section: Section, number: int) -> jax.Array:
        result = jnp.zeros(section.shape, arrays[pieces[0].source.name].dtype)
        for piece in pieces:
            new = section.with_layers(piece.length)
            source = split(arrays[piece.source.name], piece.source, plan.source)[number]
            old = _old_layers(source, piece, section)
            noise = jnp.std(source) / signal_to_noise * drawn(piece, new, number)
            for _, block in _new_blocks(piece, section.axes, old.shape, new.shape):
                copy = old
                for axis, entries in enumerate(block):
                    if entries != range(old.shape[axis]):
                        copy = jnp.take(copy, np.array(entries) % old.shape[axis], axis=axis)
                starts, stops = [e.start for e in block], [e.stop for e in block]
                copy += jax.lax.slice(noise, starts, stops).astype(copy.dtype)
                if "layers" in section.axes:
                    starts[section.axes.index("layers")] += piece.start
                result = jax.lax.dynamic_update_slice(result, copy.astype(result.dtype), starts)
        return result

    def drawn(piece: Piece, section: Section, number: int) -> jax.Array:
        is_new = "layers" in piece.new_axes
        name = f"{piece.target.name}:{number}" + (f":{piece.start}" if is_new else "")
        shape = section.shape if is_new else section.with_layers(1).shape
        noise = jax.random.normal(jax.random.fold_in(key, zlib.crc32(name.encode())), shape)
        return jnp.broadcast_to(noise, section.shape)

    return values


def chosen(
    policy: initialization.InitPolicy,
    sources: Mapping[initialization.InitMethod, FreeValues],
    plan: GrowthPlan,
) -> FreeValues:
    """For each new entry the source that a policy says.

    Args:
      policy: the policy.
      sources: the values of each of its sources.
      plan: the growth step.
    """
    if len(policy.methods) == 1:
        return sources[policy.default]

    def values(pieces: Sequence[Piece], section: Section, number: int) -> jax.Array:
        asked = {policy.method(section.role, axis) for axis in initialization.AXES_IN_ORDER}
        given = {source: sources[source](pieces, section, number) for source in asked}
        if len(given) == 1:
            return given.popitem()[1]
        result = jnp.zeros(section.shape, jnp.result_type(*given.values()))
        for piece in pieces:
            for axis, starts, shape in blocks(piece, section, number, plan):
                part = given[policy.method(section.role, axis)]
                part = jax.lax.dynamic_slice(part, starts, shape).astype(result.dtype)
                result = jax.lax.dynamic_update_slice(result, part, starts)
        return result

    return values


def _old_layers(source: jax.Array, piece: Piece, section: Section) -> jax.Array:
    """The layers of a source array that a piece continues, or the one that new layers copy."""
    if "layers" not in section.axes:
        return source
    length = 1 if "layers" in piece.new_axes else piece.length
    stop = piece.source_start + length
    return jax.lax.slice_in_dim(source, piece.source_start, stop, axis=section.axes.index("layers"))


def blocks(
    piece: Piece, section: Section, number: int, plan: GrowthPlan
) -> Iterator[tuple[str, list[int], list[int]]]:
    """The new entries of a piece, as blocks of its section: the axis, the start and the shape."""
    new = section.with_layers(piece.length)
    fixed = dict(zip(section.axes, section.shape, strict=True))
    old = role_views.sections(piece.source, plan.source, fixed)[number].with_layers(piece.length)
    for axis, block in _new_blocks(piece, section.axes, old.shape, new.shape):
        starts = [entries.start for entries in block]
        if "layers" in section.axes:
            starts[section.axes.index("layers")] += piece.start
        yield axis, starts, [len(entries) for entries in block]


def _new_blocks(
    piece: Piece, axes: Sequence[str], old: Sequence[int], new: Sequence[int]
) -> Iterator[tuple[str, list[range]]]:
    """The new entries of a piece, as blocks that do not overlap: one for each axis that grows.

    A block is given as the axis along which it is new and the range of its entries along each axis.
    An entry that is new along several axes is in the block of that which comes first in
    `free.AXES_IN_ORDER`.
    """
    if piece.new_axes:
        yield piece.new_axes[0], [range(size) for size in new]
        return
    growing = [place for place in range(len(new)) if new[place] > old[place]]
    growing.sort(key=lambda place: initialization.AXES_IN_ORDER.index(axes[place]))
    ranges = [range(size) for size in new]
    for place in growing:
        block = list(ranges)
        block[place] = range(old[place], new[place])
        yield axes[place], block
        ranges[place] = range(old[place])
