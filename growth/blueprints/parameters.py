"""`Parameter`: an array that a rule of a blueprint has matched, and the sizes of its axes."""

import dataclasses
import math
from collections.abc import Collection, Iterator
from typing import Any

from growth.architecture import Architecture
from growth.blueprints.notation import Rule, role_axis
from growth.blueprints.path_indices import COUNTED, NUM_LAYERS
from growth.rules.axes import AXES, BY_NAME

# What arrays of different layers, heads, ... have in common: their rule, and the texts in the path.
Kind = tuple[Rule, tuple[tuple[str, str], ...]]


@dataclasses.dataclass(frozen=True)
class Parameter:
    """An array that a rule has matched.

    Attributes:
      rule: the rule.
      indices: (name, value) for each name in braces, as `Rule.read` gives them.
      prefix: what stands before the rule's path: "params/" or nothing.
      layers: the layers that the array belongs to: one, or a run; empty where it belongs to none.
    """

    rule: Rule
    indices: tuple[tuple[str, Any], ...]
    prefix: str
    layers: range

    @property
    def name(self) -> str:
        """The path as the rule writes it."""
        return self.rule.path_of(dict(self.indices))

    @property
    def path(self) -> str:
        """The path in the tree."""
        return self.prefix + self.name

    @property
    def kind(self) -> Kind:
        """What it has in common with the arrays of other layers, heads, ..."""
        return self.rule, tuple(item for item in self.indices if item[0] not in COUNTED)

    @property
    def path_axes(self) -> dict[str, int]:
        """The axes that are indices in the path, with their values."""
        return {name: value for name, value in self.indices if name in AXES}

    def moved(self, layers: range, /, **indices: int) -> "Parameter":
        """The array of the same kind that belongs to other layers and has other indices."""
        changed = tuple((name, indices.get(name, value)) for name, value in self.indices)
        return dataclasses.replace(self, indices=changed, layers=layers)


def size(axis: str, architecture: Architecture, layers: range) -> int | None:
    """The size of an axis in the given layers; None for a name that is no axis.

    An array that belongs to no layer has the sizes that all layers share.
    """
    if axis.isdecimal():
        return int(axis)
    if axis == "layers":
        return len(layers)
    row = BY_NAME.get(axis)
    return None if row is None else row.length(architecture, layers.start if layers else 0)


def layers_of(rule: Rule, indices: dict[str, Any], architecture: Architecture) -> range:
    first = indices.get("layers", 0)
    if "layers" not in rule.axes:
        return range(first, first + 1) if "layers" in indices else range(0)
    if "layers" not in indices:
        return range(architecture.num_layers)
    return range(first, first + dict(architecture.layer_runs).get(first, 0))


def siblings(
    parameter: Parameter, architecture: Architecture, layers: Collection[int] | None = None
) -> Iterator[Parameter]:
    """All arrays of a parameter's kind that a model of the given architecture has.

    Args:
      parameter: the parameter.
      architecture: the architecture.
      layers: the layers that have such an array, where the index of one stands in the path. None
        means all of them.
    """
    rule, axes = parameter.rule, parameter.path_axes
    parameter = parameter.moved(parameter.layers, **{NUM_LAYERS: architecture.num_layers})
    if "layers" in axes and "layers" in rule.axes:
        placed = [
            parameter.moved(range(first, first + n), layers=first)
            for first, n in architecture.layer_runs
        ]
    elif "layers" in axes:
        there = range(architecture.num_layers) if layers is None else sorted(layers)
        placed = [parameter.moved(range(i, i + 1), layers=i) for i in there]
    else:
        placed = [parameter.moved(layers_of(rule, {}, architecture))]
    for axis in axes:
        if axis != "layers":
            placed = [
                member.moved(member.layers, **{axis: index})
                for member in placed
                for index in range(size(axis, architecture, member.layers) or 0)
            ]
    yield from placed


def _product(
    parameter: Parameter, names: tuple[str, ...], role: str, architecture: Architecture
) -> int:
    """The product of the sizes that names have for a role, as far as they are known."""
    axes = [role_axis(name, role, len(parameter.rule.roles) > 1) for name in names]
    return math.prod(size(axis, architecture, parameter.layers) or 1 for axis in axes if axis)


def dim_size(
    parameter: Parameter, names: tuple[str, ...], architecture: Architecture
) -> tuple[int, bool]:
    """The size of a dimension, and whether it has a factor that may be anything.

    Such a factor counts as 1.
    """
    roles = parameter.rule.roles if "role" in names else parameter.rule.roles[:1]
    open_end = any(name != "role" and size(name, architecture, range(1)) is None for name in names)
    return sum(_product(parameter, names, role, architecture) for role in roles), open_end


def misfits(parameter: Parameter, architecture: Architecture) -> Iterator[str]:
    """Why one array cannot hold what a rule wants it to hold, in an architecture of such sizes."""
    rule = parameter.rule
    everywhere = parameter.layers or range(architecture.num_layers)
    for axis in dict.fromkeys((*rule.axes, *parameter.path_axes)):
        if axis in AXES and axis != "layers":
            sizes = [size(axis, architecture, range(i, i + 1)) for i in everywhere]
            if len(set(sizes)) > 1:
                yield (
                    f"{parameter.path}: one array holds these layers, so {axis} must be the same "
                    f"in all of them, but it is {', '.join(map(str, sizes))}"
                )
    for names in rule.dims:
        shared = names[: names.index("role")] if "role" in names else names
        parts = [_product(parameter, shared, role, architecture) for role in rule.roles]
        if len(set(parts)) > 1:
            yield (
                f"{parameter.path}: ({' '.join(shared)}) must be the same for all that the array "
                f"holds along `role`, but it is {', '.join(map(str, parts))} for "
                f"{', '.join(rule.roles)}"
            )
