"""`expand_optimizer_state`: carries the state of an optimizer to the larger architecture."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from growth.blueprints.blueprint import Blueprint
from growth.blueprints.reference import blueprint_for
from growth.expansion.accounts import source_account
from growth.expansion.init_values import from_arrays, zeros
from growth.expansion.jax_backend import assemble
from growth.optimizer.factored_states import RULES
from growth.optimizer.groups import check_groups
from growth.optimizer.moment_init import POLICIES, with_initial_moments
from growth.optimizer.scaling_exponents import ScalingExponents, agreed_exponent, measured_exponents
from growth.optimizer.state_fields import FIELDS, KEEP, LAST, PARAMETERS, REFUSED, STATE, Field
from growth.optimizer.state_form import OptimizerStateError, by_path, in_form_of, laid_out
from growth.rules.growth_plan import GrowthPlan
from growth.types import Array, OptState, Params, ParamsLike


def expand_optimizer_state(
    opt_state: OptState,
    plan: GrowthPlan,
    *,
    tx: optax.GradientTransformation,
    params: Params,
    grown: Params,
    blueprint: Blueprint | None = None,
    moments: str = "zeros",
    gradient: ParamsLike = None,
) -> OptState:
    """Carries the state of an optimizer to the larger architecture of a plan.

    What is valued like parameters gets the very values of the grown ones. Moments of old entries
    are what the grown network's own gradients would have made of them; but where a norm over many
    gradients clips them, or is a moment itself, they are approximate, since new entries have
    gradients, too. Counts, rates and keys stay.
    The result has the structure, shapes and dtypes of `tx.init(grown)`; where the leaves of
    `opt_state` are in variables, as `nnx.Optimizer` has them, its own are, too. Pure, and
    compatible with `jax.jit`.

    Args:
      opt_state: the state of an optimizer for parameters of `plan.source`: as the optimizer has it,
        `nnx.Optimizer.opt_state`, or the lists and dicts of a checkpoint restored without a target.
      plan: the growth step.
      tx: the optimizer.
      params: the parameters of `plan.source`.
      grown: what `growth.expand` made of them.
      blueprint: as for `growth.expand`.
      moments: how second moments of new entries begin: "zeros" as `tx.init` has them, "mean" as the
        mean of the old ones of their array, or "probe" as the square of `gradient`, and as the mean
        where that is zero. First moments begin as `tx.init` has them.
      gradient: for "probe": the gradient of one batch at the grown parameters.

    Raises:
      OptimizerStateError: a part of the state is of a type that is not known or cannot be carried;
        the state is not one of the given parameters; or a mask or a partition has a parameter in
        another group once it is larger. The message names the leaf.
      BlueprintError: the blueprint does not fit the moments.

    Examples:
      >>> import growth, jax
      >>> from growth import models
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> params = models.initial_parameters(small, jax.random.key(0))
      >>> import optax
      >>> plan = growth.mlp_expansion(24)(small)
      >>> grown = growth.expand(params, plan, key=jax.random.key(1))
      >>> tx = optax.adam(1e-3)
      >>> state = growth.expand_optimizer_state(
      ...     tx.init(params), plan, tx=tx, params=params, grown=grown
      ... )
      >>> jax.tree.map(jax.numpy.shape, state) == jax.tree.map(jax.numpy.shape, tx.init(grown))
      True

    References:
      Adam: Kingma and Ba, arXiv 1412.6980, algorithm 1. For a weight that is multiplied by c, the
      chain rule divides its gradient by c; docs/moments.md compares how moments begin.
    """
    if moments not in POLICIES or (moments == "probe") != (gradient is not None):
        raise OptimizerStateError(
            f"moments is {moments!r}, but it must be one of {', '.join(POLICIES)}, with a gradient "
            f"for 'probe' and for that alone"
        )
    before, begun = _begun(tx, params), _begun(tx, grown)
    _refuse_unknown(before)
    state = laid_out(opt_state, before, "the state is not one of the given parameters")
    blueprint = blueprint_for(plan.source, blueprint)
    fast = isinstance(params, optax.LookaheadParams)
    small, large = (params.fast, grown.fast) if fast else (params, grown)
    check_groups(before, begun, small, large, source_account(small, plan, blueprint))
    exponents = measured_exponents(tx, params)
    result = _expand(tx, state, params, grown, gradient, plan, blueprint, exponents, moments)
    laid_out(result, begun, "growth cannot carry what the optimizer keeps there")
    return in_form_of(opt_state, result, before)


@functools.partial(jax.jit, static_argnames=("tx", "plan", "blueprint", "exponents", "moments"))
def _expand(
    tx: optax.GradientTransformation,
    opt_state: OptState,
    params: Params,
    grown: Params,
    gradient: ParamsLike,
    plan: GrowthPlan,
    blueprint: Blueprint,
    exponents: ScalingExponents,
    moments: str,
) -> OptState:
    expander = StateExpander(params, grown, gradient, plan, blueprint, moments)
    return expander.state(opt_state, tx.init(params), tx.init(grown), exponents.tree)


@dataclasses.dataclass(frozen=True, eq=False)
class StateExpander:
    """Carries a state part by part, beside those that parameters begin with, small and large."""

    params: Params
    grown: Params
    gradient: ParamsLike
    plan: GrowthPlan
    blueprint: Blueprint
    policy: str

    def state(
        self, state: OptState, before: OptState, begun: OptState, exponents: OptState
    ) -> OptState:
        """The state, larger; `before` and `begun` are what `tx.init` gives, small and large."""
        four = (state, before, begun, exponents)
        kind = type(state)
        if kind in RULES:
            return RULES[kind](*four, self)
        if kind is optax.LookaheadState:
            fast = dataclasses.replace(self, params=self.params.fast, grown=self.grown.fast)
            return fast.fields(*four)
        if kind in FIELDS:
            return self.fields(*four)
        if isinstance(state, Mapping):
            return kind({name: self.state(*(part[name] for part in four)) for name in state})
        if state is None:
            return None
        return kind(self.state(*parts) for parts in zip(*four, strict=True))

    def fields(
        self, state: OptState, before: OptState, begun: OptState, exponents: OptState
    ) -> OptState:
        """A state whose fields the table knows."""

        def grown(name: str, field: Field) -> ParamsLike | OptState:
            old, first, begins, powers = (
                getattr(part, name) for part in (state, before, begun, exponents)
            )
            if field == KEEP:
                return old
            if field == STATE:
                return self.state(old, first, begins, powers)
            if field == PARAMETERS:
                return self.parameters(old, begins)
            if field == LAST:
                same = jax.tree.map(jnp.shape, old) == jax.tree.map(jnp.shape, begins)
                return old if same else begins
            assert isinstance(field, int)
            return self.moments(old, first, begins, agreed_exponent(powers, field, self.params))

        fields = FIELDS[type(state)]
        return type(state)(**{name: grown(name, field) for name, field in fields.items()})

    def parameters(self, tree: ParamsLike, begun: ParamsLike) -> ParamsLike:
        """A tree that is valued like parameters."""
        account = source_account(tree, self.plan, self.blueprint)
        values = from_arrays(self._grown_arrays)
        larger = assemble(account, tree, values, like=begun)
        return _laid_over(begun, larger, lambda new, _: new)

    def moments(
        self, tree: ParamsLike, before: ParamsLike, begun: ParamsLike, exponent: int
    ) -> ParamsLike:
        """A tree of moments: what has gathered since they began grows, from what they begin as."""
        account = source_account(tree, self.plan, self.blueprint)
        gathered = jax.tree.map(jnp.subtract, tree, before)
        larger = assemble(account, gathered, zeros, exponent=exponent, like=begun)
        larger = _laid_over(begun, larger, jnp.add)
        if self.policy == "zeros" or exponent != -2:
            return larger
        return with_initial_moments(larger, account, self.gradient)

    @functools.cached_property
    def _grown_arrays(self) -> dict[str, Array]:
        """The grown parameters by name."""
        account = source_account(self.params, self.plan, self.blueprint)
        return account.of_target(self.grown)


def _laid_over(
    begun: ParamsLike, larger: ParamsLike, combine: Callable[[Array, Array], Array]
) -> ParamsLike:
    """What an optimizer begins with, combined with what has grown.

    A new layer is modelled on another, but may be in another group of the optimizer than that: then
    one of the two has nothing of it, and what the optimizer begins with stays.
    """
    grown = by_path(larger)
    values = [
        combine(grown[path].value, leaf.value) if path in grown else leaf.value
        for path, leaf in by_path(begun).items()
    ]
    return jax.tree.unflatten(jax.tree.structure(begun), values)


def _refuse_unknown(state: OptState) -> None:
    """Refuses a state that has a part of a type that no table knows."""
    kind = type(state)
    if kind in REFUSED:
        raise OptimizerStateError(f"a {kind.__name__} cannot grow: {REFUSED[kind]}")
    if kind in RULES or state is None:
        return
    if kind in FIELDS:
        for name, field in FIELDS[kind].items():
            if field == STATE:
                _refuse_unknown(getattr(state, name))
    elif isinstance(state, Mapping):
        for part in state.values():
            _refuse_unknown(part)
    elif isinstance(state, tuple | list) and not hasattr(state, "_fields"):
        for part in state:
            _refuse_unknown(part)
    else:
        raise OptimizerStateError(
            f"the optimizer has a state of type {kind.__name__}, whose fields growth does not "
            f"know: say what they are with growth.register_optimizer_state"
        )


def _begun(tx: optax.GradientTransformation, params: Params) -> OptState:
    """The shapes of the state that parameters begin with."""
    try:
        return jax.eval_shape(tx.init, params)
    except (ValueError, TypeError, KeyError) as error:
        raise OptimizerStateError(
            "the optimizer cannot begin with these parameters. If a mask or labels are a tree, "
            "they fit one size only: give a function from parameters to that tree instead, as in "
            f"optax.masked(tx, lambda params: ...). The error was: {error}"
        ) from error
