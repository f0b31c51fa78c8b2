"""Blueprints in which one thing is wrong, and what becomes of a person who grows with one.

Each role of each rule is replaced by every other, each axis by every other, whether it stands in
the axes or in the path. Growth is by numpy, and so is the function where it can be, so that nothing
is compiled for a blueprint.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from growth import Architecture, Blueprint, BlueprintError
from growth.blueprints import pytrees
from growth.certification import trainability
from growth.rules.axes import AXES
from growth.rules.roles import ROLES
from tests.helpers import networks
from tests.helpers.code_bases import measures
from tests.helpers.code_bases.code_base import CodeBase
from tests.helpers.foreign_models import Model

# Besides the axes that grow: one that doesn't.
_NAMES = (*AXES, "other")

# Far above what float64 rounds to; what a certificate promises is less.
EXACT = 1e-9

# The outcomes, the worst first.
SILENT = "wrong without a word"
CAUGHT = "caught by the door"
REFUSED = "refused"
UNPARSED = "malformed"
EXACT_TOO = "exact all the same"


@dataclasses.dataclass(frozen=True)
class Mutant:
    """A blueprint with one thing that is wrong.

    Attributes:
      rule: the number of the rule.
      change: what is said instead of what.
      written: the rule.
    """

    rule: int
    change: str
    written: tuple[Any, Any, str]

    def blueprint(self, right: Blueprint) -> Blueprint:
        """The whole blueprint; BlueprintError where the rule is malformed."""
        rules = list(right.rules)
        rules[self.rule] = self.written
        return Blueprint(rules)


def mutants(blueprint: Blueprint) -> Iterator[Mutant]:
    """Every blueprint that differs from one in one role, or in one axis."""
    for number, (path, role, axes) in enumerate(blueprint.rules):
        roles = (role,) if isinstance(role, str) else role
        for place, old in enumerate(roles):
            for new in (name for name in ROLES if name != old):
                changed = (*roles[:place], new, *roles[place + 1 :])
                written = path, changed[0] if len(roles) == 1 else changed, axes
                yield Mutant(number, f"{old} → {new}", written)
        for text, part in ((axes, "axes"), (path, "path")):
            pattern = r"\w+" if part == "axes" else r"(?<=\{)\w+(?=\})"
            for match in re.finditer(pattern, text):
                if match[0] == "role" or match[0].isdecimal():
                    continue
                for new in (name for name in _NAMES if name != match[0]):
                    other = text[: match.start()] + new + text[match.end() :]
                    written = (path, role, other) if part == "axes" else (other, role, axes)
                    yield Mutant(number, f"{part}: {match[0]} → {new}", written)


class Subject:
    """A model, with what is asked of it again and again."""

    def __init__(self, model: CodeBase | Model) -> None:
        self.blueprint, self.architecture = model.blueprint, model.architecture
        self.one_width = getattr(model, "one_width", False)
        self.inputs = getattr(model, "inputs", networks.TOKENS)
        self._model = model
        self.plans = measures.plans(self)
        self.tree = self.random(self.architecture, 0)
        self.before = self.run(self.architecture, self.tree)
        self.fresh = {name: self.random(plan.target, 1) for name, plan in self.plans.items()}
        self.right = {name: self.grown(name, self.blueprint) for name in self.plans}

    def random(self, architecture: Architecture, seed: int) -> Any:
        """Parameters of any size as numpy arrays."""
        if isinstance(self._model, CodeBase):
            return self._model.random(architecture, seed)
        shapes = jax.eval_shape(lambda: self._model.init(architecture))
        random = np.random.default_rng(seed)
        return jax.tree.map(lambda leaf: 0.6 * random.standard_normal(leaf.shape), shapes)

    def apply(self, architecture: Architecture, tree: Any, inputs: Any) -> Any:
        """The model's function."""
        return self._model.apply(architecture, tree, inputs)

    def run(self, architecture: Architecture, tree: Any) -> np.ndarray:
        """The logits."""
        if isinstance(self._model, CodeBase):
            return self.apply(architecture, tree, self.inputs)
        return np.asarray(self._compiled(architecture)(tree))

    @functools.cache  # noqa: B019 (a subject lives as long as its test)
    def _compiled(self, architecture: Architecture) -> Any:
        return jax.jit(lambda tree: self.apply(architecture, tree, self.inputs))

    def grown(self, step: str, blueprint: Blueprint) -> Any:
        """What one step makes of the parameters."""
        return measures.expand(self.tree, self.plans[step], blueprint, self.fresh[step])

    @functools.cache  # noqa: B019
    def gradient(self, step: str) -> Any:
        """The gradient of a loss that sees every logit."""
        target = self.plans[step].target

        def loss(tree: Any) -> jax.Array:
            logits = self.apply(target, tree, jnp.asarray(self.inputs))
            weights = np.random.default_rng(2).standard_normal(logits.shape)
            return (jax.nn.log_softmax(logits) * weights).sum()

        return jax.jit(jax.grad(loss))

    def dead(self, step: str, tree: Any) -> dict[str, np.ndarray]:
        """Which entries have no gradient at any of the first three steps, by path."""
        tree = jax.tree.map(jnp.asarray, tree)
        alive = jax.tree.map(lambda leaf: np.zeros(leaf.shape, bool), tree)
        for _ in range(3):
            slopes = jax.tree.map(np.asarray, self.gradient(step)(tree))
            alive = jax.tree.map(
                lambda a, g: a | (np.abs(g) > trainability.ROUNDING * np.abs(g).max(initial=0)),
                alive,
                slopes,
            )
            tree = jax.tree.map(lambda leaf, g: leaf - 1e-3 * np.sign(g), tree, slopes)
        return {leaf.path: ~leaf.value for leaf in pytrees.arrays(alive)}

    @functools.cache  # noqa: B019
    def dead_at_best(self, step: str) -> dict[str, np.ndarray]:
        """Those of growth with the right blueprint: what the inputs do not reach."""
        return self.dead(step, self.right[step])

    def certified(self, step: str, tree: Any, blueprint: Blueprint) -> bool:
        """Whether a certificate that knows this blueprint says that new entries can learn."""
        plan = self.plans[step]
        is_new = trainability.new_entries(tree, plan, blueprint)
        tree = jax.tree.map(jnp.asarray, tree)
        report = trainability.observe(
            self.gradient(step), tree, plan, blueprint, is_new, optax.adam(1e-3)
        )
        return not (report.dead or report.locked)


def outcome(subject: Subject, mutant: Mutant) -> tuple[str, str]:
    """What becomes of one wrong blueprint, and where.

    Where a step is exact and alive it is right. Where it isn't exact, a certificate says so: that
    it runs the model before and after is what it is.
    """
    try:
        blueprint = mutant.blueprint(subject.blueprint)
    except BlueprintError as error:
        return UNPARSED, str(error)
    try:
        blueprint.check(subject.tree, subject.architecture)
    except BlueprintError as error:
        return REFUSED, str(error)
    found = collections.defaultdict(list)
    for step in subject.plans:
        found[outcome_of_step(subject, step, blueprint)].append(step)
    worst = next(o for o in (SILENT, CAUGHT, REFUSED, EXACT_TOO) if o in found)
    return worst, ", ".join(found[worst])


def outcome_of_step(subject: Subject, step: str, blueprint: Blueprint) -> str:
    """What becomes of one step with a blueprint that fits the smaller model."""
    try:
        grown = subject.grown(step, blueprint)
    except BlueprintError:
        return REFUSED
    if _same(grown, subject.right[step]):
        return EXACT_TOO
    after = subject.run(subject.plans[step].target, grown)
    if not networks.difference(subject.before, after) <= EXACT:
        return CAUGHT
    best = subject.dead_at_best(step)
    if not any((dead & ~best[path]).any() for path, dead in subject.dead(step, grown).items()):
        return EXACT_TOO
    if not subject.certified(step, grown, blueprint):
        return CAUGHT
    # Units that ReLU holds inactive, experts that are not chosen: they differ with the values.
    return EXACT_TOO if subject.certified(step, grown, subject.blueprint) else SILENT


def _same(one: Any, other: Any) -> bool:
    values = ({leaf.path: leaf.value for leaf in pytrees.leaves(tree)} for tree in (one, other))
    left, right = values
    return left.keys() == right.keys() and all(
        pytrees.is_empty(value) or np.array_equal(value, right[path])
        for path, value in left.items()
    )
