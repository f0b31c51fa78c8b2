"""What the fields of optimizer states are, and so how they grow.

For a weight that is multiplied by c, Ŵ = c·W, the gradient is divided by c. So what an optimizer
keeps has a gradient scaling exponent: it is multiplied by c ** exponent. What is valued like
parameters has the exponent 1, what is linear in gradients −1, their squares −2. A state of a type
that is not here is refused.
"""

from collections.abc import Mapping

import jax
import numpy as np
import optax
from optax import contrib

from growth.errors import InputError
from growth.optimizer.post_growth import ScaleByAgeState


def state_type(tx: optax.GradientTransformation) -> type:
    """The type of an optimizer's state: optax exports all optimizers, but not all of these."""
    return type(jax.eval_shape(tx.init, jax.ShapeDtypeStruct((1,), np.float32)))


# What a field may be. A number is the exponent of moments of gradients, where the optimizer has the
# gradients themselves before it; see `growth.optimizer.scaling_exponents`.
PARAMETERS = "parameters"  # valued like parameters: new entries get the values of those
KEEP = "keep"  # of no parameter: a count, a rate, a key
STATE = "state"  # itself a state, or a mapping of states
LAST = "last"  # of the last step only: begins anew where it has a value for each array

Field = int | str

_ADAPTED: dict[str, Field] = {"exp_avg": -1, "exp_avg_sq": -2, "grad_sum": -1}
_ESTIMATED: dict[str, Field] = {"estim_lr": KEEP, "numerator_weighted": KEEP, "count": KEEP}
_MODELLED: dict[str, Field] = {"barf": KEEP, "gamma": KEEP, "lb": KEEP, "count": KEEP}

FIELDS: dict[type, Mapping[str, Field]] = {
    # Adam and its kin.
    optax.ScaleByAdamState: {"count": KEEP, "mu": -1, "nu": -2},
    optax.ScaleByAmsgradState: {"count": KEEP, "mu": -1, "nu": -2, "nu_max": -2},
    optax.ScaleByBeliefState: {"count": KEEP, "mu": -1, "nu": -2},
    optax.ScaleByAdanState: {"m": -1, "v": -1, "n": -2, "g": -1, "t": KEEP},
    contrib.ScaleByAdemamixState: {
        "count": KEEP, "count_m2": KEEP, "m1": -1, "m2": -1, "nu": -2
    },
    contrib.ScaleBySimplifiedAdEMAMixState: {"t": KEEP, "m": -1, "n": -2},
    contrib.SophiaState: {"count": KEEP, "mu": -1, "nu": -2, "hessian_fn_state": STATE},
    contrib.HutchinsonState: {"key": KEEP},
    optax.ScaleByLionState: {"count": KEEP, "mu": -1},
    contrib.MuonState: {"count": KEEP, "mu": -1, "ns_coeffs": KEEP},
    # Squares of gradients, and what follows from them.
    optax.ScaleByRmsState: {"nu": -2},
    state_type(optax.scale_by_rms(bias_correction=True)): {"count": KEEP, "nu": -2},
    optax.ScaleByRStdDevState: {"mu": -1, "nu": -2},
    state_type(optax.scale_by_stddev(bias_correction=True)): {"count": KEEP, "mu": -1, "nu": -2},
    optax.ScaleByRssState: {"sum_of_squares": -2},
    optax.ScaleByAdaDeltaState: {"e_g": -2, "e_x": 0},
    contrib.MadgradState: {"count": KEEP, "grad_sum_sq": -2, "s": -1, "x0": PARAMETERS},
    # Momentum, and gradients that are kept.
    optax.TraceState: {"trace": -1},
    optax.EmaState: {"count": KEEP, "ema": -1},
    state_type(optax.scale_by_optimistic_gradient()): {
        "is_initial_step": KEEP, "previous_gradient": -1
    },
    state_type(optax.apply_every()): {"count": KEEP, "grad_acc": -1},
    optax.ScaleByRpropState: {"step_sizes": 0, "prev_updates": 0},
    contrib.COCOBState: {
        "init_particles": PARAMETERS,
        "cumulative_gradients": -1,
        "scale": -1,
        "subgradients": -1,
        "reward": 0,
    },
    # Rates that are found while training.
    contrib.DAdaptAdamWState: _ADAPTED | _ESTIMATED,
    contrib.ProdigyState: _ADAPTED | _ESTIMATED | {"params0": PARAMETERS},
    contrib.MomoState: {"exp_avg": -1} | _MODELLED,
    contrib.MomoAdamState: {"exp_avg": -1, "exp_avg_sq": -2} | _MODELLED,
    contrib.DoGState: {
        "is_init_step": KEEP,
        "init_params": PARAMETERS,
        "max_dist": KEEP,
        "sum_sq_norm_grads": KEEP,
    },
    contrib.DoWGState: {
        "init_params": PARAMETERS, "weighted_sq_norm_grads": KEEP, "estim_sq_dist": KEEP
    },
    contrib.MechanicState: {
        "base_optimizer_state": STATE,
        **dict.fromkeys(("count", "r", "m", "v", "s"), KEEP),
        "x0": PARAMETERS,
    },
    contrib.ReduceLROnPlateauState: dict.fromkeys(contrib.ReduceLROnPlateauState._fields, KEEP),
    # Around other optimizers.
    optax.MaskedState: {"inner_state": STATE},
    optax.PartitionState: {"inner_states": STATE},
    optax.InjectHyperparamsState: {"count": KEEP, "hyperparams": KEEP, "inner_state": STATE},
    optax.InjectStatefulHyperparamsState: {
        "count": KEEP, "hyperparams": KEEP, "hyperparams_states": KEEP, "inner_state": STATE
    },
    optax.MultiStepsState: {
        "mini_step": KEEP,
        "gradient_step": KEEP,
        "inner_opt_state": STATE,
        "acc_grads": -1,
        "skip_state": KEEP,
    },
    optax.ApplyIfFiniteState: {
        "notfinite_count": KEEP,
        "last_finite": KEEP,
        "total_notfinite": KEEP,
        "inner_state": STATE,
    },
    optax.ConditionallyTransformState: {"inner_state": STATE, "step": KEEP},
    optax.ConditionallyMaskState: {"step": KEEP, "inner_state": STATE},
    optax.LookaheadState: {"fast_state": STATE, "steps_since_sync": KEEP},
    contrib.ScheduleFreeState: {
        "b1": KEEP,
        "weight_sum": KEEP,
        "step_count": KEEP,
        "max_lr": KEEP,
        "base_optimizer_state": STATE,
        "z": PARAMETERS,
    },
    contrib.SAMState: {
        "steps_since_sync": KEEP, "opt_state": STATE, "adv_state": STATE, "cache": PARAMETERS
    },
    contrib.SplitRealAndImaginaryState: {"inner_state": STATE},
    # What has next to nothing.
    ScaleByAgeState: {"steps": KEEP},
    optax.EmptyState: {},
    optax.ScaleByScheduleState: {"count": KEEP},
    optax.AddNoiseState: {"count": KEEP, "rng_key": KEEP},
    contrib.DifferentiallyPrivateAggregateState: {"rng_key": KEEP},
    optax.ZeroNansState: {"found_nan": LAST},
    optax.SnapshotState: {"measurement": LAST},
    optax.MonitorState: {"measurements": LAST, "measure_states": LAST},
}  # fmt: skip

# States that cannot be carried, and why.
REFUSED: dict[type, str] = {
    optax.ScaleByLBFGSState: (
        "its estimate of the curvature is made of differences between past parameters, which say "
        "nothing of new ones; begin it anew with tx.init"
    ),
    optax.ScaleByBacktrackingLinesearchState: (
        "it keeps the value and the gradient of the last accepted point; begin it anew with tx.init"
    ),
    optax.ScaleByZoomLinesearchState: (
        "it keeps the value and the gradient of the last accepted point; begin it anew with tx.init"
    ),
    contrib.GaLoreState: (
        "its moments live in subspaces that singular vectors of whole gradients span, and no "
        "larger gradient has the same; begin it anew with tx.init"
    ),
}


def register_optimizer_state(kind: type, fields: Mapping[str, Field]) -> None:
    """Says how a state of one's own grows.

    Args:
      kind: the type of the state, a NamedTuple.
      fields: what each of its fields is: the scaling exponent of moments of gradients (−1 for what
        is linear in them, −2 for squares, 0 for what does not depend on their scale), `PARAMETERS`,
        `KEEP`, `STATE` or `LAST`.

    Raises:
      InputError: a field is missing or unknown, or the type is known already.

    Examples:
      >>> from typing import NamedTuple
      >>> import growth
      >>> class MomentumState(NamedTuple):
      ...     count: int
      ...     momentum: dict
      >>> growth.register_optimizer_state(
      ...     MomentumState, {"count": growth.optimizer.KEEP, "momentum": -1}
      ... )

    References:
      The chain rule: for a weight that is multiplied by c, gradients are divided by c.
    """
    names = getattr(kind, "_fields", None)
    if names is None or set(fields) != set(names):
        raise InputError(
            f"fields names {', '.join(fields)}, but {kind.__name__} has "
            f"{', '.join(names or ['no fields: it must be a NamedTuple'])}"
        )
    known = (PARAMETERS, KEEP, STATE, LAST)
    for name, field in fields.items():
        if not isinstance(field, int) and field not in known:
            raise InputError(
                f"{name} is {field!r}, but it must be an exponent or one of {', '.join(known)}"
            )
    if kind in FIELDS and FIELDS[kind] != fields:
        raise InputError(f"{kind.__name__} is known already")
    FIELDS[kind] = dict(fields)
