"""Free values: what new entries are where any value preserves the function.

A source of free values is a function of a piece of a target array and the number of one of its
sections; it gives an array shaped as that section of the piece.
"""

import zlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from growth.layout import Section, split
from growth.notation import BlueprintError
from growth.pieces import Piece
from growth.planning import GrowthPlan

FreeValues = Callable[[Piece, Section, int], jax.Array]

# Noise on a copy, relative to the standard deviation of the array it is taken from. Without noise a
# unit and its copy would get the same gradients for ever.
COPY_NOISE = 0.1


def zeros(piece: Piece, section: Section, number: int) -> jax.Array:
    """Zeros: how moments of new entries start. Never right for parameters."""
    return jnp.zeros(section.shape)


def from_tree(fresh: Mapping[str, jax.Array], plan: GrowthPlan) -> FreeValues:
    """The entries of freshly initialized parameters at the target size.

    Args:
      fresh: arrays by name, each with the target's shape.
      plan: the growth step.
    """

    def values(piece: Piece, section: Section, number: int) -> jax.Array:
        part = split(fresh[piece.target.name], piece.target, plan.target)[number]
        if "layers" in section.axes:
            axis = section.axes.index("layers")
            part = jax.lax.slice_in_dim(part, piece.start, piece.start + piece.length, axis=axis)
        if part.shape != section.shape:  # in an axis that the architecture does not know
            raise BlueprintError(
                f"{piece.target.path}: the fresh array's shape {fresh[piece.target.name].shape} "
                f"differs from the parameter's in an axis that does not grow"
            )
        return part

    return values


def copies(arrays: Mapping[str, jax.Array], plan: GrowthPlan, key: jax.Array) -> FreeValues:
    """Copies of existing units, in turn, plus noise of `COPY_NOISE` standard deviations.

    A new layer is a copy of the layer below it.

    Args:
      arrays: the source's arrays by name.
      plan: the growth step.
      key: a PRNG key for the noise.
    """

    def values(piece: Piece, section: Section, number: int) -> jax.Array:
        part = split(arrays[piece.source.name], piece.source, plan.source)[number]
        deviation = jnp.std(part)
        for place, (axis, length) in enumerate(zip(section.axes, section.shape, strict=True)):
            if axis == "layers":
                step = 0 if "layers" in piece.new_axes else 1
                index = piece.source_start + step * np.arange(length)
            else:
                index = np.arange(length) % part.shape[place]
            part = jnp.take(part, index, axis=place)
        name = f"{piece.target.name}:{piece.start}:{number}".encode()
        noise = jax.random.normal(jax.random.fold_in(key, zlib.crc32(name)), section.shape)
        return part + (COPY_NOISE * deviation * noise).astype(part.dtype)

    return values
