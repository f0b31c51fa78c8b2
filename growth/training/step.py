"""One step of training, and one evaluation: pure functions for `jax.jit`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from growth import models
from growth.architecture import Architecture
from growth.models import Model, logits
from growth.training.data.batches import Batch
from growth.training.state import TrainState
from growth.types import Params

Metrics = dict[str, jax.Array]


def batch_loss(model: Model, params: Params, batch: Batch) -> jax.Array:
    """Mean cross entropy of the targets, in nats."""
    return cross_entropy(logits(model, params, batch.inputs), batch)


def cross_entropy(scores: jax.Array, batch: Batch) -> jax.Array:
    """Mean cross entropy, in nats, of the targets under logits [..., classes]."""
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    return optax.losses.softmax_cross_entropy_with_integer_labels(scores, batch.targets).mean()


def batch_logits(architecture: Architecture, params: Params, batch: Batch) -> jax.Array:
    """The logits of a batch, for `growth.certify`; its loss is `cross_entropy`."""
    return models.apply(architecture, params, batch.inputs)


def batch_residual_stream(
    architecture: Architecture, params: Params, batch: Batch
) -> list[jax.Array]:
    """The residual stream of a batch after each layer, for `growth.certify`."""
    return models.residual_stream(architecture, params, batch.inputs)


def make_train_step(
    model: Model, tx: optax.GradientTransformation
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The function that takes one optimizer step on a batch."""

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        loss, gradients = jax.value_and_grad(batch_loss, argnums=1)(model, state.params, batch)
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(gradients)}
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def make_evaluation(model: Model) -> Callable[[Params, Batch], Metrics]:
    """The function that takes parameters and batches [n, batch, ...] to mean loss and accuracy."""

    def evaluate(params: Params, batches: Batch) -> Metrics:
        def measure(batch: Batch) -> Metrics:
            scores = logits(model, params, batch.inputs)
            right = scores.argmax(axis=-1) == batch.targets
            return {"loss": cross_entropy(scores, batch), "accuracy": right.mean()}

        return jax.tree.map(jnp.mean, jax.lax.map(measure, batches))

    return evaluate
