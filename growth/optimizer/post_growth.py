"""How new entries join: corrected by their own age, and at a rate that rises.

Both are optax transformations that know the growth steps of a run. They store a count, and no array
of the parameters' size: what is new follows from shapes.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from growth.blueprints.blueprint import Blueprint
from growth.blueprints.reference import blueprint_for
from growth.errors import InputError
from growth.optimizer import entry_age
from growth.rules.growth_plan import GrowthPlan
from growth.types import Params, ParamsLike


@dataclasses.dataclass(frozen=True)
class Rewarming:
    """A lower learning rate after growth.

    Attributes:
      steps: for how many steps.
      start: the share of the rate that it begins with.
      shape: "linear": the share rises to 1 over these steps; "constant": it stays as long.
      entries: "all", or "new": for the entries that this growth has added.

    Raises:
      InputError: a field is out of range; the message names it.

    Examples:
      >>> from growth.optimizer import Rewarming
      >>> [float(Rewarming(steps=4).share(age)) for age in (1, 2, 4, 100)]
      [0.25, 0.5, 1.0, 1.0]

    References:
      docs/moments.md measures what happens without it: a spike of 2 to 42 % in the loss.
    """

    steps: int
    start: float = 0.0
    shape: str = "linear"
    entries: str = "all"

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise InputError(f"rewarming steps is {self.steps!r}, but it must be at least 1")
        number = isinstance(self.start, int | float) and not isinstance(self.start, bool)
        if not number or not 0 <= self.start <= 1:
            raise InputError(f"rewarming start is {self.start!r}, but it must be from 0 to 1")
        for name, words in (("shape", ("linear", "constant")), ("entries", ("all", "new"))):
            if getattr(self, name) not in words:
                raise InputError(
                    f"rewarming {name} is {getattr(self, name)!r}, but it must be one of "
                    f"{', '.join(words)}"
                )

    def share(self, age: jax.Array) -> jax.Array:
        """The share of the learning rate in step number `age` after growth, the first being 1."""
        if self.shape == "constant":
            return jnp.where(age > self.steps, 1.0, self.start)
        # A step learns at the rate of its end, so that the first one does learn.
        return self.start + (1 - self.start) * jnp.minimum(age / self.steps, 1.0)


@dataclasses.dataclass(frozen=True)
class GrowthEvent:
    """A growth step of a run.

    Attributes:
      step: how many steps of training came before it.
      plan: the growth step.
      by_age: whether Adam's bias correction of new entries goes by their own age.
      rewarming: how the learning rate rises after it; None: not at all.

    Examples:
      >>> import growth
      >>> from growth.optimizer import GrowthEvent, Rewarming
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> event = GrowthEvent(300, growth.mlp_expansion(24)(small), rewarming=Rewarming(100))
      >>> print(event.plan)
      mlp_dim 16 → 24

    References:
      `growth.optimizer.correct_by_age` and `growth.optimizer.rewarm`, which are given them.
    """

    step: int
    plan: GrowthPlan
    by_age: bool = False
    rewarming: Rewarming | None = None


class ScaleByAgeState(NamedTuple):
    """Counts steps.

    Attributes:
      steps: updates made, int32 [].
    """

    steps: jax.Array


def correct_by_age(
    events: Sequence[GrowthEvent], *, b1: float, b2: float, blueprint: Blueprint | None = None
) -> optax.GradientTransformation:
    """Corrects Adam's updates of new entries by their own age; to stand right behind Adam.

    Adam divides its moments by 1 − β^t, since they begin at zero at t = 0 (Kingma & Ba, arXiv
    1412.6980, section 3). Those of an entry that was added after s steps begin at t = s, and want
    1 − β^(t − s). Without it, a first update has (1 − β₁)/√(1 − β₂) times the size of the first
    update of all.

    Args:
      events: the growth steps of the run; those with `by_age` are corrected.
      b1, b2: Adam's.
      blueprint: as for `growth.expand`.

    Examples:
      >>> import growth, jax, optax
      >>> from growth import models
      >>> from growth.optimizer import GrowthEvent, correct_by_age
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> plan = growth.mlp_expansion(24)(small)
      >>> event = GrowthEvent(300, plan, by_age=True)
      >>> tx = optax.chain(optax.scale_by_adam(), correct_by_age([event], b1=0.9, b2=0.999))
      >>> params = models.initial_parameters(plan.target, jax.random.key(0))
      >>> updates, state = tx.update(params, tx.init(params))
      >>> sum(leaf.size for leaf in jax.tree.leaves(state[-1]))  # a count, and no mask
      1

    References:
      Kingma and Ba, Adam, arXiv 1412.6980, section 3.
    """

    def factor(event: GrowthEvent, steps: jax.Array, is_new: jax.Array) -> jax.Array:
        def ratio(beta: float) -> jax.Array:
            before, own = (beta ** n.astype(jnp.float32) for n in (steps, steps - event.step))
            return (1 - before) / (1 - own)

        return jnp.where(is_new, ratio(b1) * jax.lax.rsqrt(ratio(b2)), 1.0)

    return _scale_new([e for e in events if e.by_age], events, factor, blueprint)


def rewarm(
    events: Sequence[GrowthEvent], *, blueprint: Blueprint | None = None
) -> optax.GradientTransformation:
    """Lets the learning rate rise after growth, as events say; to stand behind everything.

    Args:
      events: the growth steps of the run.
      blueprint: as for `growth.expand`.

    Examples:
      >>> import growth, jax, optax
      >>> from growth import models
      >>> from growth.optimizer import GrowthEvent, Rewarming, rewarm
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> plan = growth.mlp_expansion(24)(small)
      >>> event = GrowthEvent(300, plan, rewarming=Rewarming(100))
      >>> tx = optax.chain(optax.adam(1e-3), rewarm([event]))
      >>> params = models.initial_parameters(plan.target, jax.random.key(0))
      >>> updates, state = tx.update(params, tx.init(params))
      >>> sum(leaf.size for leaf in jax.tree.leaves(state[-1]))  # a count, and no mask
      1

    References:
      docs/moments.md compares it with other ways for new entries to join.
    """

    def factor(event: GrowthEvent, steps: jax.Array, is_new: jax.Array) -> jax.Array:
        assert event.rewarming is not None
        share = event.rewarming.share(steps - event.step)
        return share if event.rewarming.entries == "all" else jnp.where(is_new, share, 1.0)

    return _scale_new([e for e in events if e.rewarming], events, factor, blueprint)


def _scale_new(
    chosen: Sequence[GrowthEvent],
    events: Sequence[GrowthEvent],
    factor: Callable[[GrowthEvent, jax.Array, jax.Array], jax.Array],
    blueprint: Blueprint | None,
) -> optax.GradientTransformation:
    """Multiplies updates of what some events have added.

    The state is the same whatever the events, so that a run may go on with others.
    """
    plans = [event.plan for event in events]
    blueprints: list[Blueprint] = []
    if chosen:
        architectures = [plans[0].source, *(plan.target for plan in plans)]
        blueprints = [blueprint_for(architecture, blueprint) for architecture in architectures]

    def update(
        updates: ParamsLike, state: ScaleByAgeState, params: Params = None
    ) -> tuple[ParamsLike, ScaleByAgeState]:
        steps = state.steps + 1
        past = entry_age.number_of_steps(updates, plans, blueprints) if chosen else 0
        acting = [n for n, event in enumerate(events[:past]) if event in chosen]
        is_new = [
            entry_age.added_by(updates, plans[:past], n, blueprint=blueprints[past]) for n in acting
        ]

        def scaled(update: jax.Array, *masks: jax.Array) -> jax.Array:
            by = jnp.ones(())
            for number, mask in zip(acting, masks, strict=True):
                by = by * factor(events[number], steps, mask)
            return (update * by).astype(update.dtype)

        if acting:
            updates = jax.tree.map(scaled, updates, *is_new)
        return updates, ScaleByAgeState(steps)

    return optax.GradientTransformation(
        lambda params: ScaleByAgeState(jnp.zeros((), jnp.int32)), update
    )
