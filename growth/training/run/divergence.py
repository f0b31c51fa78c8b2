"""Whether a training state is worth saving: what diverged must not take the place of the good."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from growth.training.checkpoints import Checkpoints
from growth.training.run.stopping import DivergedError
from growth.training.state import TrainState
from growth.types import Params

# How many times larger parameters may have become since they were last looked at. Training takes
# thousands of steps for a factor of ten; a rate that is too high takes one for any factor.
_LARGEST_GROWTH = 100.0


class Judge:
    """Looks at a state before it is saved.

    Args:
      params: the parameters that training goes on with, which are good.
    """

    def __init__(self, params: Params) -> None:
        self._norm = float(_norm(params))

    def require_good(self, state: TrainState, step: int) -> None:
        """Refuses a state that no run could go on with.

        It has been trained on until now, but nobody has yet seen what the last update did: that
        shows in the loss of the step after it.

        Raises:
          DivergedError: an array is not finite, or parameters have become many times larger.
        """
        norm = float(_norm(state.params))
        what = None
        if not (math.isfinite(norm) and bool(_is_finite((state.params, state.opt_state)))):
            what = f"the training state after step {step} is not finite"
        elif norm > _LARGEST_GROWTH * max(self._norm, 1.0):
            what = (
                f"the norm of the parameters is {norm:.1e} after step {step}, and it was "
                f"{self._norm:.1e} when they were last saved"
            )
        if what is not None:
            raise DivergedError(what, step)
        self._norm = norm


def set_diverged_aside(checkpoints: Checkpoints, bad_step: int) -> str:
    """Renames the checkpoints that hold what went wrong, so that a run goes on before them.

    Returns:
      What a run goes on from now, in words.
    """
    bad = [step for step in checkpoints.steps() if step >= bad_step]
    aside = [checkpoints.set_aside(step, "diverged").name for step in bad]
    good = checkpoints.latest_step()
    text = f"last good checkpoint: {'none' if good is None else f'step {good}'}"
    return text + (f" ({', '.join(aside)} set aside)" if aside else "")


@jax.jit
def _norm(params: Params) -> jax.Array:
    """The global norm, in float32; infinite where a square is."""
    return optax.tree.norm(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params))


@jax.jit
def _is_finite(tree: Any) -> jax.Array:
    numbers = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in numbers]))
