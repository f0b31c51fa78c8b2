"""One step of training, and one evaluation: pure functions for `jax.jit`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from growth.models import Transformer, logits
from growth.training.state import TrainState

Metrics = dict[str, jax.Array]


def loss(model: Transformer, params: Any, batch: jax.Array) -> jax.Array:
    """Mean cross entropy of the next token, in nats.

    Args:
      model: the model.
      params: its parameters.
      batch: int32 [batch, length + 1].
    """
    scores = logits(model, params, batch[:, :-1])
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    return optax.losses.softmax_cross_entropy_with_integer_labels(scores, batch[:, 1:]).mean()


def make_train_step(
    model: Transformer, tx: optax.GradientTransformation
) -> Callable[[TrainState, jax.Array], tuple[TrainState, Metrics]]:
    """The function that takes one optimizer step on a batch [batch, length + 1]."""

    def train_step(state: TrainState, batch: jax.Array) -> tuple[TrainState, Metrics]:
        value, gradients = jax.value_and_grad(lambda params: loss(model, params, batch))(
            state.params
        )
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": value, "grad_norm": optax.tree.norm(gradients)}
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def make_evaluation(model: Transformer) -> Callable[[Any, jax.Array], jax.Array]:
    """The function that takes parameters and batches [n, batch, length + 1] to their mean loss."""

    def evaluate(params: Any, batches: jax.Array) -> jax.Array:
        return jax.lax.map(lambda batch: loss(model, params, batch), batches).mean()

    return evaluate
