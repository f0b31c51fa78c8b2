"""Whether an array of a larger model holds what its account says, entry by entry.

The numpy back end writes; this reads what it wrote, block by block, and computes each entry anew in
float64. It is for arrays that are made one at a time, while they are in memory anyway.
"""

import jax.numpy as jnp
import numpy as np

from growth.blueprints.parameters import Parameter
from growth.errors import InputError
from growth.expansion.accounts import array_account
from growth.expansion.blocks import Block, Kind
from growth.expansion.numpy_backend import in_parts, mean, part_of, source_of
from growth.rules.growth_plan import GrowthPlan

# How many numbers are looked at at once: they stay in the processor's cache.
_AT_ONCE = 1 << 16

# The bits of an exponent, by the bits of a dtype's name: all of them are set in NaN and infinity.
_EXPONENTS = {"float64": 0x7FF << 52, "float32": 0xFF << 23, "float16": 0x1F << 10}
_EXPONENTS["bfloat16"] = 0xFF << 7


class ArrayCheckError(InputError):
    """An array is not finite, or not what growth makes; the message says which and where."""


def check_array(target: Parameter, old: np.ndarray, new: np.ndarray, plan: GrowthPlan) -> None:
    """Checks an array of the larger model.

    Args:
      target: which.
      old: the array that it is made of.
      new: what was made.
      plan: the growth step.

    Raises:
      ArrayCheckError: `old` holds NaN or infinity; or `new` does, since its dtype cannot hold what
        is multiplied; or an entry of `new` is not what the blocks of its account say.
    """
    source = source_of(target, plan)
    if not is_finite(new):
        if not is_finite(old):
            raise ArrayCheckError(
                f"the source holds NaN or infinity in {source.name}: {_where(old)}"
            )
        raise ArrayCheckError(
            f"{target.name} would hold NaN or infinity: what it is made of, {source.name}, is "
            f"multiplied, and {new.dtype.name} ends at {_largest(new.dtype):.0f}; give a wider "
            f"dtype, such as bfloat16 or float32"
        )
    account = array_account(target, plan, {source.name: old.shape})
    olds, news = account.split_source(source.name, old), account.layout.split(new)
    for view, blocks, whole, before in zip(
        account.layout.views, account.blocks, news, olds, strict=True
    ):
        for block in blocks:
            if not _holds(block, whole, before):
                raise ArrayCheckError(
                    f"{target.name}: {view.role} entries that must be {block.kind.value} are not "
                    f"what growth makes of {source.name}: memory or disk may be faulty"
                )


def is_finite(array: np.ndarray) -> bool:
    """Whether an array holds neither NaN nor infinity."""
    exponent = _EXPONENTS[array.dtype.name]
    bits = _bits(np.ascontiguousarray(array).reshape(-1))
    parts = (bits[start : start + _AT_ONCE] for start in range(0, bits.size, _AT_ONCE))
    return not any((part & part.dtype.type(exponent)).max() == exponent for part in parts)


def _bits(array: np.ndarray) -> np.ndarray:
    """The bits of each entry, as an integer: comparing them is fast in every dtype."""
    return array.view(f"u{array.dtype.itemsize}")


def _where(array: np.ndarray) -> str:
    """The first entry that is not finite."""
    place = np.unravel_index(np.argmin(np.isfinite(array)), array.shape)
    return f"entry {tuple(map(int, place))} is {array[place]}"


def _largest(dtype: np.dtype) -> float:
    return float(jnp.finfo(dtype).max)


def _holds(block: Block, new: np.ndarray, old: np.ndarray) -> bool:
    found = part_of(new, block.target)
    if not found.size or block.kind is Kind.FREE:
        return True  # it is finite
    if block.kind is Kind.ZERO:
        return bool((_bits(found) == _bits(np.asarray(block.zero, found.dtype))).all())
    if block.kind is Kind.MEAN:
        assert block.place is not None
        whole = mean(part_of(new, block.averaged), block.place)
        return bool((found == whole).all())
    before = part_of(old, block.region)
    return all(_is_rounded(block, *parts) for parts in in_parts(found, before))


def _is_rounded(block: Block, new: np.ndarray, old: np.ndarray) -> bool:
    """Whether old entries were multiplied, up to the rounding of the new dtype."""
    if block.factor == 1 and new.dtype == old.dtype:
        return np.array_equal(_bits(new), _bits(old))
    wide = old.astype(np.float64)
    expected = wide if block.factor == 1 else (wide + block.offset) * block.factor - block.offset
    # What is stored is rounded once, after products that are computed in float32 at least.
    numbers = jnp.finfo(new.dtype)
    products = 2.0**-50 if new.dtype == np.float64 else 2.0**-22
    allowed = float(numbers.eps) / 2 * np.abs(expected) + float(numbers.smallest_subnormal)
    allowed += products * (np.abs(expected) + abs(block.offset))
    return bool((np.abs(new.astype(np.float64) - expected) <= allowed).all())
