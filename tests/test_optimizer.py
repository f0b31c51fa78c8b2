"""Optimizer states grow into what the grown network's own gradients would have made of them."""

import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import networks
import numpy as np
import optax
import optimizers
import pytest
from jax.sharding import AxisType
from networks import ARCHITECTURES, KEY, random_parameters
from optax import contrib

import growth
from growth.models import Transformer
from growth.optimizer.degrees import agreed, measured_degrees
from growth.optimizer.expand import _refuse_unknown
from growth.optimizer.statistics import RULES
from growth.optimizer.table import FIELDS, REFUSED
from growth.training import mesh as meshes
from growth.training.data import Batch
from growth.training.optimization import decayed
from growth.training.state import TrainState
from growth.training.step import loss, make_train_step

pytestmark = pytest.mark.usefixtures("float64")

EXACT = 1e-8
STEPS = 20
SUPPORTED = optimizers.EXACT | optimizers.INEXACT


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
    """The gradients of many batches, stacked; in the grown network, or in the one it came from."""
    plan = plan_of(name)
    model = Transformer(plan.target if grown else plan.source)
    gradient = jax.grad(lambda parameters, batch: loss(model, parameters, batch))
    every = jax.jit(
        lambda p: jax.lax.map(lambda batch: gradient(p, batch), random_batches((STEPS, 4), 1))
    )
    return every(grown_parameters(name) if grown else parameters(name))


def accumulated(tx, name, grown=False, **more):
    """The state that an optimizer has after those gradients."""

    def accumulate(parameters, gradients):
        take = lambda state, gradient: (tx.update(gradient, state, parameters, **more)[1], None)  # noqa: E731
        return jax.lax.scan(take, tx.init(parameters), gradients)[0]

    weights = grown_parameters(name) if grown else parameters(name)
    return jax.jit(accumulate)(weights, gradients(name, grown))


def expanded(tx, state, name, **options):
    return growth.expand_optimizer_state(
        tx, state, plan_of(name), parameters(name), grown_parameters(name), **options
    )


def old_places(name):
    """Where entries of the grown parameters are old, by path."""
    ones = jax.tree.map(jnp.ones_like, parameters(name))
    tx = optax.trace(0.9)
    grown = expanded(tx, optax.TraceState(ones), name).trace
    return {leaf.path: np.asarray(leaf.value) != 0 for leaf in growth.trees.leaves(grown)}


def by_parameter(state, name):
    """The leaves of a state that are shaped like a grown parameter, with where that is old."""
    places = old_places(name)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        keys = "/".join(str(key.key) for key in path if hasattr(key, "key"))
        fitting = [p for at, p in places.items() if keys == at or keys.endswith(f"/{at}")]
        place = fitting[0] if fitting and fitting[0].shape == leaf.shape else None
        names = {getattr(key, "name", "") for key in path}
        kind = "parameter" if names & PARAMETERS else "moment"
        yield jax.tree_util.keystr(path), leaf, place, kind


PARAMETERS = {"z", "x0", "init_params", "init_particles", "params0", "cache"}


@pytest.mark.parametrize("optimizer", optimizers.EXACT)
def test_old_moments_are_those_of_the_grown_network(optimizer):
    """Growing the moments is the same as gathering them in the grown network from the start."""
    name = "paper"
    tx, more = optimizers.make(optimizer)
    state, truth = (accumulated(tx, name, grown=which, **more) for which in (False, True))
    grown = expanded(tx, state, name)
    assert jax.tree.structure(grown) == jax.tree.structure(truth)
    assert_kept(state, grown)

    begun = jax.tree.leaves(tx.init(grown_parameters(name)))
    compared = 0
    for (path, true, place, kind), new, first in zip(
        by_parameter(truth, name), jax.tree.leaves(grown), begun, strict=True
    ):
        assert (new.shape, new.dtype) == (first.shape, first.dtype)
        if place is None:
            continue
        scale = np.abs(np.asarray(true)[place]).max()
        assert np.abs(np.asarray(new - true)[place]).max() <= EXACT * scale, path
        if kind == "moment":
            np.testing.assert_array_equal(np.asarray(new)[~place], np.asarray(first)[~place])
        compared += scale > 0
    assert compared > 10 or not any(
        place is not None for _, _, place, _ in by_parameter(truth, name)
    )


@pytest.mark.parametrize("optimizer", optimizers.INEXACT)
def test_counts_and_rates_stay(optimizer):
    tx, more = optimizers.make(optimizer)
    state = accumulated(tx, "paper", **more)
    assert_kept(state, expanded(tx, state, "paper"))


def assert_kept(state, grown):
    """What is of no parameter is what it was."""

    def kept(tree):
        return {
            jax.tree_util.keystr(path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
            if not any(getattr(key, "key", "") in ("embed", "unembed", "position") for key in path)
            and not any("layers" in str(getattr(key, "key", "")) for key in path)
        }

    before, after = kept(state), kept(grown)
    assert before.keys() == after.keys()
    for path, leaf in before.items():
        assert jnp.array_equal(leaf, after[path]), path


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixed"])
@pytest.mark.parametrize("optimizer", ["adamw", "deep", "schedule_free_adamw", "adafactor", "sm3"])
def test_a_grown_state_is_like_one_that_begins(name, optimizer):
    tx, _ = optimizers.make(optimizer)
    plan = plan_of(name)
    grown = jax.eval_shape(
        lambda p, g: growth.expand_optimizer_state(tx, tx.init(p), plan, p, g),
        parameters(name),
        grown_parameters(name),
    )
    want = jax.eval_shape(tx.init, grown_parameters(name))
    assert jax.tree.structure(grown) == jax.tree.structure(want)
    for new, begun in zip(jax.tree.leaves(grown), jax.tree.leaves(want), strict=True):
        assert (new.shape, new.dtype) == (begun.shape, begun.dtype)


def test_old_moments_under_grouped_rotary_attention_too():
    for optimizer in ("adamw", "adamax", "muon, scanned", "adafactor, whole"):
        tx, more = optimizers.make(optimizer)
        truth = accumulated(tx, "llama", grown=True, **more)
        grown = expanded(tx, accumulated(tx, "llama", **more), "llama")
        for (path, true, place, _), new in zip(
            by_parameter(truth, "llama"), jax.tree.leaves(grown), strict=True
        ):
            if place is not None:
                scale = np.abs(np.asarray(true)[place]).max()
                assert np.abs(np.asarray(new - true)[place]).max() <= EXACT * scale, path


# What holds where an optimizer keeps statistics of whole arrays.


def estimates(param, row, column):
    """Adafactor's estimate of every entry."""
    d1, d0 = (int(axis) for axis in np.argsort(param.shape)[-2:])
    mean = row.mean(axis=d1 - 1 if d1 > d0 else d1, keepdims=True)
    return np.expand_dims(row / mean, d0) * np.expand_dims(column, d1)


def test_adafactor_keeps_its_estimate_of_every_old_entry():
    """Also of arrays that come to be factored, since their dimensions cross the threshold."""
    tx = optimizers.INEXACT["adafactor"]  # it factors where two dimensions are at least 3
    state = accumulated(tx, "paper")[0]
    grown = expanded(tx, accumulated(tx, "paper"), "paper")[0]
    assert state.count == grown.count
    whole = jax.tree.map(
        lambda p, row, column, v: v if v.shape == p.shape else estimates(p, row, column),
        parameters("paper"),
        *(jax.tree.map(np.asarray, tree) for tree in (state.v_row, state.v_col, state.v)),
    )
    wanted = expanded(optax.scale_by_rms(), optax.ScaleByRmsState(whole), "paper").nu
    factored = 0
    for (path, want, place, _), param, row, column, v in zip(
        by_parameter(wanted, "paper"),
        *map(jax.tree.leaves, (grown_parameters("paper"), grown.v_row, grown.v_col, grown.v)),
        strict=True,
    ):
        if v.shape == param.shape:
            have = np.asarray(v)
        else:
            factored += 1
            have = estimates(param, np.asarray(row), np.asarray(column))
        scale = np.abs(np.asarray(want)).max()
        # Of an array that was factored before, an estimate has rank one, and stays what it was.
        assert np.abs(have - np.asarray(want))[place].max() <= EXACT * scale, path
    assert factored > 8


@pytest.mark.parametrize("threshold", [7, 9, 10])
def test_adafactor_changes_its_form_where_a_dimension_crosses_the_threshold(threshold):
    tx = optax.scale_by_factored_rms(min_dim_size_to_factor=threshold)
    state = accumulated(tx, "paper")
    grown = expanded(tx, state, "paper")
    forms = [sum(v.size == 1 for v in jax.tree.leaves(s.v)) for s in (state, grown)]
    assert forms[0] < forms[1]
    # Sums over an array that was whole are those of its entries.
    kernel = lambda tree: np.asarray(tree["embed"]["embedding"])  # noqa: E731
    if kernel(state.v).size > 1 and kernel(grown.v).size == 1:
        np.testing.assert_allclose(kernel(grown.v_row).mean(), kernel(state.v).sum() / 110)


def test_sm3_keeps_its_estimate_of_every_old_entry():
    tx = optimizers.INEXACT["sm3"]
    state = accumulated(tx, "paper")[0]
    grown = expanded(tx, accumulated(tx, "paper"), "paper")[0]

    def least(param, accumulators):
        shapes = [
            [n if a == b else 1 for b, n in enumerate(param.shape)] for a in range(param.ndim)
        ]
        return functools.reduce(
            np.minimum, [np.reshape(x, s) for x, s in zip(accumulators, shapes, strict=True)]
        )

    def whole(tree, weights):
        leaves, structure = jax.tree.flatten(weights)
        return structure.unflatten(map(least, leaves, structure.flatten_up_to(tree)))

    before, after = whole(state.mu, parameters("paper")), whole(grown.mu, grown_parameters("paper"))
    wanted = expanded(optax.scale_by_rms(), optax.ScaleByRmsState(before), "paper").nu
    for (path, want, place, _), have in zip(
        by_parameter(wanted, "paper"), jax.tree.leaves(after), strict=True
    ):
        scale = np.abs(np.asarray(want)).max()
        assert np.abs(have - np.asarray(want))[place].max() <= EXACT * scale, path


@pytest.mark.parametrize("optimizer", ["novograd", "layer-wise dog"])
def test_sums_over_arrays_stay_the_sums_of_their_old_entries(optimizer):
    """Of arrays of one section that nothing multiplies, cut or whole."""
    tx, _ = optimizers.make(optimizer)
    state, grown = accumulated(tx, "paper"), expanded(tx, accumulated(tx, "paper"), "paper")
    sums = [s[0].nu if optimizer == "novograd" else s.grad_sum_of_squares for s in (state, grown)]

    def total(tree, *keys):
        layers = [tree[name] for name in tree if name.startswith("layers")]
        return sum(
            float(jnp.sum(functools.reduce(dict.__getitem__, keys, layer))) for layer in layers
        )

    for keys in (("mlp", "down", "kernel"), ("attention", "out", "kernel")):
        old, new = (total(tree, *keys) for tree in sums)
        assert old > 0
        np.testing.assert_allclose(new, old)
    # A gain that is multiplied by c has gradients that are divided by it.
    old, new = (total(tree, "mlp_norm", "scale") for tree in sums)
    np.testing.assert_allclose(new, old * 10 / 6)


def test_momentum_of_normalized_gradients_does_not_follow_their_scale():
    tx = optimizers.INEXACT["novograd"]
    mu = expanded(tx, accumulated(tx, "paper"), "paper")[0].mu
    old = accumulated(tx, "paper")[0].mu
    np.testing.assert_allclose(
        mu["layers_0"]["mlp_norm"]["scale"][0, :6], old["layers_0"]["mlp_norm"]["scale"][0]
    )


# Degrees.


def test_degrees_are_found_by_running_the_optimizer():
    tx = optax.chain(
        optax.clip_by_global_norm(1e-3), optax.scale_by_adamax(), optax.trace(0.9), optax.ema(0.9)
    )
    powers = measured_degrees(tx, parameters("paper")).tree
    found = [
        agreed(tree, 7, parameters("paper"))
        for tree in (powers[1].mu, powers[1].nu, powers[2].trace, powers[3].ema)
    ]
    assert found == [-1, -1, 0, 0]
    assert agreed(powers[1].count, 7, parameters("paper")) == 7


def test_degrees_of_an_optimizer_that_needs_more_are_those_of_the_table():
    tx, more = optimizers.make("sophia")
    powers = measured_degrees(tx, parameters("paper")).tree
    assert all(np.isnan(power) for power in jax.tree.leaves(powers))
    state = accumulated(tx, "paper", **more)
    grown = expanded(tx, state, "paper")
    gains = [
        s[0].nu["final_norm"]
        if "final_norm" in s[0].nu
        else s[0].nu["layers_0"]["mlp_norm"]["scale"][0, :6]
        for s in (state, grown)
    ]
    np.testing.assert_allclose(gains[1], np.asarray(gains[0]) * 10 / 6)


# What is valued like parameters.


@pytest.mark.parametrize("free", ["fresh", "copy"])
def test_what_is_valued_like_parameters_gets_their_values(free):
    """Schedule-free's z begins as the parameters, and grows as they do."""
    plan = growth.compose(growth.mlp_expansion(9), growth.layer_addition(1))(ARCHITECTURES["paper"])
    tx = contrib.schedule_free(optax.sgd(1e-2), learning_rate=1e-2)
    weights = parameters("paper")
    larger = growth.expand(weights, plan, KEY, free=free)
    grown = growth.expand_optimizer_state(tx, tx.init(weights), plan, weights, larger)
    networks.assert_same_trees(grown.z, larger)


def test_other_values_of_parameters_compute_what_they_did():
    """Averages of parameters, slow weights and starting points: the grown network computes with
    them what the small one computed with its own."""
    plan, random = plan_of("paper"), np.random.default_rng(3)
    moved = jax.tree.map(lambda p: p + 0.3 * random.standard_normal(p.shape), parameters("paper"))
    old = networks.logits(plan.source, moved)
    average = growth.expand(moved, plan, fresh=grown_parameters("paper"))
    assert networks.difference(old, networks.logits(plan.target, average)) <= 1e-12
    for name, place in {
        "schedule_free_sgd": lambda s: s.z,
        "prodigy": lambda s: s.params0,
        "dog": lambda s: s[1].init_params,
        "madgrad": lambda s: s[1].x0,
        "mechanize": lambda s: s.x0,
    }.items():
        tx = optimizers.EXACT[name]
        state = tx.init(moved)
        tree = place(expanded(tx, state, "paper"))
        networks.assert_same_trees(tree, average)


def test_lookahead_grows_with_its_slow_parameters():
    plan, weights = plan_of("paper"), parameters("paper")
    tx = optax.lookahead(optax.sgd(1e-2, momentum=0.9), 5, 0.5)
    params = optax.LookaheadParams.init_synced(weights)
    state = tx.init(params)
    some = jax.tree.map(lambda g: g[0], gradients("paper", False))
    _, state = tx.update(some, state, params)
    fast = grown_parameters("paper")
    grown = optax.LookaheadParams(fast, growth.expand(params.slow, plan, fresh=fast))
    networks.assert_same_trees(grown.slow, fast)
    larger = growth.expand_optimizer_state(tx, state, plan, params, grown)
    truth = expanded(optax.trace(0.9), optax.TraceState(some), "paper").trace
    networks.assert_same_trees(larger.fast_state[0].trace, truth)
    assert larger.steps_since_sync == state.steps_since_sync


# How second moments of new entries begin.


def adams(name="paper"):
    tx = optax.adam(1e-3)
    return tx, accumulated(tx, name)


def test_new_second_moments_may_begin_as_the_mean_of_their_array():
    tx, state = adams()
    plain, filled = expanded(tx, state, "paper")[0], expanded(tx, state, "paper", moments="mean")[0]
    networks.assert_same_trees(plain.mu, filled.mu)
    for (path, old, place, _), new in zip(
        by_parameter(plain.nu, "paper"), jax.tree.leaves(filled.nu), strict=True
    ):
        old, new = np.asarray(old), np.asarray(new)
        np.testing.assert_array_equal(new[place], old[place])
        if place.any():
            np.testing.assert_allclose(new[~place], old[place].mean(), err_msg=path)
        else:  # a layer that is new, in an array of its own
            kind = path.split("']")[-3:]
            alike = [
                np.asarray(leaf)[where]
                for at, leaf, where, _ in by_parameter(plain.nu, "paper")
                if at.split("']")[-3:] == kind and "layers" in at
            ]
            np.testing.assert_allclose(new, np.concatenate(alike).mean(), err_msg=path)


def test_new_second_moments_may_begin_as_the_square_of_a_gradient():
    tx, state = adams()
    gradient = jax.tree.map(lambda g: g[0], gradients("paper", True))
    mean = expanded(tx, state, "paper", moments="mean")[0].nu
    probed = expanded(tx, state, "paper", moments="probe", gradient=gradient)[0].nu
    some = 0
    for (_, new, place, _), other, g in zip(
        by_parameter(probed, "paper"), *map(jax.tree.leaves, (mean, gradient)), strict=True
    ):
        want = np.where(place, other, np.where(np.asarray(g) != 0, np.square(g), other))
        np.testing.assert_allclose(new, want, rtol=1e-12)
        some += ((np.asarray(g) != 0) & ~place).sum()
    assert some > 100


@pytest.mark.parametrize(
    "options", [dict(moments="random"), dict(moments="probe"), dict(gradient={})]
)
def test_a_policy_that_is_not_known_is_refused(options):
    tx, state = adams()
    with pytest.raises(growth.OptimizerStateError, match="it must be one of zeros, mean, probe"):
        expanded(tx, state, "paper", **options)


# Low precision, sizes and meshes.


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
    value, gradient = jax.jit(jax.value_and_grad(lambda p: loss(model, p, batch)))(weights)

    def of_state(tx):
        state = jax.eval_shape(tx.init, weights)
        return meshes.shardings(mesh, meshes.optimizer_partitions(state, weights, partitions))

    return weights, value, gradient, of_state


OF_EACH_KIND = (
    *("adamw", "adafactor", "sm3", "novograd", "muon, scanned", "schedule_free_adamw", "deep"),
    *("partition", "masked", "MultiSteps", "inject_hyperparams", "prodigy"),
)


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(name, marks=[] if name in OF_EACH_KIND else [pytest.mark.full])
        for name in SUPPORTED
    ],
)
def test_one_step_after_growth_on_a_mesh(optimizer):
    """The state grows in a compiled function, sharded; the loss before the next step is kept."""
    tx, more = optimizers.make(optimizer)
    weights, before, gradient, of_state = meshed(MESHED.source)
    larger, after, slope, of_grown = meshed(MESHED.target)
    assert abs(after - before) <= 1e-12

    update = jax.jit(lambda g, s, p: tx.update(g, s, p, **more))
    state = jax.device_put(tx.init(weights), of_state(tx))
    _, state = update(gradient, state, weights)
    grow = jax.jit(
        lambda s, p, g: growth.expand_optimizer_state(tx, s, MESHED, p, g),
        out_shardings=of_grown(tx),
    )
    grown = grow(state, weights, larger)
    for leaf, sharding in zip(jax.tree.leaves(grown), jax.tree.leaves(of_grown(tx)), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    updates, state = update(slope, grown, larger)
    assert jnp.isfinite(optax.tree.norm(optax.apply_updates(larger, updates)))
    assert jax.tree.structure(state) == jax.tree.structure(grown)


def test_training_goes_on_after_growth():
    """Parameters and state grow in one compiled function, and a step follows in another."""
    tx = optimizers.EXACT["masked"]
    plan = growth.compose(growth.hidden_dimension_expansion(10), growth.layer_addition(1))(
        ARCHITECTURES["paper"]
    )
    state = TrainState(jnp.int32(3), parameters("paper"), accumulated(tx, "paper"))

    @jax.jit
    def grow(state, key):
        weights = growth.expand(state.params, plan, key)
        moments = growth.expand_optimizer_state(tx, state.opt_state, plan, state.params, weights)
        return TrainState(state.step, weights, moments)

    batch = random_batches((4,), seed=2)
    before = jax.jit(functools.partial(loss, Transformer(plan.source)))(state.params, batch)
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


# What is known, and what is refused.


@pytest.mark.parametrize("name", sorted(optimizers.exported() - optimizers.WRAPPERS))
def test_everything_that_optax_exports_grows_or_is_refused_by_name(name):
    """The list is made from the package that is installed, so that a new one cannot be missed."""
    function = getattr(optax, name, None) or getattr(contrib, name)
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
        ({"steps": "keep", "average": "linear"}, "average is 'linear', but it must be a degree"),
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
        large = growth.expand(small, plan, KEY)
        with pytest.raises(growth.OptimizerStateError, match=r"growth cannot carry .*\.average"):
            growth.expand_optimizer_state(tx, tx.init(small), plan, small, large)
    finally:
        FIELDS.pop(Kept, None)


def test_moments_of_one_vector_are_refused():
    tx = optax.flatten(optax.adam(1e-3))
    with pytest.raises(growth.InputError, match="no rule"):
        expanded(tx, tx.init(parameters("paper")), "paper")
