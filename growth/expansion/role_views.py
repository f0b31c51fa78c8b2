"""An array as its blueprint sees it: one view per role, every factor an axis of its own.

A layout says how an array falls into views and is joined again. Both are reshapes and slices only,
so that what is split from a numpy array shares its memory.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from growth.architecture import Architecture
from growth.blueprints.notation import role_axis
from growth.blueprints.parameters import Parameter, dim_size, size

if TYPE_CHECKING:
    import jax

# An array of one of the two back ends.
AnyArray = TypeVar("AnyArray", "jax.Array", np.ndarray)

# The sizes of the axes that no transformation grows, by name.
Sizes = dict[str, int]


@dataclasses.dataclass(frozen=True)
class RoleView:
    """The part of an array that has one role.

    Attributes:
      role: the role.
      axes: the name of each axis. Under rotary positions the columns of a query or key are two
        axes, `half` (2) and `qk` (k/2), since column i is turned together with column i + k/2.
      shape: the size of each axis.
    """

    role: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class ArrayLayout:
    """How an array falls into the views of its roles.

    Attributes:
      shape: of the array.
      views: one for each role.
      dim: the dimension that holds several roles.
      before: in it, the size of what stands before the axis `role`.
      widths: in it, the size of each role's part after that axis; empty where there is one role.
    """

    shape: tuple[int, ...]
    views: tuple[RoleView, ...]
    dim: int = 0
    before: int = 1
    widths: tuple[int, ...] = ()

    def split(self, array: AnyArray) -> list[AnyArray]:
        """The parts of an array, each shaped as its view says."""
        if not self.widths:
            return [array.reshape(self.views[0].shape)]
        array = array.reshape(self._between(sum(self.widths)))
        parts, start = [], 0
        for width, view in zip(self.widths, self.views, strict=True):
            index = (slice(None),) * (self.dim + 1) + (slice(start, start + width),)
            parts.append(array[index].reshape(view.shape))
            start += width
        return parts

    def join(self, parts: Sequence[AnyArray], concatenate: Callable[..., AnyArray]) -> AnyArray:
        """The array of some parts; the inverse of `split`.

        Args:
          parts: one for each view.
          concatenate: numpy's or JAX's.
        """
        if not self.widths:
            return parts[0].reshape(self.shape)
        sides = zip(parts, self.widths, strict=True)
        aligned = [part.reshape(self._between(width)) for part, width in sides]
        return concatenate(aligned, axis=self.dim + 1).reshape(self.shape)

    def _between(self, width: int) -> tuple[int, ...]:
        return (*self.shape[: self.dim], self.before, width, *self.shape[self.dim + 1 :])


def layout_of(
    parameter: Parameter, architecture: Architecture, shape: tuple[int, ...]
) -> ArrayLayout:
    """The layout of an array of a given shape."""
    return array_layout(parameter, architecture, fixed_sizes(parameter, architecture, shape))


def array_layout(parameter: Parameter, architecture: Architecture, fixed: Sizes) -> ArrayLayout:
    """The layout of an array, as the architecture says.

    Args:
      parameter: the array.
      architecture: what it belongs to.
      fixed: the sizes of its axes that do not grow.
    """
    rule = parameter.rule

    def factors(names: Sequence[str], role: str) -> list[tuple[str, int]]:
        return _factors(names, role, parameter, architecture, fixed)

    def length(names: Sequence[str], role: str) -> int:
        return math.prod(number for _, number in factors(names, role))

    views = []
    for role in rule.roles:
        all_factors = [factor for names in rule.dims for factor in factors(names, role)]
        axes, lengths = zip(*all_factors, strict=True) if all_factors else ((), ())
        views.append(RoleView(role, axes, lengths))
    shape = tuple(
        sum(length(names, role) for role in (rule.roles if "role" in names else rule.roles[:1]))
        for names in rule.dims
    )
    if len(rule.roles) == 1:
        return ArrayLayout(shape, tuple(views))
    dim = next(index for index, names in enumerate(rule.dims) if "role" in names)
    at = rule.dims[dim].index("role")
    before = length(rule.dims[dim][:at], rule.roles[0])
    widths = tuple(length(rule.dims[dim][at + 1 :], role) for role in rule.roles)
    return ArrayLayout(shape, tuple(views), dim, before, widths)


def fixed_sizes(parameter: Parameter, architecture: Architecture, shape: tuple[int, ...]) -> Sizes:
    """The sizes of those axes of an array that the architecture does not know."""
    sizes = {}
    for dim, names in zip(shape, parameter.rule.dims, strict=True):
        known, _ = dim_size(parameter, names, architecture)
        for name in names:
            if name != "role" and size(name, architecture, range(1)) is None:
                sizes[name] = dim // known
    return sizes


def _factors(
    names: Sequence[str],
    role: str,
    parameter: Parameter,
    architecture: Architecture,
    fixed: Sizes,
) -> list[tuple[str, int]]:
    factors: list[tuple[str, int]] = []
    for name in names:
        axis = role_axis(name, role, len(parameter.rule.roles) > 1)
        if axis is None or axis == "role":
            continue
        length = size(axis, architecture, parameter.layers)
        length = fixed[axis] if length is None else length
        if axis == "qk" and architecture.turns_halves:
            factors += [("half", 2), ("qk", length // 2)]
        else:
            factors.append((axis, length))
    return factors
