"""The numpy back end: one array at a time, for checkpoints that are larger than memory.

A fold over the blocks of an array, which writes each entry once, where it belongs. Array for array
it gives the bits that `growth.expansion.jax_backend` gives. It reads one array of the smaller model
for each of the larger one.
"""

import functools
import math
import statistics
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping

import numpy as np
from jaxtyping import Float

from growth.blueprints.parameters import Parameter
from growth.expansion.accounts import ArrayAccount, array_account
from growth.expansion.blocks import Block, Kind, Region
from growth.expansion.initialization import Copy, Fresh, InitPolicy
from growth.expansion.segments import layer_segments
from growth.rules.growth_plan import GrowthPlan

# How many numbers are computed at once: they stay in the processor's cache.
_AT_ONCE = 1 << 16

# A model's initializer: an array's name and role to the center of a normal distribution and its
# standard deviation, which may be zero.
Initializer = Callable[[str, str], tuple[float, float]]

# Writes the entries of a free block: (number of the view, block, where to write).
WriteFree = Callable[[int, Block, np.ndarray], None]


def source_of(target: Parameter, plan: GrowthPlan) -> Parameter:
    """The array of the smaller model that an array of the larger one is made of.

    Arrays that hold several layers are not for this module.
    """
    return layer_segments(target, plan)[0].source


def grow_array(
    target: Parameter,
    old: np.ndarray,
    plan: GrowthPlan,
    *,
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
    source = source_of(target, plan).name
    account = array_account(target, plan, {source: old.shape})
    olds = account.split_source(source, old)
    name = zlib.crc32(target.name.encode())
    random = [np.random.Generator(np.random.SFC64([seed, name, n])) for n in range(len(olds))]

    def write_free(number: int, block: Block, into: np.ndarray) -> None:
        role, axis = account.layout.views[number].role, block.axis
        assert axis is not None
        method = policy.method(role, axis)
        if isinstance(method, Copy):
            noise = np.std(olds[number], dtype=np.float32) / method.signal_to_noise
            _write_normal(
                into, block.take_from(olds[number], np.take), float(noise), random[number]
            )
        else:
            assert isinstance(method, Fresh)
            _write_normal(into, *initializer(target.name, role), random[number])

    return fold(account, {source: old}, write_free, dtype=dtype)


def fold(
    account: ArrayAccount,
    arrays: Mapping[str, np.ndarray],
    write_free: WriteFree,
    *,
    dtype: np.dtype | None = None,
) -> np.ndarray:
    """An array of the larger model from its account.

    Args:
      account: the account.
      arrays: the arrays of the smaller model that it continues, by name.
      write_free: writes the entries of free blocks.
      dtype: that of the result; None for that of the first of `arrays`.
    """
    kept = arrays[account.sources[0][0]].dtype
    result = np.empty(account.layout.shape, kept if dtype is None else dtype)
    for number, new in enumerate(account.layout.split(result)):

        def source(name: str, block: Block, number: int = number) -> np.ndarray:
            return part_of(account.split_source(name, arrays[name])[number], block.region)

        for block in reversed(account.blocks[number]):  # old entries first: means are of them
            into = part_of(new, block.target)
            if block.kind is Kind.FREE:
                write_free(number, block, into)
            elif block.kind is Kind.ZERO:
                into[...] = block.zero
            elif block.kind is Kind.OLD:
                _write_old(into, source(block.source, block), block)
            elif block.place is not None:
                into[...] = mean(part_of(new, block.averaged), block.place)
            else:  # over arrays
                units = np.empty((len(block.sources), *into.shape), result.dtype)
                for unit, name in zip(units, block.sources, strict=True):
                    _write_old(unit, source(name, block), block)
                into[...] = mean(units, 0)[0]
    return result


def mask(array: ArrayAccount, kinds: Collection[Kind]) -> np.ndarray:
    """Which entries of an array are of some kinds: booleans of its shape."""
    views = []
    for view, blocks in zip(array.layout.views, array.blocks, strict=True):
        inside = np.zeros(view.shape, bool)
        for block in (block for block in blocks if block.kind in kinds):
            part_of(inside, block.target)[...] = True
        views.append(inside)
    return array.layout.join(views, np.concatenate)


def mean(array: Float[np.ndarray, "..."], place: int) -> Float[np.ndarray, "..."]:
    """The mean along an axis, which is kept, in the dtype of the array.

    It is computed in float32 at least, and by halves, so that every back end rounds alike.
    """
    if array.ndim == 1:
        return _mean_of_first_axis(array).astype(array.dtype)
    moved = np.moveaxis(array, place, 0)
    result = np.empty((1, *moved.shape[1:]), array.dtype)
    step = max(64, 16 * _AT_ONCE // max(1, moved[..., 0].size))
    for start in range(0, moved.shape[-1], step):  # parts that stay in the processor's cache
        part = (..., slice(start, start + step))
        result[part] = _mean_of_first_axis(moved[part])
    return np.moveaxis(result, 0, place)


def _mean_of_first_axis(array: np.ndarray) -> np.ndarray:
    wide = np.promote_types(array.dtype, np.float32)
    total = array.astype(wide)
    while (length := len(total)) > 1:
        half = length // 2
        total[:half] += total[half : 2 * half]
        if length % 2:
            total[half] = total[-1]
        total = total[: half + length % 2]
    return total * wide.type(1 / len(array))


def _write_old(into: np.ndarray, old: np.ndarray, block: Block) -> None:
    # Two dtypes of two bytes have no common one.
    wide = max(np.dtype(np.float32), old.dtype, into.dtype, key=lambda dtype: dtype.itemsize)
    if block.factor == 1:
        into[...] = old
    elif block.offset:  # gains, which are small
        into[...] = (old.astype(wide) + block.offset) * block.factor - block.offset
    else:
        np.multiply(old, block.factor, out=into, dtype=wide, casting="unsafe")


def part_of(array: np.ndarray, region: Region) -> np.ndarray:
    """The entries of a box, sharing memory."""
    return array[tuple(slice(entries.start, entries.stop) for entries in region)]


@functools.cache
def _quantiles() -> np.ndarray:
    """The normal distribution as 65,536 equally likely numbers, float32.

    To draw among them is five times as fast as to draw normal numbers, which would be most of the
    time that it takes to grow a checkpoint. The farthest are 4.3 standard deviations out.
    """
    normal = statistics.NormalDist()
    return np.array([normal.inv_cdf((i + 0.5) / 65536) for i in range(65536)], np.float32)


def _write_normal(
    into: np.ndarray, center: np.ndarray | float, deviation: float, random: np.random.Generator
) -> None:
    """Writes normally distributed numbers around one number, or around those of an array."""
    if not deviation:
        into[...] = center
        return
    numbers = _quantiles() * np.float32(deviation)
    if not isinstance(center, np.ndarray):
        numbers = (numbers + np.float32(center)).astype(into.dtype)
    for part, around in in_parts(into, center):
        bits = random.bit_generator.random_raw(math.ceil(part.size / 4))  # 64 each
        places = bits.view(np.uint16)[: part.size]
        drawn = numbers.take(places, mode="wrap").reshape(part.shape)
        if isinstance(center, np.ndarray):
            drawn += around
        part[...] = drawn


def in_parts(into: np.ndarray, like: np.ndarray | float) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Parts of an array, small enough for the cache, with those of another one of its shape."""
    like = np.broadcast_to(like, into.shape)
    if into.size <= _AT_ONCE or not into.ndim:
        yield into, like
    elif into[0].size > _AT_ONCE:
        for part, other in zip(into, like, strict=True):
            yield from in_parts(part, other)
    else:
        step = _AT_ONCE // into[0].size
        for start in range(0, len(into), step):
            yield into[start : start + step], like[start : start + step]
