"""Statistics of whole arrays, degrees that are measured, and how new entries begin."""

import functools

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
    accumulated,
    by_parameter,
    expanded,
    gradients,
    grown_parameters,
    parameters,
)

pytestmark = pytest.mark.usefixtures("float64")


def estimates(param, row, column):
    """Adafactor's estimate of every entry."""
    d1, d0 = (int(axis) for axis in np.argsort(param.shape)[-2:])
    mean = row.mean(axis=d1 - 1 if d1 > d0 else d1, keepdims=True)
    return np.expand_dims(row / np.where(mean == 0, 1, mean), d0) * np.expand_dims(column, d1)


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

    def kernel(tree):
        return np.asarray(tree["embed"]["embedding"])

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


def test_degrees_are_found_by_running_the_optimizer():
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


def test_degrees_of_an_optimizer_that_needs_more_are_those_of_the_table():
    tx, more = optimizers.make("sophia")
    powers = measured_exponents(tx, parameters("paper")).tree
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
