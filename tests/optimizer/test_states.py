"""Which states grow and which are refused; dtypes, meshes, and steps that follow."""

import functools
import inspect
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType
from optax import contrib

import growth
from growth.models import Transformer
from growth.optimizer.factored_states import RULES
from growth.optimizer.state_expansion import _refuse_unknown
from growth.optimizer.state_fields import FIELDS, REFUSED
from growth.training import mesh as meshes
from growth.training.data.batches import Batch
from growth.training.optimization import decayed
from growth.training.state import TrainState
from growth.training.step import batch_loss, make_train_step
from tests.helpers import networks, optimizers
from tests.helpers.moments import (
    STEPS,
    accumulated,
    by_parameter,
    expanded,
    gradients,
    grown_parameters,
    parameters,
    random_batches,
)
from tests.helpers.networks import ARCHITECTURES, KEY, random_parameters

pytestmark = pytest.mark.usefixtures("float64")

SUPPORTED = optimizers.EXACT | optimizers.INEXACT


def test_low_precision_moments_are_rounded_once():
    tx = optax.lion(1e-4, mu_dtype=jnp.bfloat16)
    state = tx.init(parameters("llama"))
    low = networks.with_dtype(parameters("llama"), jnp.bfloat16)
    grown = expanded(tx, (state[0]._replace(mu=low), *state[1:]), "llama")[0].mu
    exact = expanded(
        optax.trace(0.9), optax.TraceState(networks.with_dtype(low, jnp.float64)), "llama"
    ).trace
    networks.assert_same_trees(grown, networks.with_dtype(exact, jnp.bfloat16))


MESHED = growth.grow_to(
    embed_dim=16, num_layers=3, num_heads=8, qk_dim=8, v_dim=8, mlp_dim=16
)(
    growth.Architecture.paper(
        vocab_size=16, max_length=8, embed_dim=8, num_layers=2, num_heads=4, qk_dim=4, mlp_dim=8
    )
)  # fmt: skip


@functools.cache
def meshed(architecture):
    """Parameters on a mesh, the loss of a batch and its gradient, and shardings of optimizers."""
    mesh = jax.make_mesh((1, 2, 2), meshes.MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    weights = random_parameters(MESHED.source)
    if architecture != MESHED.source:
        fresh = random_parameters(architecture, seed=1)
        weights = growth.expand(weights, MESHED, fresh=fresh)
    sizes = dict(mesh.shape)
    partitions = meshes.parameter_partitions(architecture, weights, sizes)
    weights = jax.device_put(weights, meshes.shardings(mesh, partitions))
    tokens = np.random.default_rng(2).integers(0, 16, (4, 9))
    model, batch = Transformer(architecture), Batch(tokens[:, :-1], tokens[:, 1:])
    value, gradient = jax.jit(jax.value_and_grad(lambda p: batch_loss(model, p, batch)))(weights)

    def of_state(tx):
        state = jax.eval_shape(tx.init, weights)
        return meshes.shardings(mesh, meshes.optimizer_partitions(state, weights, partitions))

    return weights, value, gradient, of_state


def parts_of(state, weights):
    """What an optimizer keeps for every entry of the parameters, each a tree shaped like them."""

    def is_part(tree):
        return jax.tree.map(jnp.shape, tree) == jax.tree.map(jnp.shape, weights)

    return [part for part in jax.tree.leaves(state, is_leaf=is_part) if is_part(part)]


def assert_carried(old, new):
    """Old entries are what they were, times one power of the factors of their parameters."""
    entries = [
        (before, after, networks.growth_factor(name, layer, MESHED))
        for layer, name, before, after in networks.old_entries(old, new, MESHED)
    ]
    assert any(
        all(np.allclose(a, b * factor**power, rtol=1e-9, atol=1e-14) for b, a, factor in entries)
        for power in (-2, -1, 0, 1)
    )


OF_EACH_KIND = (
    *("adamw", "adafactor", "sm3", "novograd", "muon, scanned", "schedule_free_adamw", "deep"),
    *("partition", "masked", "MultiSteps", "inject_hyperparams", "prodigy"),
)


@pytest.mark.parametrize(
    "optimizer",
    networks.first(SUPPORTED, *OF_EACH_KIND),
)
def test_one_step_after_growth_on_a_mesh(optimizer):
    """State and next step are what they are without a mesh; the loss before that step is kept."""
    tx, more = optimizers.make(optimizer)
    weights, before, gradient, of_state = meshed(MESHED.source)
    larger, after, slope, of_grown = meshed(MESHED.target)
    assert abs(after - before) <= 1e-12

    def step(gradient, state, weights):
        return tx.update(gradient, state, weights, **more)

    def grow(state, weights, larger):
        return growth.expand_optimizer_state(state, MESHED, tx=tx, params=weights, grown=larger)

    state = jax.device_put(tx.init(weights), of_state(tx))
    _, state = jax.jit(step)(gradient, state, weights)
    grown = jax.jit(grow, out_shardings=of_grown(tx))(state, weights, larger)
    for leaf, sharding in zip(jax.tree.leaves(grown), jax.tree.leaves(of_grown(tx)), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    after_step = jax.jit(step)(slope, grown, larger)

    of_one = jax.tree.map(jnp.asarray, jax.device_get((state, weights, larger, slope)))
    alone = grow(*of_one[:3])
    chex.assert_trees_all_close(grown, alone, rtol=1e-9, atol=1e-14)
    step_alone = jax.jit(step)(of_one[3], alone, of_one[2])
    chex.assert_trees_all_close(after_step, step_alone, rtol=1e-9, atol=1e-14)
    chex.assert_tree_all_finite(after_step[0])
    for old, new in zip(parts_of(of_one[0], weights), parts_of(alone, larger), strict=True):
        assert_carried(old, new)


def test_training_goes_on_after_growth():
    """Parameters and state grow in one compiled function, and a step follows in another."""
    tx = optimizers.EXACT["masked"]
    plan = growth.compose(growth.hidden_dimension_expansion(10), growth.layer_addition(1))(
        ARCHITECTURES["paper"]
    )
    state = TrainState(jnp.int32(3), parameters("paper"), accumulated(tx, "paper"))

    @jax.jit
    def grow(state, key):
        weights = growth.expand(state.params, plan, key=key)
        moments = growth.expand_optimizer_state(
            state.opt_state, plan, tx=tx, params=state.params, grown=weights
        )
        return TrainState(state.step, weights, moments)

    batch = random_batches((4,), seed=2)
    before = jax.jit(functools.partial(batch_loss, Transformer(plan.source)))(state.params, batch)
    grown = grow(state, KEY)
    after, metrics = jax.jit(make_train_step(Transformer(plan.target), tx))(grown, batch)
    assert abs(metrics["loss"] - before) <= 1e-12
    assert after.step == 4
    # A new layer is closed by zeros, and learns there first.
    old, new = (networks.by_layer(state.params, plan.target) for state in (grown, after))
    for name in ("attention/out/kernel", "mlp/down/kernel"):
        assert (old[2, name] == 0).all()
        assert (new[2, name] != 0).any()


def test_hyperparameters_survive_and_may_be_changed():
    tx = optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3)
    state = accumulated(tx, "paper")
    state.hyperparams["learning_rate"] = jnp.asarray(5e-4)
    grown = expanded(tx, state, "paper")
    assert grown.hyperparams["learning_rate"] == 5e-4
    grown.hyperparams["learning_rate"] = jnp.asarray(1e-4)
    some = jax.tree.map(lambda g: g[0], gradients("paper", True))
    _, after = tx.update(some, grown, grown_parameters("paper"))
    assert after.hyperparams["learning_rate"] == 1e-4


def test_accumulated_gradients_grow_at_any_mini_step():
    tx = optimizers.multi_steps(optax.adam(1e-3), 3)
    state, counts = tx.init(parameters("paper")), []
    for number in range(3):
        some = jax.tree.map(lambda g, n=number: g[n], gradients("paper", False))
        _, state = tx.update(some, state, parameters("paper"))
        grown = expanded(tx, state, "paper")
        counts.append((int(grown.mini_step), int(grown.gradient_step)))
        truth = expanded(optax.trace(0.9), optax.TraceState(state.acc_grads), "paper").trace
        networks.assert_same_trees(grown.acc_grads, truth)
    assert counts == [(1, 0), (2, 0), (0, 1)]


@pytest.mark.parametrize("name", sorted(optimizers.exported() - optimizers.WRAPPERS))
def test_everything_that_optax_exports_grows_or_is_refused_by_name(name):
    """The list is made from the package that is installed, so that a new one cannot be missed."""
    function = getattr(contrib, name, None) or getattr(optax, name)
    arguments = optimizers.ARGUMENTS.get(name)
    if arguments is None:
        wanted = [
            p.name
            for p in inspect.signature(function).parameters.values()
            if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
        ]
        assert wanted in ([], ["learning_rate"], ["learning_rate", "key"]), (
            f"how is it called? {wanted}"
        )
        arguments = (1e-3,) * len(wanted)
    tx = function(*arguments)
    params = parameters("paper")
    if name == "lookahead":
        params = optax.LookaheadParams.init_synced(params)
    state = tx.init(params)
    if name in optimizers.REFUSED or name in ("scale_by_lbfgs", "scale_by_galore"):
        with pytest.raises(growth.OptimizerStateError, match=r"State cannot grow: .*tx\.init"):
            _refuse_unknown(state)
    else:
        _refuse_unknown(state)


def test_every_type_of_state_is_known_or_refused():
    for kind, name in optimizers.states().items():
        assert kind in FIELDS or kind in RULES or kind in REFUSED, name
        if kind in FIELDS:
            assert set(FIELDS[kind]) == set(kind._fields), name


@pytest.mark.parametrize("name", optimizers.REFUSED)
def test_what_cannot_grow_is_refused_with_the_reason(name):
    tx = optimizers.REFUSED[name]
    with pytest.raises(growth.OptimizerStateError, match=r"cannot grow: its?.* tx\.init"):
        expanded(tx, tx.init(parameters("paper")), "paper")


class OwnState(NamedTuple):
    """A state of one's own."""

    steps: jax.Array
    average: Any


def own(kind=OwnState):
    def update(updates, state, params=None):
        average = jax.tree.map(lambda a, g: 0.9 * a + g, state.average, updates)
        return average, kind(state.steps + 1, average)

    return optax.GradientTransformation(
        lambda params: kind(jnp.zeros((), int), optax.tree.zeros_like(params)), update
    )


def test_a_state_of_ones_own_is_refused_until_it_is_registered():
    tx = optax.chain(optax.clip(1e6), own())
    with pytest.raises(
        growth.OptimizerStateError, match=r"type OwnState, .*register_optimizer_state"
    ):
        expanded(tx, tx.init(parameters("paper")), "paper")
    try:
        growth.register_optimizer_state(OwnState, {"steps": "keep", "average": -1})
        truth = accumulated(tx, "paper", grown=True)[1]
        grown = expanded(tx, accumulated(tx, "paper"), "paper")[1]
        assert grown.steps == STEPS
        for (_, true, place, _), new in zip(
            by_parameter(truth.average, "paper"), jax.tree.leaves(grown.average), strict=True
        ):
            np.testing.assert_allclose(np.asarray(new)[place], np.asarray(true)[place], atol=1e-9)
    finally:
        FIELDS.pop(OwnState, None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"steps": "keep"}, "fields names steps, but OwnState has steps, average"),
        ({"steps": "keep", "average": "linear"}, "average is 'linear', but it must be an exponent"),
    ],
)
def test_fields_that_are_not_those_of_the_state_are_refused(fields, message):
    with pytest.raises(growth.InputError, match=message):
        growth.register_optimizer_state(OwnState, fields)


def test_a_known_state_cannot_be_said_to_be_something_else():
    with pytest.raises(growth.InputError, match="ScaleByLionState is known already"):
        growth.register_optimizer_state(optax.ScaleByLionState, {"count": "keep", "mu": 0})


def test_a_mask_that_is_a_tree_is_refused_with_advice():
    tx = optax.masked(optax.adam(1e-3), decayed(parameters("paper")))
    with pytest.raises(growth.OptimizerStateError, match="give a function from parameters"):
        expanded(tx, tx.init(parameters("paper")), "paper")


def test_a_state_of_other_parameters_is_refused():
    tx = optax.adam(1e-3)
    with pytest.raises(growth.OptimizerStateError, match="not one of the given parameters"):
        expanded(tx, tx.init(grown_parameters("paper")), "paper")


def test_what_is_shaped_like_parameters_and_said_to_be_kept_is_refused():
    class Kept(OwnState):
        pass

    tx = own(Kept)
    try:
        growth.register_optimizer_state(Kept, {"steps": "keep", "average": "keep"})
        plan, small = growth.mlp_expansion(9)(ARCHITECTURES["paper"]), parameters("paper")
        large = growth.expand(small, plan, key=KEY)
        with pytest.raises(growth.OptimizerStateError, match=r"cannot carry .*average/layers_0"):
            growth.expand_optimizer_state(tx.init(small), plan, tx=tx, params=small, grown=large)
    finally:
        FIELDS.pop(Kept, None)


def test_moments_of_one_vector_are_refused():
    tx = optax.flatten(optax.adam(1e-3))
    with pytest.raises(growth.InputError, match="no rule"):
        expanded(tx, tx.init(parameters("paper")), "paper")
