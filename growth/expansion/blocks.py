"""The one account of what each entry of a grown array is.

An array's account is a list of blocks: boxes of entries that do not overlap and cover the array,
each old, zero, a mean, or free. What entries of each kind are stands in `growth.rules.roles`, which
entries an array holds in its `RoleView`; here the two meet, and nowhere else. Whoever asks what is
new folds over blocks: both back ends, masks, entry ages, GradMax, the checks, moments.

Pure data: no array is touched, and JAX is not imported.
"""

import dataclasses
import enum
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from growth.architecture import Architecture
from growth.blueprints.parameters import size
from growth.expansion.role_views import ArrayLayout, RoleView
from growth.expansion.segments import LayerSegment
from growth.rules import roles
from growth.rules.axes import AXES
from growth.rules.growth_plan import GrowthPlan

# For each axis of a view the indices of some entries; together a box.
Region = tuple[range, ...]


class Kind(enum.Enum):
    """What the entries of a block are."""

    OLD = "old"  # those of the source, multiplied by a factor
    ZERO = "zero"
    MEAN = "mean"  # along the block's axis the mean of the old entries, multiplied alike
    FREE = "free"  # anything keeps the function


_KINDS = {roles.FREE: Kind.FREE, roles.ZERO: Kind.ZERO, roles.MEAN: Kind.MEAN}


@dataclasses.dataclass(frozen=True)
class Block:
    """A box of entries of a grown array, and what they are.

    A value w is stored where the model uses w + `offset`. So zeros are stored as −offset, and an
    old entry w becomes (w + offset)·factor − offset.

    Attributes:
      kind: what the entries are.
      target: the box, in the view of the grown array.
      sources: the name of the array of the smaller model that is continued; for new layers, heads,
        ... that are arrays or layers of their own, the one that they are modelled on. Several where
        a mean is taken along an axis that is an index in the path.
      region: the entries of a source, in its view, that are continued or modelled on: the same for
        all blocks of a segment.
      start: where in the grown view the entries of `region` stand, or would if they were old.
      axis: the axis that adds the entries; None for old ones.
      place: where that axis is in the view; None where it is an index in the path.
      factor: by what old entries are multiplied.
      offset: what is added to a stored value where the model uses it.
    """

    kind: Kind
    target: Region
    sources: tuple[str, ...]
    region: Region
    start: tuple[int, ...]
    axis: str | None = None
    place: int | None = None
    factor: float = 1.0
    offset: float = 0.0

    @property
    def source(self) -> str:
        """The first of the sources."""
        return self.sources[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of entries along each axis of the view."""
        return tuple(map(len, self.target))

    @property
    def averaged(self) -> Region:
        """The entries of the grown view of which a mean along an axis of it is taken."""
        assert self.place is not None
        return (*self.target[: self.place], self.region[self.place], *self.target[self.place + 1 :])

    @property
    def zero(self) -> float:
        """What is stored where the model uses zero."""
        return 0.0 - self.offset

    def source_indices(self, place: int) -> range | tuple[int, ...]:
        """Which entries of the source this block's entries continue, along one axis of the view.

        For new entries these are the ones to copy, in turn.
        """
        old, first = self.region[place], self.target[place].start - self.start[place]
        if first + len(self.target[place]) <= len(old):
            return old[first : first + len(self.target[place])]
        return tuple(old[(first + i) % len(old)] for i in range(len(self.target[place])))

    def take_from(self, source: Any, take: Callable[..., Any]) -> Any:
        """The entries of a view of the source that this block's entries continue, in turn.

        Args:
          source: the view.
          take: numpy's or JAX's.
        """
        for place in range(len(self.target)):
            indices = self.source_indices(place)
            if indices != range(source.shape[place]):
                source = take(source, np.array(indices), axis=place)
        return source

    def as_moment(self, exponent: int) -> "Block":
        """What the block is in a tree of moments of gradients.

        Where parameters are multiplied by c, moments are by c ** exponent; all that is new begins
        as the optimizer begins.
        """
        if self.kind is not Kind.OLD:
            return dataclasses.replace(self, kind=Kind.FREE, factor=1.0, offset=0.0)
        return dataclasses.replace(self, factor=self.factor**exponent, offset=0.0)


def role_blocks(
    segments: Sequence[LayerSegment],
    number: int,
    *,
    view: RoleView,
    sources: Mapping[str, ArrayLayout],
    plan: GrowthPlan,
) -> tuple[Block, ...]:
    """The blocks of one view of a grown array, segment by segment; the old ones come last in each.

    Args:
      segments: all segments of the array.
      number: which of the array's views.
      view: that view.
      sources: the layouts of the arrays that the segments continue, by name.
      plan: the growth step.
    """
    return tuple(
        block
        for segment in segments
        for block in _segment_blocks(
            segment, view, sources[segment.source.name].views[number], plan
        )
    )


def tile(blocks: Sequence[Block], shape: Sequence[int]) -> bool:
    """Whether blocks cover every entry of an array of a shape once."""
    inside = all(
        len(block.target) == len(shape)
        and all(0 <= r.start <= r.stop <= n for r, n in zip(block.target, shape, strict=True))
        for block in blocks
    )
    apart = all(
        any(a.stop <= b.start or b.stop <= a.start for a, b in zip(*pair, strict=True))
        for pair in itertools.combinations([block.target for block in blocks], 2)
    )
    return inside and apart and sum(math.prod(b.shape) for b in blocks) == math.prod(shape)


def _segment_blocks(
    segment: LayerSegment, new: RoleView, old: RoleView, plan: GrowthPlan
) -> Iterator[Block]:
    target, region = [], []
    for axis, new_size, old_size in zip(new.axes, new.shape, old.shape, strict=True):
        if axis == "layers":
            length = 1 if "layers" in segment.new_axes else segment.length
            target.append(range(segment.start, segment.start + segment.length))
            region.append(range(segment.source_start, segment.source_start + length))
        else:
            target.append(range(new_size))
            region.append(range(old_size))
    whole = Block(
        Kind.OLD,
        tuple(target),
        (segment.source.name,),
        tuple(region),
        tuple(entries.start for entries in target),
        factor=_factor(segment, new, plan),
        offset=roles.offset(new.role, plan.source),
    )
    fills = {axis: roles.fill(new.role, axis, plan.source) for axis in segment.new_axes}
    if fills:  # all of it is new
        axis = min(fills, key=lambda axis: _precedence(axis, fills[axis]))
        whole = dataclasses.replace(whole, kind=_KINDS[fills[axis]], axis=axis)
        if whole.kind is not Kind.MEAN:
            yield whole
            return
        layers, number = segment.source.layers, size(axis, plan.source, segment.source.layers) or 0
        units = (segment.source.moved(layers, **{axis: index}) for index in range(number))
        whole = dataclasses.replace(whole, sources=tuple(unit.name for unit in units))
    yield from _cut(whole, new, plan.source)


def _cut(whole: Block, view: RoleView, source: Architecture) -> Iterator[Block]:
    """Cuts from a box what is new along each axis, in the order of precedence; the rest is last."""
    growing = [
        (place, axis, roles.fill(view.role, axis, source))
        for place, axis in enumerate(view.axes)
        if axis != "layers" and len(whole.target[place]) > len(whole.region[place])
    ]
    left = whole.target
    for place, axis, fill in sorted(growing, key=lambda growth: _precedence(*growth[1:])):
        old, all_of_it = len(whole.region[place]), left[place]
        box = (*left[:place], all_of_it[old:], *left[place + 1 :])
        yield dataclasses.replace(whole, kind=_KINDS[fill], target=box, axis=axis, place=place)
        left = (*left[:place], all_of_it[:old], *left[place + 1 :])
    yield dataclasses.replace(whole, target=left)


def _precedence(axis: str, fill: str) -> tuple[int, int]:
    return roles.PRECEDENCE.index(fill), AXES.index(axis)


def _factor(segment: LayerSegment, view: RoleView, plan: GrowthPlan) -> float:
    """By what the old entries of a view are multiplied."""

    def growth(axis: str) -> float:
        before = size(axis, plan.source, segment.source.layers) or 1
        return (size(axis, plan.target, segment.target.layers) or 1) / before

    axes = (*view.axes, *segment.source.path_axes)
    return roles.factor(view.role, plan.source, axes, growth)
