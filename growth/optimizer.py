"""Optimizer states grow with the parameters.

For a weight that is multiplied by c, Ŵ = c·W, the gradient is divided by c. So each field of an
optimizer state has a degree: its values are multiplied by c ** degree. Parameters, and all that is
shaped and valued like them, have degree 1, what is linear in gradients −1, their squares −2.
One table says the degrees; a state that it does not know is refused, never guessed.

A moment of a new entry starts at zero.

The degrees are those of moments of gradients. Where an optimizer keeps something else in a state of
the same type (`adamax`, `adopt`, a trace behind Adam), they do not hold. Under LayerNorm the new
dimensions change the gradients of what writes to the stream, so that its moments are approximate.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
from optax import contrib

from growth.assembly import by_name, grow
from growth.blueprint import Blueprint
from growth.errors import InputError
from growth.expand import blueprint_for
from growth.planning import GrowthPlan
from growth.sources import FreeValues, from_tree, zeros

PARAMETER = 1
GRADIENT = -1
SQUARED_GRADIENT = -2
KEEP = "keep"  # not shaped like the parameters: a count, a rate
STATE = "state"  # an optimizer state itself

FIELDS: dict[type, Mapping[str, int | str]] = {
    optax.EmptyState: {},
    optax.MaskedState: {"inner_state": STATE},
    optax.ScaleByAdamState: {"count": KEEP, "mu": GRADIENT, "nu": SQUARED_GRADIENT},
    optax.ScaleByLionState: {"count": KEEP, "mu": GRADIENT},
    optax.ScaleByScheduleState: {"count": KEEP},
    optax.TraceState: {"trace": GRADIENT},
    contrib.ScheduleFreeState: {
        "b1": KEEP,
        "weight_sum": KEEP,
        "step_count": KEEP,
        "max_lr": KEEP,
        "base_optimizer_state": STATE,
        "z": PARAMETER,
    },
}


class OptimizerStateError(InputError):
    """An optimizer state cannot be grown; the message names its type or the leaf."""


def expand_optimizer_state(
    tx: optax.GradientTransformation,
    opt_state: Any,
    plan: GrowthPlan,
    params: Any,
    blueprint: Blueprint | None = None,
) -> Any:
    """Carries the state of an optimizer to the larger architecture of a plan.

    Moments keep their dtype and counts their value. Moments of new entries are zero. Leaves that
    are valued like parameters (degree 1) get the very values that new parameters have.

    Args:
      tx: the optimizer that `opt_state` belongs to.
      opt_state: its state for parameters of `plan.source`.
      plan: the growth step.
      params: the grown parameters, as `growth.expand` made them.
      blueprint: as for `growth.expand`.

    Raises:
      OptimizerStateError: a part of the state is of a type that is not known.
      BlueprintError: the blueprint does not fit the moments.
    """
    _check_degrees(tx, opt_state)
    return _expand(opt_state, params, plan, blueprint_for(plan, blueprint))


@functools.partial(jax.jit, static_argnames=("plan", "blueprint"))
def _expand(opt_state: Any, params: Any, plan: GrowthPlan, blueprint: Blueprint) -> Any:
    def grown(tree: Any, degree: int) -> Any:
        new_entries: FreeValues = zeros
        if degree == PARAMETER:
            new_entries = from_tree(by_name(params, blueprint, plan.target), plan)
        return grow(tree, plan, blueprint, new_entries, degree, like=params)

    return _map_state(opt_state, grown)


def degrees(opt_state: Any) -> Any:
    """The degree of every leaf of an optimizer state, in its structure; 0 where it is kept."""
    keep = functools.partial(jax.tree.map, lambda _: 0)
    return _map_state(opt_state, lambda tree, d: jax.tree.map(lambda _: d, tree), keep)


def _map_state(
    state: Any, grown: Callable[[Any, int], Any], kept: Callable[[Any], Any] = lambda x: x
) -> Any:
    """Maps each tree in a state that is shaped like the parameters, given its degree."""

    def field(value: Any, kind: int | str) -> Any:
        if kind == STATE:
            return _map_state(value, grown, kept)
        return kept(value) if isinstance(kind, str) else grown(value, kind)

    if type(state) in FIELDS:
        kinds = FIELDS[type(state)]
        values = {name: field(getattr(state, name), kind) for name, kind in kinds.items()}
        return type(state)(**values)
    if type(state) in (tuple, list):
        return type(state)(_map_state(part, grown, kept) for part in state)
    if isinstance(state, Mapping):
        return type(state)({n: _map_state(s, grown, kept) for n, s in state.items()})  # type: ignore[call-arg]
    known = ", ".join(sorted(kind.__name__ for kind in FIELDS))
    raise OptimizerStateError(
        f"the optimizer has a state of type {type(state).__name__}, whose fields growth does not "
        f"know; the known types are {known}"
    )


def _check_degrees(tx: optax.GradientTransformation, opt_state: Any) -> None:
    """Checks the table against what optax itself finds to be shaped like the parameters."""
    shaped = optax.tree.map_params(
        tx, lambda _: True, opt_state, transform_non_params=lambda _: False
    )
    table = jax.tree.leaves(degrees(opt_state))
    for (path, is_shaped), degree in zip(
        jax.tree_util.tree_leaves_with_path(shaped), table, strict=True
    ):
        if is_shaped != bool(degree):
            raise OptimizerStateError(
                f"{jax.tree_util.keystr(path)} is {'' if is_shaped else 'not '}shaped like the "
                f"parameters, which is not what growth knows of its type"
            )
