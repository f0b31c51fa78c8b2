"""The learning rate over steps and FLOPs, the clipping, and what weight decay acts on."""

import jax
import numpy as np
import optax
import pytest

from growth.architecture import Architecture
from growth.models import initial_parameters
from growth.training.config import TrainConfig
from growth.training.config_sections import OptimizerConfig
from growth.training.optimization import decayed, flops_at, learning_rate, make_optimizer
from growth.training.schedule import flops_spent, stages, training_flops

SMALL = Architecture.llama(
    vocab_size=16, max_length=8, embed_dim=8, num_layers=1, num_heads=2, mlp_dim=16
)
GROWTH = (
    dict(step=100, embed_dim=16, mlp_dim=32, rewarming=None),
    dict(step=150, num_layers=4, rewarming=None),
)
RUN = stages(SMALL, GROWTH, 200)
TOKENS = 8 * 16
CONFIG = OptimizerConfig(learning_rate=0.5, warmup_steps=20, decay=0.3, final_learning_rate=0.2)


def rate_of(settings, growth=GROWTH, num_steps=200):
    """The rate of every step."""
    config = TrainConfig(SMALL, growth, num_steps=num_steps, optimizer=settings)
    assert config.tokens_per_step == TOKENS
    return np.array(learning_rate(config)(np.arange(num_steps)))


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


def test_warm_up_over_steps_then_stable_then_decay_over_flops():
    rates = rate_of(CONFIG)
    steps = np.arange(1, 201)  # a step learns at the rate of its end
    share = shares(steps)

    warm, falls = steps <= 20, share >= 0.7
    np.testing.assert_allclose(rates[warm], 0.5 * steps[warm] / 20, rtol=1e-4)
    np.testing.assert_array_equal(rates[~warm & ~falls], 0.5)
    progress = (share[falls] - 0.7) / 0.3
    np.testing.assert_allclose(rates[falls], 0.5 * (1 - 0.8 * progress), rtol=1e-4)
    assert 0 < rates[0] < rates[1]
    assert rates[-1] == pytest.approx(0.1, rel=1e-4)
    # By FLOPs the decay begins later than by steps, and growth leaves the peak alone.
    assert np.argmax(falls) > 160
    assert (rates[95:155] == 0.5).all()


def test_a_warm_up_goes_on_where_it_was_when_growth_comes_into_it():
    growth = (dict(step=10, embed_dim=64, mlp_dim=512, rewarming=dict(steps=4, start=0.5)),)
    rates = rate_of(CONFIG, growth)
    rise = np.ones(20)
    rise[10:14] = 0.5 + 0.5 * np.arange(1, 5) / 4
    np.testing.assert_allclose(rates[:20], 0.5 * np.arange(1, 21) / 20 * rise, rtol=1e-5)


def test_each_part_may_be_left_out():
    plain = OptimizerConfig(learning_rate=0.5, warmup_steps=0, decay=0.0)
    assert (rate_of(plain) == 0.5).all()
    whole = OptimizerConfig(learning_rate=0.5, warmup_steps=80, decay=0.6)
    rates = rate_of(whole, growth=())
    assert rates[79] == 0.5
    assert (np.delete(rates, 79) < 0.5).all()


def test_without_growth_flops_are_steps():
    rates = rate_of(CONFIG, growth=())[[9, 19, 100, 139, 169, 199]]
    assert rates.tolist() == pytest.approx([0.25, 0.5, 0.5, 0.5, 0.3, 0.1], rel=1e-4)


def test_the_rate_that_is_shown_is_the_one_that_updates_have():
    """Decoupled decay alone, of old entries: each shrinks by rate · decay."""
    settings = OptimizerConfig(learning_rate=0.5, warmup_steps=0, decay=0.0, weight_decay=0.1)
    ramp, held = dict(steps=4, start=0.2), dict(steps=3, start=0.5, shape="constant")
    growth = (
        dict(step=3, embed_dim=16, rewarming=ramp),
        dict(step=9, embed_dim=24, rewarming=held),
        dict(step=14, embed_dim=32, rewarming=dict(steps=4, entries="new")),
    )
    config = TrainConfig(SMALL, growth, num_steps=20, optimizer=settings)
    run, tx = config.stages, make_optimizer(config)
    shown = learning_rate(config)(np.arange(20))
    state, rates, update = None, [], jax.jit(tx.update)
    for step in range(20):
        architecture = [stage for stage in run if stage.start <= step][-1].architecture
        shapes = jax.eval_shape(lambda a=architecture: initial_parameters(a, jax.random.key(0)))
        ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
        new = tx.init(ones)
        state = new if state is None else (*new[:2], state[2], new[3], *state[4:])  # the counts
        updates, state = update(jax.tree.map(np.zeros_like, ones), state, ones)
        rates.append(-updates["layers_0"]["mlp"]["up"]["kernel"][0, 0, 0] / 0.1)
    np.testing.assert_allclose(shown, rates, rtol=1e-5)
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
        learning_rate=0.1, warmup_steps=0, decay=0.0, weight_decay=0.5, clip_norm=1.0, eps=1e-8
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
