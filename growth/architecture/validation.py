"""Checks of single fields of an architecture. Each names the field and what it accepts."""

import dataclasses
import math
import operator
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Protocol, TypeVar

from growth.errors import InputError

# The parameters that may have a bias, named by role as in `growth.rules.roles`.
BIASES = ("norm", "query", "key", "value", "attention_out", "mlp_in", "mlp_out")

# What a size may be at most: arrays are indexed by int32, and each layer is described by itself.
MOST = 2**31 - 1
MOST_LAYERS = 10_000

Value = TypeVar("Value")


class _Dataclass(Protocol):
    """What every dataclass has."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


Part = TypeVar("Part", bound=_Dataclass)


class ArchitectureError(InputError):
    """A field of an architecture is out of range, or fields contradict each other."""


def given(value: Value | None, default: Value) -> Value:
    """The value, or a default for None."""
    return default if value is None else value


def positive_int(name: str, value: Any, most: int = MOST) -> int:
    """A whole number of at least 1 and at most `most`."""
    accepted = f"a whole number of at least 1 and at most {most}"
    try:
        number = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = 0
    if not 1 <= number <= most:
        raise ArchitectureError(f"{name} is {shown(value)}, but it must be {accepted}")
    return number


def shown(value: Any) -> str:
    """A value in a line of an error, which it does not fill however long it is."""
    return " ".join(reprlib.repr(value).split())


def positive_number(name: str, value: Any) -> float:
    """A positive, finite number."""
    if isinstance(value, bool) or not hasattr(value, "__float__") or not 0 < value < math.inf:
        raise ArchitectureError(f"{name} is {value!r}, but it must be a positive number")
    return float(value)


def boolean(name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise ArchitectureError(f"{name} is {value!r}, not True or False")
    return value


def choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """One of some words."""
    if value not in choices:
        raise ArchitectureError(f"{name} is {value!r}, but it must be one of {', '.join(choices)}")
    return value


def part(name: str, value: Any, kind: type[Part]) -> Part | None:
    """A dataclass, from itself or from a mapping of its fields; or None."""
    if value is None or isinstance(value, kind):
        return value
    known = {field.name: field for field in dataclasses.fields(kind)}
    needed = {n for n, field in known.items() if field.default is dataclasses.MISSING}
    if not isinstance(value, Mapping) or not needed <= set(value) <= set(known):
        raise ArchitectureError(
            f"{name} is {shown(value)}, but it must be None or a mapping of {', '.join(known)}"
        )
    return kind(**value)


def biases(value: Any, norm_has_bias: bool) -> bool | tuple[str, ...]:
    """True, False, or some of `BIASES`; all or none of those that are possible as a truth value."""
    if isinstance(value, bool):
        return value
    names = value if isinstance(value, Iterable) and not isinstance(value, str) else (None,)
    if any(name not in BIASES for name in names):
        raise ArchitectureError(
            f"use_bias is {shown(value)}, but it must be True, False or some of {', '.join(BIASES)}"
        )
    if not norm_has_bias and "norm" in value:
        raise ArchitectureError(
            "use_bias names 'norm', but an rmsnorm, or a norm without a gain, has no bias"
        )
    parts = tuple(part for part in BIASES if part in set(value))
    possible = len(BIASES) - (not norm_has_bias)
    return {0: False, possible: True}.get(len(parts), parts)
