"""Growth of one array at a time, in numpy: for checkpoints that are larger than memory.

It makes what `growth.expansion.jax_backend` makes of a whole tree, by the same table, but writes
each entry of the larger array once, where it belongs. It reads one array of the smaller model for
each.
"""

import functools
import math
import statistics
import zlib
from collections.abc import Callable, Iterator

import numpy as np

from growth.blueprints.parameters import Parameter
from growth.expansion import init_values, role_views
from growth.expansion.initialization import Copy, Fresh, InitPolicy
from growth.expansion.jax_backend import multiplier
from growth.expansion.role_views import Section
from growth.expansion.segments import Piece, pieces
from growth.rules.growth_plan import GrowthPlan
from growth.rules.roles import FREE, MEAN, ZERO, fill, offset

# How many random numbers are drawn at once: they stay in the processor's cache.
_AT_ONCE = 1 << 16

# A model's initializer: an array's name and role to the center of a normal distribution and its
# standard deviation, which may be zero.
Initializer = Callable[[str, str], tuple[float, float]]


def source_of(target: Parameter, plan: GrowthPlan) -> Parameter:
    """The array of the smaller model that an array of the larger one is made of.

    Arrays that hold several layers are not for this module.
    """
    return pieces(target, plan)[0].source


def grow_array(
    target: Parameter,
    old: np.ndarray,
    plan: GrowthPlan,
    policy: InitPolicy,
    initializer: Initializer,
    seed: int,
    dtype: np.dtype | None = None,
) -> np.ndarray:
    """One array of the larger model.

    Args:
      target: which.
      old: the array that it is made of; see `source_of`.
      plan: the growth step.
      policy: what new entries are where anything keeps the function: fresh or copies.
      initializer: what fresh entries are.
      seed: decides free values, together with the array's name.
      dtype: that of the result; None for that of `old`. What is multiplied is multiplied in
        float32, or in float64 where either is float64, and rounded once.
    """
    (piece,) = pieces(target, plan)
    fixed = role_views.fixed_sizes(piece.source, old.shape, plan.source)
    shape = role_views.array_shape(target, plan.target, fixed)
    result = np.empty(shape, old.dtype if dtype is None else dtype)
    news = role_views.split(result, target, plan.target)
    olds = role_views.split(old, piece.source, plan.source)
    name = zlib.crc32(target.name.encode())
    for number, section in enumerate(role_views.sections(target, plan.target, fixed)):
        random = np.random.Generator(np.random.SFC64([seed, name, number]))
        for axis, block in _free_blocks(piece, section, number, plan):
            source = policy.method(section.role, axis)
            into = news[number][tuple(slice(r.start, r.stop) for r in block)]
            if isinstance(source, Copy):
                noise = np.std(olds[number], dtype=np.float32) / source.signal_to_noise
                copied = olds[number]
                for place, entries in enumerate(block):
                    if entries != range(copied.shape[place]):
                        rows = np.array(entries) % olds[number].shape[place]
                        copied = np.take(copied, rows, axis=place)
                _fill(into, copied, float(noise), random)
            else:
                assert isinstance(source, Fresh)
                _fill(into, *initializer(target.name, section.role), random)
        _fix(news[number], olds[number], piece, section, plan)
    return result


def _fix(
    new: np.ndarray, old: np.ndarray, piece: Piece, section: Section, plan: GrowthPlan
) -> None:
    """Writes the old entries of a section, and the new ones that have one right value."""
    role, zero = section.role, -offset(section.role, plan.source)
    fills = {fill(role, axis, plan.source) for axis in piece.new_axes}
    if FREE in fills:
        return
    if ZERO in fills:
        new[...] = zero
        return
    grown = [place for place in range(new.ndim) if new.shape[place] != old.shape[place]]
    kinds = {place: fill(role, section.axes[place], plan.source) for place in grown}
    # Where an entry is new along a free axis it is free, whatever else it is.
    for place in grown:
        if kinds[place] == FREE:
            new = _part(new, place, 0, old.shape[place])
    inner = new
    for place in grown:
        inner = _part(inner, place, 0, old.shape[place])
    _multiply(inner, old, multiplier(piece.source, piece, section, plan), -zero)
    for place in grown:
        if kinds[place] == ZERO:
            _part(new, place, old.shape[place], None)[...] = zero
    for place in grown:
        if kinds[place] == MEAN:
            kept = _part(new, place, 0, old.shape[place])
            wide = np.promote_types(new.dtype, np.float32)
            mean = kept.mean(place, dtype=wide, keepdims=True)
            _part(new, place, old.shape[place], None)[...] = mean


def _multiply(into: np.ndarray, old: np.ndarray, by: float, added: float) -> None:
    wide = np.promote_types(np.promote_types(old.dtype, into.dtype), np.float32)
    if by == 1:
        into[...] = old
    elif added:  # gains, which are small
        into[...] = (old.astype(wide) + added) * by - added
    else:
        np.multiply(old, by, out=into, dtype=wide, casting="unsafe")


def _free_blocks(
    piece: Piece, section: Section, number: int, plan: GrowthPlan
) -> Iterator[tuple[str, list[range]]]:
    """The free entries of a section, as blocks that do not overlap.

    With each comes the axis that says what its entries are.
    """
    old = role_views.sections(
        piece.source, plan.source, dict(zip(section.axes, section.shape, strict=True))
    )[number].shape
    for axis, starts, shape in init_values.blocks(piece, section, number, plan):
        block = [range(a, a + n) for a, n in zip(starts, shape, strict=True)]
        if piece.new_axes:
            if FREE in {fill(section.role, axis, plan.source) for axis in piece.new_axes}:
                yield axis, block
            continue
        for place, name in enumerate(section.axes):
            size, entries = old[place], block[place]
            if size == section.shape[place] or fill(section.role, name, plan.source) != FREE:
                continue
            if entries.stop > size:
                new = [*block]
                new[place] = range(max(entries.start, size), entries.stop)
                yield axis, new
            block[place] = range(entries.start, min(entries.stop, size))
            if not block[place]:
                break


@functools.cache
def _quantiles() -> np.ndarray:
    """The normal distribution as 65,536 equally likely numbers, float32.

    To draw among them is five times as fast as to draw normal numbers, which would be most of the
    time that it takes to grow a checkpoint. The farthest are 4.3 standard deviations out.
    """
    normal = statistics.NormalDist()
    return np.array([normal.inv_cdf((i + 0.5) / 65536) for i in range(65536)], np.float32)


def _fill(
    into: np.ndarray, center: np.ndarray | float, deviation: float, random: np.random.Generator
) -> None:
    """Writes normally distributed numbers around one number, or around those of an array."""
    if not deviation:
        into[...] = center
        return
    numbers = _quantiles() * np.float32(deviation)
    if not isinstance(center, np.ndarray):
        numbers = (numbers + np.float32(center)).astype(into.dtype)
    for part, around in _rows(into, center):
        bits = random.bit_generator.random_raw(math.ceil(part.size / 4))  # 64 each
        places = bits.view(np.uint16)[: part.size]
        drawn = numbers.take(places, mode="wrap").reshape(part.shape)
        if isinstance(center, np.ndarray):
            drawn += around
        part[...] = drawn


def _rows(into: np.ndarray, like: np.ndarray | float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Parts of an array, small enough for the cache, with those of another one of its shape."""
    like = np.broadcast_to(like, into.shape)
    if into.size <= _AT_ONCE or not into.ndim:
        yield into, like
    elif into[0].size > _AT_ONCE:
        for part, other in zip(into, like, strict=True):
            yield from _rows(part, other)
    else:
        step = _AT_ONCE // into[0].size
        for start in range(0, len(into), step):
            yield into[start : start + step], like[start : start + step]


def _part(array: np.ndarray, place: int, start: int, stop: int | None) -> np.ndarray:
    """A range of an array along one of its axes."""
    return array[(slice(None),) * place + (slice(start, stop),)]
