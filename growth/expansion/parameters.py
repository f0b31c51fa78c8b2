"""`expand`: carries parameters of one architecture to a larger one."""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from growth.blueprints.blueprint import Blueprint
from growth.blueprints.notation import BlueprintError
from growth.blueprints.reference import blueprint_for, reference_model
from growth.errors import InputError
from growth.expansion.accounts import TreeAccount, source_account
from growth.expansion.blocks import Kind
from growth.expansion.gradmax import maximize_first_gradient
from growth.expansion.init_values import by_policy, copies, from_arrays
from growth.expansion.initialization import (
    Copy,
    Fresh,
    GradMax,
    InitMethod,
    InitPolicy,
    InitPolicyLike,
    init_policy,
)
from growth.expansion.jax_backend import InitValues, assemble, slice_region
from growth.expansion.waking import may_sleep, wake
from growth.rules.axes import BY_NAME
from growth.rules.growth_plan import GrowthPlan
from growth.rules.roles import FACES_ZERO
from growth.types import Params


def expand(
    params: Params,
    plan: GrowthPlan,
    *,
    key: jax.Array | None = None,
    blueprint: Blueprint | None = None,
    fresh: Params = None,
    init: InitPolicyLike = "fresh",
    loss: Callable[[Params], jax.Array] | None = None,
) -> Params:
    """Carries parameters to the larger architecture of a plan; the function stays the same.

    The result has the structure of `params` (or of `fresh`), and the dtype of each array. Old
    entries that are multiplied are multiplied in float32 (float64 if they are float64) and rounded
    once. Pure, and compatible with `jax.jit` (`plan`, `blueprint` and `init` are static),
    `jax.eval_shape` and `out_shardings`.

    Args:
      params: parameters of `plan.source`, any pytree of arrays.
      plan: the growth step.
      key: a PRNG key for free values. Needed to copy, and where `fresh` is not given.
      blueprint: what the parameters are. None means the reference model, `growth.models`.
      fresh: the model's freshly initialized parameters at `plan.target`. None: what the reference
        model's initializer makes of `key`.
      init: what new entries are where any value keeps the function: "fresh", "copy" (also
        "copy:20", with the signal-to-noise ratio), "gradmax", or a mapping that says it for each
        transformation or role; see `growth.expansion.initialization`.
      loss: parameters of `plan.target` to a number, the loss of one batch. Needed for "gradmax";
        where units of a ReLU are copied, copies of those that are never active in it are turned.

    Raises:
      BlueprintError: the blueprint does not fit the tree, or `fresh` does not fit the target.
      InputError: `key`, `fresh` or `loss` is needed and was not given, `init` says nothing known,
        or values of `fresh`, or what would be copied, are zero where they would never learn.

    Examples:
      >>> import growth, jax
      >>> from growth import models
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> params = models.initial_parameters(small, jax.random.key(0))
      >>> plan = growth.grow_to(embed_dim=12, num_layers=3)(small)
      >>> grown = growth.expand(params, plan, key=jax.random.key(1))
      >>> tokens = jax.numpy.arange(8)[None]
      >>> before = models.apply(small, params, tokens)
      >>> after = models.apply(plan.target, grown, tokens)
      >>> bool(abs(after - before).max() < 1e-5 * abs(before).max())
      True

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, section 3 and table 1.
      "gradmax": Evci et al., arXiv 2201.05125.
    """
    policy = init_policy(init)
    _check_arguments(key, blueprint, fresh, loss, policy)
    rules = blueprint_for(plan.source, blueprint)
    account = source_account(params, plan, rules)
    _check_axes(plan, rules)
    if fresh is not None:
        account.of_target(fresh)  # of the paths and shapes that the parameters will have
        if not _is_traced((params, fresh)):
            _refuse_zeros(_zeros(fresh, account), "fresh is zero")
    grown = _expand(params, fresh, key, account, policy)
    if policy.needs(Copy) and not _is_traced(grown):
        _refuse_zeros(_zeros(grown, account), "what would be copied is zero")
    if loss is not None and may_sleep(plan.source, policy):
        grown = wake(account, params, grown, loss, policy)
    if policy.needs(GradMax):
        assert loss is not None
        grown = maximize_first_gradient(account, params, grown, loss, policy)
    return grown


@functools.partial(jax.jit, static_argnames=("account", "policy"))
def _expand(
    params: Params,
    fresh: Params,
    key: jax.Array | None,
    account: TreeAccount,
    policy: InitPolicy,
) -> Params:
    values = _init_values(params, fresh, key, account, policy)
    return assemble(account, params, values, like=fresh)


def _init_values(
    params: Params,
    fresh: Params,
    key: jax.Array | None,
    account: TreeAccount,
    policy: InitPolicy,
) -> InitValues:
    """The free values that the arguments of `expand` ask for; see there."""
    values: dict[InitMethod, InitValues] = {}
    for method in policy.methods:
        if isinstance(method, Copy):
            assert key is not None
            arrays = account.of_source(params)
            ratio = method.signal_to_noise
            values[method] = copies(account, arrays, key=key, signal_to_noise=ratio)
            continue
        if fresh is None:
            assert key is not None
            fresh = reference_model().initial_parameters(account.plan.target, key)
        values[method] = from_arrays(account.of_target(fresh))
    return by_policy(policy, values)


def _check_arguments(
    key: jax.Array | None,
    blueprint: Blueprint | None,
    fresh: Params,
    loss: Callable[[Params], jax.Array] | None,
    policy: InitPolicy,
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


def _check_axes(plan: GrowthPlan, blueprint: Blueprint) -> None:
    """Refuses to grow what no array would have: the model would be left as it is there."""
    fields = {BY_NAME[name].field for name in blueprint.axes & {*BY_NAME}}
    for axis in map(BY_NAME.__getitem__, plan.grown_axes):
        if axis.field not in fields:
            raise BlueprintError(
                f"the plan grows {axis.field}, but no rule of the blueprint names the axis "
                f"{axis.name!r} ({axis.words}), so nothing would grow along it"
            )


@functools.partial(jax.jit, static_argnames=("account",))
def _zeros(fresh: Params, account: TreeAccount) -> dict[str, jax.Array]:
    """Whether the free side of a product is zero, by path and axis, where its other side is."""
    arrays = account.of_target(fresh)
    found: dict[str, jax.Array] = {}
    for array in account:
        values = array.layout.split(jnp.asarray(arrays[array.name]))
        for view, blocks, given in zip(array.layout.views, array.blocks, values, strict=True):
            axes = FACES_ZERO.get(view.role, ()) if "embed" in view.axes else ()
            for block in blocks:
                if block.kind is Kind.FREE and block.axis in axes:
                    is_zero = ~jnp.any(slice_region(given, block.target))
                    place = f"{array.target.path}, new along {block.axis}"
                    # Segments of an array may be new by themselves: none of them may be zero.
                    found[place] = found.get(place, False) | is_zero
    return found


def _refuse_zeros(found: Mapping[str, jax.Array], what: str) -> None:
    zero = [place for place, is_zero in jax.device_get(found).items() if is_zero]
    if zero:
        raise InputError(
            f"{what} in {'; '.join(zero)}: what that is multiplied with is zero already, "
            f"and neither would ever get a gradient"
        )


def _is_traced(tree: Params) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))
