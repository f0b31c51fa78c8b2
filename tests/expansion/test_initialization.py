"""Free values: chosen by transformation and role, copied with noise, or made by gradients."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import growth
from growth import InputError
from growth.expansion import gradmax, init_values
from growth.expansion.accounts import source_account
from growth.expansion.initialization import Copy, Fresh, GradMax, InitPolicy, init_policy
from growth.expansion.jax_backend import assemble
from growth.models import apply, blueprint
from tests.helpers import foreign_models, networks
from tests.helpers.networks import ARCHITECTURES, KEY, TOKENS, difference, logits, random_parameters

pytestmark = pytest.mark.usefixtures("float64")

NAMES = tuple(ARCHITECTURES)


@functools.cache
def source(name):
    return random_parameters(ARCHITECTURES[name])


def loss_of(architecture):
    def loss(params):
        scores = apply(architecture, params, TOKENS[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(scores, TOKENS[:, 1:]).mean()

    return loss


def ones(array, number):
    return jnp.ones(array.layout.views[number].shape)


def marks(plan, axes):
    """Where entries are new along some axes before any other, as a tree of truth values."""
    named = tuple((word, Copy(n + 1.0)) for n, word in enumerate(axes))
    zero = jax.tree.map(np.zeros_like, random_parameters(plan.source))
    values = {Fresh(): init_values.zeros} | {mark: ones for _, mark in named}
    chosen = init_values.by_policy(InitPolicy(Fresh(), named), values)
    marked = assemble(source_account(zero, plan, blueprint(plan.source)), zero, chosen)
    return jax.tree.map(lambda x: np.asarray(x) == 1, marked)


def test_words_are_read():
    assert init_policy("fresh") == InitPolicy()
    assert init_policy("copy") == InitPolicy(Copy(10.0))
    assert init_policy("copy:2.5") == InitPolicy(Copy(2.5))
    assert init_policy("gradmax:3") == InitPolicy(GradMax(3))
    mixed = init_policy({"default": "copy", "mlp_expansion": "gradmax", "query": Fresh()})
    assert mixed.method("value", "v") == Copy()
    assert mixed.method("mlp_in", "mlp") == GradMax()
    assert mixed.method("query", "mlp") == mixed.method("query", "qk") == Fresh()
    assert hash(mixed) == hash(init_policy(mixed))


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("zeros", "zeros are refused: the other side of the product is zero already"),
        ({"mlp_in": "zero"}, "zeros are refused"),
        ("random", "init is 'random', but it must be 'fresh', 'copy'"),
        ("fresh:2", "init is 'fresh:2'"),
        ("copy:much", "'much' is not a number"),
        ("copy:0", "signal_to_noise is 0.0, but it must be a positive number"),
        ("gradmax:0", "steps of gradmax is 0"),
        ({"mlp_expantion": "copy"}, "did you mean mlp_expansion"),
        ({"heads": 1}, "no transformation and no role"),
        ({"query": 1}, "init is 1, but"),
    ],
)
def test_what_is_no_policy_is_refused_by_name(init, message):
    plan = growth.mlp_expansion(9)(ARCHITECTURES["paper"])
    with pytest.raises(InputError, match=message):
        growth.expand(source("paper"), plan, key=KEY, init=init)


def test_a_tree_of_zeros_is_refused_where_it_would_never_learn():
    plan = networks.all_steps(ARCHITECTURES["llama"])(ARCHITECTURES["llama"])
    fresh = random_parameters(plan.target, seed=1)
    growth.expand(source("llama"), plan, fresh=fresh)
    for module, name, axis in (
        ("attention", "value", "v"), ("attention", "query", "qk"), ("mlp", "up", "mlp")
    ):  # fmt: skip
        layer = fresh["layers_0"][module]
        dead = layer[name] | {"kernel": 0 * layer[name]["kernel"]}
        tree = fresh | {
            "layers_0": fresh["layers_0"] | {module: layer | {name: dead}},
        }
        with pytest.raises(InputError, match=f"fresh is zero in .*{name}/kernel, new along {axis}"):
            growth.expand(source("llama"), plan, fresh=tree)
    # Of one layer among others, too.
    plan = growth.mlp_expansion(9)(ARCHITECTURES["llama"].replace(num_layers=3))
    plan = growth.layer_addition(1, position=1)(plan.target)
    small = random_parameters(plan.source)
    fresh = random_parameters(plan.target, seed=1)
    kernel = fresh["layers_0"]["attention"]["value"]["kernel"]
    fresh["layers_0"]["attention"]["value"]["kernel"] = (
        kernel * (np.arange(4) != 1)[:, None, None, None]
    )
    with pytest.raises(InputError, match="value/kernel, new along layers"):
        growth.expand(small, plan, fresh=fresh)
    # Zeros that learn are nothing to refuse: an output layer, biases.
    other = ARCHITECTURES["paper"]
    plan = networks.all_steps(other)(other)
    fresh = random_parameters(plan.target, seed=1, biases=0.0)
    fresh["unembed"]["kernel"] *= 0
    growth.expand(source("paper"), plan, fresh=fresh)


@pytest.mark.parametrize("name", networks.first(NAMES, "llama"))
def test_every_new_entry_has_the_source_that_is_named(name):
    """By each transformation alone, and a role before a transformation."""
    plan = networks.all_steps(ARCHITECTURES[name])(ARCHITECTURES[name])
    fresh = random_parameters(plan.target, seed=1)
    words = ["layer_addition", "head_addition", "mlp_expansion", "heads_expansion"]
    words += ["attention_expansion", "hidden_dimension_expansion", "value"]
    given = {None: growth.expand(source(name), plan, fresh=fresh)}
    copied = growth.expand(source(name), plan, key=KEY, init="copy")
    taken = jax.tree.map(np.zeros_like, fresh)
    for word in words:
        mixed = growth.expand(source(name), plan, key=KEY, fresh=fresh, init={word: "copy"})
        assert difference(logits(plan.source, source(name)), logits(plan.target, mixed)) <= 1e-12
        where = marks(plan, [word])
        assert any(mark.any() for mark in jax.tree.leaves(where)), word
        want = jax.tree.map(np.where, where, copied, given[None])
        for one, other in zip(jax.tree.leaves(mixed), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12)
        if word != "value":
            taken = jax.tree.map(np.add, taken, where)
    # Each free entry is one transformation's.
    zero = jax.tree.map(np.zeros_like, source(name))
    free = assemble(source_account(zero, plan, blueprint(plan.source)), zero, ones)
    networks.assert_same_trees(jax.tree.map(np.asarray, free), taken)


def test_noise_on_copies_has_the_size_that_was_asked_for():
    architecture = ARCHITECTURES["paper"].replace(mlp_dim=400, num_layers=1)
    plan = growth.mlp_expansion(800)(architecture)
    kernel = random_parameters(architecture)["layers_0"]["mlp"]["up"]["kernel"][0]
    for ratio in (2.0, 50.0):
        grown = growth.expand(random_parameters(architecture), plan, key=KEY, init=f"copy:{ratio}")
        new = np.asarray(grown["layers_0"]["mlp"]["up"]["kernel"])[0, :, 400:]
        np.testing.assert_allclose(kernel.std() / (new - kernel).std(), ratio, rtol=0.05)


@pytest.mark.parametrize("part", ["value", "up"])
def test_copies_of_zeros_are_refused_for_they_would_never_learn(part):
    """A layer that was never trained, or pruned: its copy would have zeros on both sides."""
    architecture = ARCHITECTURES["paper"].replace(num_layers=1)
    params = random_parameters(architecture)
    module = "attention" if part == "value" else "mlp"
    layer = params["layers_0"][module]
    layer[part] = jax.tree.map(np.zeros_like, layer[part])
    plan = growth.layer_addition(1)(architecture)
    with pytest.raises(
        InputError, match=f"what would be copied is zero in .*{part}/kernel, new along layers"
    ):
        growth.expand(params, plan, key=KEY, init="copy")


def test_noise_of_all_blocks_is_drawn_by_one_program(monkeypatch):
    """Compiling a generator for each takes a second; how they are drawn does not change a bit."""
    key = jax.random.key(7, impl="threefry2x32")
    plan = networks.all_steps(ARCHITECTURES["llama"])(ARCHITECTURES["llama"])
    account = source_account(source("llama"), plan, blueprint(plan.source))

    def generators():
        jaxpr = jax.make_jaxpr(lambda key: list(init_values._noise(account, key).values()))(key)
        return str(jaxpr).count(" random_bits[")

    together = init_values._noise(account, key)
    assert len(together) > 15
    assert generators() == 1
    monkeypatch.setattr(init_values, "_SMALL", 0)
    assert generators() > 10  # those of one shape are shared
    alone = init_values._noise(account, key)
    for (name, shape), noise in together.items():
        np.testing.assert_array_equal(noise, alone[name, shape])
        of_block = jax.random.fold_in(key, zlib.crc32(name.encode()))
        np.testing.assert_array_equal(noise, jax.random.normal(of_block, shape))


STEPS = {
    "mlp": growth.mlp_expansion(9),
    "heads": growth.head_addition((6, 4)),
    "v": growth.heads_expansion(6),
    "qk": growth.attention_expansion(8),
    "embed": growth.hidden_dimension_expansion(8),
    "layer": growth.layer_addition(1, position=1),
}


@pytest.mark.parametrize("step", networks.first(STEPS, "qk"))
@pytest.mark.parametrize("name", ["mixed"])
def test_gradmax_makes_the_first_gradient_larger_and_keeps_the_function(name, step):
    architecture = ARCHITECTURES[name]
    plan, loss = STEPS[step](architecture), loss_of(STEPS[step](architecture).target)
    parameters, fresh = source(name), random_parameters(STEPS[step](architecture).target, seed=1)
    plain = growth.expand(parameters, plan, fresh=fresh)
    best = growth.expand(parameters, plan, fresh=fresh, init="gradmax", loss=loss)
    assert difference(logits(architecture, parameters), logits(plan.target, best)) <= 1e-12

    zero_side = gradmax.zero_sides(
        source_account(parameters, plan, blueprint(architecture)), parameters
    )
    before, after = (gradmax.first_gradient(loss, tree, zero_side) for tree in (plain, best))
    assert after > 1.2 * before
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(best), strict=True):
        np.testing.assert_allclose(np.linalg.norm(other), np.linalg.norm(one), rtol=1e-9)


def test_gradmax_finds_the_optimum_where_it_is_known():
    """A new value column's gradient is linear in it: the best one is a singular vector."""
    architecture = ARCHITECTURES["llama"].replace(num_layers=1, num_heads=1, num_kv_heads=1)
    plan = growth.heads_expansion(5)(architecture)
    loss = loss_of(plan.target)
    parameters = random_parameters(architecture)
    fresh = random_parameters(plan.target, seed=1)

    def with_column(column):
        grown = growth.expand(parameters, plan, fresh=fresh)
        kernel = grown["layers_0"]["attention"]["value"]["kernel"]
        grown["layers_0"]["attention"]["value"]["kernel"] = kernel.at[0, :, 0, 4].set(column)
        return grown

    def zero_side(column):
        return jax.grad(loss)(with_column(column))["layers_0"]["attention"]["out"]["kernel"][
            0, 0, 0, 4
        ]

    linear = jax.jacobian(zero_side)(jnp.zeros(6))
    _, sizes, right = np.linalg.svd(linear)
    best = growth.expand(parameters, plan, fresh=fresh, init="gradmax:30", loss=loss)
    column = np.asarray(best["layers_0"]["attention"]["value"]["kernel"])[0, :, 0, 4]
    size = np.linalg.norm(column)
    before = fresh["layers_0"]["attention"]["value"]["kernel"][0, :, 0, 4]
    np.testing.assert_allclose(size, np.linalg.norm(before))
    np.testing.assert_allclose(np.abs(column @ right[0]) / size, 1, rtol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(zero_side(column)), sizes[0] * size, rtol=1e-3)


def test_units_that_gradmax_makes_are_orthogonal():
    architecture = ARCHITECTURES["paper"]
    plan = growth.mlp_expansion(10)(architecture)
    fresh = random_parameters(plan.target, seed=1)
    loss = loss_of(plan.target)
    grown = growth.expand(source("paper"), plan, fresh=fresh, init="gradmax", loss=loss)
    for layer in np.asarray(grown["layers_0"]["mlp"]["up"]["kernel"]):
        products = layer[:, 7:].T @ layer[:, 7:]
        np.testing.assert_allclose(products, np.eye(3) * products[0, 0], atol=1e-10)


def test_gradmax_of_one_transformation_leaves_the_others_alone():
    architecture = ARCHITECTURES["llama"]
    plan = networks.all_steps(architecture)(architecture)
    fresh, loss = random_parameters(plan.target, seed=1), loss_of(plan.target)
    plain = growth.expand(source("llama"), plan, fresh=fresh)
    expand = functools.partial(growth.expand, plan=plan, fresh=fresh, loss=loss)
    best = jax.jit(lambda tree: expand(tree, init={"mlp_expansion": "gradmax:2"}))(source("llama"))
    where = marks(plan, ["mlp_expansion"])
    for one, other, mark in zip(*map(jax.tree.leaves, (plain, best, where)), strict=True):
        np.testing.assert_allclose(np.asarray(one)[~mark], np.asarray(other)[~mark], rtol=1e-12)
        assert not mark.any() or np.abs(np.asarray(one - other)[mark]).max() > 1e-3


def test_each_gradmax_ends_after_its_own_steps():
    plan = growth.compose(growth.mlp_expansion(9), growth.heads_expansion(6))(
        ARCHITECTURES["paper"]
    )
    fresh, loss = random_parameters(plan.target, seed=1), loss_of(plan.target)
    trees = []
    for steps in (1, 3):
        init = {"mlp_expansion": "gradmax:1", "heads_expansion": f"gradmax:{steps}"}
        trees.append(growth.expand(source("paper"), plan, fresh=fresh, init=init, loss=loss))
    up, value = (
        [np.asarray(tree["layers_0"][part][name]["kernel"]) for tree in trees]
        for part, name in (("mlp", "up"), ("attention", "value"))
    )
    np.testing.assert_array_equal(*up)
    assert np.abs(value[0] - value[1]).max() > 1e-3


@pytest.mark.full
def test_gradmax_works_on_any_model_with_a_blueprint():
    model = foreign_models.MODELS["Linen GPT"]
    plan = growth.mlp_expansion(12)(model.architecture)
    tree, fresh = model.init(model.architecture), model.init(plan.target)

    def loss(params):
        scores = model.apply(plan.target, params, TOKENS)
        return optax.softmax_cross_entropy_with_integer_labels(scores, TOKENS[::-1]).mean()

    expand = functools.partial(
        growth.expand, tree, plan, blueprint=model.blueprint, fresh=fresh, loss=loss
    )
    zero_side = gradmax.zero_sides(source_account(tree, plan, model.blueprint), tree)
    before, after = (
        gradmax.first_gradient(loss, expand(init=init), zero_side) for init in ("fresh", "gradmax")
    )
    assert after > 1.2 * before


def test_gradmax_needs_a_loss():
    plan = growth.mlp_expansion(9)(ARCHITECTURES["paper"])
    with pytest.raises(InputError, match="loss is needed for gradmax"):
        growth.expand(source("paper"), plan, key=KEY, init="gradmax")


@pytest.mark.parametrize("step", [growth.mlp_expansion(13), growth.layer_addition(1)], ids=str)
def test_copies_of_units_that_are_never_active_are_woken(step):
    """A ReLU lets nothing of them through, so a copy would have no gradient for ever."""
    architecture = ARCHITECTURES["paper"]
    assert architecture.activation == "relu"
    parameters = random_parameters(architecture)
    bias = parameters["layers_0"]["mlp"]["up"]["bias"]
    parameters["layers_0"]["mlp"]["up"]["bias"] = jnp.asarray(bias).at[:, :5].set(-50.0)
    plan = step(architecture)
    old, loss = logits(architecture, parameters), loss_of(plan.target)

    def number_asleep(**options):
        grown = growth.expand(parameters, plan, key=KEY, init="copy", **options)
        assert difference(old, logits(plan.target, grown)) <= 1e-12
        slopes = networks.by_layer(jax.grad(loss)(grown), plan.target)
        units = [slopes[i, "mlp/down/kernel"] for i in range(plan.target.num_layers)]
        first_new = [0 if origin is None else architecture.mlp_dim for origin in plan.layer_sources]
        return sum(
            int((rows[new:] == 0).all(1).sum()) for rows, new in zip(units, first_new, strict=True)
        )

    assert number_asleep() >= 5
    assert number_asleep(loss=loss) == 0
