"""Checks of single fields of an architecture. Each names the field and what it accepts."""

import math
from collections.abc import Iterable
from typing import Any, TypeVar

from growth.errors import InputError

# The parameters that may have a bias, named by role as in `growth.rules.roles`.
BIASES = ("norm", "query", "key", "value", "attention_out", "mlp_in", "mlp_out")

Value = TypeVar("Value")


class ArchitectureError(InputError):
    """A field of an architecture is out of range, or fields contradict each other."""


def given(value: Value | None, default: Value) -> Value:
    """The value, or a default for None."""
    return default if value is None else value


def positive_int(name: str, value: Any) -> int:
    """A whole number of at least 1."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise ArchitectureError(f"{name} is {value!r}, but it must be a whole number of at least 1")
    return int(value)


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


def biases(value: Any, norm_has_bias: bool) -> bool | tuple[str, ...]:
    """True, False, or some of `BIASES`; all or none of those that are possible as a truth value."""
    if isinstance(value, bool):
        return value
    if not isinstance(value, Iterable) or isinstance(value, str) or set(value) - set(BIASES):
        raise ArchitectureError(
            f"use_bias is {value!r}, but it must be True, False or some of {', '.join(BIASES)}"
        )
    if not norm_has_bias and "norm" in value:
        raise ArchitectureError(
            "use_bias names 'norm', but an rmsnorm, or a norm without a gain, has no bias"
        )
    parts = tuple(part for part in BIASES if part in set(value))
    possible = len(BIASES) - (not norm_has_bias)
    return {0: False, possible: True}.get(len(parts), parts)
