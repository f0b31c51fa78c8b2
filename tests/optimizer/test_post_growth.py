"""How old entries are, and how new ones join: corrected by their age, at a rate that rises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import growth
from growth import InputError
from growth.expansion.accounts import source_account
from growth.expansion.jax_backend import assemble
from growth.models import blueprint
from growth.optimizer import entry_age
from growth.optimizer.post_growth import GrowthEvent, Rewarming, correct_by_age, rewarm
from growth.training.schedule import ScheduleError, stages
from tests.helpers import foreign_models, networks
from tests.helpers.networks import ARCHITECTURES, KEY, random_parameters

pytestmark = pytest.mark.usefixtures("float64")


def events_of(architecture):
    """Three growth steps, layers in the middle among them."""
    first = growth.compose(
        growth.hidden_dimension_expansion(8), growth.mlp_expansion(9, layers=(1,))
    )(architecture)
    second = networks.all_steps(first.target)(first.target)
    third = growth.compose(growth.layer_addition(1, 0), growth.attention_expansion(10))(
        second.target
    )
    return [(20, first), (50, second), (70, third)]


def constant(value):
    return lambda array, number: jnp.full(array.layout.views[number].shape, value)


def births(tree, events, rules):
    """After which step of training each entry was added, by the growth steps so far."""
    plans = [plan for _, plan in events]
    result = jax.tree.map(lambda leaf: np.zeros(leaf.shape, int), tree)
    for number, (step, _) in enumerate(events):
        added = entry_age.added_by(tree, plans, number, blueprint=rules)
        result = jax.tree.map(lambda old, new, step=step: np.where(new, step, old), result, added)
    return result


@pytest.mark.parametrize("name", networks.first([*ARCHITECTURES, "images (ViT)"], "llama"))
def test_births_are_those_of_labels_that_grow_along(name):
    architecture = (ARCHITECTURES | networks.VARIANTS)[name]
    events = events_of(architecture)
    labels = jax.tree.map(jnp.zeros_like, random_parameters(architecture))
    for number, (step, plan) in enumerate(events, start=1):
        account = source_account(labels, plan, blueprint(plan.source))
        labels = assemble(account, labels, constant(float(step)), exponent=0)
        found = births(labels, events[:number], blueprint(plan.target))
        assert set(np.unique(np.concatenate([np.ravel(x) for x in jax.tree.leaves(found)]))) == {
            0, *(step for step, _ in events[:number])
        }  # fmt: skip
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(labels), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "name", networks.first(foreign_models.MODELS, "paper's authors", "Linen GPT")
)
def test_births_in_other_peoples_models(name):
    """Fused arrays, heads and layers with arrays of their own."""
    model = foreign_models.MODELS[name]
    plan = growth.compose(
        growth.mlp_expansion(model.architecture.layers[0].mlp_dim + 2),
        growth.hidden_dimension_expansion(model.architecture.embed_dim + 2),
        growth.layer_addition(1, position=1),
    )(model.architecture)
    zeros = jax.tree.map(jnp.zeros_like, model.init(model.architecture))
    account = source_account(zeros, plan, model.blueprint)
    like = model.init(plan.target)
    labels = assemble(account, zeros, constant(30.0), exponent=0, like=like)
    found = births(labels, [(30, plan)], model.blueprint)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(labels), strict=True):
        np.testing.assert_array_equal(one, other)


def gradients(tree, seed):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda x: random.standard_normal(x.shape), tree)


def test_new_entries_are_corrected_by_their_own_age():
    """They are updated as Adam would that began with them; old ones as if nothing had happened."""
    architecture = ARCHITECTURES["llama"]
    (_, plan), *_ = events_of(architecture)
    event = GrowthEvent(30, plan, by_age=True)
    adam = optax.scale_by_adam(b1=0.9, b2=0.99, eps=0.0)
    tx = optax.chain(adam, correct_by_age([event], b1=0.9, b2=0.99))
    small = random_parameters(architecture)
    state, plain = tx.init(small), adam.init(small)
    assert sum(leaf.size for leaf in jax.tree.leaves(state[1])) == 1  # a count, and no mask
    update, update_plain = jax.jit(tx.update), jax.jit(adam.update)
    for seed in range(30):
        given = gradients(small, seed)
        updates, state = update(given, state)
        wanted, plain = update_plain(given, plain)
        networks.assert_same_trees(updates, wanted)

    large = growth.expand(small, plan, key=KEY)
    carry = functools.partial(growth.expand_optimizer_state, plan=plan, params=small, grown=large)
    state, plain = carry(state, tx=tx), carry(plain, tx=adam)
    young = adam.init(large)
    born = births(large, [(30, plan)], blueprint(plan.target))
    for seed in range(5):
        given = gradients(large, seed)
        updates, state = update(given, state)
        old, plain = update_plain(given, plain)
        new, young = update_plain(given, young)
        for one, a, b, birth in zip(*map(jax.tree.leaves, (updates, old, new, born)), strict=True):
            want = np.where(np.asarray(birth) == 30, b, a)
            np.testing.assert_allclose(one, want, rtol=1e-5)
    assert state[1].steps == 35


@pytest.mark.parametrize("entries", ["new", "all"])
def test_the_rate_of_entries_rises_after_growth(entries):
    architecture = ARCHITECTURES["paper"]
    (_, first), (_, second), _ = events_of(architecture)
    ramp = Rewarming(4, start=0.2, entries=entries)
    events = [
        GrowthEvent(3, first, rewarming=ramp),
        GrowthEvent(5, second, rewarming=Rewarming(2, 0.5, "constant", "new")),
    ]
    tx = rewarm(events)
    trees = [
        jax.tree.map(np.ones_like, random_parameters(a))
        for a in (architecture, first.target, second.target)
    ]
    state = tx.init(trees[0])
    shares = {}
    for step in range(1, 12):
        tree = trees[(step > 3) + (step > 5)]
        past = [(3, first), (5, second)][: (step > 3) + (step > 5)]
        born = births(tree, past, blueprint(past[-1][1].target if past else architecture))
        updates, state = jax.jit(tx.update)(tree, state)
        for u, b in zip(jax.tree.leaves(updates), jax.tree.leaves(born), strict=True):
            for birth in np.unique(b):
                shares.setdefault((step, int(birth)), set()).update(
                    np.unique(np.asarray(u)[b == birth].round(6))
                )
    assert shares[1, 0] == {1.0}
    old = [shares[step, 0] for step in range(4, 9)]
    assert old == ([{0.4}, {0.6}, {0.8}, {1.0}, {1.0}] if entries == "all" else [{1.0}] * 5)
    assert [shares[step, 3] for step in range(4, 9)] == [{0.4}, {0.6}, {0.8}, {1.0}, {1.0}]
    assert [max(shares[step, 5]) <= 0.5 for step in (6, 7)] == [True, True]
    assert shares[8, 5] == {1.0}


def test_without_such_events_updates_stay():
    (_, plan), *_ = events_of(ARCHITECTURES["paper"])
    tree = random_parameters(ARCHITECTURES["paper"])
    for tx in (
        correct_by_age([GrowthEvent(3, plan)], b1=0.9, b2=0.99),
        rewarm([]),
        rewarm([GrowthEvent(3, plan)]),
    ):
        updates, state = tx.update(tree, tx.init(tree))
        assert all(a is b for a, b in zip(*map(jax.tree.leaves, (updates, tree)), strict=True))
        assert state.steps == 1  # so that growth may be added to the schedule of a run


def test_updates_that_fit_no_stage_are_refused():
    (_, plan), *_ = events_of(ARCHITECTURES["paper"])
    tx = rewarm([GrowthEvent(3, plan, rewarming=Rewarming(2))])
    other = random_parameters(ARCHITECTURES["gpt2"])
    with pytest.raises(growth.BlueprintError):
        tx.update(other, tx.init(other))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(steps=0), "rewarming steps is 0, but it must be at least 1"),
        (dict(steps=2.0), "rewarming steps is 2.0"),
        (dict(steps=2, start=1.5), "rewarming start is 1.5, but it must be from 0 to 1"),
        (
            dict(steps=2, shape="cosine"),
            "rewarming shape is 'cosine', but it must be one of linear",
        ),
        (
            dict(steps=2, entries="old"),
            "rewarming entries is 'old', but it must be one of all, new",
        ),
    ],
)
def test_rewarming_out_of_range_is_refused(fields, message):
    with pytest.raises(InputError, match=message):
        Rewarming(**fields)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(moments="random"), r"growth\[0\].*moments is 'random', .* zeros, mean, probe, age"),
        (dict(rewarming=100), r"growth\[0\].*rewarming is 100, but it must be a mapping"),
        (dict(rewarming=dict(start=0.1)), r"growth\[0\].*it must have steps, and may have start"),
        (dict(rewarming=dict(steps=5, whom="new")), r"growth\[0\].*may have start, shape, entries"),
        (dict(rewarming=dict(steps=0)), r"growth\[0\].*steps is 0"),
    ],
)
def test_a_schedule_refuses_options_that_it_does_not_know(options, message):
    with pytest.raises(ScheduleError, match=message):
        stages(ARCHITECTURES["paper"], [dict(step=3, mlp_dim=12, **options)], 20)


def test_a_stage_says_how_its_new_entries_join():
    _, stage = stages(
        ARCHITECTURES["paper"],
        [dict(step=3, mlp_dim=12, moments="age", rewarming=dict(steps=5, start=0.1))],
        20,
    )
    assert (stage.moments, stage.rewarming) == ("age", Rewarming(5, 0.1))


@pytest.mark.parametrize(
    ("num_steps", "steps"), [(10_000, 100), (403, 100), (402, 99), (43, 10), (4, 1)]
)
def test_all_entries_warm_up_unless_a_schedule_says_otherwise(num_steps, steps):
    """Over a hundred steps, or a quarter of the stage."""
    growth_step = dict(step=3, mlp_dim=12)
    _, stage = stages(ARCHITECTURES["paper"], [growth_step], num_steps)
    assert stage.rewarming == Rewarming(steps, start=0.0, shape="linear", entries="all")
    _, stage = stages(ARCHITECTURES["paper"], [{**growth_step, "rewarming": None}], num_steps)
    assert stage.rewarming is None


def test_decoupled_decay_shrinks_rescaled_weights_by_the_same_share():
    """Decay multiplies a weight by 1 − rate · decay, whatever growth has multiplied it by: after a
    step without gradients the grown network computes what the small one computes after it."""
    architecture = ARCHITECTURES["llama"]
    plan = networks.all_steps(architecture)(architecture)
    small = random_parameters(architecture)
    large = growth.expand(small, plan, fresh=random_parameters(plan.target, seed=1))
    tx = optax.adamw(1e-2, weight_decay=0.3)
    results = []
    for tree in (small, large):
        updates, _ = tx.update(jax.tree.map(np.zeros_like, tree), tx.init(tree), tree)
        results.append(optax.apply_updates(tree, updates))
    old, new = networks.logits(plan.source, results[0]), networks.logits(plan.target, results[1])
    assert networks.difference(old, new) <= 1e-12
    assert networks.difference(networks.logits(plan.source, small), old) > 1e-3
