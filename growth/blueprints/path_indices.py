"""Indices in paths: what stands in braces in the path of a rule, and how a number is written there.

| in braces | stands for |
|---|---|
| `layers` | the index, as in `block_0`, `block_1` for `block_{layers}` |
| `_layers` | nothing for 0, else `_` and the number: `block`, `block_1` for `block{_layers}` |
| `layers+1` | a number that counts from one |
| `7*layers+2` | the number in a row that counts the arrays of all layers, seven in each |
| `2*num_layers` | in such a row, what stands behind all layers |
| `layers?` | the index, in some of the layers alone |
| `part` | any text without a slash |

These combine, as in `linear{_7*layers}`, whose first is `linear`. What is said here of `layers`
holds of every axis that grows, but for the question mark. A number is written in one way:
`block_01` and `block_0` are no indices of `block{_layers}`.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

from growth.errors import InputError
from growth.rules.axes import AXES

# In braces, the number of layers: what stands behind all layers in a row has it in its number.
NUM_LAYERS = "num_layers"

# What is a number in a path; any other name is a text.
COUNTED = (*AXES, NUM_LAYERS)

_BRACES = re.compile(r"(_?)(?:(\d+)\*)?([^\W\d_]\w*)(?:\+(\d+))?(\??)")


class PathError(InputError):
    """What stands in the braces of a path means nothing; the message says why."""


@dataclasses.dataclass(frozen=True)
class PathIndex:
    """What stands in a pair of braces.

    Attributes:
      name: an axis, the number of layers, or any name for a text.
      step: by what an index is multiplied where it is written.
      first: what is then added.
      unwritten_zero: whether the number zero is not written, and any other behind `_`.
      in_some: whether only some of the layers have such an array.
    """

    name: str
    step: int = 1
    first: int = 0
    unwritten_zero: bool = False
    in_some: bool = False

    def text(self, value: Any) -> str:
        """How an index is written."""
        if self.name not in COUNTED:
            return str(value)
        number = self.step * value + self.first
        if self.unwritten_zero:
            return f"_{number}" if number else ""
        return str(number)

    def value(self, text: str) -> Any:
        """The index that is so written; None where none is."""
        if self.name not in COUNTED:
            return text
        number = int(text.removeprefix("_") or 0)
        value, rest = divmod(number - self.first, self.step)
        return value if value >= 0 and not rest and self.text(value) == text else None

    @property
    def pattern(self) -> str:
        """A pattern of the texts that may be read; not all of them are indices."""
        if self.name not in COUNTED:
            return "[^/]+?"
        return r"|_\d+" if self.unwritten_zero else r"\d+"


@functools.cache
def pieces(written: str) -> tuple[str | PathIndex, ...]:
    """The path of a rule, taken apart: texts, and what stands in braces.

    Raises:
      PathError: braces are malformed.
    """
    found: list[str | PathIndex] = []
    for number, part in enumerate(re.split(r"{([^{}]*)}", written)):
        if number % 2:
            found.append(_index(part))
        elif "{" in part or "}" in part:
            raise PathError("braces in a path hold a name, and close")
        else:
            found.append(part)
    parts = tuple(part for part in found if part != "")
    for before, index in zip(("/", *parts), parts, strict=False):
        if not isinstance(index, PathIndex):
            continue
        if isinstance(before, PathIndex):
            _check_neighbours(before, index)
        elif index.unwritten_zero and before.endswith("/"):
            raise PathError(
                f"{{_{index.name}}} must stand behind a name, or nothing would be left where its "
                f"number is not written"
            )
    return parts


def write(written: str, indices: Mapping[str, Any]) -> str:
    """The path that a rule's means with these indices."""
    parts = pieces(written)
    return "".join(p if isinstance(p, str) else p.text(indices[p.name]) for p in parts)


def read(written: str, path: str) -> dict[str, Any] | None:
    """The indices in a path, by name; None where a rule's does not mean it."""
    match = _pattern(written).fullmatch(path)
    if match is None:
        return None
    indices = (part for part in pieces(written) if isinstance(part, PathIndex))
    found = {index.name: index.value(match[index.name]) for index in indices}
    return None if None in found.values() else found


@functools.cache
def _pattern(written: str) -> re.Pattern[str]:
    return re.compile(
        "".join(
            re.escape(part) if isinstance(part, str) else f"(?P<{part.name}>{part.pattern})"
            for part in pieces(written)
        )
    )


def _index(text: str) -> PathIndex:
    match = _BRACES.fullmatch(text)
    if match is None:
        raise PathError(
            f"braces in a path hold a name, as in {{part}}, or how an axis is counted, as in "
            f"{{_layers}}, {{7*layers+2}} or {{layers?}}, not {{{text}}}"
        )
    unwritten, step, name, first, some = match.groups()
    if name not in COUNTED and text != name:
        raise PathError(
            f"{{{text}}} counts {name!r}, but only axes that grow are counted: "
            f"{', '.join(AXES)}; and {NUM_LAYERS}"
        )
    if some and name != "layers":
        raise PathError(f"{{{text}}} must be {{{text[:-1]}}}: only some layers can have an array")
    if step is not None and int(step) == 0:
        raise PathError(f"{{{text}}} gives all {name} the same number")
    return PathIndex(name, int(step or 1), int(first or 0), bool(unwritten), bool(some))


def _check_neighbours(before: PathIndex, after: PathIndex) -> None:
    """Refuses two indices of which nobody could say where one ends and the other begins."""
    number = after.name in COUNTED and not (before.unwritten_zero and after.unwritten_zero)
    if not number or (before.name in COUNTED and not after.unwritten_zero):
        raise PathError(
            f"{{{before.name}}} and {{{after.name}}} stand side by side, and nothing says where "
            f"one ends and the other begins"
        )
