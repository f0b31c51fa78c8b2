"""`Blueprint`: which parameter of a model has which role, and what its axes are.

A blueprint makes a model that nobody here wrote known to `growth`. It is a list of rules:

    growth.Blueprint([
        ("embed/table",                            "embedding",     "vocab embed"),
        ("blocks_{layers}/attn/q_{kv_heads}/kernel", "query",       "embed qk"),
        ("blocks_{layers}/attn/qkv/kernel", ("query", "key", "value"), "embed (role kv_heads qk)"),
    ])

`growth.blueprints.notation` explains the notation: also for paths that count as Haiku does, and for
layers of different kinds. A blueprint is checked against a tree: every parameter is matched exactly
once, every shape is what the architecture says, and nothing contradicts it.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

from growth.architecture import Architecture
from growth.blueprints import fit, presence, pytrees
from growth.blueprints.inference import trials
from growth.blueprints.inference.guessing import guesses
from growth.blueprints.inference.listing import listing, reasons
from growth.blueprints.notation import BlueprintError, Rule, parse, role_axis
from growth.blueprints.parameters import Parameter, layers_of
from growth.blueprints.path_indices import NUM_LAYERS
from growth.types import Inputs, ParamsLike


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

    @property
    def axes(self) -> frozenset[str]:
        """The axes that its rules name, as dimensions or as indices in paths."""
        rules = [parse(*written) for written in self.rules]
        return frozenset(
            axis
            for rule in rules
            for role in rule.roles
            for name in (*rule.axes, *rule.indices)
            if (axis := role_axis(name, role, len(rule.roles) > 1))
        )

    @classmethod
    def infer(
        cls,
        tree: ParamsLike,
        architecture: Architecture,
        axes: ParamsLike = None,
        *,
        apply: trials.Apply | None = None,
        inputs: Inputs = None,
    ) -> "Blueprint":
        """Guesses the blueprint of a model.

        Names propose roles; shapes, places and how many there are of each must agree with the
        architecture, or the role is open. Axes follow from shapes or, where the model has them,
        from the names of its axes. Guess at a size where all sizes differ, so that shapes tell them
        apart; the blueprint holds for every size.

        With the model's function, readings are tried out: random parameters of these shapes are
        grown a little along every axis, and what changes what the model computes is wrong. That
        decides what is open, and catches what seemed sure.

        Args:
          tree: parameters, or their shapes, as `jax.eval_shape` gives them. What is no array, such
            as None or a number, is passed over.
          architecture: the architecture that they belong to.
          axes: a tree of `PartitionSpec`s with the names of axes that growth knows, such as
            `nn.get_partition_spec` gives for a Linen model with logical axis names.
          apply: (architecture, parameters, inputs) to an array, as for `growth.certify`: it makes
            the model from the architecture, for it is run at several sizes.
          inputs: what `apply` takes.

        Raises:
          BlueprintError: something is unmatched or ambiguous; the message is a listing to complete
            and paste, with the reasons. Or what was guessed does not explain the tree, or, tried
            out, changes what the model computes.
        """
        found = guesses(tree, architecture, axes)
        if apply is not None:
            found = trials.judge()(tree, architecture, found, apply, inputs)
        if not all(guess.sure for guess in found):
            why = f"\n{text}" if (text := reasons(found)) else ""
            raise BlueprintError(
                f"not all parameters can be guessed; complete this:\n{listing(found)}{why}"
            )
        rules = tuple(
            (guess.path, guess.readings[0].role, guess.readings[0].axes) for guess in found
        )
        blueprint = cls(rules)
        blueprint.match(dict(item for guess in found for item in guess.kind.shapes), architecture)
        return blueprint

    def locate(
        self, paths: Iterable[str], architecture: Architecture
    ) -> dict[str, tuple[Rule, dict[str, Any], str]]:
        """The rule of each path, with the indices in it and what stands before it.

        Raises:
          BlueprintError: a path is matched by no rule, or by several.
        """
        found = {path: self._matches(path, architecture) for path in paths}
        fit.refuse(list(fit.locations(found, self.rules, architecture)))
        return {path: match for path, (match,) in found.items()}

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
        there = (path for path, shape in shapes.items() if shape is not None)
        located = self.locate(there, architecture)
        for path, shape in shapes.items():
            if shape is None and len(matches := self._matches(path, architecture)) == 1:
                located[path] = matches[0]
        parameters: dict[str, Parameter] = {}
        problems: list[str] = []
        for path, (rule, indices, prefix) in located.items():
            layers = layers_of(rule, indices, architecture)
            parameter = Parameter(rule, tuple(indices.items()), prefix, layers)
            parameters[path] = parameter
            if (shape := shapes[path]) is not None:
                problems += fit.shape_problems(parameter, shape, architecture)
        problems += fit.missing(parameters.values(), architecture)
        problems += presence.contradictions(parameters.values(), architecture)
        fit.refuse(problems)
        return parameters

    def check(self, tree: ParamsLike, architecture: Architecture) -> None:
        """Checks that this blueprint explains every parameter of a tree.

        Raises:
          BlueprintError: it does not; all that is wrong is listed by path.
        """
        self.parameters(tree, architecture)

    def _matches(
        self, path: str, architecture: Architecture
    ) -> list[tuple[Rule, dict[str, Any], str]]:
        """The rules that match a path.

        Where the arrays of all layers are counted in one row, what stands behind them has the
        number that a further layer would have: so a layer that is there comes first.
        """
        number = architecture.num_layers
        found = [
            (rule, *match)
            for rule in itertools.starmap(parse, self.rules)
            if (match := rule.read(path)) and match[0].get(NUM_LAYERS, number) == number
        ]
        there = [match for match in found if match[1].get("layers", 0) < number]
        return there or found
