"""Layers of different kinds: widths grow in them, layers of each kind are added, and all is exact.

The network in `tests/helpers/griffin.py` has attention in some layers and a recurrence in others.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import growth
from growth import Blueprint, BlueprintError
from growth.expansion.accounts import source_account
from tests.helpers import griffin
from tests.helpers.griffin import ATTENTION, KINDS, RECURRENCE
from tests.helpers.networks import KEY, difference

pytestmark = pytest.mark.usefixtures("float64")

EXACT = 1e-12
SMALL = griffin.ARCHITECTURE
PARAMS = griffin.init(SMALL, KINDS)
LOGITS = griffin.apply(SMALL, PARAMS)

WIDTHS = growth.compose(
    growth.head_addition(8, 4),
    growth.head_addition(12, 4),
    growth.attention_expansion(6, layers=(1, 2)),
    growth.grow_to(qk_dim=6, v_dim=5, mlp_dim=7, embed_dim=9),
)
PERIOD = growth.layer_addition(3, like=(0, 1, 2))

STEPS = {
    "mlp": growth.mlp_expansion(7),
    "mlp of one kind": growth.mlp_expansion(7, layers=(2,)),
    "heads": growth.head_addition(8),
    "v": growth.heads_expansion(5),
    "qk": growth.attention_expansion(6),
    "embed": growth.hidden_dimension_expansion(9),
    "a recurrence at the bottom": growth.layer_addition(1, position=0),
    "an attention on top": growth.layer_addition(1),
    "an attention below a recurrence": growth.layer_addition(1, position=1, like=2),
    "a period on top": PERIOD,
    "a period between": growth.layer_addition(3, position=1, like=(1, 2, 0)),
    "widths, a period, widths": growth.compose(
        growth.mlp_expansion(6), PERIOD, WIDTHS, growth.layer_addition(1, position=2, like=5)
    ),
}


def kinds_of(plan):
    """What each layer of the larger model is, if a new one is of the kind of the one it is like."""
    return tuple(KINDS[template] for template in plan.layer_templates)


def as_numpy(tree):
    return jax.tree.map(np.asarray, tree)


@pytest.mark.parametrize("name", STEPS)
def test_growth_beside_the_models_own_initializer_is_exact(name):
    plan = STEPS[name](SMALL)
    fresh = griffin.init(plan.target, kinds_of(plan), seed=1)
    grown = as_numpy(growth.expand(PARAMS, plan, blueprint=griffin.BLUEPRINT, fresh=fresh))
    assert jax.tree.map(np.shape, grown) == jax.tree.map(np.shape, fresh)
    assert difference(LOGITS, griffin.apply(plan.target, grown)) <= EXACT


def test_copies_are_of_the_layer_that_a_new_one_is_like():
    plan = PERIOD(SMALL)
    grown = growth.expand(PARAMS, plan, blueprint=griffin.BLUEPRINT, init="copy:1e12", key=KEY)
    assert difference(LOGITS, griffin.apply(plan.target, as_numpy(grown))) <= EXACT
    for old, new in ((0, 3), (1, 4), (2, 5)):
        mlp = (grown[f"{griffin.block(i)}/mlp"]["up"] for i in (old, new))
        np.testing.assert_allclose(*mlp, rtol=1e-9)
        assert not grown[f"{griffin.block(new)}/mlp"]["down"].any()
    both = (grown[f"{griffin.block(i)}/attention"]["query"] for i in (2, 5))
    np.testing.assert_allclose(*both, rtol=1e-9)
    decays = (grown[f"{griffin.block(i)}/recurrence/inner"]["decay"] for i in (1, 4))
    np.testing.assert_allclose(*decays, rtol=1e-9)


@pytest.mark.parametrize("start", [0, 2])
def test_new_layers_of_one_array_are_copies_of_what_each_is_like(start):
    rules = [("up", "mlp_in", "layers embed mlp")]
    stacked = {"up": np.random.default_rng(0).standard_normal((3, 6, 5))}
    plan = growth.layer_addition(3, position=start, like=(2, 2, 0))(SMALL)
    grown = growth.expand(stacked, plan, blueprint=Blueprint(rules), init="copy:1e12", key=KEY)
    new = grown["up"][start : start + 3]
    np.testing.assert_allclose(new, stacked["up"][[2, 2, 0]], rtol=1e-9)


@functools.cache
def _loss_gradient(architecture):
    targets = np.random.default_rng(3).standard_normal(LOGITS.shape)

    def loss(tree):
        return ((griffin.apply(architecture, tree) - targets) ** 2).mean()

    return jax.jit(jax.grad(loss))


MOST = growth.compose(PERIOD, growth.grow_to(embed_dim=9, qk_dim=6, mlp_dim=7))


def test_moments_are_those_of_the_grown_networks_gradients():
    plan, tx = MOST(SMALL), optax.scale_by_adam()
    fresh = griffin.init(plan.target, kinds_of(plan), seed=1)
    grown = growth.expand(PARAMS, plan, blueprint=griffin.BLUEPRINT, fresh=fresh)
    gradient = _loss_gradient(SMALL)(PARAMS)
    _, state = jax.jit(tx.update)(gradient, jax.jit(tx.init)(PARAMS))
    state = growth.expand_optimizer_state(
        state, plan, tx=tx, params=PARAMS, grown=grown, blueprint=griffin.BLUEPRINT
    )
    assert jax.tree.map(np.shape, state.nu) == jax.tree.map(np.shape, fresh)
    wanted = _loss_gradient(plan.target)(grown)
    for module, arrays in gradient.items():
        for name, old in arrays.items():
            here = np.ix_(*map(np.arange, np.shape(old)))  # without rope, old entries stand first
            new = wanted[module][name][here]
            np.testing.assert_allclose(state.mu[module][name][here], 0.1 * new, atol=1e-13)
            np.testing.assert_allclose(state.nu[module][name][here], 0.001 * new**2, atol=1e-13)
    for module in wanted.keys() - gradient.keys():  # new layers begin as the optimizer begins
        assert not any(np.any(m[module][name]) for m in state[1:] for name in wanted[module])


@pytest.mark.full
def test_a_step_that_adds_a_period_is_certified():
    plan, tx = MOST(SMALL), optax.adam(1e-3)
    arrays, fresh = (
        jax.tree.map(jnp.asarray, tree)
        for tree in (PARAMS, griffin.init(plan.target, kinds_of(plan), seed=1))
    )
    done = growth.grow(
        arrays, plan, blueprint=griffin.BLUEPRINT, fresh=fresh, batch=griffin.TOKENS,
        apply=griffin.apply, tx=tx, opt_state=tx.init(arrays),
    )  # fmt: skip
    assert done.certificate.passed


PLACES = list(itertools.product(range(4), (None, 0, 1, 2)))


@pytest.mark.parametrize(("position", "like"), PLACES, ids=str)
def test_a_layer_of_another_kind_than_the_model_has_there_is_refused(position, like):
    """Whatever layer is added wherever: every other model of four layers is refused."""
    plan = growth.layer_addition(1, position=position, like=like)(SMALL)
    account = source_account(PARAMS, plan, griffin.BLUEPRINT)
    for kinds in itertools.product((ATTENTION, RECURRENCE), repeat=4):
        fresh = griffin.init(plan.target, kinds, seed=1)
        if kinds == kinds_of(plan):
            assert {a.name for a in account} == account.of_target(fresh).keys()
            continue
        with pytest.raises(
            BlueprintError, match=r"in the model at its larger size .* by the plan"
        ) as e:
            account.of_target(fresh)
        template = plan.layer_templates[position]
        assert f"new layer {position} is like old layer {template}" in str(e.value)
        assert "layer_addition(count, position, like)" in str(e.value)


def test_without_new_layers_the_refusal_speaks_of_none():
    plan = growth.mlp_expansion(7)(SMALL)
    fresh = griffin.init(plan.target, KINDS[::-1], seed=1)
    with pytest.raises(
        BlueprintError, match=r"layers 1 and 2 have it, but by .* 0 and 1 have"
    ) as e:
        growth.expand(PARAMS, plan, blueprint=griffin.BLUEPRINT, fresh=fresh)
    assert "new layer" not in str(e.value).partition(". Add")[0]


@pytest.mark.parametrize("path", [path for path, _, _ in griffin.RULES if "?" in path])
def test_what_some_layers_lack_is_missing_where_the_rule_does_not_say_so(path):
    rules = [(p.replace("?", "") if p == path else p, *rest) for p, *rest in griffin.RULES]
    message = (
        r"layers? .* ha(s|ve) .*, layers? .* ha(s|ve) not: .* mark the index of what only some"
    )
    with pytest.raises(BlueprintError, match=message) as error:
        Blueprint(rules).check(PARAMS, SMALL)
    assert path in str(error.value)


def test_in_a_layer_that_has_some_of_the_heads_the_others_are_missing():
    rules = [("{layers?}/{kv_heads}", "value", "embed v")]
    tree = {f"{layer}/{head}": np.zeros((6, 3)) for layer, head in ((0, 0), (0, 1), (2, 0))}
    with pytest.raises(BlueprintError, match="2/1: missing, though 0/0 is there"):
        Blueprint(rules).check(tree, SMALL)
    Blueprint(rules).check(tree | {"2/1": np.zeros((6, 3))}, SMALL)


def test_an_array_that_holds_layers_has_no_layer_left_out():
    with pytest.raises(BlueprintError, match="an array that holds a run of layers, holds one of e"):
        Blueprint([("run_{layers?}/up", "mlp_in", "layers embed mlp")])
