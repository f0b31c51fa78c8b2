"""Models that nobody here wrote grow through a blueprint, along all six dimensions, exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import growth
from growth import Architecture, Blueprint, BlueprintError
from tests.helpers import foreign_models, foreign_stacks, networks
from tests.helpers.networks import KEY, TOKENS, difference

pytestmark = pytest.mark.usefixtures("float64")

EXACT = 1e-12
MODELS = foreign_models.MODELS | foreign_stacks.MODELS

ALL = growth.compose(
    growth.mlp_expansion(7),
    growth.layer_addition(2, position=1),
    growth.mlp_expansion(9, layers=(1, 3)),
    growth.heads_expansion(5),
    growth.attention_expansion(6),
    growth.hidden_dimension_expansion(9),
)
STEPS = {
    "mlp of one layer": growth.mlp_expansion(8, layers=(1,)),
    "heads": growth.head_addition(6),
    "v": growth.heads_expansion(6),
    "qk": growth.attention_expansion(8),
    "embed": growth.hidden_dimension_expansion(8),
    "layers at the bottom": growth.layer_addition(2, position=0),
    "all": growth.compose(ALL, growth.head_addition(8)),
}


def randomized(tree, seed=0):
    """Random values of the same shapes, far from any initialization."""
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: 0.6 * random.standard_normal(jnp.shape(leaf)), tree)


@functools.cache
def _apply(name, architecture):
    return jax.jit(functools.partial(MODELS[name].apply, architecture))


def logits(name, architecture, tree):
    return np.asarray(_apply(name, architecture)(tree, TOKENS))


@functools.cache
def source(name):
    """Parameters of a model, and their logits."""
    architecture = MODELS[name].architecture
    tree = randomized(MODELS[name].init(architecture))
    return tree, logits(name, architecture, tree)


@pytest.mark.parametrize("step", networks.first(STEPS, "all"))
@pytest.mark.parametrize("name", MODELS)
def test_growth_with_the_models_own_initializer_preserves_the_function(name, step):
    model = MODELS[name]
    tree, old = source(name)
    plan = STEPS[step](model.architecture)
    fresh = model.init(plan.target)
    grown = growth.expand(tree, plan, blueprint=model.blueprint, fresh=fresh)
    assert jax.tree.structure(grown) == jax.tree.structure(fresh)
    assert jax.tree.map(jnp.shape, grown) == jax.tree.map(jnp.shape, fresh)
    assert {leaf.dtype for leaf in jax.tree.leaves(grown)} == {jnp.dtype("float64")}
    assert difference(old, logits(name, plan.target, grown)) <= EXACT


@pytest.mark.parametrize("name", networks.first(MODELS, "Linen GPT", "T5"))
def test_growth_with_copies_needs_no_fresh_tree(name):
    model = MODELS[name]
    tree, old = source(name)
    plan = growth.grow_to(
        num_layers=3, num_heads=model.architecture.num_heads + 2, embed_dim=8, qk_dim=6, v_dim=5,
        mlp_dim=(6, 8, 6),
    )(model.architecture)  # fmt: skip
    grown = growth.expand(tree, plan, key=KEY, blueprint=model.blueprint, init="copy")
    want = jax.eval_shape(lambda: model.init(plan.target))
    assert jax.tree.structure(grown) == jax.tree.structure(want)
    assert jax.tree.map(jnp.shape, grown) == jax.tree.map(jnp.shape, want)
    assert difference(old, logits(name, plan.target, grown)) <= EXACT


def test_the_state_of_an_nnx_model_grows_as_it_is():
    model = MODELS["NNX encoder"]
    plan = growth.grow_to(num_layers=3, mlp_dim=6)(model.architecture)
    state, fresh = (
        nnx.state(foreign_models.Encoder(size, nnx.Rngs(0)), nnx.Param)
        for size in (plan.source, plan.target)
    )
    grown = growth.expand(state, plan, blueprint=model.blueprint, fresh=fresh)
    assert isinstance(grown, nnx.State)
    assert jax.tree.structure(grown) == jax.tree.structure(fresh)
    pure = growth.expand(
        nnx.to_pure_dict(state), plan, blueprint=model.blueprint, fresh=nnx.to_pure_dict(fresh)
    )
    networks.assert_same_trees(nnx.to_pure_dict(grown), pure)


@pytest.mark.parametrize("heads", [(6, 2), (9, 3)], ids=["queries", "queries and groups"])
def test_queries_are_added_to_flat_groups(heads):
    model = MODELS["plain Llama"]
    tree, old = source("plain Llama")
    plan = growth.compose(growth.head_addition(*heads), ALL)(model.architecture)
    fresh = randomized(model.init(plan.target), seed=1)
    grown = growth.expand(tree, plan, blueprint=model.blueprint, fresh=fresh)
    assert difference(old, logits("plain Llama", plan.target, grown)) <= EXACT


@pytest.mark.parametrize("name", ["Linen GPT", "paper's authors", "NNX encoder"])
def test_queries_are_not_added_where_heads_are_not_grouped(name):
    model = MODELS[name]
    plan = growth.head_addition(4, 2)(model.architecture)
    with pytest.raises(BlueprintError, match="adds query heads to each group"):
        growth.expand(source(name)[0], plan, key=KEY, blueprint=model.blueprint, init="copy")


def test_grouped_heads_of_a_fused_array_are_sections_of_unequal_width():
    """Query, key and value in one array, with more queries than keys, as in Falcon and Phi-3."""
    model = MODELS["plain Llama"]
    rules = [r for r in model.blueprint.rules if r[0] not in ("layers/{layers}/" + w for w in _QKV)]
    rule = ("layers/{layers}/wqkv", ("query", "key", "value"), "(role kv_heads group qk) embed")
    blueprint = Blueprint([*rules, rule])

    def fuse(tree):
        layers = [dict(layer) for layer in tree["layers"]]
        for layer in layers:
            layer["wqkv"] = np.concatenate([layer.pop(name) for name in _QKV])
        return tree | {"layers": layers}

    def split(tree, architecture):
        layers = [dict(layer) for layer in tree["layers"]]
        for layer, shape in zip(layers, architecture.layers, strict=True):
            widths = shape.num_heads * shape.qk_dim, shape.num_kv_heads * shape.qk_dim
            parts = np.split(layer.pop("wqkv"), np.cumsum(widths))
            layer.update(zip(_QKV, parts, strict=True))
        return tree | {"layers": layers}

    plan = growth.compose(growth.head_addition(9, 3), ALL)(model.architecture)
    tree, old = source("plain Llama")
    fresh = randomized(model.init(plan.target), seed=1)
    apart = growth.expand(tree, plan, blueprint=model.blueprint, fresh=fresh)
    fused = growth.expand(fuse(tree), plan, blueprint=blueprint, fresh=fuse(fresh))
    networks.assert_same_trees(split(fused, plan.target), apart)
    assert difference(old, logits("plain Llama", plan.target, apart)) <= EXACT


_QKV = ("wq", "wk", "wv")


def test_one_array_may_hold_all_layers():
    """As models that scan over their layers have it, without an index in the path."""
    architecture = networks.ARCHITECTURES["llama"]
    reference = growth.models.blueprint(architecture)
    rules = [(path.replace("{layers}", "0"), *rest) for path, *rest in reference.rules]
    plan = growth.grow_to(num_layers=4, position=1, embed_dim=8, num_heads=6)(architecture)
    tree = networks.random_parameters(architecture)
    fresh = networks.random_parameters(plan.target, seed=1)
    grown = growth.expand(tree, plan, blueprint=Blueprint(rules), fresh=fresh)
    networks.assert_same_trees(grown, growth.expand(tree, plan, fresh=fresh))


# A network in pieces: an array for each unit of the MLP, each column of a head, each dimension of
# the stream. Odd, but an axis may be an index in the path, whichever axis it is.


def piecewise_init(arch):
    random = np.random.default_rng(5)

    def new(*shape):
        return 0.6 * random.standard_normal(shape)

    h = arch.embed_dim
    tree = {
        "dims": [
            {"table": new(arch.vocab_size), "head": new(arch.vocab_size)} for _ in range(h)
        ],
        "layers": [],
    }  # fmt: skip
    for i, shape in enumerate(arch.layers):
        for dim in tree["dims"]:
            dim[f"gain_{i}"], shift, dim[f"bias_{i}"] = new(), new(), new()
            if arch.norm == "layernorm":
                dim[f"shift_{i}"] = shift
        heads = {}
        for g in range(shape.num_kv_heads):
            heads |= {f"k_{g}_{c}": new(h) for c in range(shape.qk_dim)}
            heads |= {f"v_{g}_{c}": new(h) for c in range(shape.v_dim)}
            for r in range(shape.queries_per_group):
                heads |= {f"q_{g}_{r}_{c}": new(h) for c in range(shape.qk_dim)}
                heads |= {f"o_{g}_{r}_{c}": new(h) for c in range(shape.v_dim)}
        units = [{"in": new(h), "out": new(h)} for _ in range(shape.mlp_dim)]
        tree["layers"].append({"heads": heads, "units": units})
    return tree


def piecewise_apply(arch, tree, tokens):

    def across(name):
        return jnp.stack([dim[name] for dim in tree["dims"]], axis=-1)

    def norm(x, i):
        if arch.norm == "layernorm":
            x = x - x.mean(-1, keepdims=True)
        x = x / jnp.sqrt((x * x).mean(-1, keepdims=True) + arch.norm_eps)
        return x * across(f"gain_{i}") + (across(f"shift_{i}") if arch.norm == "layernorm" else 0)

    x = across("table")[tokens]
    for i, (shape, layer) in enumerate(zip(arch.layers, tree["layers"], strict=True)):
        a, heads = norm(x, i), layer["heads"]

        def columns(name, number, heads=heads):
            return jnp.stack([heads[f"{name}_{c}"] for c in range(number)], axis=-1)

        for g in range(shape.num_kv_heads):
            key = _rotate(a @ columns(f"k_{g}", shape.qk_dim), shape.rope_theta)
            value = a @ columns(f"v_{g}", shape.v_dim)
            for r in range(shape.queries_per_group):
                query = _rotate(a @ columns(f"q_{g}_{r}", shape.qk_dim), shape.rope_theta)
                mixed = foreign_models.causal_attention(query, key, value)
                x = x + mixed @ columns(f"o_{g}_{r}", shape.v_dim).T
        a = norm(x, i)
        x = x + across(f"bias_{i}")
        x = x + sum(jnp.tanh(a @ u["in"])[..., None] * u["out"] for u in layer["units"])
    return x @ across("head").T


def _rotate(x, theta):
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[-2])[:, None] * theta ** (-jnp.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


PIECEWISE = Blueprint(
    [
        ("dims/{embed}/table", "embedding", "vocab"),
        ("dims/{embed}/head", "unembed", "vocab"),
        ("dims/{embed}/gain_{layers}", "norm_gain", ""),
        ("dims/{embed}/shift_{layers}", "norm_bias", ""),
        ("dims/{embed}/bias_{layers}", "mlp_out", ""),
        ("layers/{layers}/heads/k_{kv_heads}_{qk}", "key", "embed"),
        ("layers/{layers}/heads/v_{kv_heads}_{v}", "value", "embed"),
        ("layers/{layers}/heads/q_{kv_heads}_{group}_{qk}", "query", "embed"),
        ("layers/{layers}/heads/o_{kv_heads}_{group}_{v}", "attention_out", "embed"),
        ("layers/{layers}/units/{mlp}/in", "mlp_in", "embed"),
        ("layers/{layers}/units/{mlp}/out", "mlp_out", "embed"),
    ]
)


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_every_axis_may_be_an_index_in_the_path(norm):
    architecture = Architecture(
        vocab_size=11, max_length=8, embed_dim=3, num_layers=2, num_heads=2, num_kv_heads=1,
        qk_dim=4, v_dim=2, mlp_dim=2, norm=norm, norm_eps=1e-3, final_norm=False, use_bias=True,
    )  # fmt: skip
    tree = piecewise_init(architecture)
    plan = growth.grow_to(
        num_layers=3, position=1, num_heads=6, num_kv_heads=2, qk_dim=6, v_dim=3, mlp_dim=(3, 4, 4),
        embed_dim=5,
    )(architecture)  # fmt: skip
    fresh = piecewise_init(plan.target)
    grown = growth.expand(tree, plan, blueprint=PIECEWISE, fresh=fresh)
    assert jax.tree.map(np.shape, grown) == jax.tree.map(np.shape, fresh)
    heads, fresh_heads = grown["layers"][0]["heads"], fresh["layers"][0]["heads"]
    assert not heads["k_0_2"].any()  # a new column of an old key, at the end of its first half
    assert heads["k_1_2"].tolist() == fresh_heads["k_1_2"].tolist()  # a new head is free
    old = jax.jit(functools.partial(piecewise_apply, architecture))(tree, TOKENS)
    new = jax.jit(functools.partial(piecewise_apply, plan.target))(grown, TOKENS)
    assert difference(np.asarray(old), np.asarray(new)) <= EXACT


@pytest.mark.parametrize("grows", ["encoder", "decoder"])
def test_an_encoder_and_its_decoder_grow_apart(grows):
    """A stack is a subtree with an architecture of its own; the stream between them is as wide."""
    model = foreign_stacks.T5_MODEL
    tree, old = source("T5")
    step = growth.compose(
        growth.mlp_expansion(7),
        growth.head_addition(3),
        growth.attention_expansion(5),
        growth.heads_expansion(6),
        growth.layer_addition(1, position=1),
    )
    plan = step(model.architecture)
    fresh = randomized(model.init(plan.target), seed=1)
    rules = Blueprint(foreign_stacks.STACK_RULES)
    part = growth.expand({grows: tree[grows]}, plan, blueprint=rules, fresh={grows: fresh[grows]})
    sizes = {"encoder": model.architecture, "decoder": model.architecture} | {grows: plan.target}
    new = foreign_stacks.T5(**sizes).apply({"params": tree | part}, TOKENS)
    assert difference(old, np.asarray(new)) <= EXACT


def test_encoder_and_decoder_of_different_depth_widen_together():
    deep = foreign_stacks.T5_MODEL.architecture.replace(num_layers=3)
    flat = foreign_stacks.T5_MODEL.architecture
    module = foreign_stacks.T5(deep, flat)
    tree = randomized(module.init(KEY, TOKENS)["params"])
    old = np.asarray(module.apply({"params": tree}, TOKENS))
    step = growth.hidden_dimension_expansion(9)
    rules = Blueprint(foreign_stacks.T5_MODEL.blueprint.rules)
    encoder = {name: tree[name] for name in ("shared", "encoder", "lm_head")}
    plans = step(deep), step(flat)
    grown = growth.expand(encoder, plans[0], key=KEY, blueprint=rules, init="copy")
    grown |= growth.expand(
        {"decoder": tree["decoder"]}, plans[1], key=KEY, blueprint=rules, init="copy"
    )
    larger = foreign_stacks.T5(*(plan.target for plan in plans))
    new = np.asarray(larger.apply({"params": grown}, TOKENS))
    assert difference(old, new) <= EXACT
