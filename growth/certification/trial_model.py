"""A model with random parameters, run before and after growth with any reading of what they are."""

import functools
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from growth.architecture import Architecture
from growth.blueprints import pytrees
from growth.blueprints.blueprint import Blueprint
from growth.blueprints.inference.guessing import Guess
from growth.blueprints.inference.readings import Reading
from growth.blueprints.inference.trials import Apply
from growth.blueprints.notation import BlueprintError
from growth.certification import trainability
from growth.expansion.accounts import source_account
from growth.expansion.blocks import Block
from growth.expansion.jax_backend import build
from growth.expansion.numpy_backend import fold
from growth.rules.growth_plan import GrowthPlan
from growth.types import Inputs, Params, ParamsLike

# What each kind of a tree is taken for.
Readings = tuple[Reading, ...]

# What float64 rounds to is far below; what a wrong reading changes is far above.
_EXACT = 1e-9

# A free side has a gradient at the second step, when the other side is zero no more.
_STEPS = 3


class NotRunError(Exception):
    """The model, or its parameters, cannot have this size."""


class TrialModel:
    """A model with random parameters: it is run before and after growth.

    Attributes:
      architecture: the architecture.
      tolerance: how far its output may move: a small change of all parameters moves it about as
        much, where it computes in float32 whatever its parameters are.
    """

    def __init__(
        self, tree: ParamsLike, architecture: Architecture, apply: Apply, inputs: Inputs
    ) -> None:
        self.architecture, self._apply = architecture, apply
        self._inputs = jax.tree.map(jnp.asarray, inputs)
        random = np.random.default_rng(0)
        self._tree = jax.tree.map(functools.partial(_random_like, random), tree)
        self._arrays = {
            leaf.name: np.asarray(leaf.value)
            for leaf in pytrees.leaves(self._tree)
            if hasattr(leaf.value, "shape")
        }
        self._before = self._run(architecture, self._tree)
        moved = jax.tree.map(
            lambda leaf: leaf * (1 + 1e-8) if _is_array(leaf) else leaf, self._tree
        )
        self.tolerance = max(_EXACT, 30 * self._difference(self._run(architecture, moved)))

    def errors(
        self, plan: GrowthPlan, guesses: Sequence[Guess], trees: Sequence[Readings]
    ) -> dict[Readings, float]:
        """How far the output moves for each reading of the tree, relative to the largest output.

        Raises:
          NotRunError: it cannot be run at that size.
        """
        found: dict[Readings, float] = {}
        seen: dict[tuple[bytes, ...], float] = {}
        failures = []
        for chosen in trees:
            try:
                grown = self._all_grown(plan, guesses, chosen)
                key = tuple(bits for bits, _ in grown)
                if key not in seen:
                    after = self._run(plan.target, self._built(plan, guesses, chosen, grown))
                    seen[key] = self._difference(after)
                found[chosen] = seen[key]
            except NotRunError as error:  # a wrong reading may make shapes that are none
                found[chosen] = math.inf
                failures.append(error)
        if len(failures) == len(trees):
            raise failures[0]
        return found

    def tells_apart(
        self, plan: GrowthPlan, guesses: Sequence[Guess], trees: Sequence[Readings]
    ) -> bool:
        """Whether readings of the tree make different parameters."""
        try:
            keys = {
                tuple(bits for bits, _ in self._all_grown(plan, guesses, chosen))
                for chosen in trees
            }
        except NotRunError:
            return len(trees) > 1
        return len(keys) > 1

    def most_alive(
        self, plan: GrowthPlan, guesses: Sequence[Guess], trees: Sequence[Readings]
    ) -> list[Readings]:
        """Those with the fewest new entries that would never learn.

        A reading that makes both sides of a product zero keeps the function as well.
        """
        kinds: dict[tuple[bytes, ...], list[Readings]] = {}
        for chosen in trees:
            key = tuple(bits for bits, _ in self._all_grown(plan, guesses, chosen))
            kinds.setdefault(key, []).append(chosen)
        if len(kinds) == 1:
            return list(trees)
        dead = {key: self._dead(plan, guesses, members[0]) for key, members in kinds.items()}
        fewest = min(dead.values())
        return [c for key, members in kinds.items() if dead[key] == fewest for c in members]

    def _dead(self, plan: GrowthPlan, guesses: Sequence[Guess], chosen: Readings) -> int:
        """How many entries have no gradient at any of the first steps, though the inputs do reach
        what they belong to."""
        grown = self._all_grown(plan, guesses, chosen)
        tree = self._built(plan, guesses, chosen, grown)
        parameters = _blueprint(guesses, chosen).parameters(tree, plan.target)
        dims = [parameters[leaf.path].rule.dims for leaf in pytrees.arrays(tree)]
        leaves, treedef = jax.tree.flatten(tree)
        alive = [np.zeros(np.shape(leaf), bool) for leaf in leaves]
        for _ in range(_STEPS):
            gradient = jax.tree.leaves(
                self._gradient(plan.target)(jax.tree.unflatten(treedef, leaves))
            )
            slopes = [np.asarray(slope, np.float64) for slope in gradient]
            small = [trainability.ROUNDING * np.abs(slope).max(initial=0) for slope in slopes]
            alive = [a | (np.abs(g) > s) for a, g, s in zip(alive, slopes, small, strict=True)]
            leaves = [leaf - 1e-3 * np.sign(g) for leaf, g in zip(leaves, slopes, strict=True)]
        pairs = zip(alive, dims, strict=True)
        return sum(int((trainability.reached(a, names) & ~a).sum()) for a, names in pairs)

    @functools.cache  # noqa: B019 (a model lives as long as its trial)
    def _gradient(self, architecture: Architecture) -> Callable[[Params], Params]:
        """That of some loss of the output."""
        wanted = np.random.default_rng(1).standard_normal(self._before.shape)

        def loss(params: Params) -> jax.Array:
            return ((self._apply(architecture, params, self._inputs) - wanted) ** 2).mean()

        return jax.jit(jax.grad(loss))

    def _all_grown(
        self, plan: GrowthPlan, guesses: Sequence[Guess], chosen: Readings
    ) -> list[tuple[bytes, Mapping[str, np.ndarray]]]:
        pairs = zip(guesses, chosen, strict=True)
        return [self._grown(plan, guess, reading) for guess, reading in pairs]

    @functools.cache  # noqa: B019
    def _grown(
        self, plan: GrowthPlan, guess: Guess, reading: Reading
    ) -> tuple[bytes, Mapping[str, np.ndarray]]:
        """The arrays of one kind, grown as a reading says, by name; and all their bits."""
        rules = Blueprint(((guess.path, reading.role, reading.axes),))
        arrays = {path: self._arrays[path] for path, _ in guess.kind.shapes}
        try:
            account = source_account(arrays, plan, rules)
        except BlueprintError as error:
            raise NotRunError(str(error)) from error
        grown = {}
        for array in account:
            olds = {name: arrays[name] for name, _ in array.sources}
            grown[array.name] = fold(
                array, olds, functools.partial(_write_random, array.name), dtype=np.dtype("float64")
            )
        bits = b"".join(value.tobytes() for value in grown.values())
        return bits, grown

    def _built(
        self,
        plan: GrowthPlan,
        guesses: Sequence[Guess],
        chosen: Readings,
        grown: Sequence[tuple[bytes, Mapping[str, np.ndarray]]],
    ) -> Params:
        arrays = {name: array for _, kind in grown for name, array in kind.items()}
        account = source_account(self._tree, plan, _blueprint(guesses, chosen))
        return build(account, self._tree, lambda array: arrays[array.name])

    def _run(self, architecture: Architecture, tree: Params) -> np.ndarray:
        try:
            return np.asarray(_program(self._apply, architecture)(tree, self._inputs), np.float64)
        except Exception as error:  # of a model that nobody here wrote, at a size it may not have
            if architecture == self.architecture:
                raise
            raise NotRunError(f"{type(error).__name__}: {str(error)[:200]}") from error

    def _difference(self, after: np.ndarray) -> float:
        if after.shape != self._before.shape or not np.isfinite(after).all():
            return math.inf
        return float(np.abs(after - self._before).max() / np.abs(self._before).max())


@functools.lru_cache(maxsize=64)
def _program(apply: Apply, architecture: Architecture) -> Any:
    return jax.jit(functools.partial(apply, architecture))


def _blueprint(guesses: Sequence[Guess], chosen: Readings) -> Blueprint:
    return Blueprint(tuple((g.path, r.role, r.axes) for g, r in zip(guesses, chosen, strict=True)))


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and jnp.issubdtype(leaf.dtype, jnp.floating)


def _random_like(random: np.random.Generator, leaf: Any) -> Any:
    if not _is_array(leaf):
        return leaf
    spread = 0.5 if max(leaf.shape, default=1) <= 64 else 4 / max(leaf.shape) ** 0.5
    return spread * random.standard_normal(leaf.shape)


def _write_random(name: str, number: int, block: Block, into: np.ndarray) -> None:
    """Random numbers that depend on nothing but which entries they are."""
    where = [entries.start for entries in block.target]
    random = np.random.default_rng([zlib.crc32(name.encode()), number, *where])
    into[...] = 0.5 * random.standard_normal(into.shape)
