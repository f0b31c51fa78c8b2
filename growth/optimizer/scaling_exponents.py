"""The gradient scaling exponent of every moment that an optimizer keeps, found by running it.

The same type of state is used for moments of gradients and for moments of what other
transformations have made of them: a momentum behind Adam does not depend on the scale of a gradient
at all. So the optimizer is run on a few small arrays, once with every other array multiplied by a
number, as growth multiplies some, and its gradients divided by it; and what it keeps is compared.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax

from growth.types import Array, OptState, Params, ParamsLike

_STEPS = 3
_FACTOR = 0.25
_SIZE = 0.1  # of gradients: above the epsilons of optimizers, below what single entries are cut to
_WEIGHT = 1e-2  # of parameters: their decay adds next to nothing to gradients
_TOLERANCE = 0.05  # what epsilons may change in a power


@dataclasses.dataclass(frozen=True)
class ScalingExponents:
    """The exponent of every leaf of a state, hashed by what was run.

    Attributes:
      tx: the optimizer.
      structure: that of the parameters.
      ndims: the number of axes of each.
    """

    tx: optax.GradientTransformation
    structure: jax.tree_util.PyTreeDef
    ndims: tuple[int, ...]

    @property
    def tree(self) -> OptState:
        """A tree like a state: the power of the factor by which each leaf differs in the two runs.

        NaN where a leaf stays as it begins, or follows no power, or the optimizer needs more than
        gradients and a loss.
        """
        return _measured(self)


def measured_exponents(tx: optax.GradientTransformation, params: ParamsLike) -> ScalingExponents:
    """How each leaf of a state follows the scale of parameters; −1, where gradients are kept.

    Args:
      tx: the optimizer.
      params: parameters, or their shapes; their paths and numbers of axes are looked at.
    """
    leaves, structure = jax.tree.flatten(params)
    return ScalingExponents(tx, structure, tuple(len(leaf.shape) for leaf in leaves))


def agreed_exponent(powers: ParamsLike, default: int, params: Params) -> int:
    """The exponent of a tree of moments, if one was found; else the default.

    Powers of arrays that were multiplied are compared with those of the others, which only a norm
    over all gradients can have changed.

    Args:
      powers: what `ScalingExponents.tree` has for the moments.
      default: the exponent where nothing was found.
      params: the parameters that these are the moments of.
    """
    _, structure = jax.tree.flatten(params)
    assert structure is not None
    try:
        parts = structure.flatten_up_to(powers)
    except ValueError:  # not shaped like the parameters
        return default
    sides = [
        [power for part in parts[first::2] for power in jax.tree.leaves(part)] for first in (0, 1)
    ]
    multiplied, others = ([p for p in side if not math.isnan(p)] for side in sides)
    if not multiplied:
        return default
    reference = float(np.median(others)) if others else 0.0
    found = float(np.median(multiplied)) - reference
    return round(found) if abs(found - round(found)) < _TOLERANCE else default


@functools.lru_cache(maxsize=64)
def _measured(what: ScalingExponents) -> OptState:
    random = np.random.default_rng(0)

    def drawn(ndim: int, scale: float) -> np.ndarray:  # of one norm, lest norms hide the power
        array = random.standard_normal((2,) * ndim)
        return scale * array / np.sqrt(np.mean(array**2))

    params = [drawn(ndim, _WEIGHT) for ndim in what.ndims]
    draws = [[drawn(ndim, _SIZE) for ndim in what.ndims] for _ in range(_STEPS)]

    def multiplied(arrays: list[np.ndarray], by: float) -> list[np.ndarray]:
        return [array * (1 if number % 2 else by) for number, array in enumerate(arrays)]

    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        runs = [
            (
                _tree(what, multiplied(params, by)),
                [_tree(what, multiplied(g, 1 / by)) for g in draws],
            )
            for by in (1.0, _FACTOR)
        ]
        begun = [what.tx.init(weights) for weights, _ in runs]
        states = [_run(what, weights, gradients) for weights, gradients in runs]
        if states[0] is None or states[1] is None:
            return jax.tree.map(lambda _: math.nan, begun[0])
        return jax.tree.map(_power, *begun, *states)


def _tree(what: ScalingExponents, arrays: Sequence[np.ndarray]) -> ParamsLike:
    """Small arrays in the structure of parameters."""
    return jax.tree.unflatten(what.structure, [jnp.asarray(array) for array in arrays])


def _run(
    what: ScalingExponents, params: Params, gradients: Sequence[ParamsLike]
) -> OptState | None:
    """The state after some gradients; None where the optimizer needs more than these."""
    update = jax.jit(optax.with_extra_args_support(what.tx).update)
    if isinstance(params, optax.LookaheadParams):
        gradients = [tree.fast for tree in gradients]
    for more in ({}, {"value": jnp.ones(())}):  # some want the loss
        state = what.tx.init(params)
        try:
            for tree in gradients:
                _, state = update(tree, state, params, **more)
        except (TypeError, ValueError):  # so optax says that an argument is missing
            continue
        return state
    return None


def _power(begun: Array, also_begun: Array, one: Array, other: Array) -> float:
    """The power of the factor by which what a leaf has gathered differs in two runs."""
    if not jnp.issubdtype(jnp.result_type(one), jnp.floating):
        return math.nan
    with np.errstate(invalid="ignore"):  # some begin at infinity
        one, other = (
            np.abs(np.asarray(x, np.float64) - np.asarray(first, np.float64)).ravel()
            for x, first in ((one, begun), (other, also_begun))
        )
    there = (one > 0) & (other > 0) & np.isfinite(one) & np.isfinite(other)
    if not there.any():
        return math.nan
    powers = np.log(other[there] / one[there]) / math.log(_FACTOR)
    power = float(np.median(powers))
    return power if np.abs(powers - power).max() < _TOLERANCE else math.nan
