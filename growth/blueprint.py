"""`Blueprint`: which parameter of a model has which role, and what its axes are.

A blueprint makes a model that nobody here wrote known to `growth`. It is a list of rules:

    growth.Blueprint([
        ("embed/table",                            "embedding",     "vocab embed"),
        ("blocks_{layers}/attn/q_{kv_heads}/kernel", "query",       "embed qk"),
        ("blocks_{layers}/attn/qkv/kernel", ("query", "key", "value"), "embed (role kv_heads qk)"),
    ])

The notation is explained in `growth.notation`. A blueprint is checked against a tree: every
parameter is matched exactly once, and every shape is what the architecture says.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any

from growth import trees
from growth.architecture import Architecture
from growth.notation import BlueprintError, Rule, parse, role_axis
from growth.roles import AXES


@dataclasses.dataclass(frozen=True)
class Parameter:
    """An array that a rule has matched.

    Attributes:
      rule: the rule.
      indices: (name, value) for each name in braces: an int for an axis, a text for other names.
      prefix: what stands before the rule's path: "params/" or nothing.
      layers: the layers that the array belongs to: one, or a run; empty where it belongs to none.
    """

    rule: Rule
    indices: tuple[tuple[str, Any], ...]
    prefix: str
    layers: range

    @property
    def name(self) -> str:
        """The path as the rule writes it."""
        return self.rule.path_of(dict(self.indices))

    @property
    def path(self) -> str:
        """The path in the tree."""
        return self.prefix + self.name

    @property
    def kind(self) -> tuple[Rule, tuple[tuple[str, str], ...]]:
        """What it has in common with the arrays of other layers, heads, ..."""
        return self.rule, tuple(item for item in self.indices if item[0] not in AXES)

    @property
    def path_axes(self) -> dict[str, int]:
        """The axes that are indices in the path, with their values."""
        return {name: value for name, value in self.indices if name in AXES}

    def moved(self, layers: range, /, **indices: int) -> "Parameter":
        """The array of the same kind that belongs to other layers and has other indices."""
        changed = tuple((name, indices.get(name, value)) for name, value in self.indices)
        return dataclasses.replace(self, indices=changed, layers=layers)


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """Which path has which role and axes; the notation is explained in `growth.notation`.

    Attributes:
      rules: (path, role, axes) for each kind of parameter.

    Raises:
      BlueprintError: a rule is malformed; the message quotes it.
    """

    rules: tuple[tuple[str, str | tuple[str, ...], str], ...]

    def __post_init__(self) -> None:
        rules = tuple(
            (path, role if isinstance(role, str) else tuple(role), axes)
            for path, role, axes in self.rules
        )
        object.__setattr__(self, "rules", rules)
        for rule in rules:
            parse(*rule)

    @classmethod
    def infer(cls, tree: Any, architecture: Architecture, axes: Any = None) -> "Blueprint":
        """Guesses the blueprint of a model.

        Roles are guessed from names, axes from shapes or, where the model has them, taken from the
        names of its axes. Guess at a size where all sizes differ, so that shapes tell them apart;
        the blueprint holds for every size.

        Args:
          tree: parameters, or their shapes, as `jax.eval_shape` gives them.
          architecture: the architecture that they belong to.
          axes: a tree of `PartitionSpec`s with the names of axes that growth knows, such as
            `nn.get_partition_spec` gives for a Linen model with logical axis names.

        Raises:
          BlueprintError: something is unmatched or ambiguous; the message is a listing to complete
            and paste. Or what was guessed does not explain the tree.
        """
        # The guesses are about sizes, which are known here.
        from growth import inference

        found = inference.guesses(tree, architecture, axes)
        if not all(guess.sure for guess in found):
            raise BlueprintError(
                "not all parameters can be guessed; complete this:\n" + inference.listing(found)
            )
        rules = tuple((guess.path, guess.roles[0], guess.readings[0]) for guess in found)
        blueprint = cls(rules)
        blueprint.check(tree, architecture)
        return blueprint

    def locate(self, paths: Iterable[str]) -> dict[str, tuple[Rule, dict[str, Any], str]]:
        """The rule of each path, with the indices in it and what stands before it.

        Raises:
          BlueprintError: a path is matched by no rule, or by several.
        """
        found, problems = {}, []
        for path in paths:
            matches = list(self._matches(path))
            if len(matches) == 1:
                found[path] = matches[0]
            elif matches:
                several = " and ".join(repr(rule.path) for rule, _, _ in matches)
                problems.append(f"{path}: matched by {several}; one rule must match it")
            else:
                problems.append(f"{path}: matched by no rule")
        _raise(problems)
        return found

    def parameters(self, tree: Any, architecture: Architecture) -> dict[str, Parameter]:
        """The parameters of a tree by path, checked against an architecture.

        Empty nodes of the tree are passed over unless a rule matches them.

        Raises:
          BlueprintError: a parameter is matched by no rule or by several, a shape is not what the
            architecture says, or a parameter is missing. All that is wrong is listed by path.
        """
        leaves = trees.leaves(tree)
        known = {leaf.path: leaf.value for leaf in leaves if not trees.is_empty(leaf.value)}
        empty = [leaf.path for leaf in leaves if trees.is_empty(leaf.value)]
        located = self.locate(known)
        located |= {path: m[0] for path in empty if len(m := list(self._matches(path))) == 1}

        parameters: dict[str, Parameter] = {}
        problems: list[str] = []
        for path, (rule, indices, prefix) in located.items():
            layers = _layers_of(rule, indices, architecture)
            parameter = Parameter(rule, tuple(indices.items()), prefix, layers)
            parameters[path] = parameter
            if path in known:
                problems += _shape_problems(parameter, known[path].shape, architecture)
        problems += _missing(parameters.values(), architecture)
        _raise(problems)
        return parameters

    def check(self, tree: Any, architecture: Architecture) -> None:
        """Checks that this blueprint explains every parameter of a tree.

        Raises:
          BlueprintError: it does not; all that is wrong is listed by path.
        """
        self.parameters(tree, architecture)

    def _matches(self, path: str) -> Iterator[tuple[Rule, dict[str, Any], str]]:
        for written in self.rules:
            rule, pattern = parse(*written)
            if match := pattern.fullmatch(path):
                texts = match.groupdict()
                prefix = texts.pop("prefix_") or ""
                yield rule, {n: int(t) if n in AXES else t for n, t in texts.items()}, prefix


def size(axis: str, architecture: Architecture, layers: range) -> int | None:
    """The size of an axis in the given layers; None for a name that is no axis.

    An array that belongs to no layer has the sizes that all layers share.
    """
    if axis.isdecimal():
        return int(axis)
    if axis not in AXES:
        return None
    if axis == "embed":
        return architecture.embed_dim
    if axis == "layers":
        return len(layers)
    layer = architecture.layers[layers.start if layers else 0]
    return {
        "kv_heads": layer.num_kv_heads,
        "group": layer.queries_per_group,
        "qk": layer.qk_dim,
        "v": layer.v_dim,
        "mlp": layer.mlp_dim,
    }[axis]


def _layers_of(rule: Rule, indices: dict[str, Any], architecture: Architecture) -> range:
    first = indices.get("layers", 0)
    if "layers" not in rule.axes:
        return range(first, first + 1) if "layers" in indices else range(0)
    if "layers" not in indices:
        return range(architecture.num_layers)
    return range(first, first + dict(architecture.runs).get(first, 0))


def _shape_problems(
    parameter: Parameter, shape: tuple[int, ...], architecture: Architecture
) -> Iterator[str]:
    rule, layers = parameter.rule, parameter.layers
    if layers.stop > architecture.num_layers or (
        "layers" in dict(parameter.indices) and not layers
    ):
        starts = ", ".join(str(first) for first, _ in architecture.runs)
        runs = f", and its runs of equal layers start at {starts}" if "layers" in rule.axes else ""
        yield (
            f"{parameter.path}: no layer has this index; the architecture has "
            f"{architecture.num_layers} layers{runs}"
        )
        return
    if problems := list(misfits(parameter, architecture)):
        yield from problems
        return
    for axis, index in parameter.path_axes.items():
        limit = architecture.num_layers if axis == "layers" else size(axis, architecture, layers)
        if limit is not None and index >= limit:
            yield f"{parameter.path}: {axis} is {index}, but the architecture has only {limit}"
    if len(shape) != len(rule.dims):
        yield (
            f"{parameter.path}: shape {shape} has {len(shape)} dimensions, but the rule names "
            f"{len(rule.dims)}: {_show(rule)}"
        )
        return
    for dim, names in zip(shape, rule.dims, strict=True):
        expected, open_end = dim_size(parameter, names, architecture)
        if dim != expected and not (open_end and dim % expected == 0):
            yield (
                f"{parameter.path}: shape {shape} does not fit {_show(rule)}: "
                f"({' '.join(names)}) is {expected} in the architecture, not {dim}"
            )


def dim_size(
    parameter: Parameter, names: tuple[str, ...], architecture: Architecture
) -> tuple[int, bool]:
    """The size of a dimension, and whether it has a factor that may be anything.

    Such a factor counts as 1.
    """
    roles = parameter.rule.roles if "role" in names else parameter.rule.roles[:1]
    open_end = any(name != "role" and size(name, architecture, range(1)) is None for name in names)
    return sum(_product(parameter, names, role, architecture) for role in roles), open_end


def misfits(parameter: Parameter, architecture: Architecture) -> Iterator[str]:
    """Why one array cannot hold what a rule wants it to hold, in an architecture of such sizes."""
    rule = parameter.rule
    everywhere = parameter.layers or range(architecture.num_layers)
    for axis in dict.fromkeys((*rule.axes, *parameter.path_axes)):
        if axis in AXES and axis != "layers":
            sizes = [size(axis, architecture, range(i, i + 1)) for i in everywhere]
            if len(set(sizes)) > 1:
                yield (
                    f"{parameter.path}: one array holds these layers, so {axis} must be the same "
                    f"in all of them, but it is {', '.join(map(str, sizes))}"
                )
    for names in rule.dims:
        shared = names[: names.index("role")] if "role" in names else names
        parts = [_product(parameter, shared, role, architecture) for role in rule.roles]
        if len(set(parts)) > 1:
            yield (
                f"{parameter.path}: ({' '.join(shared)}) must be the same for all that the array "
                f"holds along `role`, but it is {', '.join(map(str, parts))} for "
                f"{', '.join(rule.roles)}"
            )


def _product(
    parameter: Parameter, names: tuple[str, ...], role: str, architecture: Architecture
) -> int:
    """The product of the sizes that names have for a role, as far as they are known."""
    axes = [role_axis(name, role, len(parameter.rule.roles) > 1) for name in names]
    return math.prod(size(axis, architecture, parameter.layers) or 1 for axis in axes if axis)


def _missing(parameters: Iterable[Parameter], architecture: Architecture) -> Iterator[str]:
    """Arrays that the path's indices leave out: each index must run from 0 to its size."""
    kinds: dict[Any, list[Parameter]] = {}
    for parameter in parameters:
        kinds.setdefault(parameter.kind, []).append(parameter)
    for members in kinds.values():
        present = {parameter.path for parameter in members}
        for wanted in siblings(members[0], architecture):
            if wanted.path not in present:
                yield f"{wanted.path}: missing, though {members[0].path} is there"


def siblings(parameter: Parameter, architecture: Architecture) -> Iterator[Parameter]:
    """All arrays of a parameter's kind that a model of the given architecture has."""
    rule, axes = parameter.rule, parameter.path_axes
    if "layers" in axes and "layers" in rule.axes:
        placed = [
            parameter.moved(range(first, first + n), layers=first) for first, n in architecture.runs
        ]
    elif "layers" in axes:
        everywhere = range(architecture.num_layers)
        placed = [parameter.moved(range(i, i + 1), layers=i) for i in everywhere]
    else:
        placed = [parameter.moved(_layers_of(rule, {}, architecture))]
    for axis in axes:
        if axis != "layers":
            placed = [
                member.moved(member.layers, **{axis: index})
                for member in placed
                for index in range(size(axis, architecture, member.layers) or 0)
            ]
    yield from placed


def _show(rule: Rule) -> str:
    return repr(" ".join(d[0] if len(d) == 1 else f"({' '.join(d)})" for d in rule.dims))


def _raise(problems: list[str]) -> None:
    if problems:
        shown = problems[:20] + [f"... and {len(problems) - 20} more"] * (len(problems) > 20)
        raise BlueprintError("the blueprint does not fit the tree:\n  " + "\n  ".join(shown))
