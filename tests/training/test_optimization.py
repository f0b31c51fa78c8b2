"""The learning rate over FLOPs, the clipping, and what weight decay acts on."""

import jax
import numpy as np
import optax
import pytest

from growth.architecture import Architecture
from growth.models import initial_parameters
from growth.training.config import TrainConfig
from growth.training.config_sections import OptimizerConfig
from growth.training.optimization import (
    decayed,
    flops_at,
    learning_rate,
    make_optimizer,
    rewarmed,
)
from growth.training.schedule import flops_spent, stages, training_flops

SMALL = Architecture.llama(
    vocab_size=16, max_length=8, embed_dim=8, num_layers=1, num_heads=2, mlp_dim=16
)
GROWTH = (dict(step=100, embed_dim=16, mlp_dim=32), dict(step=150, num_layers=4))
RUN = stages(SMALL, GROWTH, 200)
TOKENS = 64
CONFIG = OptimizerConfig(learning_rate=0.5, warmup=0.1, decay=0.3, final_learning_rate=0.2)


def shares(steps):
    """The share of the run's FLOPs that is spent after each number of steps, counted anew."""
    total = sum(training_flops(RUN, TOKENS))
    return np.array([flops_spent(RUN, int(step), TOKENS) / total for step in steps])


def test_flops_are_counted_by_stage():
    steps = np.arange(201)
    np.testing.assert_allclose(flops_at(RUN, TOKENS)(steps), shares(steps), rtol=1e-5, atol=1e-6)
    # A step of the last stage costs several of the first.
    first, *_, last = np.diff(shares(steps))
    assert last > 4 * first


def test_warm_up_stable_decay_over_flops():
    schedule = learning_rate(CONFIG, RUN, TOKENS)
    rates = np.array([float(schedule(step)) for step in range(200)])
    share = shares(np.arange(1, 201))  # a step learns at the rate of its end

    warm, falls = share <= 0.1, share >= 0.7
    np.testing.assert_allclose(rates[warm], 0.5 * share[warm] / 0.1, rtol=1e-4)
    np.testing.assert_array_equal(rates[~warm & ~falls], 0.5)
    progress = (share[falls] - 0.7) / 0.3
    np.testing.assert_allclose(rates[falls], 0.5 * (1 - 0.8 * progress), rtol=1e-4)
    assert 0 < rates[0] < rates[1]
    assert rates[-1] == pytest.approx(0.1, rel=1e-4)
    # By FLOPs the decay begins later than by steps, and growth leaves the peak alone.
    assert np.argmax(falls) > 160
    assert (rates[95:155] == 0.5).all()


def test_each_part_may_be_left_out():
    plain = OptimizerConfig(learning_rate=0.5, warmup=0.0, decay=0.0)
    schedule = learning_rate(plain, RUN, TOKENS)
    assert [float(schedule(step)) for step in (0, 1, 100, 199)] == [0.5] * 4
    whole = OptimizerConfig(learning_rate=0.5, warmup=0.4, decay=0.6)
    assert max(float(learning_rate(whole, RUN, TOKENS)(step)) for step in range(200)) <= 0.5


def test_without_growth_flops_are_steps():
    schedule = learning_rate(CONFIG, stages(SMALL, (), 200), TOKENS)
    rates = [float(schedule(step)) for step in (9, 19, 100, 139, 169, 199)]
    assert rates == pytest.approx([0.25, 0.5, 0.5, 0.5, 0.3, 0.1], rel=1e-4)


def test_the_rate_that_is_shown_is_the_one_that_updates_have():
    """Decoupled decay alone, of old entries: each shrinks by rate · decay."""
    settings = OptimizerConfig(learning_rate=0.5, warmup=0.0, decay=0.0, weight_decay=0.1)
    ramp, held = dict(steps=4, start=0.2), dict(steps=3, start=0.5, shape="constant")
    growth = (
        dict(step=3, embed_dim=16, rewarming=ramp),
        dict(step=9, embed_dim=24, rewarming=held),
        dict(step=14, embed_dim=32, rewarming=dict(steps=4, entries="new")),
    )
    config = TrainConfig(SMALL, growth, num_steps=20, optimizer=settings)
    run, tx = config.stages, make_optimizer(config)
    shown = rewarmed(learning_rate(settings, run, TOKENS), run)
    state, rates, update = None, [], jax.jit(tx.update)
    for step in range(20):
        architecture = [stage for stage in run if stage.start <= step][-1].architecture
        shapes = jax.eval_shape(lambda a=architecture: initial_parameters(a, jax.random.key(0)))
        ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
        new = tx.init(ones)
        state = new if state is None else (*new[:2], state[2], new[3], *state[4:])  # the counts
        updates, state = update(jax.tree.map(np.zeros_like, ones), state, ones)
        rates.append(-updates["layers_0"]["mlp"]["up"]["kernel"][0, 0, 0] / 0.1)
    np.testing.assert_allclose([shown(step) for step in range(20)], rates, rtol=1e-5)
    shares = np.array(rates) / 0.5
    np.testing.assert_allclose(shares[:8], [1, 1, 1, 0.4, 0.6, 0.8, 1, 1], rtol=1e-5)
    np.testing.assert_allclose(shares[8:], [1, 0.5, 0.5, 0.5, *[1] * 8], rtol=1e-5)


@pytest.mark.parametrize("preset", [Architecture.paper, Architecture.gpt2, Architecture.llama])
def test_weight_decay_acts_on_kernels_alone(preset):
    architecture = preset(
        vocab_size=16, max_length=8, embed_dim=8, num_layers=1, num_heads=2, mlp_dim=16
    )
    parameters = jax.eval_shape(lambda: initial_parameters(architecture, jax.random.key(0)))
    flat = jax.tree_util.tree_leaves_with_path(decayed(parameters))
    acts = {jax.tree_util.keystr(path, simple=True, separator="/"): on for path, on in flat}
    assert acts.keys() >= {"embed/embedding", "layers_0/mlp/up/kernel"}
    for path, on in acts.items():
        assert on == path.endswith("kernel"), path


def test_the_optimizer_is_adamw_behind_clipping():
    """One update, against the formula."""
    settings = OptimizerConfig(
        learning_rate=0.1, warmup=0.0, decay=0.0, weight_decay=0.5, clip_norm=1.0, eps=1e-8
    )
    tx = make_optimizer(TrainConfig(SMALL, optimizer=settings))
    twos = np.full(4, 2.0, np.float32)
    parameters = {"up": {"kernel": twos}, "norm": {"scale": twos}}
    gradients = jax.tree.map(lambda x: np.full_like(x, 3e4), parameters)
    updates, state = tx.update(gradients, tx.init(parameters), parameters)
    np.testing.assert_allclose(updates["norm"]["scale"], -0.1, rtol=1e-5)
    np.testing.assert_allclose(updates["up"]["kernel"], -0.1 * (1 + 0.5 * 2), rtol=1e-5)
    mu = optax.tree.get(state, "mu")
    assert float(optax.tree.norm(mu)) == pytest.approx(0.1, rel=1e-5)  # (1 - b1) · clip_norm
