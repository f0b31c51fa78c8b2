"""New sizes for some layers: what the transformations that act layer by layer share."""

import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from growth.architecture import LAYER_FIELDS, Architecture, LayerShape
from growth.architecture.validation import shown
from growth.rules.growth_plan import GrowthError, GrowthPlan, aligned, scaled_theta, unmoved

# One for all of some layers, or one for each.
Sizes = int | Sequence[int]


def chosen_layers(architecture: Architecture, layers: Sequence[int] | None) -> tuple[int, ...]:
    """The layers that a transformation acts on, checked; None means all."""
    if layers is None:
        return unmoved(architecture)
    if not isinstance(layers, Sequence) or len(set(layers)) != len(layers):
        raise GrowthError(f"layers is {layers!r}, but it must be a sequence of different layers")
    for index in layers:
        if index not in range(architecture.num_layers):
            raise GrowthError(
                f"layers names layer {index}, but the layers are 0 to {architecture.num_layers - 1}"
            )
    return tuple(layers)


def one_for_each(name: str, size: Sizes, chosen: Sequence[int]) -> tuple[int, ...]:
    """A size for each of the chosen layers, from one for all or one for each."""
    if isinstance(size, Sequence) and not isinstance(size, str):
        values = tuple(size)
    else:
        values = (size,) * len(chosen)
    if len(values) != len(chosen):
        raise GrowthError(f"{name} has {len(values)} sizes for {len(chosen)} layers")
    return tuple(_whole(name, value) for value in values)


def _whole(name: str, value: Any) -> int:
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise GrowthError(f"{name} is {shown(value)}, but it must be a whole number")


def widen(
    architecture: Architecture, sizes: Mapping[str, Sizes], layers: Sequence[int] | None
) -> GrowthPlan:
    """The plan that gives the chosen layers new sizes, each one number or one per chosen layer."""
    chosen = chosen_layers(architecture, layers)
    shapes = list(architecture.layers)
    for name, size in sizes.items():
        for index, value in zip(chosen, one_for_each(name, size, chosen), strict=True):
            shapes[index] = dataclasses.replace(shapes[index], **{name: value})
    if "qk_dim" in sizes and architecture.turns_whole_heads:
        pairs = list(zip(architecture.layers, shapes, strict=True))
        thetas = aligned([scaled_theta(old, new.qk_dim) for old, new in pairs])
        shapes = [
            dataclasses.replace(new, rope_theta=theta)
            for new, theta in zip(shapes, thetas, strict=True)
        ]
    return GrowthPlan(architecture, with_layers(architecture, shapes), unmoved(architecture))


def with_layers(architecture: Architecture, shapes: Sequence[LayerShape]) -> Architecture:
    """An architecture with other layers."""
    columns = {name: tuple(getattr(s, name) for s in shapes) for name in LAYER_FIELDS}
    return architecture.replace(num_layers=len(shapes), **columns)
