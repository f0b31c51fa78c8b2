"""`expand` preserves the function: each transformation, every source of free values, any tree."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import FrozenDict
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import growth
from growth.models import Transformer, initial_parameters, logical_axes
from tests.helpers import networks
from tests.helpers.networks import ARCHITECTURES, KEY, difference, logits, random_parameters

pytestmark = pytest.mark.usefixtures("float64")

EXACT = 1e-12
EXACT_FLOAT32 = 1e-5

STEPS = [
    pytest.param(name, step_name, id=f"{name}: {step_name}")
    for name, architecture in ARCHITECTURES.items()
    for step_name in (*networks.single_steps(architecture), "all")
    # The preset that cannot grow all the same is tested in test_transformations.
]


@functools.cache
def source(name, seed=0, dtype="float64", embedding=1.0):
    """Parameters of an architecture, and their logits."""
    architecture = ARCHITECTURES[name]
    parameters = random_parameters(architecture, seed, dtype, embedding)
    return parameters, logits(architecture, parameters)


def plan_of(name, step_name):
    architecture = ARCHITECTURES[name]
    steps = {**networks.single_steps(architecture), "all": networks.all_steps(architecture)}
    return steps[step_name](architecture)


@pytest.mark.parametrize(("name", "step_name"), STEPS)
def test_a_step_preserves_the_function(name, step_name):
    plan = plan_of(name, step_name)
    fresh = random_parameters(plan.target, seed=1)
    for embedding in (1.0, 1e-2):  # small activations, where epsilon (1e-3) decides
        parameters, old = source(name, embedding=embedding)
        grown = growth.expand(parameters, plan, fresh=fresh)
        assert difference(old, logits(plan.target, grown)) <= EXACT


@pytest.mark.parametrize(("name", "step_name"), STEPS)
def test_a_step_preserves_the_function_in_float32(name, step_name):
    plan = plan_of(name, step_name)
    with jax.enable_x64(False):
        fresh = random_parameters(plan.target, seed=1, dtype=np.float32)
        for embedding in (1.0, 1e-2):
            parameters, old = source(name, dtype="float32", embedding=embedding)
            grown = growth.expand(parameters, plan, fresh=fresh)
            new = logits(plan.target, grown)
            assert new.dtype == np.float32
            assert difference(old, new) <= EXACT_FLOAT32


@pytest.mark.parametrize("init", ["fresh", "copy"])
@pytest.mark.parametrize("name", networks.first(ARCHITECTURES, "llama", "gpt2"))
def test_free_values_from_the_initializer_and_from_copies(name, init):
    plan = plan_of(name, "all")
    parameters, old = source(name)
    grown = growth.expand(parameters, plan, key=KEY, init=init)
    assert difference(old, logits(plan.target, grown)) <= EXACT
    want = networks.abstract_parameters(plan.target)[0]
    assert jax.tree.structure(grown) == jax.tree.structure(want)
    assert jax.tree.map(jnp.shape, grown) == jax.tree.map(jnp.shape, want)
    assert {leaf.dtype for leaf in jax.tree.leaves(grown)} == {jnp.dtype("float64")}


def test_containers_are_kept():
    """What `model.init` returns, with boxes and without, with the level 'params' and without."""
    plan = plan_of("llama", "all")

    def init(arch):
        return Transformer(arch).init(jax.random.key(1), networks.TOKENS)

    raw = jax.jit(init, static_argnums=0)(plan.source)
    want = jax.eval_shape(lambda: init(plan.target))
    old = logits(plan.source, nn.unbox(raw)["params"])

    grown = growth.expand(raw, plan, key=KEY)
    assert jax.tree.structure(grown) == jax.tree.structure(want)
    assert jax.tree.map(jnp.shape, grown) == jax.tree.map(jnp.shape, want)
    assert difference(old, logits(plan.target, nn.unbox(grown)["params"])) <= EXACT_FLOAT32

    unboxed = growth.expand(nn.unbox(raw), plan, key=KEY)
    networks.assert_same_trees(unboxed, nn.unbox(grown))
    inner = growth.expand(nn.unbox(raw)["params"], plan, key=KEY)
    networks.assert_same_trees(inner, nn.unbox(grown)["params"])
    boxed = growth.expand(nn.unbox(raw), plan, fresh=grown)
    assert jax.tree.structure(boxed) == jax.tree.structure(want)

    frozen = growth.expand(FrozenDict(nn.unbox(raw)), plan, key=KEY)
    assert isinstance(frozen, FrozenDict)
    networks.assert_same_trees(frozen.unfreeze(), unboxed)


def test_a_plan_that_changes_nothing_changes_nothing():
    architecture = ARCHITECTURES["mixed"]
    parameters, _ = source("mixed")
    grown = growth.expand(parameters, growth.plan(architecture, architecture), key=KEY)
    networks.assert_same_trees(jax.tree.map(np.asarray, grown), parameters)


def test_the_same_key_gives_the_same_values_and_another_key_others():
    plan = plan_of("paper", "v")
    parameters, _ = source("paper")
    one, again = (growth.expand(parameters, plan, key=jax.random.key(3)) for _ in range(2))
    networks.assert_same_trees(one, again)
    other = growth.expand(parameters, plan, key=jax.random.key(4))

    def value(tree):
        return tree["layers_0"]["attention"]["value"]["kernel"]

    assert (value(one) != value(other)).any()


def test_new_entries_come_from_the_models_own_initializer():
    plan = plan_of("llama", "mlp")
    parameters, _ = source("llama")
    grown = growth.expand(parameters, plan, key=KEY)
    fresh = initial_parameters(plan.target, KEY)
    up, fresh_up = (tree["layers_0"]["mlp"]["up"]["kernel"] for tree in (grown, fresh))
    np.testing.assert_array_equal(up[..., 7:], fresh_up[..., 7:].astype(up.dtype))
    np.testing.assert_array_equal(up[..., :7], parameters["layers_0"]["mlp"]["up"]["kernel"])


def test_copies_are_old_units_in_turn_with_a_little_noise():
    plan = growth.mlp_expansion(17)(ARCHITECTURES["llama"])
    parameters, _ = source("llama")
    grown = growth.expand(parameters, plan, key=KEY, init="copy")
    old = parameters["layers_0"]["mlp"]["up"]["kernel"]
    new = np.asarray(grown["layers_0"]["mlp"]["up"]["kernel"][..., 7:])
    noise = new - np.concatenate([old, old[..., :3]], axis=-1)
    assert (noise != 0).all()
    assert 0.05 * old.std() < noise.std() < 0.2 * old.std()


def test_copies_of_a_layer_are_the_layer_below_with_a_little_noise():
    plan = growth.layer_addition(2, position=1)(ARCHITECTURES["llama"])
    parameters, old = source("llama")
    grown = growth.expand(parameters, plan, key=KEY, init="copy")
    kernels = np.asarray(grown["layers_0"]["mlp"]["up"]["kernel"])
    deviation = parameters["layers_0"]["mlp"]["up"]["kernel"].std()
    for new in (1, 2):
        assert 0.05 * deviation < (kernels[new] - kernels[0]).std() < 0.2 * deviation
    assert (kernels[1] != kernels[2]).all()
    assert difference(old, logits(plan.target, grown)) <= EXACT


def test_a_stream_far_from_zero():
    """LayerNorm subtracts a mean, here 600 times the deviation: that must not cost precision."""
    architecture = ARCHITECTURES["gpt2"].replace(tied_embeddings=False)
    parameters = random_parameters(architecture)
    parameters["position"] += 300.0
    plan = growth.hidden_dimension_expansion(10)(architecture)
    grown = growth.expand(parameters, plan, fresh=random_parameters(plan.target, seed=1))
    assert difference(logits(architecture, parameters), logits(plan.target, grown)) <= EXACT


def test_runs_of_equal_layers_split_and_merge():
    architecture = ARCHITECTURES["llama"].replace(num_layers=4)
    assert architecture.layer_runs == ((0, 4),)
    split = growth.compose(
        growth.mlp_expansion(9, layers=(1,)), growth.attention_expansion(6, layers=(3,))
    )(architecture)
    assert split.target.layer_runs == ((0, 1), (1, 1), (2, 1), (3, 1))
    merge = growth.compose(
        growth.mlp_expansion(9, layers=(0, 2, 3)),
        growth.layer_addition(2, position=2),
        growth.attention_expansion(6, layers=(0, 1, 2, 3, 4)),
    )(split.target)
    assert merge.target.layer_runs == ((0, 6),)
    parameters = random_parameters(architecture)
    old = logits(architecture, parameters)
    for plan in (split, merge):
        parameters = growth.expand(parameters, plan, fresh=random_parameters(plan.target, seed=1))
        assert difference(old, logits(plan.target, parameters)) <= EXACT


def test_one_layer_and_many_steps_at_once():
    architecture = ARCHITECTURES["paper"].replace(num_layers=1)
    parameters = random_parameters(architecture)
    plan = growth.grow_to(
        num_layers=4, embed_dim=9, num_heads=(3, 4, 5, 6), qk_dim=5, v_dim=(5, 6, 7, 8), mlp_dim=8
    )(architecture)
    grown = growth.expand(parameters, plan, fresh=random_parameters(plan.target, seed=1))
    assert difference(logits(architecture, parameters), logits(plan.target, grown)) <= EXACT


def test_under_jit_and_eval_shape():
    plan = plan_of("gpt2", "all")
    parameters, _ = source("gpt2")
    expand = functools.partial(growth.expand, plan=plan)
    eager = expand(parameters, key=KEY)
    jitted = jax.jit(lambda tree, key: expand(tree, key=key))(parameters, KEY)
    assert jax.tree.structure(jitted) == jax.tree.structure(eager)
    for one, other in zip(jax.tree.leaves(jitted), jax.tree.leaves(eager), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-14, atol=1e-14)
    abstract = jax.eval_shape(lambda tree, key: expand(tree, key=key), parameters, KEY)
    assert jax.tree.map(jnp.shape, abstract) == jax.tree.map(jnp.shape, eager)


@pytest.mark.parametrize("init", ["fresh", "copy"])
def test_on_a_mesh_of_eight_devices(init):
    architecture = growth.Architecture.llama(
        vocab_size=16, max_length=8, embed_dim=8, num_layers=2, num_heads=4, qk_dim=4, mlp_dim=8
    )
    plan = growth.grow_to(
        embed_dim=16, num_layers=4, num_heads=8, qk_dim=8, v_dim=8, mlp_dim=16
    )(architecture)  # fmt: skip
    mesh = jax.make_mesh((2, 4), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)
    rules = [("embed", "data"), ("mlp", "tensor"), ("kv_heads", "tensor"), ("vocab", "tensor")]

    def shardings(arch):
        return nn.logical_to_mesh_sharding(logical_axes(arch), mesh, rules)

    with jax.enable_x64(False):
        parameters = random_parameters(architecture, dtype=np.float32)
        key = jax.random.key(0)
        plain = growth.expand(parameters, plan, key=key, init=init)
        sharded = jax.device_put(parameters, shardings(architecture))

        def expand(tree, key):
            return growth.expand(tree, plan, key=key, init=init)

        grown = jax.jit(expand, out_shardings=shardings(plan.target))(sharded, key)

        kernel = grown["layers_0"]["mlp"]["up"]["kernel"]
        assert kernel.sharding.spec == PartitionSpec(None, "data", "tensor")
        assert kernel.addressable_shards[0].data.shape == (4, 8, 4)
        for one, other in zip(jax.tree.leaves(grown), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(np.asarray(one), np.asarray(other), rtol=1e-6, atol=1e-7)
        tokens = jax.device_put(networks.TOKENS, NamedSharding(mesh, PartitionSpec()))
        old, new = logits(architecture, parameters), logits(plan.target, grown, tokens)
        assert difference(old, new) <= EXACT_FLOAT32


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bfloat16_parameters_are_rounded_once(name):
    """All that bf16 costs is the rounding of what is rescaled, or is a mean of other values."""
    plan = plan_of(name, "all")
    with jax.enable_x64(False):
        low = networks.with_dtype(source(name)[0], jnp.bfloat16)
        fresh = networks.with_dtype(random_parameters(plan.target, seed=1), jnp.bfloat16)
        grown = growth.expand(low, plan, fresh=fresh)
        exact = growth.expand(networks.with_dtype(low, jnp.float32), plan, fresh=fresh)
        networks.assert_same_trees(grown, networks.with_dtype(exact, jnp.bfloat16))


def test_bfloat16_parameters_are_exact_where_factors_are_powers_of_two():
    plan = growth.compose(growth.attention_expansion(16), growth.hidden_dimension_expansion(24))(
        ARCHITECTURES["llama"]
    )
    with jax.enable_x64(False):
        low = networks.with_dtype(source("llama")[0], jnp.bfloat16)
        high = networks.with_dtype(low, jnp.float32)
        fresh = networks.with_dtype(random_parameters(plan.target, seed=1), jnp.bfloat16)
        grown = networks.with_dtype(growth.expand(low, plan, fresh=fresh), jnp.float32)
        networks.assert_same_trees(grown, growth.expand(high, plan, fresh=fresh))
        old, new = logits(plan.source, high), logits(plan.target, grown)
        assert difference(old, new) <= EXACT_FLOAT32


def test_arguments_that_are_missing_or_wrong_are_named():
    plan = plan_of("paper", "mlp")
    parameters, _ = source("paper")
    with pytest.raises(ValueError, match="key is needed"):
        growth.expand(parameters, plan)
    with pytest.raises(ValueError, match="key is needed"):
        growth.expand(parameters, plan, init="copy")
    with pytest.raises(ValueError, match="fresh is 'zeros'"):
        growth.expand(parameters, plan, key=KEY, fresh="zeros")
    blueprint = growth.models.blueprint(plan.source)
    with pytest.raises(ValueError, match="fresh is None"):
        growth.expand(parameters, plan, key=KEY, blueprint=blueprint)
    with pytest.raises(growth.BlueprintError, match="mlp/up/kernel: shape"):
        growth.expand(parameters, plan, fresh=parameters)
    with pytest.raises(growth.BlueprintError, match="mlp/up/kernel: shape"):
        growth.expand(random_parameters(plan.target), plan, key=KEY)


# One MLP in words of its own.

WIDER = growth.mlp_expansion(9)(ARCHITECTURES["gpt2"].replace(num_layers=1))
ONE_MLP = growth.Blueprint([("up", "mlp_in", "embed mlp"), ("down", "mlp_out", "mlp embed")])


def one_mlp(architecture, **others):
    h, p = architecture.embed_dim, architecture.mlp_dim
    return {"up": np.ones((h, p)), "down": np.ones((p, h))} | others


@pytest.mark.parametrize("axis", ["embed", "mlp"])
def test_a_plan_along_an_axis_that_no_rule_has_is_refused(axis):
    """An axis by a name that growth does not know is left alone, and the model would be as well."""
    rules = growth.Blueprint([(p, r, axes.replace(axis, "width")) for p, r, axes in ONE_MLP.rules])
    plan = growth.grow_to(embed_dim=8, mlp_dim=9)(WIDER.source)
    with pytest.raises(
        growth.InputError, match=f"no rule of the blueprint names the axis '{axis}'"
    ):
        growth.expand(one_mlp(WIDER.source), plan, key=KEY, blueprint=rules, init="copy")


@pytest.mark.parametrize("init", ["fresh", "copy"])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("fresh", "message"),
    [
        (dict(gate=np.ones((6, 9))), "gate: matched by no rule"),
        (dict(up=np.ones((6, 7))), r"shape \(6, 7\) does not fit 'embed mlp': \(mlp\) is 9"),
        (dict(up=np.ones((6, 9, 1))), "3 dimensions"),
        (dict(down=None), "one of them has arrays that the other lacks"),
    ],
    ids=["one more", "another size", "another rank", "one less"],
)
def test_what_comes_out_is_what_the_model_expects(fresh, message, compiled, init):
    """Whatever free values are, paths and shapes of the result are those of the fresh tree."""
    expected = one_mlp(WIDER.target, **fresh)

    def grow(tree, expected):
        return growth.expand(tree, WIDER, key=KEY, blueprint=ONE_MLP, fresh=expected, init=init)

    with pytest.raises(growth.InputError, match=message):
        (jax.jit(grow) if compiled else grow)(one_mlp(WIDER.source), expected)
