"""What today's transformers vary: every dimension grows exactly, or is refused with the reason."""

import functools
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

import growth
from growth import Architecture, ArchitectureError, GrowthError
from growth.expansion.accounts import source_account
from growth.expansion.init_values import zeros
from growth.expansion.jax_backend import assemble
from growth.models import apply, blueprint
from tests.helpers import networks, numpy_transformer
from tests.helpers.networks import KEY, VARIANTS, difference, logits, random_parameters

pytestmark = pytest.mark.usefixtures("float64")

STEPS = {
    "mlp": growth.mlp_expansion((9, 8)),
    "heads": growth.head_addition(6),
    "v": growth.heads_expansion(5),
    "qk": growth.attention_expansion(8),
    "embed": growth.hidden_dimension_expansion(10),
    "layers": growth.layer_addition(2, position=1),
}

# Where values are multiplied in ways of their own, one of each.
SCALED = [
    "LayerNorm without gains (OLMo)",
    "norms without gains, tied, scaled embedding",
    "fixed epsilon, tied, learned positions (OPT)",
    "sandwich norms, soft caps, windows (Gemma 2)",
    "norm over each query and key (Qwen 3)",
    "images (ViT)",
]

# What writes to the residual stream.
WRITERS = ("embed/embedding", "position", "class_token", "patch_embed/kernel", "patch_embed/bias")
WRITERS += ("out/kernel", "out/bias", "down/kernel", "down/bias")

REFUSED = {
    "norms without gains, tied": {"embed": "neither a gain nor an output layer of its own"},
    "closing norms, norm over all queries (OLMo 2)": {
        "heads": "a norm over all heads sees the new ones",
        "qk": "a norm over queries and keys sees their new columns",
    },
    "fixed epsilon, closing norms, norm over all queries": {
        "heads": "a norm over all heads sees the new ones",
        "qk": "a norm over queries and keys sees their new columns",
    },
    "a gain on each branch, LayerNorm, parallel": {"embed": "branch_gain multiplies"},
    "norm over each query and key (Qwen 3)": {"qk": "a norm over queries and keys"},
    "fixed epsilon, norm over each query and key, scaled embedding": {
        "qk": "a norm over queries and keys"
    },
    "ALiBi, norm after embedding (BLOOM)": {"embed": "a layernorm writes to the stream"},
    "sinusoidal positions": {"embed": "sinusoidal positions of another width differ"},
    "post-norm, RMSNorm": {"layers": "a norm after a new layer would change the stream"},
    "post-norm, LayerNorm, bidirectional (BERT)": {
        "embed": "a layernorm writes to the stream",
        "layers": "a norm after a new layer would change the stream",
    },
}


def steps_for(name):
    """The steps that are possible from a variant, each alone, and all at once."""
    architecture, refused = VARIANTS[name], REFUSED.get(name, {})
    groups, per_group = architecture.num_kv_heads, architecture.layers[0].queries_per_group
    heads = {"heads": growth.head_addition((groups + 2) * per_group)}
    steps = {kind: step for kind, step in (STEPS | heads).items() if kind not in refused}
    steps["all"] = growth.compose(*steps.values())
    if "heads" in steps and architecture.position != "alibi":
        steps["queries in groups"] = growth.head_addition(groups * (per_group + 1), groups)
    return steps


@functools.cache
def source(name):
    parameters = random_parameters(VARIANTS[name])
    return parameters, logits(VARIANTS[name], parameters)


@pytest.mark.full
@pytest.mark.parametrize("name", VARIANTS)
def test_every_possible_step_preserves_the_function(name):
    parameters, old = source(name)
    for kind, step in steps_for(name).items():
        plan = step(VARIANTS[name])
        assert plan.target.num_parameters > plan.source.num_parameters, kind
        grown = growth.expand(parameters, plan, fresh=random_parameters(plan.target, seed=1))
        assert difference(old, logits(plan.target, grown)) <= 1e-12, kind
        networks.forget_programs(every=32)


@pytest.mark.parametrize("name", VARIANTS)
def test_all_possible_steps_at_once_preserve_the_function(name):
    parameters, old = source(name)
    assert len(old.reshape(-1, 11).std(axis=0).nonzero()[0]) == 11  # logits depend on the inputs
    plan = steps_for(name)["all"](VARIANTS[name])
    grown = growth.expand(parameters, plan, fresh=random_parameters(plan.target, seed=1))
    assert difference(old, numpy_transformer.logits(plan.target, grown)) <= 1e-12


@pytest.mark.parametrize("name", networks.first(VARIANTS, *SCALED))
def test_the_models_own_initializer_preserves_the_function(name):
    parameters, old = source(name)
    plan = steps_for(name)["all"](VARIANTS[name])
    initialized = growth.expand(parameters, plan, key=KEY)
    assert difference(old, logits(plan.target, initialized)) <= 1e-12


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_has_the_parameters_that_it_counts(name):
    parameters, _ = source(name)
    assert VARIANTS[name].num_parameters == sum(x.size for x in jax.tree.leaves(parameters))
    assert Architecture.from_json(VARIANTS[name].to_json()) == VARIANTS[name]


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [(name, kind, reason) for name, kinds in REFUSED.items() for kind, reason in kinds.items()],
)
def test_an_impossible_step_is_refused_with_the_reason(name, kind, reason):
    with pytest.raises(GrowthError, match=reason):
        STEPS[kind](VARIANTS[name])


def test_alibi_refuses_heads_that_would_change_the_slopes_of_old_ones():
    architecture = VARIANTS["ALiBi"]
    assert growth.head_addition(7)(architecture).target.num_heads == 7
    assert growth.head_addition(7)(growth.head_addition(6)(architecture).target)
    for heads, groups in ((8, None), (8, 4)):
        with pytest.raises(GrowthError, match="would have other slopes"):
            growth.head_addition(heads, groups)(architecture)


def loss(architecture, parameters):
    values = apply(architecture, parameters, networks.inputs(architecture))
    labels = np.resize(networks.TOKENS[::-1], values.shape[:-1])
    return optax.softmax_cross_entropy_with_integer_labels(values, labels).mean()


@functools.cache
def gradient(architecture):
    return jax.jit(jax.grad(functools.partial(loss, architecture)))


@pytest.mark.parametrize("name", networks.first(VARIANTS, *SCALED))
def test_old_gradients_follow_their_exponent_and_new_entries_learn(name):
    architecture = VARIANTS[name]
    plan = steps_for(name)["all"](architecture)
    parameters, _ = source(name)
    rules = blueprint(architecture)
    grown = growth.expand(parameters, plan, fresh=random_parameters(plan.target, seed=1))
    ones = jax.tree.map(np.ones_like, parameters)
    account = source_account(parameters, plan, rules)
    carry = functools.partial(assemble, account, init_values=zeros, exponent=-1)
    is_old = jax.tree.map(lambda x: np.asarray(x) > 0, carry(ones))
    gradients = [gradient(plan.target)(grown)]
    expected = carry(gradient(architecture)(parameters))

    here = grown
    for _ in range(2):
        here = jax.tree.map(lambda x, g: x - 0.1 * g, here, gradients[-1])
        gradients.append(gradient(plan.target)(here))
    paths = [leaf.path for leaf in growth.blueprints.pytrees.leaves(grown)]
    for path, old, wanted, *steps in zip(
        paths, *map(jax.tree.leaves, (is_old, expected, *gradients)), strict=True
    ):
        steps = [np.asarray(step) for step in steps]
        # Where columns are not turned, a key's bias moves all scores of a query alike.
        key_bias = path.endswith("key/bias") and not architecture.turns_whole_heads
        wanted = np.asarray(wanted)
        scale = np.abs(wanted).max() + 1e-12
        if key_bias and architecture.position != "rope":
            np.testing.assert_allclose(steps[0], 0, atol=1e-12)
        elif architecture.norm == "layernorm" and path.endswith(WRITERS):
            # The mean that new dimensions hold has readers of its own. What they send back reaches
            # each old dimension alike.
            size = architecture.embed_dim
            rows = old[..., :size].all(axis=-1)
            moved = (steps[0] - wanted)[..., :size][rows] / scale
            np.testing.assert_allclose(moved, moved[..., :1] + 0 * moved, atol=1e-9)
        else:
            np.testing.assert_allclose(steps[0][old] / scale, wanted[old] / scale, atol=1e-9)
        rows = path in ("embed/embedding", "position")  # a batch has not all tokens
        if not key_bias and not rows:
            alive = np.any([np.abs(step) > 1e-13 * np.abs(step).max() for step in steps], axis=0)
            assert alive[~old].all(), f"{path}: {(~alive & ~old).sum()} new entries are dead"
    networks.forget_programs(every=8)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (dict(norm_placement="middle"), "norm_placement is 'middle', but it must be one of pre"),
        (dict(rotary_dim=3), "rotary_dim is 3 in layer 0"),
        (dict(rotary_dim=6), "rotary_dim is 6 in layer 0"),
        (dict(rotary_dim=2, position="alibi"), "rotary_dim is given, but position is 'alibi'"),
        (dict(norm_gain=False, norm_placement="post"), "norm_gain is False"),
        (
            dict(norm_gain=False, norm="layernorm", use_bias=("norm",)),
            "without a gain, has no bias",
        ),
        (dict(parallel="two_norms", norm_placement="post"), "norm_placement must be 'pre'"),
        (dict(query_scale=0.0), "query_scale is 0.0, but it must be a positive number"),
        (dict(window=(1, 0)), r"window\[1\] is 0, but it must be a whole number of at least 1"),
        (dict(unit_offset=1), "unit_offset is 1, not True or False"),
    ],
)
def test_fields_out_of_range_are_refused_by_name(fields, message):
    with pytest.raises(ArchitectureError, match=message):
        VARIANTS["LayerNorm without biases"].replace(norm="rmsnorm").replace(**fields)


def test_window_and_rope_scaling_of_old_layers_cannot_change():
    architecture = VARIANTS["linearly scaled rotary, window (Mistral)"]
    with pytest.raises(GrowthError, match="window is 3 in layer 0 and growth cannot change it"):
        growth.plan(architecture, architecture.replace(window=4))
    with pytest.raises(GrowthError, match="rope_scaling is RopeScaling"):
        growth.plan(architecture, architecture.replace(rope_scaling=None))


def test_every_variant_stands_in_the_table_of_the_docs():
    table = Path(__file__).parents[2].joinpath("docs/exactness.md").read_text()
    for name in VARIANTS:
        cells = next(line for line in table.splitlines() if line.startswith(f"| {name} |"))
        assert cells.count("refused") == len(REFUSED.get(name, {}))
