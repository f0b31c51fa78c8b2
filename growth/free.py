"""Free values: what new entries are where any value preserves the function.

A source of free values is a function of the pieces of a target array, one of its sections and that
section's number. It gives an array shaped as the section, in which the entries that are new along
any axis have values; old ones are written over it.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from growth.layout import Section, split
from growth.notation import BlueprintError
from growth.pieces import Piece
from growth.planning import GrowthPlan

FreeValues = Callable[[Sequence[Piece], Section, int], jax.Array]

# Noise on a copy, relative to the standard deviation of the array it is taken from. Without noise a
# unit and its copy would get the same gradients for ever.
COPY_NOISE = 0.1


def zeros(pieces: Sequence[Piece], section: Section, number: int) -> jax.Array:
    """Zeros: how moments of new entries start. Never right for parameters."""
    return jnp.zeros(section.shape)


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


def copies(arrays: Mapping[str, jax.Array], plan: GrowthPlan, key: jax.Array) -> FreeValues:
    """Copies of existing units, in turn, plus noise of `COPY_NOISE` standard deviations.

    A new layer is a copy of the layer below it. Layers of one array that are not new have the same
    noise: no two units of a layer are equal, and there is less to draw.

    Args:
      arrays: the source's arrays by name.
      plan: the growth step.
      key: a PRNG key for the noise.
    """

    def values(pieces: Sequence[Piece], section: Section, number: int) -> jax.Array:
        result = jnp.zeros(section.shape, arrays[pieces[0].source.name].dtype)
        for piece in pieces:
            new = section.with_layers(piece.length)
            source = split(arrays[piece.source.name], piece.source, plan.source)[number]
            old = _old_layers(source, piece, section)
            noise = COPY_NOISE * jnp.std(source) * drawn(piece, new, number)
            for block in _new_blocks(piece, old.shape, new.shape):
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


def _old_layers(source: jax.Array, piece: Piece, section: Section) -> jax.Array:
    """The layers of a source array that a piece continues, or the one that new layers copy."""
    if "layers" not in section.axes:
        return source
    length = 1 if "layers" in piece.new_axes else piece.length
    stop = piece.source_start + length
    return jax.lax.slice_in_dim(source, piece.source_start, stop, axis=section.axes.index("layers"))


def _new_blocks(piece: Piece, old: Sequence[int], new: Sequence[int]) -> Iterator[list[range]]:
    """The new entries of a piece, as blocks that do not overlap: one for each axis that grows.

    A block has the range of its entries along each axis.
    """
    if piece.new_axes:
        yield [range(size) for size in new]
        return
    for axis, (before, after) in enumerate(zip(old, new, strict=True)):
        if after > before:
            yield [*map(range, old[:axis]), range(before, after), *map(range, new[axis + 1 :])]
