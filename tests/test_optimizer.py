"""Optimizer states grow with the parameters: nothing is lost, and old moments are the true ones."""

import functools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import pytest
from networks import ARCHITECTURES, KEY, random_parameters
from optax import contrib

import growth
from growth.models import Transformer
from growth.training.data import Batch
from growth.training.optimization import decayed
from growth.training.state import TrainState
from growth.training.step import loss, make_train_step

pytestmark = pytest.mark.usefixtures("float64")

EXACT = 1e-10


def others(parameters):
    return jax.tree.map(lambda decays: not decays, decayed(parameters))


OPTIMIZERS = {
    "the gradient itself": optax.trace(decay=0.0),
    "sgd": optax.sgd(1e-2, momentum=0.9),
    "nesterov": optax.sgd(1e-2, momentum=0.9, nesterov=True),
    "adam": optax.adam(1e-3),
    "adamw": optax.adamw(optax.linear_schedule(0.0, 1e-3, 10), mask=decayed),
    "lion": optax.lion(1e-4),
    "chain": optax.chain(optax.clip_by_global_norm(1e6), optax.adam(1e-3)),
    "masked": optax.chain(
        optax.masked(optax.scale_by_adam(), decayed), optax.masked(optax.trace(0.9), others)
    ),
}


def plan_of(name):
    return networks.all_steps(ARCHITECTURES[name])(ARCHITECTURES[name])


@functools.cache
def parameters(name):
    return random_parameters(ARCHITECTURES[name])


@functools.cache
def grown_parameters(name):
    plan = plan_of(name)
    return growth.expand(parameters(name), plan, fresh=random_parameters(plan.target, seed=1))


def random_batches(shape, seed):
    tokens = np.random.default_rng(seed).integers(0, 11, (*shape, 9))
    return Batch(tokens[..., :-1], tokens[..., 1:])


@functools.cache
def gradients(name, grown):
    """The gradients of three batches, stacked; in the grown network, or in the one it came from."""
    plan = plan_of(name)
    model = Transformer(plan.target if grown else plan.source)
    batches = random_batches((3, 4), seed=1)
    gradient = jax.grad(lambda parameters, batch: loss(model, parameters, batch))
    every = jax.jit(lambda p: jax.lax.map(lambda batch: gradient(p, batch), batches))
    return every(grown_parameters(name) if grown else parameters(name))


def accumulated(tx, name, grown=False):
    """The state that an optimizer has after those gradients."""

    def accumulate(parameters, gradients):
        take = lambda state, gradient: (tx.update(gradient, state, parameters)[1], None)  # noqa: E731
        return jax.lax.scan(take, tx.init(parameters), gradients)[0]

    weights = grown_parameters(name) if grown else parameters(name)
    return jax.jit(accumulate)(weights, gradients(name, grown))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", ["paper", "llama"])
def test_old_moments_are_those_of_the_grown_network(name, optimizer):
    """Growing the moments is the same as gathering them in the grown network from the start."""
    tx, plan = OPTIMIZERS[optimizer], plan_of(name)
    state = accumulated(tx, name)
    grown = growth.expand_optimizer_state(tx, state, plan, grown_parameters(name))
    truth = accumulated(tx, name, grown=True)
    assert jax.tree.structure(grown) == jax.tree.structure(truth)

    # An entry is old where a one grows into anything but zero. Arrays of layers may split or merge.
    ones = jax.tree.map(jnp.ones_like, state)
    places = growth.expand_optimizer_state(tx, ones, plan, grown_parameters(name))
    count = 0
    for new, true, place in zip(*map(jax.tree.leaves, (grown, truth, places)), strict=True):
        old = np.asarray(place != 0)
        count += old.sum()
        assert (np.asarray(new)[~old] == 0).all()
        if old.any():
            scale = np.abs(np.asarray(true)[old]).max()
            assert scale > 1e-7
            assert np.abs(np.asarray(new - true)[old]).max() <= EXACT * scale
    assert count == sum(leaf.size for leaf in jax.tree.leaves(state))


def test_moments_are_rescaled():
    """What the truth above amounts to, for the two factors that there are."""
    plan = growth.compose(growth.hidden_dimension_expansion(24), growth.attention_expansion(16))(
        ARCHITECTURES["llama"]
    )
    tx = optax.adam(1e-3)
    ones = jax.tree.map(jnp.ones_like, tx.init(parameters("llama")))
    larger = growth.expand(parameters("llama"), plan, KEY)
    grown = growth.expand_optimizer_state(tx, ones, plan, larger)[0]
    largest = jax.tree.map(lambda moment: float(moment.max()), (grown.mu, grown.nu))
    mu, nu = (tree["layers_0"]["attention"]["key"]["kernel"] for tree in largest)
    assert (mu, nu) == (1 / 2, 1 / 4)  # keys were doubled
    mu, nu = (tree["final_norm"]["scale"] for tree in largest)
    assert (mu, nu) == (2, 4)  # gains were halved
    mu, nu = (tree["layers_0"]["mlp"]["down"]["kernel"] for tree in largest)
    assert (mu, nu) == (1, 1)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("optimizer", [*OPTIMIZERS, "bfloat16 moments", "schedule_free"])
def test_a_grown_state_is_like_one_that_begins(name, optimizer):
    more = {
        "bfloat16 moments": optax.adamw(1e-3, mu_dtype=jnp.bfloat16),
        "schedule_free": contrib.schedule_free(optax.adam(1e-3), learning_rate=1e-3),
    }
    tx, plan = (OPTIMIZERS | more)[optimizer], plan_of(name)
    state = jax.eval_shape(tx.init, parameters(name))
    larger = grown_parameters(name)
    grown = jax.eval_shape(
        lambda state: growth.expand_optimizer_state(tx, state, plan, larger), state
    )
    want = jax.eval_shape(tx.init, random_parameters(plan.target))
    assert jax.tree.structure(grown) == jax.tree.structure(want)
    for new, begun in zip(jax.tree.leaves(grown), jax.tree.leaves(want), strict=True):
        assert (new.shape, new.dtype) == (begun.shape, begun.dtype)


def test_low_precision_moments_are_rounded_once():
    plan, tx = plan_of("llama"), optax.lion(1e-4, mu_dtype=jnp.bfloat16)
    state = tx.init(parameters("llama"))
    low = networks.with_dtype(parameters("llama"), jnp.bfloat16)

    def grown(moments):
        begun = (state[0]._replace(mu=moments), *state[1:])
        return growth.expand_optimizer_state(tx, begun, plan, grown_parameters("llama"))[0].mu

    exact = grown(networks.with_dtype(low, jnp.float32))
    networks.assert_same_trees(grown(low), networks.with_dtype(exact, jnp.bfloat16))


@pytest.mark.parametrize("free", ["fresh", "copy"])
def test_what_is_valued_like_parameters_gets_their_values(free):
    """Schedule-free's z begins as the parameters, and grows as they do."""
    plan = growth.compose(growth.mlp_expansion(9), growth.layer_addition(1))(ARCHITECTURES["paper"])
    tx = contrib.schedule_free(optax.sgd(1e-2), learning_rate=1e-2)
    weights = parameters("paper")
    larger = growth.expand(weights, plan, KEY, free=free)
    grown = growth.expand_optimizer_state(tx, tx.init(weights), plan, larger)
    networks.assert_same_trees(grown.z, larger)


@pytest.mark.parametrize(
    ("tx", "kind"),
    [
        (optax.rmsprop(1e-3), "ScaleByRmsState"),
        (optax.chain(optax.clip(1.0), optax.adabelief(1e-3)), "ScaleByBeliefState"),
        (optax.masked(optax.scale_by_amsgrad(), decayed), "ScaleByAmsgradState"),
    ],
    ids=["alone", "in a chain", "masked"],
)
def test_a_state_that_is_not_known_is_refused(tx, kind):
    plan = plan_of("paper")
    with pytest.raises(growth.OptimizerStateError, match=f"of type {kind}, .* known types are"):
        growth.expand_optimizer_state(tx, tx.init(parameters("paper")), plan, None)


def test_a_state_of_another_architecture_is_refused():
    plan, tx = plan_of("paper"), optax.adam(1e-3)
    with pytest.raises(growth.BlueprintError, match="embed/embedding: shape"):
        growth.expand_optimizer_state(tx, tx.init(grown_parameters("paper")), plan, None)


def test_training_goes_on_after_growth():
    """Parameters and state grow in one compiled function, and a step follows in another."""
    tx = OPTIMIZERS["masked"]
    plan = growth.compose(growth.hidden_dimension_expansion(10), growth.layer_addition(1))(
        ARCHITECTURES["paper"]
    )
    state = TrainState(jnp.int32(3), parameters("paper"), accumulated(tx, "paper"))

    @jax.jit
    def grow(state, key):
        weights = growth.expand(state.params, plan, key)
        moments = growth.expand_optimizer_state(tx, state.opt_state, plan, weights)
        return TrainState(state.step, weights, moments)

    batch = random_batches((4,), seed=2)
    before = jax.jit(functools.partial(loss, Transformer(plan.source)))(state.params, batch)
    grown = grow(state, KEY)
    after, metrics = jax.jit(make_train_step(Transformer(plan.target), tx))(grown, batch)
    assert abs(metrics["loss"] - before) <= 1e-12
    assert after.step == 4
    assert jnp.isfinite(optax.tree.norm(after.params))
    # A new layer is closed by zeros, and learns there first.
    old, new = (networks.by_layer(state.params, plan.target) for state in (grown, after))
    for name in ("attention/out/kernel", "mlp/down/kernel"):
        assert (old[2, name] == 0).all()
        assert (new[2, name] != 0).any()
