"""`expand`: carries parameters of one architecture to a larger one."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from growth.blueprints.blueprint import Blueprint
from growth.blueprints.reference import blueprint_for, reference_model
from growth.errors import InputError
from growth.expansion import init_values
from growth.expansion.gradmax import gradmax
from growth.expansion.init_values import FreeValues
from growth.expansion.initialization import (
    Copy,
    Fresh,
    GradMax,
    InitMethod,
    InitPolicy,
    init_policy,
)
from growth.expansion.jax_backend import by_name, grow
from growth.expansion.role_views import Section
from growth.expansion.segments import Piece
from growth.rules.growth_plan import GrowthPlan
from growth.rules.roles import FACES_ZERO


def expand(
    tree: Any,
    plan: GrowthPlan,
    *,
    key: jax.Array | None = None,
    blueprint: Blueprint | None = None,
    fresh: Any = None,
    init: Any = "fresh",
    loss: Callable[[Any], jax.Array] | None = None,
) -> Any:
    """Carries parameters to the larger architecture of a plan; the function stays the same.

    The result has the structure of `tree` (or of `fresh`), and the dtype of each array. Old entries
    that are multiplied are multiplied in float32 (float64 if they are float64) and rounded once.
    Pure, and compatible with `jax.jit` (`plan`, `blueprint` and `init` are static),
    `jax.eval_shape` and `out_shardings`.

    Args:
      tree: parameters of `plan.source`, any pytree of arrays.
      plan: the growth step.
      key: a PRNG key for free values. Needed to copy, and where `fresh` is not given.
      blueprint: what the parameters are. None means the reference model, `growth.models`.
      fresh: the model's freshly initialized parameters at `plan.target`. None: what the reference
        model's initializer makes of `key`.
      init: what new entries are where any value keeps the function: "fresh", "copy" (also
        "copy:20", with the signal-to-noise ratio), "gradmax", or a mapping that says it for each
        transformation or role; see `growth.expansion.initialization`.
      loss: parameters of `plan.target` to a number, the loss of one batch, for "gradmax".

    Raises:
      BlueprintError: the blueprint does not fit the tree, or `fresh` does not fit the target.
      InputError: `key`, `fresh` or `loss` is needed and was not given, `init` says nothing known,
        or values of `fresh` are zero where they would never learn.
    """
    policy = init_policy(init)
    _check_free(key, blueprint, fresh, loss, policy)
    blueprint = blueprint_for(plan.source, blueprint)
    if fresh is not None and not _is_traced((tree, fresh)):
        _refuse_zeros(_zeros(tree, fresh, plan, blueprint))
    grown = _expand(tree, fresh, key, plan, blueprint, policy)
    if policy.needs(GradMax):
        assert loss is not None
        grown = gradmax(loss, tree, grown, plan, blueprint, policy)
    return grown


@functools.partial(jax.jit, static_argnames=("plan", "blueprint", "policy"))
def _expand(
    tree: Any,
    fresh: Any,
    key: jax.Array | None,
    plan: GrowthPlan,
    blueprint: Blueprint,
    policy: InitPolicy,
) -> Any:
    free = _free_values(tree, fresh, key, plan, blueprint, policy)
    return grow(tree, plan, blueprint, free, like=fresh)


def _check_free(
    key: jax.Array | None, blueprint: Blueprint | None, fresh: Any, loss: Any, policy: InitPolicy
) -> None:
    """Checks that the arguments of `expand` say where free values come from; see there."""
    initialized = policy.needs(Fresh) or policy.needs(GradMax)
    if fresh is None and blueprint is not None and initialized:
        raise InputError(
            "fresh is None, but only the reference model's initializer is known here: give the "
            "model's freshly initialized parameters at the target size, or init='copy'"
        )
    if isinstance(fresh, str):
        raise InputError(f"fresh is {fresh!r}, but it must be a tree; words go to init")
    if key is None and (policy.needs(Copy) or (fresh is None and initialized)):
        raise InputError("key is needed for free values, unless fresh is a tree of them")
    if loss is None and policy.needs(GradMax):
        raise InputError("loss is needed for gradmax: a function of the larger parameters")


@functools.partial(jax.jit, static_argnames=("plan", "blueprint"))
def _zeros(tree: Any, fresh: Any, plan: GrowthPlan, blueprint: Blueprint) -> dict[str, jax.Array]:
    """Whether the free side of a product is zero, by path and axis, where its other side is."""
    found: dict[str, jax.Array] = {}
    values = init_values.from_tree(by_name(fresh, blueprint, plan.target), plan)

    def look(pieces: Sequence[Piece], section: Section, number: int) -> jax.Array:
        given = values(pieces, section, number)
        for piece in pieces:
            for axis, starts, shape in init_values.blocks(piece, section, number, plan):
                if "embed" in section.axes and axis in FACES_ZERO.get(section.role, ()):
                    block = jax.lax.dynamic_slice(given, starts, shape)
                    place = f"{piece.target.path}, new along {axis}"
                    # Pieces of an array may be new by themselves: none of them may be zero.
                    found[place] = found.get(place, False) | ~jnp.any(block)
        return given

    grow(tree, plan, blueprint, look, like=fresh)
    return found


def _refuse_zeros(found: Mapping[str, jax.Array]) -> None:
    zero = [place for place, is_zero in jax.device_get(found).items() if is_zero]
    if zero:
        raise InputError(
            f"fresh is zero in {'; '.join(zero)}: what that is multiplied with is zero already, "
            f"and neither would ever get a gradient"
        )


def _is_traced(tree: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def _free_values(
    tree: Any,
    fresh: Any,
    key: jax.Array | None,
    plan: GrowthPlan,
    blueprint: Blueprint,
    policy: InitPolicy,
) -> FreeValues:
    """The free values that the arguments of `expand` ask for; see there."""
    values: dict[InitMethod, FreeValues] = {}
    for source in policy.methods:
        if isinstance(source, Copy):
            assert key is not None
            arrays = by_name(tree, blueprint, plan.source)
            values[source] = init_values.copies(arrays, plan, key, source.signal_to_noise)
            continue
        if fresh is None:
            assert key is not None
            fresh = reference_model().initial_parameters(plan.target, key)
        values[source] = init_values.from_tree(by_name(fresh, blueprint, plan.target), plan)
    return init_values.chosen(policy, values, plan)
