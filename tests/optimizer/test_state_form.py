"""A state grows in whatever form it comes, goes back in it, and says what is wrong by path.

The forms are those of `nnx.Optimizer` and of checkpoints; the parameters are two kinds of kernels.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization
from flax.nnx.training.optimizer import OptArray, OptVariable, to_opt_state
from optax import contrib

import growth
from growth import Architecture, Blueprint, OptimizerStateError

ARCHITECTURE = Architecture(
    vocab_size=11, max_length=8, embed_dim=2, num_layers=2, num_heads=1, mlp_dim=3, qk_dim=2
)
PLAN = growth.compose(growth.mlp_expansion(4), growth.layer_addition(1, 1))(ARCHITECTURE)
BLUEPRINT = Blueprint(
    [("layers/{layers}/{part}", "mlp_in", "embed mlp"), ("down/{layers}", "mlp_out", "mlp embed")]
)


def parameters(architecture, seed=0):
    random = np.random.default_rng(seed)

    def kernel(*shape):
        return jnp.asarray(random.standard_normal(shape), jnp.float32)

    h, p, layers = 2, architecture.layers[0].mlp_dim, range(architecture.num_layers)
    return {
        "layers": {i: {"gate": kernel(h, p), "up": kernel(h, p)} for i in layers},
        "down": {i: kernel(p, h) for i in layers},
    }


PARAMS = parameters(ARCHITECTURE)
GROWN = growth.expand(PARAMS, PLAN, blueprint=BLUEPRINT, fresh=parameters(PLAN.target, seed=1))


def by_layer(params):
    """Two groups, by the number of a layer."""
    return {
        "layers": {i: dict.fromkeys(part, f"layer {i}") for i, part in params["layers"].items()},
        "down": {i: f"layer {i}" for i in params["down"]},
    }


OPTIMIZERS = {
    "adamw behind clipping": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)),
    "schedule-free": contrib.schedule_free_adamw(1e-3),
    "MultiSteps of hyperparameters": optax.MultiSteps(
        optax.inject_hyperparams(optax.rmsprop)(learning_rate=1e-3), 3
    ).gradient_transformation(),
    "partition": optax.partition(
        {"kernels": optax.adam(1e-3), "rest": optax.sgd(1e-3, momentum=0.9)},
        lambda params: {
            name: jax.tree.map(lambda _, n=name: "rest" if n == "down" else "kernels", part)
            for name, part in params.items()
        },
    ),
}


@functools.cache
def trained(name):
    """The state of an optimizer after two steps."""
    tx = OPTIMIZERS[name]
    state = tx.init(PARAMS)
    for seed in (2, 3):
        _, state = tx.update(parameters(ARCHITECTURE, seed=seed), state, PARAMS)
    return state


def expanded(state, tx, params=PARAMS, grown=GROWN, plan=PLAN, **options):
    return growth.expand_optimizer_state(
        state, plan, tx=tx, params=params, grown=grown, blueprint=BLUEPRINT, **options
    )


def as_checkpoint(state):
    """What orbax makes of a state that it is asked to read without being told its form."""
    if isinstance(state, dict):
        return {str(name): as_checkpoint(part) for name, part in state.items()}
    if hasattr(state, "_fields"):
        return {name: as_checkpoint(part) for name, part in state._asdict().items()} or None
    if isinstance(state, list | tuple):
        return [as_checkpoint(part) for part in state]
    return np.asarray(state)


def assert_same(state, wanted):
    jax.tree.map(np.testing.assert_array_equal, state, wanted)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_without_types_is_laid_out_as_the_optimizer_has_it(name):
    tx, state = OPTIMIZERS[name], trained(name)
    wanted = expanded(state, tx)
    for form in (as_checkpoint(state), serialization.to_state_dict(state)):
        grown = expanded(form, tx)
        assert jax.tree.structure(grown) == jax.tree.structure(tx.init(GROWN))
        assert_same(grown, wanted)


def test_what_orbax_restores_without_a_target_grows(tmp_path):
    name = "adamw behind clipping"
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", trained(name))
        checkpointer.wait_until_finished()
        found = checkpointer.restore(tmp_path / "state")
    assert isinstance(found, list)
    assert_same(expanded(found, OPTIMIZERS[name]), expanded(trained(name), OPTIMIZERS[name]))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_variables_of_nnx_stay_around_what_grows(name):
    """As `nnx.Optimizer.opt_state` has them, with parameters in variables or without."""
    tx, state = OPTIMIZERS[name], trained(name)
    wanted = expanded(state, tx)
    boxed = to_opt_state(state)
    grown = expanded(boxed, tx)
    assert jax.tree.structure(grown) == jax.tree.structure(to_opt_state(wanted))
    assert_same(nnx.as_pure(grown), wanted)

    # nnx.state makes mappings of the whole state, without what holds nothing.
    grown = expanded(as_mappings(boxed), tx)
    assert isinstance(grown, nnx.State)
    assert jax.tree.structure(grown) == jax.tree.structure(as_mappings(to_opt_state(wanted)))
    assert_same(jax.tree.leaves(grown), jax.tree.leaves(as_mappings(to_opt_state(wanted))))


class Holder(nnx.Module):
    def __init__(self, state):
        self.opt_state = nnx.data(state)


def as_mappings(state):
    return nnx.state(Holder(state))["opt_state"]


class Network(nnx.Module):
    def __init__(self, architecture, seed):
        tree = parameters(architecture, seed)
        self.layers = nnx.List(
            nnx.Dict({n: nnx.Param(v) for n, v in layer.items()})
            for layer in tree["layers"].values()
        )
        self.down = nnx.List(nnx.Param(value) for value in tree["down"].values())


@pytest.mark.parametrize("given", ["opt_state", "pure opt_state", "tx.init", "all pure"])
def test_the_optimizer_of_nnx_grows_in_every_form_that_it_has(given):
    tx = OPTIMIZERS["adamw behind clipping"]
    small, large = Network(ARCHITECTURE, 0), Network(PLAN.target, 1)
    optimizer = nnx.Optimizer(small, tx, wrt=nnx.Param)
    for seed in (2, 3):
        optimizer.update(Network(ARCHITECTURE, 0), nnx.state(Network(ARCHITECTURE, seed)))
    params = nnx.state(small, nnx.Param)
    grown = growth.expand(params, PLAN, blueprint=BLUEPRINT, fresh=nnx.state(large, nnx.Param))
    assert isinstance(grown, nnx.State)
    assert {type(v) for v in jax.tree.leaves(grown, is_leaf=is_variable)} == {nnx.Param}
    state = {
        "opt_state": optimizer.opt_state,
        "pure opt_state": nnx.as_pure(optimizer.opt_state),
        "tx.init": jax.tree.unflatten(
            jax.tree.structure(tx.init(params)), jax.tree.leaves(optimizer.opt_state)
        ),
        "all pure": nnx.as_pure(optimizer.opt_state),
    }[given]
    if given == "all pure":
        params, grown = nnx.as_pure(params), nnx.as_pure(grown)
    result = expanded(state, tx, params, grown)
    wanted = expanded(trained("adamw behind clipping"), tx)
    assert_same(jax.tree.leaves(result), jax.tree.leaves(wanted))
    if given == "opt_state":
        types = [type(v) for v in jax.tree.leaves(result, is_leaf=is_variable)]
        assert set(types) == {OptArray, OptVariable}
        nnx.update(large, grown)
        larger = nnx.Optimizer(large, tx, wrt=nnx.Param)
        larger.opt_state = nnx.data(result)
        larger.update(large, nnx.state(Network(PLAN.target, 4)))
        assert larger.opt_state[1][0].count[...] == 3


def is_variable(node):
    return isinstance(node, nnx.Variable)


def without(state, place):
    """A state as mappings, with a change where a path of names leads."""
    *way, last = place
    node = state
    for name in way:
        node = node[name]
    del node[last]
    return state


def faults():
    """What may be wrong with a state, each with what the error names."""
    state = serialization.to_state_dict(trained("adamw behind clipping"))
    mu = ("1", "0", "mu")
    yield "missing", without(copied(state), (*mu, "down", "1")), "1/0/mu/down/1 is missing"
    more = copied(state)
    more["1"]["0"]["mu"]["down"]["7"] = np.ones(2)
    yield "too many", more, "1/0/mu/down/7 is there, but tx.init makes none"
    shape = copied(state)
    shape["1"]["0"]["nu"]["down"]["0"] = np.ones((3, 3), np.float32)
    yield "shape", shape, r"1/0/nu/down/0 is float32 \(3, 3\), but it must be float32 \(3, 2\)"
    dtype = copied(state)
    dtype["1"]["0"]["count"] = np.float32(1)
    yield "dtype", dtype, r"1/0/count is float32 \(\), but it must be int32"
    yield "another optimizer", optax.sgd(1e-3, momentum=0.9).init(PARAMS), "1/0/count is missing"
    yield "other parameters", OPTIMIZERS["adamw behind clipping"].init(GROWN), "1/0/mu/down/0 is"
    yield "a list", jax.tree.leaves(trained("adamw behind clipping")), "lists and dicts, as a check"
    yield "a training state", {"opt_state": state, "step": 3}, "give its opt_state alone"
    module = Network(ARCHITECTURE, 0)
    whole = nnx.Optimizer(module, OPTIMIZERS["adamw behind clipping"], wrt=nnx.Param)
    yield "all of nnx.Optimizer", nnx.state(whole), "give its opt_state alone"
    yield "nothing", None, "1/0/count is missing"


def copied(state):
    return {n: copied(part) for n, part in state.items()} if isinstance(state, dict) else state


@pytest.mark.parametrize(("state", "message"), [case[1:] for case in faults()])
def test_the_first_path_that_differs_is_named_and_no_structure_is_printed(state, message):
    with pytest.raises(OptimizerStateError, match=message) as caught:
        expanded(state, OPTIMIZERS["adamw behind clipping"])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 350
    assert not re.search("PyTreeDef|CustomNode", str(caught.value))


def by_size(params):
    return jax.tree.map(lambda leaf: "large" if leaf.size > 6 else "small", params)


def is_large(params):
    return jax.tree.map(lambda leaf: leaf.size > 6, params)


ADAM, MOMENTUM, NOTHING = optax.adam(1e-3), optax.sgd(1e-3, momentum=0.9), optax.set_to_zero()


@pytest.mark.parametrize(
    ("tx", "groups"),
    [
        (optax.masked(ADAM, is_large), ("outside the mask", "in the mask")),
        (
            optax.masked(ADAM, lambda p: jax.tree.map(lambda large: not large, is_large(p))),
            ("in the mask", "outside the mask"),
        ),
        *(
            (optax.partition(dict(large=of_large, small=of_small), by_size), ("'small'", "'large'"))
            for of_large, of_small in ((ADAM, MOMENTUM), (ADAM, NOTHING), (NOTHING, ADAM))
        ),
        (
            optax.chain(
                optax.clip(1.0), optax.apply_if_finite(optax.masked(MOMENTUM, is_large), 3)
            ),
            ("outside the mask", "in the mask"),
        ),
    ],
)  # fmt: skip
def test_a_parameter_that_changes_its_group_is_named_with_both_groups(tx, groups):
    state = tx.init(PARAMS)
    with pytest.raises(OptimizerStateError) as caught:
        expanded(state, tx)
    message = str(caught.value)
    assert re.search(
        rf"^down/\d is (labelled )?{groups[0]} at \(3, 2\), and (labelled )?{groups[1]} as it "
        rf"becomes \(4, 2\)",
        message,
    )
    assert "\n" not in message


def test_groups_that_keep_nothing_may_change():
    tx = optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(0.1, mask=is_large))
    assert_same(expanded(tx.init(PARAMS), tx), tx.init(GROWN))


@pytest.mark.parametrize("before", ["kept", "frozen"])
def test_a_new_layer_may_be_in_a_group_of_its_own(before):
    """Groups by the number of a layer: what was there stays in its group, what is new begins."""
    plan = growth.layer_addition(1)(ARCHITECTURE)
    grown = growth.expand(PARAMS, plan, blueprint=BLUEPRINT, fresh=parameters(plan.target, seed=1))
    old, new = (ADAM, MOMENTUM) if before == "kept" else (NOTHING, ADAM)
    tx = optax.partition(dict.fromkeys(("layer 0", "layer 1"), old) | {"layer 2": new}, by_layer)
    state = tx.init(PARAMS)
    _, state = tx.update(parameters(ARCHITECTURE, seed=2), state, PARAMS)
    for moments in ("zeros", "mean"):
        result = expanded(state, tx, PARAMS, grown, plan, moments=moments)
        assert jax.tree.structure(result) == jax.tree.structure(tx.init(grown))
        moments_of_new = [
            leaf for leaf in jax.tree.leaves(result.inner_states["layer 2"]) if leaf.ndim > 0
        ]
        assert len(moments_of_new) == (3 if before == "kept" else 6)
        assert not any(leaf.any() for leaf in moments_of_new)
        for label in ("layer 0", "layer 1"):
            both = (result.inner_states[label], state.inner_states[label])
            assert_same(*map(jax.tree.leaves, both))
    # As layers move up, one that was there changes its group.
    plan = growth.layer_addition(1, position=1)(ARCHITECTURE)
    grown = growth.expand(PARAMS, plan, blueprint=BLUEPRINT, fresh=parameters(plan.target, seed=1))
    with pytest.raises(OptimizerStateError, match=r"labelled .*'layer 1'.* and labelled 'layer 2'"):
        expanded(state, tx, PARAMS, grown, plan)


def test_an_array_without_old_entries_begins_as_the_mean_of_its_kind():
    """Its kind is its rule and the other names in braces: gates are not averaged with the rest."""
    plan = growth.layer_addition(1)(ARCHITECTURE)
    grown = growth.expand(PARAMS, plan, blueprint=BLUEPRINT, fresh=parameters(plan.target, seed=1))
    tx = optax.scale_by_rms()
    values = {"gate": 4.0, "up": 100.0}
    squares = {
        "layers": {i: {n: jnp.full((2, 3), v + i) for n, v in values.items()} for i in range(2)},
        "down": {i: jnp.full((3, 2), 9.0) for i in range(2)},
    }
    state = tx.init(PARAMS)._replace(nu=squares)
    nu = expanded(state, tx, PARAMS, grown, plan, moments="mean").nu
    np.testing.assert_allclose(nu["layers"][2]["gate"], 4.5)
    np.testing.assert_allclose(nu["layers"][2]["up"], 100.5)
    np.testing.assert_allclose(nu["down"][2], 9.0)
