"""`Blueprint`: which parameter of a model has which role, and what its axes are.

A blueprint makes a model that nobody here wrote known to `growth`. It is a list of rules:

    growth.Blueprint([
        ("embed/table",                            "embedding",     "vocab embed"),
        ("blocks_{layers}/attn/q_{kv_heads}/kernel", "query",       "embed qk"),
        ("blocks_{layers}/attn/qkv/kernel", ("query", "key", "value"), "embed (role kv_heads qk)"),
    ])

`growth.blueprints.notation` explains the notation. A blueprint is checked against a tree: every
parameter is matched exactly once, and every shape is what the architecture says.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from growth.architecture import Architecture
from growth.blueprints import inference, pytrees
from growth.blueprints.notation import BlueprintError, Rule, parse
from growth.blueprints.parameters import Parameter, dim_size, layers_of, misfits, siblings, size
from growth.rules.axes import AXES
from growth.types import ParamsLike


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """Which path has which role and axes; `growth.blueprints.notation` explains the notation.

    Attributes:
      rules: (path, role, axes) for each kind of parameter.

    Raises:
      BlueprintError: a rule is malformed; the message quotes it.

    Examples:
      >>> import growth, jax
      >>> mlp = growth.Blueprint([
      ...     ("layers/{layers}/up", "mlp_in", "embed mlp"),
      ...     ("layers/{layers}/down", "mlp_out", "mlp embed"),
      ... ])
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=1, num_heads=2, mlp_dim=16
      ... )
      >>> tree = {"layers": [{"up": jax.numpy.ones((8, 16)), "down": jax.numpy.ones((16, 9))}]}
      >>> mlp.check(tree, small)
      Traceback (most recent call last):
          ...
      growth...BlueprintError: the blueprint does not fit the tree:
        layers/0/down: shape (16, 9) does not fit 'mlp embed': (embed) is 8 ..., not 9

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, table 1.
      The notation of axes is that of einops: https://einops.rocks.
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
    def infer(
        cls, tree: ParamsLike, architecture: Architecture, axes: ParamsLike = None
    ) -> "Blueprint":
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

    def parameters(self, tree: ParamsLike, architecture: Architecture) -> dict[str, Parameter]:
        """The parameters of a tree by path, checked against an architecture.

        Empty nodes of the tree are passed over unless a rule matches them.

        Raises:
          BlueprintError: a parameter is matched by no rule or by several, a shape is not what the
            architecture says, or a parameter is missing. All that is wrong is listed by path.
        """
        return self.match(pytrees.shapes(tree), architecture)

    def match(
        self, shapes: Mapping[str, tuple[int, ...] | None], architecture: Architecture
    ) -> dict[str, Parameter]:
        """The parameters of a tree of which only paths and shapes are known; see `parameters`.

        Args:
          shapes: by path; None for an empty node.
          architecture: what the tree belongs to.
        """
        located = self.locate(path for path, shape in shapes.items() if shape is not None)
        for path, shape in shapes.items():
            if shape is None and len(matches := list(self._matches(path))) == 1:
                located[path] = matches[0]
        parameters: dict[str, Parameter] = {}
        problems: list[str] = []
        for path, (rule, indices, prefix) in located.items():
            layers = layers_of(rule, indices, architecture)
            parameter = Parameter(rule, tuple(indices.items()), prefix, layers)
            parameters[path] = parameter
            if (shape := shapes[path]) is not None:
                problems += _shape_problems(parameter, shape, architecture)
        problems += _missing(parameters.values(), architecture)
        _raise(problems)
        return parameters

    def check(self, tree: ParamsLike, architecture: Architecture) -> None:
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


def _shape_problems(
    parameter: Parameter, shape: tuple[int, ...], architecture: Architecture
) -> Iterator[str]:
    rule, layers = parameter.rule, parameter.layers
    if layers.stop > architecture.num_layers or (
        "layers" in dict(parameter.indices) and not layers
    ):
        starts = ", ".join(str(first) for first, _ in architecture.layer_runs)
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


def _show(rule: Rule) -> str:
    return repr(" ".join(d[0] if len(d) == 1 else f"({' '.join(d)})" for d in rule.dims))


def _raise(problems: list[str]) -> None:
    if problems:
        shown = problems[:20] + [f"... and {len(problems) - 20} more"] * (len(problems) > 20)
        raise BlueprintError("the blueprint does not fit the tree:\n  " + "\n  ".join(shown))
