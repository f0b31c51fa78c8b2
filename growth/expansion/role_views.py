"""An array as its blueprint sees it: one view per role, every factor an axis of its own.

`split` and `join` go back and forth between the array that a model holds and its views. Both are
reshapes and slices only, so that what is split from a numpy array shares its memory.
"""

import dataclasses
import math
from typing import Any

from growth.architecture import Architecture
from growth.blueprints.notation import role_axis
from growth.blueprints.parameters import Parameter, dim_size, size


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

    def with_layers(self, number: int) -> "RoleView":
        """The same for another number of layers."""
        shape = [number if a == "layers" else n for a, n in zip(self.axes, self.shape, strict=True)]
        return dataclasses.replace(self, shape=tuple(shape))


Sizes = dict[str, int]  # of the axes that no transformation grows, by name


def fixed_sizes(parameter: Parameter, shape: tuple[int, ...], architecture: Architecture) -> Sizes:
    """The sizes of those axes of an array that the architecture does not know."""
    sizes = {}
    for dim, names in zip(shape, parameter.rule.dims, strict=True):
        known, _ = dim_size(parameter, names, architecture)
        for name in names:
            if name != "role" and size(name, architecture, range(1)) is None:
                sizes[name] = dim // known
    return sizes


def role_views(
    parameter: Parameter, architecture: Architecture, fixed: Sizes
) -> tuple[RoleView, ...]:
    """The views of an array, as the architecture says."""
    result = []
    for role in parameter.rule.roles:
        factors = [
            f
            for names in parameter.rule.dims
            for f in _factors(names, role, parameter, architecture, fixed)
        ]
        axes, shape = zip(*factors, strict=True) if factors else ((), ())
        result.append(RoleView(role, axes, shape))
    return tuple(result)


def array_shape(parameter: Parameter, architecture: Architecture, fixed: Sizes) -> tuple[int, ...]:
    """The shape of the whole array, as the architecture says."""
    roles = parameter.rule.roles

    def dim(names: tuple[str, ...]) -> int:
        counted = roles if "role" in names else roles[:1]
        return sum(_product(names, role, parameter, architecture, fixed) for role in counted)

    return tuple(dim(names) for names in parameter.rule.dims)


def split(array: Any, parameter: Parameter, architecture: Architecture) -> list[Any]:
    """The views of an array, each shaped as its `RoleView` says."""
    fixed = fixed_sizes(parameter, array.shape, architecture)
    shapes = [view.shape for view in role_views(parameter, architecture, fixed)]
    if len(shapes) == 1:
        return [array.reshape(shapes[0])]
    dim, prefix, widths = seam(parameter, architecture, fixed)
    array = array.reshape(*array.shape[:dim], prefix, sum(widths), *array.shape[dim + 1 :])
    parts, start = [], 0
    for width, shape in zip(widths, shapes, strict=True):
        part = array[(slice(None),) * (dim + 1) + (slice(start, start + width),)]
        parts.append(part.reshape(shape))
        start += width
    return parts


def seam(
    parameter: Parameter, architecture: Architecture, fixed: Sizes
) -> tuple[int, int, list[int]]:
    """The dimension that holds several roles, the size of what stands before the axis `role` in
    it, and the size of each role's part after it."""
    dims = parameter.rule.dims
    dim = next(index for index, names in enumerate(dims) if "role" in names)
    at = dims[dim].index("role")
    before, after = dims[dim][:at], dims[dim][at + 1 :]
    roles = parameter.rule.roles
    prefix = _product(before, roles[0], parameter, architecture, fixed)
    return dim, prefix, [_product(after, r, parameter, architecture, fixed) for r in roles]


def _product(
    names: tuple[str, ...],
    role: str,
    parameter: Parameter,
    architecture: Architecture,
    fixed: Sizes,
) -> int:
    return math.prod(n for _, n in _factors(names, role, parameter, architecture, fixed))


def _factors(
    names: tuple[str, ...],
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
        if axis == "qk" and architecture.turns_whole_heads:
            factors += [("half", 2), ("qk", length // 2)]
        else:
            factors.append((axis, length))
    return factors
