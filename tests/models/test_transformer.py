"""The reference model: against a plain numpy transformer, and property by property."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from growth import Architecture
from growth.architecture.cost import forward_flops_per_token
from growth.architecture.positions import rotary_frequencies
from growth.architecture.validation import BIASES
from growth.blueprints import pytrees
from growth.models import Transformer, initial_parameters, logical_axes, make_model
from growth.models.dot_product_attention import attend, rotate
from growth.rules.axes import AXES
from tests.helpers import networks, numpy_transformer
from tests.helpers.networks import ARCHITECTURES, TOKENS, difference, logits, random_parameters

SIZES = dict(vocab_size=11, max_length=8, embed_dim=6, num_layers=2, num_heads=2, mlp_dim=7)

VARIANTS = ARCHITECTURES | {
    "every bias": Architecture.gpt2(**SIZES, use_bias=True),
    "no bias": Architecture.gpt2(**SIZES, use_bias=False),
    "no position": Architecture.llama(**SIZES, position="none", tied_embeddings=True),
    "three runs": Architecture.llama(
        **SIZES | dict(num_layers=5, mlp_dim=(7, 7, 8, 9, 9)), qk_dim=4, use_bias=True
    ),
}
VARIANTS |= {part: Architecture.gpt2(**SIZES, gated_mlp=True, use_bias=(part,)) for part in BIASES}
VARIANTS |= networks.VARIANTS


def test_parameter_counts_are_those_of_the_trees():
    for architecture in VARIANTS.values():
        tree, _ = networks.abstract_parameters(architecture)
        assert sum(leaf.size for leaf in jax.tree.leaves(tree)) == architecture.num_parameters


@pytest.mark.parametrize("name", VARIANTS)
def test_it_computes_what_a_plain_transformer_does(name, float64):
    architecture = VARIANTS[name]
    parameters = random_parameters(architecture, seed=3)
    want = numpy_transformer.logits(architecture, parameters)
    assert difference(want, logits(architecture, parameters)) <= 1e-12


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("widths", [(4, 4), (4, 6), (6, 3)], ids=str)
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)], ids=str)
@pytest.mark.parametrize("causal", [True, False])
def test_attention(heads, widths, causal, dtype, float64):
    random = np.random.default_rng(0)
    shapes = [(2, 5, n, w) for n, w in zip((*heads, heads[1]), (widths[0], *widths), strict=True)]
    query, key, value = (jnp.asarray(random.standard_normal(s), dtype) for s in shapes)
    mixed = attend(query, key, value, causal=causal)
    assert mixed.dtype == dtype

    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    want = np.zeros((2, 5, heads[0], widths[1]))
    for b, t, e in np.ndindex(2, 5, heads[0]):
        head, seen = e // (heads[0] // heads[1]), slice(t + 1 if causal else None)
        weights = np.exp(key[b, seen, head] @ query[b, t, e] / np.sqrt(widths[0]))
        want[b, t, e] = weights @ value[b, seen, head] / weights.sum()
    tolerance = {"float32": 1e-6, "float64": 1e-14, "bfloat16": 2e-2}[dtype]
    np.testing.assert_allclose(np.asarray(mixed, np.float64), want, atol=tolerance, rtol=tolerance)


def test_rotation_depends_on_relative_positions_only(float64):
    query, key = np.random.default_rng(0).standard_normal((2, 6))
    frequencies = rotary_frequencies(6, 100.0, None)
    tiled = (np.tile(x, (1, 8, 1, 1)) for x in (query, key))
    turned = [np.asarray(rotate(x, frequencies))[0, :, 0] for x in tiled]
    scores = turned[0] @ turned[1].T
    for offset in range(-7, 8):
        diagonal = np.diagonal(scores, offset)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-12)
    assert np.ptp(scores) > 0.1


@pytest.mark.parametrize("name", ["paper", "llama", "mixed"])
def test_a_position_depends_on_itself_and_those_before_it(name):
    """By the gradient of one position's logits with respect to every position's embedding."""
    architecture = VARIANTS[name].replace(vocab_size=16, tied_embeddings=False)
    tokens = np.arange(8)[None]  # each token at one position only
    parameters = random_parameters(architecture, dtype=np.float32)

    def logit(table, at):
        changed = parameters | {"embed": {"embedding": table}}
        return jnp.sum(jnp.sin(Transformer(architecture).apply({"params": changed}, tokens)[0, at]))

    gradient = jax.jit(jax.grad(logit))
    for at in (0, 3, 7):
        table = gradient(parameters["embed"]["embedding"], at)
        depends = np.abs(np.asarray(table)).max(axis=-1)[:8] > 0
        assert depends.tolist() == [not architecture.causal or t <= at for t in range(8)]


def test_compile_time_does_not_grow_with_depth():
    def program(depth):
        architecture = VARIANTS["llama"].replace(num_layers=depth)
        tree, _ = networks.abstract_parameters(architecture)
        apply = jax.jit(Transformer(architecture).apply)
        return apply.lower({"params": tree}, TOKENS).as_text().splitlines()

    assert len(program(16)) == len(program(4))


def test_every_axis_of_every_parameter_has_its_name():
    known = {*AXES, "vocab", "length", "patch"}
    for architecture in VARIANTS.values():
        tree, paths = networks.abstract_parameters(architecture)
        names = {leaf.path: leaf.value for leaf in pytrees.leaves(logical_axes(architecture))}
        assert list(names) == list(paths)
        for path, leaf in zip(paths, jax.tree.leaves(tree), strict=True):
            assert len(names[path]) == leaf.ndim
            assert set(names[path]) <= known
            in_layer = path.partition("/")[2] if path.startswith("layers") else path
            own = ("layers",) if path.startswith("layers") else ()
            axes = networks.axes_of(in_layer)
            if in_layer.split("/")[-2:-1] in (["query_norm"], ["key_norm"]):
                heads = ["kv_heads", "group"] if "query" in in_layer else ["kv_heads"]
                axes = [*(heads if architecture.qk_norm == "all" else []), "qk"]
            assert tuple(names[path]) == (*own, *axes)


def test_initial_parameters_are_those_of_init_without_boxes():
    architecture = VARIANTS["gpt2"]
    key = jax.random.key(5, impl="rbg")
    plain = initial_parameters(architecture, key)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(plain))
    init = Transformer(architecture).init(key, TOKENS)["params"]
    networks.assert_same_trees(plain, nn.unbox(init))
    norm = plain["layers_0"]["mlp_norm"]
    assert (norm["scale"] == 1).all()
    assert (norm["bias"] == 0).all()


def test_remat_changes_nothing_but_memory():
    architecture = VARIANTS["llama"]
    parameters = random_parameters(architecture, dtype=np.float32)

    def loss(parameters, remat):
        model = Transformer(architecture, remat=remat)
        return (model.apply({"params": parameters}, TOKENS) ** 2).sum()

    gradient = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    results = [gradient(parameters, remat) for remat in (False, True)]
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)

    def kept(remat):
        backward = jax.eval_shape(lambda p: jax.vjp(lambda p: loss(p, remat), p)[1], parameters)
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    assert kept(True) < kept(False)


def test_the_computation_may_have_another_dtype_than_the_parameters():
    architecture = VARIANTS["llama"]
    parameters = random_parameters(architecture, dtype=np.float32)
    exact = Transformer(architecture).apply({"params": parameters}, TOKENS)
    low = Transformer(architecture, dtype=jnp.bfloat16).apply({"params": parameters}, TOKENS)
    assert (exact.dtype, low.dtype) == (jnp.float32, jnp.bfloat16)
    assert 0 < difference(np.asarray(exact), np.asarray(low, np.float32)) < 0.1

    stored = initial_parameters(architecture, jax.random.key(0), param_dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(stored)} == {jnp.dtype(jnp.bfloat16)}
    model = Transformer(architecture, dtype=jnp.float32, param_dtype=jnp.bfloat16)
    assert model.apply({"params": stored}, TOKENS).dtype == jnp.float32


def test_the_stream_may_be_split_over_a_mesh():
    architecture = VARIANTS["three runs"]
    parameters = random_parameters(architecture, dtype=np.float32)
    mesh = jax.make_mesh((2, 4), ("data", "other"), axis_types=(AxisType.Auto,) * 2)
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    model = Transformer(architecture, stream_sharding=sharding)
    apply = jax.jit(model.apply, out_shardings=sharding)
    split = apply({"params": parameters}, jax.device_put(TOKENS, sharding))
    assert split.addressable_shards[0].data.shape == (1, 8, 11)
    assert difference(logits(architecture, parameters), np.asarray(split)) < 1e-6


def test_shorter_sequences_are_taken_and_longer_ones_refused():
    architecture = VARIANTS["gpt2"]
    parameters = random_parameters(architecture, dtype=np.float32)
    whole = logits(architecture, parameters)
    part = logits(architecture, parameters, TOKENS[:, :3])
    np.testing.assert_allclose(part, whole[:, :3], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="inputs are 9 long, but max_length is 8"):
        logits(architecture, parameters, np.zeros((1, 9), int))


def multiply_adds(jaxpr):
    """The multiply-adds of all products of matrices in a program, loops as often as they run."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            ((contracted, _), _), (left, _) = equation.params["dimension_numbers"], equation.invars
            summed = [left.aval.shape[axis] for axis in contracted]
            total += math.prod(summed) * equation.outvars[0].aval.size
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += times * sum(map(multiply_adds, jaxprs_in_params(equation.params)))
    return total


@pytest.mark.parametrize("name", VARIANTS)
def test_flops_are_those_of_the_products_of_the_program(name):
    architecture = VARIANTS[name]
    params, _ = networks.abstract_parameters(architecture)
    inputs = jnp.asarray(networks.inputs(architecture))[:1]
    if architecture.patches is None:
        inputs = jnp.zeros((1, architecture.max_length), int)
    program = jax.make_jaxpr(make_model(architecture).apply)({"params": params}, inputs)
    length = architecture.max_length
    flops = 2 * multiply_adds(program.jaxpr)
    assert flops == pytest.approx(length * forward_flops_per_token(architecture), rel=1e-12)
    assert architecture.training_flops_per_token() * length == pytest.approx(3 * flops, rel=1e-12)
