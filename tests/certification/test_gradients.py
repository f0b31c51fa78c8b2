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


def old_entries(old, new, plan):
    """Each array of the source with the entries of the grown tree that continue it."""
    new = by_layer(new, plan.target)
    for (layer, name), array in by_layer(old, plan.source).items():
        target = new[None if layer is None else plan.layer_sources.index(layer), name]
        places = networks.old_places(
            name, array.shape, target.shape, plan.source.position == "rope"
        )
        yield layer, name, np.asarray(array), np.asarray(target)[places]


def factor(name, layer, plan):
    """What growth multiplies a parameter by (Gesmundo & Maile, definitions 3.4 and 3.5)."""
    if name.endswith("norm/scale"):
        return (plan.source.embed_dim / plan.target.embed_dim) ** 0.5
    if name.startswith("attention/key/"):
        target = plan.target.layers[plan.layer_sources.index(layer)]
        return (target.qk_dim / plan.source.layers[layer].qk_dim) ** 0.5
    return 1.0


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
    for layer, array, old, new in old_entries(parameters, grown, plan):
        np.testing.assert_allclose(new, old * factor(array, layer, plan), rtol=1e-15)

    before, after = gradient(architecture)(parameters), gradient(plan.target)(grown)
    for layer, array, old, new in old_entries(before, after, plan):
        scale = np.abs(old).max()
        assert scale > 0 or array == "attention/key/bias"
        np.testing.assert_allclose(
            new, old / factor(array, layer, plan), rtol=0, atol=1e-10 * scale + 1e-16
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


def assert_distinct(parameters, plan):
    """No two units are equal along an axis that has grown, and no two layers."""
    arrays = by_layer(parameters, plan.target)
    grown = {name for name in plan.changes if name != "norm_eps"}
    axes = {"embed_dim": "embed", "mlp_dim": "mlp", "qk_dim": "qk", "v_dim": "v"}
    axes |= {"num_heads": "group", "num_kv_heads": "kv_heads"}
    for (layer, name), array in arrays.items():
        for place, axis in enumerate(networks.axes_of(name)):
            if axis in {axes.get(field) for field in grown} and array.ndim > 1:
                units = np.moveaxis(np.asarray(array), place, 0)
                for one, other in itertools.combinations(units, 2):
                    assert (one != other).any(), f"{name} in layer {layer}: equal along {axis}"
    for (layer, name), (later, again) in itertools.combinations(arrays, 2):
        if name == again and None not in (layer, later):
            one, other = arrays[layer, name], arrays[later, name]
            assert one.shape != other.shape or one.ndim == 1 or (one != other).any(), name


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
