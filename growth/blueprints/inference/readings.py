"""What an array may be by its shape: roles with axes that fit it, in the architecture's sizes."""

import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator, Sequence

from growth.architecture import Architecture
from growth.blueprints import fit
from growth.blueprints.inference.names import Roles
from growth.blueprints.inference.paths import PLAIN, Kind
from growth.blueprints.notation import BlueprintError, parse
from growth.blueprints.parameters import Parameter, layers_of
from growth.rules.axes import AXES

_HEADS = ("kv_heads", "group")

# What a kernel maps to what. A bias has the axes of what it is added to.
_SIDES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "query": (("embed",), (*_HEADS, "qk")),
    "key": (("embed",), ("kv_heads", "qk")),
    "value": (("embed",), ("kv_heads", "v")),
    "attention_out": ((*_HEADS, "v"), ("embed",)),
    "mlp_in": (("embed",), ("mlp",)),
    "mlp_out": (("mlp",), ("embed",)),
    "embedding": (("vocab",), ("embed",)),
    "position": (("length",), ("embed",)),
    "unembed": (("embed",), ("vocab",)),
    "router": (("embed",), ("experts",)),
    "position_bias": (("buckets",), _HEADS),
    "branch_gain": ((), ("embed",)),
}
_PATCH = (("patch",), ("height", "width", "channels"))

# Arrays of one axis, the stream's.
NORM_ROLES = tuple(f"{k}_{part}" for k in ("norm", "final", "closing") for part in ("gain", "bias"))

FUSED: tuple[Roles, ...] = (("query", "key", "value"), ("key", "value"), ("mlp_in", "mlp_in"))

# All that a parameter whose name says nothing may be.
ANY: tuple[Roles, ...] = (*((role,) for role in _SIDES), *FUSED)

_Dims = tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True)
class Reading:
    """What the arrays of a kind may be: the second and third part of a rule.

    Attributes:
      roles: one, or several that share an array.
      axes: as a blueprint writes them.
    """

    roles: Roles
    axes: str

    @property
    def role(self) -> str | Roles:
        """As a rule has it."""
        return self.roles[0] if len(self.roles) == 1 else self.roles

    @property
    def names(self) -> frozenset[str]:
        """The axes by name."""
        return frozenset(self.axes.replace("(", " ").replace(")", " ").split())

    @property
    def is_kernel(self) -> bool:
        """Whether it maps the stream to something, or something to the stream; a bias does not."""
        if self.roles[0] in ("embedding", "position", "position_bias", "router"):
            return True
        inputs, outputs = _SIDES.get(self.roles[0], ((), ()))
        return "embed" in self.names and bool({*inputs, *outputs, "v"} & self.names - {"embed"})

    @property
    def inputs_first(self) -> bool | None:
        """Whether the stream stands before what it is mapped to, or after what is mapped to it.

        None where it stands in between, or where that means nothing.
        """
        dims = parse("", self.role, self.axes).dims if self.axes else ()
        order = [names for names in dims if {*names} & (({*AXES} | {"vocab"}) - {"layers"})]
        if len(order) < 2 or ("embed",) not in (order[0], order[-1]):
            return None
        reads = self.roles[0] in ("query", "key", "value", "mlp_in", "router")
        return (order[0] == ("embed",)) == reads


def readings(kind: Kind, roles: Roles, architecture: Architecture) -> list[Reading]:
    """The readings of a kind's arrays, for given roles, that fit their shapes.

    Args:
      kind: the kind.
      roles: one role, or several that share an array.
      architecture: the architecture that the arrays belong to.
    """
    found = []
    for dims in _dims(kind, roles, architecture):
        for axes in _stacked(dims, kind, roles, architecture):
            reading = Reading(roles, axes)
            if reading not in found and fits(kind, reading, architecture):
                found.append(reading)
    return found


def norm_readings(kind: Kind, role: str, architecture: Architecture) -> list[Reading]:
    """Those of a norm: over the stream, or over queries or keys."""
    if role == "qk_norm":
        whole = architecture.qk_norm == "all"
        sides: list[tuple[str, ...]] = (
            [(*_HEADS, "qk"), ("kv_heads", "qk")] if whole else [("qk",), ("kv_heads", "qk")]
        )
    else:
        sides = [("embed",)]
    found = []
    for side in sides:
        left = _left(side, kind, architecture)
        for dims in _groupings(left):
            for axes in _stacked(dims, kind, (role,), architecture):
                reading = Reading((role,), axes)
                if reading not in found and fits(kind, reading, architecture):
                    found.append(reading)
    return found


def fits(kind: Kind, reading: Reading, architecture: Architecture) -> bool:
    """Whether all arrays of a kind have the shape that a reading says."""
    if len(re.findall(r"\w+|\([^)]*\)", reading.axes)) != len(kind.shape):
        return False
    try:
        rule = parse(kind.path, reading.role, reading.axes)
    except BlueprintError:
        return False
    fixed = {"vocab": architecture.vocab_size, "length": architecture.max_length}
    if architecture.patches is not None:
        fixed["patch"] = architecture.patches.dim
    for path, shape in kind.shapes:
        match = rule.read(path)
        assert match is not None
        indices, _ = match
        layers = layers_of(rule, indices, architecture)
        parameter = Parameter(rule, tuple(indices.items()), "", layers)
        if any(fit.shape_problems(parameter, shape, architecture)):
            return False
        for names, size in zip(rule.dims, shape, strict=True):
            if len(names) == 1 and fixed.get(names[0], size) != size:
                return False
    return True


def _dims(kind: Kind, roles: Roles, architecture: Architecture) -> Iterator[_Dims]:
    """The dimensions that an array of some roles may have, without those that stack such arrays."""
    if len(roles) > 1:
        yield from _fused_dims(kind, roles, architecture)
        return
    (role,) = roles
    inputs, outputs = (_left(side, kind, architecture) for side in _SIDES[role])
    if not kind.is_bias:
        for one, other in itertools.product(_groupings(inputs), _groupings(outputs)):
            if role in ("embedding", "position"):
                yield (*one, *other)  # rows are looked up
            else:
                yield from _merged(one, other)
        if role == "embedding" and architecture.patches is not None:
            yield from ((*((name,) for name in names), ("embed",)) for names in _PATCH)
        if role == "position" and architecture.patches is not None:
            yield (("embed",),)  # a class token
        if role == "unembed" and architecture.patches is not None:
            yield (("2", "embed"), ("vocab",))  # of the class token and of the patches' mean
    no_bias = ["position", "position_bias"] + ["embedding"] * (architecture.patches is None)
    no_bias += ["router"] * (not kind.is_bias)
    if kind.part not in PLAIN and role not in no_bias:
        yield from _groupings(outputs)


def _fused_dims(kind: Kind, roles: Roles, architecture: Architecture) -> Iterator[_Dims]:
    side: tuple[str, ...] = ("mlp",) if "mlp_in" in roles else ("kv_heads", "qk")
    if "query" in roles:
        side = (*_HEADS, "qk")
    side = _left(side, kind, architecture)
    last = len(side) + (side == ("mlp",))  # halves of a gate may take turns
    for at in range(last):
        factors = (*side[:at], "role", *side[at:])
        for dims in _all_groupings(factors):
            if not kind.is_bias:
                yield from _merged((("embed",),), dims)
            if kind.part not in PLAIN:
                yield dims


def _merged(one: _Dims, other: _Dims) -> Iterator[_Dims]:
    """Two sides behind each other, in both orders; and one dimension amid those of the other."""
    yield (*one, *other)
    yield (*other, *one)
    for few, many in ((one, other), (other, one)):
        if len(few) == 1:
            yield from ((*many[:i], *few, *many[i:]) for i in range(1, len(many)))


def _left(side: Sequence[str], kind: Kind, architecture: Architecture) -> tuple[str, ...]:
    """The axes of a side that are no indices in the path, and have more than one entry."""
    grouped = any(layer.queries_per_group > 1 for layer in architecture.layers)
    return tuple(a for a in side if a not in kind.indices and (a != "group" or grouped))


def _groupings(side: tuple[str, ...]) -> list[_Dims]:
    """The ways in which factors are dimensions: each by itself, all in one, heads in one."""
    apart: _Dims = tuple((name,) for name in side)
    found: list[_Dims] = [apart, (side,) if side else ()]
    if side[:2] == _HEADS:
        found.append((apart[1], apart[0], *apart[2:]))
        if len(side) > 2:
            found.append((side[:2], *apart[2:]))
    return list(dict.fromkeys(found))


@functools.cache
def _all_groupings(factors: tuple[str, ...]) -> list[_Dims]:
    """All ways in which neighbouring factors are one dimension."""
    found = []
    for cuts in itertools.product((False, True), repeat=len(factors) - 1):
        dims = [[factors[0]]]
        for cut, name in zip(cuts, factors[1:], strict=True):
            dims.append([name]) if cut else dims[-1].append(name)
        found.append(tuple(map(tuple, dims)))
    return found


def _stacked(dims: _Dims, kind: Kind, roles: Roles, architecture: Architecture) -> Iterator[str]:
    """The axes as text: as they are, or stacked by layers, by experts, or with a dimension of 1."""
    stacks: list[_Dims] = [(), (("layers",),)]
    if {"mlp_in", "mlp_out"} & {*roles}:
        # A stack that may be all layers is: experts stand in a layer.
        in_layer = "layers" in kind.indices or architecture.num_layers == 1
        is_kernel = {"embed"} < {name for names in dims for name in names}
        in_layer = in_layer and (is_kernel or kind.is_bias)
        stacks += [(("experts",),)] * in_layer + [(("layers",), ("experts",))]
    if "position" in roles:
        stacks += [(("1",),), (("1",), ("1",))]
    for stack in stacks:
        orders = [(*stack, *dims)]
        if stack == (("layers",),) and dims:
            orders.append((dims[0], *stack, *dims[1:]))  # as T5X scans
        for order in orders:
            yield " ".join(d[0] if len(d) == 1 else f"({' '.join(d)})" for d in order)
