"""The notation of blueprints: one rule, parsed.

A rule's path names the leaves it is about. An axis in braces is an index in the path: one array for
each layer, or for each head. Any other name in braces stands for any text. Its role is a key of
`growth.rules.roles.ROLES`, or several, where one array holds several parameters along an axis
`role`. Its axes read like einops: a name for each dimension of the array, and in parentheses the
factors of one. `embed kv_heads group qk v mlp layers` are the axes that grow, and `embed_units`,
which is as long as `embed` and is not the residual stream: a kernel from the stream to as many
hidden units, in a pooler or before the output layer, is `embed embed_units`. (A norm over such
units would change as they become more.) Any other name (vocab, length, an integer) is left alone.
Where `layers` is an axis and also an index in the path, the array holds a run of layers, and the
index is its first.

Braces also say how an index is written. `block{_layers}` is `block`, `block_1`, `block_2`: Haiku's
way. Where the arrays of all layers are counted in one row, `linear_{7*layers+2}` is the third of
seven in each layer, `linear{_7*layers}` the first, and `linear_{7*num_layers}` the one behind them
all. `blocks_{layers?}/attention` is there in some of the layers alone, for layers may be of
different kinds; a new layer is of the kind of the one that it is like. `path_indices` has the whole
notation.

What no role describes, such as the gates of a recurrence, is carried along as it is where none of
its axes grows: any role of its side will do (`mlp_in`, `"width"`), and what reads the stream or
writes to it has its own, so that a new layer adds nothing (`mlp_in`, `"embed width"`; `mlp_out`,
`"width embed"`).
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

from growth.blueprints import path_indices
from growth.blueprints.path_indices import NUM_LAYERS, PathIndex
from growth.errors import InputError
from growth.rules.axes import AXES, BY_NAME
from growth.rules.roles import ROLES

# What may stand before the path of any rule: the collection that Linen's `init` gives.
COLLECTION = "params/"

# Names that a person may take for an axis that grows. A name that is no axis is left alone, so
# these would silently not grow.
_MISNOMERS = {
    "heads": "(kv_heads group), or kv_heads where every head has its own keys",
    "num_heads": "(kv_heads group), or kv_heads where every head has its own keys",
    "num_kv_heads": "kv_heads",
    "head_dim": "qk or v",
    "qk_dim": "qk",
    "v_dim": "v",
    "mlp_dim": "mlp",
    "embed_dim": "embed",
    "hidden": "embed, mlp or embed_units",
    "layer": "layers",
    "num_layers": "layers",
}


class BlueprintError(InputError):
    """A blueprint is malformed, or does not fit a tree; the message says where."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """One line of a blueprint.

    Attributes:
      path: the pattern, as written.
      roles: the role of the parameter, or of each parameter that the array holds.
      dims: for each dimension of the array the names of its factors, outermost first.
      indices: the names in braces in the path.
    """

    path: str
    roles: tuple[str, ...]
    dims: tuple[tuple[str, ...], ...]
    indices: tuple[str, ...]

    @property
    def axes(self) -> tuple[str, ...]:
        """All the factors of all the dimensions, in order."""
        return tuple(name for dim in self.dims for name in dim)

    @functools.cached_property
    def in_some_layers(self) -> bool:
        """Whether only some of the layers have such an array."""
        parts = path_indices.pieces(self.path)
        return any(isinstance(part, PathIndex) and part.in_some for part in parts)

    def path_of(self, indices: Mapping[str, Any]) -> str:
        """The path with these indices."""
        return path_indices.write(self.path, indices)

    def read(self, path: str) -> tuple[dict[str, Any], str] | None:
        """The indices in a path, and what stands before the rule's; None for another path.

        An index is an int for an axis and for the number of layers, and a text for other names.
        """
        for prefix in ("", COLLECTION):
            if path.startswith(prefix):
                indices = path_indices.read(self.path, path[len(prefix) :])
                if indices is not None:
                    return indices, prefix
        return None


def role_axis(axis: str, role: str, fused: bool) -> str | None:
    """What an axis of an array means for one of its roles; None where that role has no such axis.

    In an array that fuses several roles, one list of axes serves all: what is `qk` for queries and
    keys is `v` for values, and `group` is there for queries only.
    """
    if axis not in AXES or axis == "layers" or axis in ROLES[role].fills:
        return axis
    return "v" if fused and axis == "qk" and role == "value" else None


@functools.cache
def parse(path: str, role: str | tuple[str, ...], axes: str) -> Rule:
    """A rule, as a blueprint has it.

    Raises:
      BlueprintError: it is malformed; the message quotes it.
    """

    def wrong(why: str) -> BlueprintError:
        return BlueprintError(f"the rule ({path!r}, {role!r}, {axes!r}): {why}")

    roles = (role,) if isinstance(role, str) else role
    for name in roles:
        if name not in ROLES:
            raise wrong(f"{name!r} is no role; the roles are {', '.join(ROLES)}")
    if not re.fullmatch(r"(\s*(\w+\b|\([\w\s]+\)))*\s*", axes):
        raise wrong("axes are names, and names in parentheses for the factors of one dimension")
    dims = tuple(tuple(d.strip("()").split()) for d in re.findall(r"\w+|\([\w\s]+\)", axes))
    try:
        parts = path_indices.pieces(path)
    except path_indices.PathError as error:
        raise wrong(str(error)) from None
    indices = tuple(part.name for part in parts if isinstance(part, PathIndex))
    rule = Rule(path, roles, dims, indices)

    for dim in dims:
        unknown = [n for n in dim if n not in (*AXES, "role") and not n.isdecimal()]
        if len(unknown) > 1:
            raise wrong(f"of {' and '.join(unknown)} only one can be told from the array")
    for name in (*indices, *rule.axes):
        if name in _MISNOMERS and not (name == NUM_LAYERS and name in indices):
            raise wrong(f"{name!r} is no axis; write {_MISNOMERS[name]}")
        uses = (rule.axes.count(name), indices.count(name))
        if not name.isdecimal() and (max(uses) > 1 or (sum(uses) > 1 and name != "layers")):
            units = "; units as many that are not the stream are embed_units"
            raise wrong(f"the axis {name!r} stands there twice{units * (name == 'embed')}")
        if name in AXES and not any(role_axis(name, r, len(roles) > 1) for r in roles):
            words = BY_NAME[name].words
            raise wrong(f"a parameter of role {role!r} has no axis {name!r} ({words})")
    if ("role" in rule.axes) != (len(roles) > 1):
        raise wrong("an axis `role` stands there if, and only if, there are several roles")
    if rule.in_some_layers and "layers" in rule.axes:
        raise wrong("an array that holds a run of layers, holds one of each of them")
    return rule
