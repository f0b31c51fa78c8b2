"""The types that fields of a config have, with their ranges, and the one place that checks them.

An annotation is all that says what a field may be: a section calls `check_fields` when it is made,
and pydantic holds every field to its annotation, strictly. Nothing is converted but an int where
there must be a float, a list, as JSON has it, where there must be a tuple, and a number of NumPy to
the number of Python that it is.
"""

import dataclasses
import functools
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import pydantic
from annotated_types import DocInfo, Ge, Gt, Le, Lt, doc

from growth.architecture.validation import shown
from growth.errors import InputError

# What a float32 holds: learning rates and the like are computed with as such.
_TINY, _LARGEST = (float(getattr(np.finfo(np.float32), name)) for name in ("tiny", "max"))
_BELOW_ONE = 1 - 2.0**-24
# Steps are counted in int32.
MOST = 2**31 - 1

_BeforeTuple = pydantic.BeforeValidator(
    lambda given: tuple(given) if type(given) is list else given
)

Flag = Annotated[bool, doc("True or False")]
Text = Annotated[str, doc("a text")]
Texts = Annotated[tuple[str, ...], _BeforeTuple, doc("a tuple of texts")]
Dtype = Annotated[Literal["float32", "bfloat16"], doc("float32 or bfloat16")]
Count = Annotated[int, Ge(1), Le(MOST), doc(f"a whole number of at least 1 and at most {MOST}")]
Index = Annotated[int, Ge(0), Le(MOST), doc(f"a whole number of at least 0 and at most {MOST}")]
Seed = Annotated[int, Ge(0), Lt(2**32), doc("a whole number of at least 0 and less than 2³²")]
MeshSize = Annotated[
    Literal[-1] | Annotated[int, Ge(1), Le(MOST)], doc("at least 1, or -1 for what is left")
]
Positive = Annotated[
    float, Ge(_TINY), Le(_LARGEST), doc("a positive number, and finite, in float32")
]
NotNegative = Annotated[
    float, Ge(0), Le(_LARGEST), doc("a number of at least 0, and finite, in float32")
]
Share = Annotated[
    float, Ge(0), Le(_BELOW_ONE), doc("a number of at least 0 and less than 1, in float32")
]
Between = Annotated[float, Gt(0), Lt(1), doc("a number between 0 and 1")]
Mappings = Annotated[
    tuple[Mapping[str, Any], ...],
    _BeforeTuple,
    doc(
        "a tuple of dicts; on a command line write "
        "--config.growth=\"({'step': 300, 'embed_dim': 192},)\""
    ),
]


def check_fields(config: Any, error: type[InputError]) -> None:
    """Holds every field of a frozen dataclass to its annotation.

    Args:
      config: the dataclass that is being made; what its fields hold is replaced by what is meant.
      error: what is raised.

    Raises:
      InputError: a field is of another type, or out of its range; the message has its name, what
        was given, and what would be accepted.
    """
    kind: Any = type(config)
    for name, (adapter, accepted) in _adapters(kind).items():
        given = getattr(config, name)
        try:
            meant = adapter.validate_python(
                given.item() if isinstance(given, np.generic) else given
            )
        except pydantic.ValidationError as wrong:
            accepted = accepted or wrong.errors()[0]["msg"].removeprefix("Input should be ")
            refuse(config, name, accepted, error, wrong)
        object.__setattr__(config, name, meant)


def refuse(
    config: object,
    name: str,
    accepted: str,
    error: type[InputError],
    cause: Exception | None = None,
) -> typing.NoReturn:
    """Raises the error of a field, in one line."""
    section = type(config).__name__.removesuffix("Config").lower()
    where = "" if section == "train" else f"{section}."
    raise error(
        f"{where}{name} is {shown(getattr(config, name))}, but it must be {accepted}"
    ) from cause


def plain_value(name: str, given: Any) -> Any:
    """A value as JSON can hold it, but that lists are tuples.

    Raises:
      InputError: it is none, or holds one that is none; the message says which.
    """
    if isinstance(given, np.generic | np.ndarray):
        given = given.tolist()
    if given is None or isinstance(given, bool | int | float | str):
        return given
    if isinstance(given, Mapping) and all(isinstance(key, str) for key in given):
        return {key: plain_value(f"{name}.{key}", value) for key, value in given.items()}
    if isinstance(given, list | tuple):
        return tuple(plain_value(f"{name}[{index}]", value) for index, value in enumerate(given))
    raise InputError(
        f"{name} is {shown(given)}, but a config holds numbers, texts, tuples of them, and "
        f"mappings from names to them"
    )


def number_type(kind: type, name: str) -> type:
    """The type of number that a field of a dataclass holds where it does not hold None."""
    optional = typing.get_type_hints(kind)[name]
    (number,) = (part for part in typing.get_args(optional) if part is not type(None))
    return number


@functools.cache
def _adapters(kind: type) -> dict[str, tuple[pydantic.TypeAdapter[Any], str | None]]:
    """For every field of a dataclass what checks it, and what it accepts in words."""
    strict = pydantic.ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
    hints = typing.get_type_hints(kind, include_extras=True)
    found = {}
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        words = [
            part.documentation
            for part in getattr(hint, "__metadata__", ())
            if isinstance(part, DocInfo)
        ]
        if dataclasses.is_dataclass(hint):  # a section, which has checked itself when it was made
            made: Any = Annotated[hint, pydantic.InstanceOf()]
            adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(made)
        else:
            adapter = pydantic.TypeAdapter(hint, config=strict)
        found[field.name] = adapter, words[0] if words else None
    return found
