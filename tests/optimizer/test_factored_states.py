"""Statistics of whole arrays, exponents that are measured, and how new entries begin."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import growth
from growth.optimizer.scaling_exponents import agreed_exponent, measured_exponents
from tests.helpers import networks, optimizers
from tests.helpers.moments import (
    EXACT,
    STEPS,
    accumulated,
    by_parameter,
    expanded,
    gradients,
    grown_parameters,
    parameters,
    plan_of,
)

pytestmark = pytest.mark.usefixtures("float64")


def estimates(tx, state, params):
    """What the optimizer divides a gradient of each entry by, squared."""
    some = 1e-150  # its square is nothing beside any statistic
    updates, _ = tx.update(jax.tree.map(lambda p: jnp.full_like(p, some), params), state, params)
    return jax.tree.map(lambda update: jnp.square(some / update), updates)


def statistics(tx, squares, params):
    """The state that the optimizer makes of gradients with these squares, the first it sees."""
    return tx.update(jax.tree.map(jnp.sqrt, squares), tx.init(params), params)[1]


def squares_grown(squares):
    """Squares of gradients as they grow where there is one for each entry: new ones are zero."""
    return expanded(optax.scale_by_rms(), optax.ScaleByRmsState(squares), "paper").nu


def assert_old_entries_are_kept(before, after, exponent):
    """Moments of old entries are those of gradients over the factors of their parameters."""
    for layer, name, old, new in networks.old_entries(before, after, plan_of("paper")):
        want = old / networks.growth_factor(name, layer, plan_of("paper")) ** exponent
        scale = np.abs(want).max()
        assert scale > 0, name
        np.testing.assert_allclose(new, want, rtol=0, atol=EXACT * scale, err_msg=name)


def factored_rms(threshold, decay):
    """What adafactor divides by, with statistics that stay as they are (1) or begin anew (0)."""
    return optax.scale_by_factored_rms(
        min_dim_size_to_factor=threshold, decay_rate_fn=lambda *_: decay, epsilon=0.0
    )


def test_adafactor_keeps_its_estimate_of_every_old_entry():
    """Of arrays that were factored before: their estimate has rank one, and stays what it was."""
    tx = optax.adafactor(1e-3, min_dim_size_to_factor=3)
    state = accumulated(tx, "paper")
    grown = expanded(tx, state, "paper")[0]
    assert grown.count == state[0].count == STEPS
    reads = factored_rms(3, decay=1.0)
    assert_old_entries_are_kept(
        estimates(reads, state[0], parameters("paper")),
        estimates(reads, grown, grown_parameters("paper")),
        exponent=2,
    )


@pytest.mark.parametrize(
    ("threshold", "factored"), [(3, (9, 15)), (7, (0, 11)), (9, (0, 6)), (10, (0, 4))]
)
def test_adafactor_has_the_sums_of_its_estimates_where_sizes_cross_the_threshold(
    threshold, factored
):
    """Whatever the form was and is, statistics are those that optax makes of the estimates."""
    tx = optax.scale_by_factored_rms(min_dim_size_to_factor=threshold)
    state = accumulated(tx, "paper")
    grown = expanded(tx, state, "paper")
    assert factored == tuple(sum(v.size == 1 for v in jax.tree.leaves(s.v)) for s in (state, grown))
    before = estimates(factored_rms(threshold, decay=1.0), state, parameters("paper"))
    begun = factored_rms(threshold, decay=0.0)
    whole = squares_grown(before)
    assert_old_entries_are_kept(before, whole, exponent=2)
    want = statistics(begun, whole, grown_parameters("paper"))
    chex.assert_trees_all_close(grown._replace(count=want.count), want, rtol=EXACT)


def test_sm3_keeps_its_estimate_of_every_old_entry():
    tx = optimizers.INEXACT["sm3"]
    state = accumulated(tx, "paper")
    grown = expanded(tx, state, "paper")[0]
    sm3 = optax.scale_by_sm3(b1=0.0, eps=0.0)
    before, after = (
        estimates(sm3, s._replace(nu=optax.tree.zeros_like(s.nu)), weights)
        for s, weights in ((state[0], parameters("paper")), (grown, grown_parameters("paper")))
    )
    assert_old_entries_are_kept(before, after, exponent=2)
    want = statistics(sm3, squares_grown(before), grown_parameters("paper"))
    chex.assert_trees_all_close(grown.mu, want.mu, rtol=EXACT)


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


def test_exponents_are_found_by_running_the_optimizer():
    tx = optax.chain(
        optax.clip_by_global_norm(1e-3), optax.scale_by_adamax(), optax.trace(0.9), optax.ema(0.9)
    )
    powers = measured_exponents(tx, parameters("paper")).tree
    found = [
        agreed_exponent(tree, 7, parameters("paper"))
        for tree in (powers[1].mu, powers[1].nu, powers[2].trace, powers[3].ema)
    ]
    assert found == [-1, -1, 0, 0]
    assert agreed_exponent(powers[1].count, 7, parameters("paper")) == 7


def test_momentum_behind_a_trust_ratio_follows_the_parameters():
    """Its updates are as large as parameters, so they are multiplied as these are."""
    tx = optax.lars(1e-3, momentum=0.9, weight_decay=1e-4)
    powers = measured_exponents(tx, parameters("paper")).tree
    trace = next(part.trace for part in powers if isinstance(part, optax.TraceState))
    assert agreed_exponent(trace, 7, parameters("paper")) == 1
    state = accumulated(tx, "paper")
    grown = expanded(tx, state, "paper")
    old, new = (
        next(part.trace for part in s if isinstance(part, optax.TraceState)) for s in (state, grown)
    )
    gains = [tree["layers_0"]["mlp_norm"]["scale"][0, :6] for tree in (old, new)]
    np.testing.assert_allclose(gains[1], np.asarray(gains[0]) * (6 / 10) ** 0.5)
    assert not np.asarray(new["layers_0"]["mlp"]["down"]["kernel"])[:, 7:].any()


def test_exponents_of_an_optimizer_that_needs_more_are_those_of_the_table():
    tx, more = optimizers.make("sophia")
    powers = measured_exponents(tx, parameters("paper")).tree
    assert all(np.isnan(power) for power in jax.tree.leaves(powers))
    state = accumulated(tx, "paper", **more)
    grown = expanded(tx, state, "paper")[0]
    assert_old_entries_are_kept(state[0].mu, grown.mu, exponent=1)
    assert_old_entries_are_kept(state[0].nu, grown.nu, exponent=2)


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
