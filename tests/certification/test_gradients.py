"""What growth does to gradients: old entries keep theirs, and new entries get one."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import growth
from growth.models import Transformer
from tests.helpers import networks
from tests.helpers.networks import ARCHITECTURES, KEY, by_layer, random_parameters

pytestmark = pytest.mark.usefixtures("float64")

# Every token of the vocabulary, and every position.
TOKENS = np.random.default_rng(1).permutation(np.arange(4 * 8) % 11).reshape(4, 8)


def loss(architecture, parameters):
    logits = Transformer(architecture).apply({"params": parameters}, TOKENS)
    return optax.softmax_cross_entropy_with_integer_labels(logits, (TOKENS * 3 + 1) % 11).mean()


@functools.cache
def gradient(architecture):
    return jax.jit(jax.grad(functools.partial(loss, architecture)))


RMSNORM = {
    "paper": ARCHITECTURES["paper"],
    "llama": ARCHITECTURES["llama"],
    "biases": ARCHITECTURES["llama"].replace(use_bias=True, final_norm=False),
    "mixed": ARCHITECTURES["mixed"].replace(norm="rmsnorm", use_bias=("query", "key", "mlp_out")),
}


@pytest.mark.parametrize("name", RMSNORM)
def test_old_entries_keep_their_gradient_over_the_factor_of_the_parameter(name):
    architecture = RMSNORM[name]
    plan = networks.all_steps(architecture)(architecture)
    parameters = random_parameters(architecture)
    grown = growth.expand(parameters, plan, fresh=random_parameters(plan.target, seed=1))
    for layer, array, old, new in networks.old_entries(parameters, grown, plan):
        np.testing.assert_allclose(
            new, old * networks.growth_factor(array, layer, plan), rtol=1e-15
        )

    before, after = gradient(architecture)(parameters), gradient(plan.target)(grown)
    for layer, array, old, new in networks.old_entries(before, after, plan):
        scale = np.abs(old).max()
        assert scale > 0 or array == "attention/key/bias"
        np.testing.assert_allclose(
            new,
            old / networks.growth_factor(array, layer, plan),
            rtol=0,
            atol=1e-10 * scale + 1e-16,
        )


@functools.cache
def update(name, size):
    """A compiled step of an optimizer on parameters that are one long vector."""
    optimizer = {"sgd": optax.sgd(0.1), "adam": optax.adam(0.01)}[name]

    def step(vector, state, gradients):
        updates, state = optimizer.update(gradients, state)
        return vector + updates, state

    return optimizer.init(jnp.zeros(size)), jax.jit(step)


def four_steps(architecture, parameters, optimizer):
    """The gradients at the start of each of four optimizer steps, and the parameters at the end."""
    leaves, treedef = jax.tree.flatten(parameters)
    size = 16384  # the same for all, so that it compiles once
    places = np.cumsum([leaf.size for leaf in leaves])

    def vector(leaves):
        flat = np.concatenate([np.ravel(leaf) for leaf in leaves])
        return np.pad(flat, (0, size - flat.size))

    def tree(vector):
        flat = np.split(np.asarray(vector), places)[:-1]
        return treedef.unflatten(f.reshape(old.shape) for f, old in zip(flat, leaves, strict=True))

    state, step = update(optimizer, size)
    gradients, here = [], vector(leaves)
    for _ in range(4):
        gradients.append(gradient(architecture)(tree(here)))
        here, state = step(here, state, vector(jax.tree.leaves(gradients[-1])))
    return gradients, tree(here)


def new_entries(parameters, plan):
    """For each array of each layer of the target which entries are new."""
    old = by_layer(parameters, plan.source)
    for (layer, name), array in by_layer(networks.zeros(plan.target), plan.target).items():
        new = np.ones(array.shape, bool)
        origin = None if layer is None else plan.layer_sources[layer]
        if layer is None or origin is not None:
            shapes = old[origin, name].shape, array.shape
            new[networks.old_places(name, *shapes, plan.source.position == "rope")] = False
        yield layer, name, new


def assert_alive(gradients, parameters, plan):
    """No new entry is without gradient at the start and after one and after two steps."""
    steps = [by_layer(step, plan.target) for step in gradients[:3]]
    found = 0
    for layer, name, new in new_entries(parameters, plan):
        found += new.sum()
        if name == "attention/key/bias" and plan.source.position != "rope":
            continue  # it moves all scores of a query alike, which softmax does not see
        sizes = [np.abs(step[layer, name]) for step in steps]
        alive = np.any([size > 1e-13 * size.max() for size in sizes], axis=0)
        assert alive[new].all(), f"{name} in layer {layer}: {(~alive & new).sum()} are dead"
    assert found == plan.target.num_parameters - plan.source.num_parameters


def grown_axes(plan):
    """The axes along which some layer has more units than it had, by its sizes."""
    axes = {"embed"} if plan.target.embed_dim > plan.source.embed_dim else set()
    for layer, origin in zip(plan.target.layers, plan.layer_sources, strict=True):
        if origin is not None:
            old = plan.source.layers[origin]
            pairs = dict(
                mlp=(layer.mlp_dim, old.mlp_dim),
                qk=(layer.qk_dim, old.qk_dim),
                v=(layer.v_dim, old.v_dim),
                kv_heads=(layer.num_kv_heads, old.num_kv_heads),
                group=(layer.num_heads // layer.num_kv_heads, old.num_heads // old.num_kv_heads),
            )
            axes |= {axis for axis, (new, before) in pairs.items() if new > before}
    return axes


def assert_distinct(parameters, plan):
    """No two units are equal along an axis that has grown, and no new layer is another one."""
    arrays = by_layer(parameters, plan.target)
    compared = set()
    for (layer, name), array in arrays.items():
        for place, axis in enumerate(networks.axes_of(name)):
            if axis in grown_axes(plan) and array.ndim > 1:
                compared.add(axis)
                units = np.moveaxis(np.asarray(array), place, 0)
                assert len(np.unique(units, axis=0)) == len(units), f"{name} in {layer}: {axis}"
    new = {layer for layer, origin in enumerate(plan.layer_sources) if origin is None}
    for (layer, name), (other, again) in itertools.permutations(arrays, 2):
        one, two = arrays[layer, name], arrays[other, again]
        if name == again and layer in new and other is not None and one.shape == two.shape:
            compared.add(layer)
            assert one.ndim == 1 or (one != two).any(), f"{name} in layers {layer} and {other}"
    assert compared == grown_axes(plan) | new


# A unit that ReLU holds inactive on all of the few tokens here would have no gradient.
SMOOTH = ARCHITECTURES | {"paper": ARCHITECTURES["paper"].replace(activation="gelu")}

SIX = ("mlp", "whole groups", "queries in groups", "v", "qk", "embed", "layers between")
CASES = [
    pytest.param(name, step, id=f"{name}: {step}")
    for name in SMOOTH
    # LayerNorm makes a difference to the width of the stream only.
    for step in (SIX if SMOOTH[name].norm == "rmsnorm" else ("embed",))
]


@pytest.mark.parametrize(("name", "step"), CASES)
def test_new_entries_learn(name, step):
    architecture = SMOOTH[name]
    plan = networks.single_steps(architecture)[step](architecture)
    parameters = random_parameters(architecture)
    fresh = random_parameters(plan.target, seed=1, gains=0, biases=0)  # as an initializer would
    grown = growth.expand(parameters, plan, fresh=fresh)
    for optimizer in ("sgd", "adam"):
        gradients, trained = four_steps(plan.target, grown, optimizer)
        assert_alive(gradients, parameters, plan)
        assert_distinct(trained, plan)


@pytest.mark.parametrize("name", SMOOTH)
def test_copies_learn_and_become_different_from_what_they_were_copied_from(name):
    architecture = SMOOTH[name]
    plan = networks.all_steps(architecture)(architecture)
    parameters = random_parameters(architecture)
    grown = growth.expand(parameters, plan, key=KEY, init="copy")
    for optimizer in ("sgd", "adam"):
        gradients, trained = four_steps(plan.target, grown, optimizer)
        assert_alive(gradients, parameters, plan)
        assert_distinct(trained, plan)
