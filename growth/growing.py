"""`grow`: grows anybody's model, proves it on a batch and carries the optimizer, in one call."""

import dataclasses
from collections.abc import Callable

import jax
import optax

from growth.blueprints.blueprint import Blueprint
from growth.certification.certificate import Certificate
from growth.certification.certification import Apply, certify
from growth.errors import InputError
from growth.expansion.initialization import InitPolicyLike
from growth.expansion.parameters import expand
from growth.optimizer.state_expansion import expand_optimizer_state
from growth.rules.growth_plan import GrowthPlan
from growth.types import Inputs, OptState, Params


@dataclasses.dataclass(frozen=True, eq=False)
class Grown:
    """What a growth step made.

    Attributes:
      params: parameters of `plan.target`.
      opt_state: the optimizer's state for them; None where none was given.
      certificate: what running both models showed; it has passed.

    Examples:
      >>> import growth, jax
      >>> from growth import models
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> params = models.initial_parameters(small, jax.random.key(0))
      >>> grown = growth.grow(
      ...     params, growth.mlp_expansion(24)(small), apply=models.apply, key=jax.random.key(1),
      ...     batch=jax.numpy.arange(8)[None], check_gradients=False,
      ... )
      >>> grown.certificate.preservation["float64"].max_error < 1e-12, grown.opt_state
      (True, None)

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, section 3.
    """

    params: Params
    opt_state: OptState
    certificate: Certificate


def grow(
    params: Params,
    plan: GrowthPlan,
    *,
    apply: Apply,
    batch: Inputs,
    blueprint: Blueprint | None = None,
    key: jax.Array | None = None,
    fresh: Params = None,
    init: InitPolicyLike = "fresh",
    loss: Callable[[Params], jax.Array] | None = None,
    tx: optax.GradientTransformation | None = None,
    opt_state: OptState = None,
    moments: str = "zeros",
    check_gradients: bool = True,
) -> Grown:
    """Grows a model, runs it before and after, and refuses what changed its function.

    A blueprint and an architecture say what a model computes; whether that is so, only the model
    can show. This is `expand`, `certify` and `expand_optimizer_state` in one, for one's own loop.

    Args:
      params: parameters of `plan.source`, any pytree of arrays.
      plan: the growth step.
      apply: (architecture, parameters, batch) to logits [..., vocab].
      batch: what `apply` takes; many and various tokens reach more of the network.
      blueprint, key, fresh, init: as for `expand`.
      loss: parameters of `plan.target` to a number; as for `certify`, and for "gradmax".
      tx: the optimizer.
      opt_state: its state; None where it has none yet.
      moments: how second moments of new entries begin: "zeros" or "mean".
      check_gradients: whether it is looked at, too, that every new entry can learn: that takes
        three gradients in float64.

    Raises:
      CertificateError: the function would change, or new entries could not learn. The message says
        what is broken, and what would explain it.
      BlueprintError, OptimizerStateError, InputError: as for `expand` and `expand_optimizer_state`.

    Examples:
      >>> import growth, jax, optax
      >>> from growth import models
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> params = models.initial_parameters(small, jax.random.key(0))
      >>> tx = optax.adam(1e-3)
      >>> grown = growth.grow(
      ...     params, growth.mlp_expansion(24)(small), apply=models.apply, key=jax.random.key(1),
      ...     batch=jax.numpy.arange(8)[None], tx=tx, opt_state=tx.init(params),
      ...     check_gradients=False,
      ... )
      >>> grown.certificate.passed
      True

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, section 3.
    """
    if opt_state is not None and tx is None:
        raise InputError("tx is None, but opt_state is given: say which optimizer it is a state of")
    larger = expand(params, plan, key=key, blueprint=blueprint, fresh=fresh, init=init, loss=loss)
    certificate = certify(
        params,
        plan,
        grown=larger,
        apply=apply,
        batch=batch,
        blueprint=blueprint,
        loss=loss,
        check_gradients=check_gradients,
    )
    certificate.require()
    if opt_state is not None:
        assert tx is not None
        opt_state = expand_optimizer_state(
            opt_state,
            plan,
            tx=tx,
            params=params,
            grown=larger,
            blueprint=blueprint,
            moments=moments,
        )
    return Grown(larger, opt_state, certificate)
