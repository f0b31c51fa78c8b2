"""Optimizer states that gradients of a small network made, and of the one that it grows into."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import growth
from growth.models import Transformer
from growth.training.data.batches import Batch
from growth.training.step import batch_loss
from tests.helpers import networks
from tests.helpers.networks import ARCHITECTURES, random_parameters

EXACT = 1e-8
STEPS = 20


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
    gradient = jax.grad(lambda parameters, batch: batch_loss(model, parameters, batch))
    every = jax.jit(
        lambda p: jax.lax.map(lambda batch: gradient(p, batch), random_batches((STEPS, 4), 1))
    )
    return every(grown_parameters(name) if grown else parameters(name))


def accumulated(tx, name, grown=False, **more):
    """The state that an optimizer has after those gradients."""

    def accumulate(parameters, gradients):
        def take(state, gradient):
            return tx.update(gradient, state, parameters, **more)[1], None

        return jax.lax.scan(take, tx.init(parameters), gradients)[0]

    weights = grown_parameters(name) if grown else parameters(name)
    return jax.jit(accumulate)(weights, gradients(name, grown))


def expanded(tx, state, name, **options):
    return growth.expand_optimizer_state(
        state,
        plan_of(name),
        tx=tx,
        params=parameters(name),
        grown=grown_parameters(name),
        **options,
    )


@functools.cache
def old_places(name):
    """Where entries of the grown parameters are old, by path."""
    ones = jax.tree.map(jnp.ones_like, parameters(name))
    tx = optax.trace(0.9)
    grown = expanded(tx, optax.TraceState(ones), name).trace
    return {
        leaf.path: np.asarray(leaf.value) != 0 for leaf in growth.blueprints.pytrees.leaves(grown)
    }


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
