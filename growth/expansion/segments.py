"""Where each array of the larger model comes from.

An array of the target is made of segments: neighbouring layers in it that continue neighbouring
layers of one array of the source, or that are new. An array that belongs to one layer, or to none,
is a single segment.
"""

import dataclasses
from collections.abc import Iterator

from growth.blueprints.parameters import Parameter, size
from growth.blueprints.path_indices import NUM_LAYERS
from growth.rules.growth_plan import GrowthPlan


@dataclasses.dataclass(frozen=True)
class LayerSegment:
    """Layers of a target array that come from one place.

    Attributes:
      target: the array of the target.
      start: the first of the segment's layers, counted within the target array.
      length: the number of layers.
      source: the array of the source that the segment continues; for a new one the array of a unit
        like it, in the layer that the new layer is like.
      source_start: the first layer of `source` that is meant, counted within that array.
      new_axes: the axes along which the whole segment is new: "layers" for new layers, an index in
        the path for, say, a new head that has an array of its own.
    """

    target: Parameter
    start: int
    length: int
    source: Parameter
    source_start: int
    new_axes: tuple[str, ...]


def layer_segments(target: Parameter, plan: GrowthPlan) -> tuple[LayerSegment, ...]:
    """The segments of a target array, in order."""
    if not target.layers:
        return (_segment(target, 0, 1, None, plan),)
    first = target.layers.start
    if "layers" not in target.rule.axes:
        return (_segment(target, 0, 1, first, plan),)
    spans = _spans(target.layers, plan)
    return tuple(_segment(target, a - first, b - a, a, plan) for a, b in spans)


def _old_index(axis: str, index: int, old: int, new: int, rotary: bool) -> int | None:
    """The index that entry `index` of a grown axis had before; None where it is new.

    Args:
      axis: the axis; not "layers".
      old, new: its sizes before and after.
      rotary: whether whole queries and keys are turned; then both halves of `qk` grow at their end.
    """
    if axis == "qk" and rotary:
        half, within = divmod(index, new // 2)
        return half * (old // 2) + within if within < old // 2 else None
    return index if index < old else None


def _spans(layers: range, plan: GrowthPlan) -> Iterator[tuple[int, int]]:
    """Splits target layers where their origins do not follow each other in one source array."""
    homes = {i: first for first, n in plan.source.layer_runs for i in range(first, first + n)}
    start = layers.start
    for layer in range(layers.start + 1, layers.stop + 1):
        if layer < layers.stop:
            before, here = plan.layer_sources[layer - 1], plan.layer_sources[layer]
            templates = plan.layer_templates[layer - 1 : layer + 1]
            if before is None and here is None and len(set(templates)) == 1:
                continue
            if before is not None and here == before + 1 and homes[before] == homes[here]:
                continue
        yield start, layer
        start = layer


def _segment(
    target: Parameter, start: int, length: int, layer: int | None, plan: GrowthPlan
) -> LayerSegment:
    new_axes = []
    source_layers, source_start = range(0), 0
    indices = {NUM_LAYERS: plan.source.num_layers}
    if layer is not None:
        if plan.layer_sources[layer] is None:
            new_axes.append("layers")
        origin = plan.layer_templates[layer]
        in_array, in_path = "layers" in target.rule.axes, "layers" in target.path_axes
        if in_array and in_path:
            first, number = next(r for r in plan.source.layer_runs if origin < r[0] + r[1])
            source_layers, source_start = range(first, first + number), origin - first
        elif in_array:
            source_layers, source_start = range(plan.source.num_layers), origin
        else:
            source_layers = range(origin, origin + 1)
        if in_path:
            indices["layers"] = source_layers.start
    for axis, index in target.path_axes.items():
        if axis == "layers":
            continue
        old = size(axis, plan.source, source_layers) or 0
        new = size(axis, plan.target, target.layers) or 0
        origin_index = _old_index(axis, index, old, new, plan.source.turns_halves)
        if origin_index is None and "layers" not in new_axes:
            new_axes.append(axis)
        indices[axis] = index % old if origin_index is None else origin_index
    return LayerSegment(
        target, start, length, target.moved(source_layers, **indices), source_start, tuple(new_axes)
    )
