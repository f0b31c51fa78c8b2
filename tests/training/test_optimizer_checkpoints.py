"""Optimizer states go through a checkpoint right before and right after growth, to the last bit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import growth
from growth.training.checkpoints import Checkpoints
from growth.training.data.batches import train_iterator
from growth.training.data.text import Windows
from growth.training.optimization import decayed
from growth.training.state import TrainState
from tests.helpers import networks
from tests.helpers.networks import ARCHITECTURES, random_parameters


def deep():
    def make(learning_rate):
        inner = contrib.schedule_free(optax.sgd(learning_rate), learning_rate=1e-2)
        return optax.MultiSteps(inner, 2).gradient_transformation()

    return optax.inject_hyperparams(make)(learning_rate=1e-2)


OPTIMIZERS = {
    "adamw": optax.adamw(1e-3, mask=decayed),
    "adafactor": optax.adafactor(1e-3, min_dim_size_to_factor=3),
    "muon": contrib.muon(1e-3),
    "lion": optax.lion(1e-4, mu_dtype=jnp.bfloat16),
    "schedule_free in MultiSteps in inject_hyperparams": deep(),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_state_goes_through_a_checkpoint_before_and_after_growth(optimizer, tmp_path):
    tx, architecture = OPTIMIZERS[optimizer], ARCHITECTURES["llama"]
    plan = networks.all_steps(architecture)(architecture)
    params = random_parameters(architecture, dtype=np.float32)
    fresh = random_parameters(plan.target, seed=1, dtype=np.float32)
    opt_state = tx.init(params)
    for seed in range(3):
        given = random_parameters(architecture, seed=seed + 5, dtype=np.float32)
        _, opt_state = tx.update(given, opt_state, params)

    def grow(state):
        larger = growth.expand(state.params, plan, fresh=fresh)
        moments = growth.expand_optimizer_state(
            state.opt_state, plan, tx=tx, params=state.params, grown=larger
        )
        return TrainState(state.step, larger, moments)

    before = jax.tree.map(jnp.asarray, TrainState(jnp.int32(3), params, opt_state))
    after = grow(before)
    batches = train_iterator(Windows(np.arange(401), 8), batch_size=4, seed=0)
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        for step, state in enumerate((before, after), start=1):
            checkpoints.save(step, state, batches, {})
        checkpoints.wait()
        restored = [
            checkpoints.restore(step, jax.tree.map(like, state), batches)
            for step, state in enumerate((before, after), start=1)
        ]
    networks.assert_same_trees(restored[0], before)
    networks.assert_same_trees(restored[1], after)
    networks.assert_same_trees(grow(restored[0]), after)


def like(leaf):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)
