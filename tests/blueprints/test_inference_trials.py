"""Blueprints that are tried out: the model's function decides between readings."""

import functools

import jax
import numpy as np
import pytest

import growth
from growth import Architecture, Blueprint, BlueprintError
from tests.helpers import networks
from tests.helpers.inference_cases import (
    BY_HAND,
    MODELS,
    TOKENS,
    meaning,
    shapes_of,
    without_final,
)


@pytest.mark.parametrize("name", networks.first(MODELS, "Linen GPT", "plain Llama"))
def test_the_models_function_decides_what_is_open(name):
    tree, architecture = shapes_of(name)
    apply = MODELS[name].apply
    inferred = Blueprint.infer(tree, architecture, apply=apply, inputs=TOKENS)
    if name not in BY_HAND:
        assert meaning(inferred, tree, architecture) == meaning(
            Blueprint.infer(tree, architecture), tree, architecture
        )
        return
    want = meaning(BY_HAND[name].blueprint, tree, architecture)
    for path, (roles, dims) in meaning(inferred, tree, architecture).items():
        assert list(map(without_final, roles)) == list(map(without_final, want[path][0]))
        assert dims == want[path][1]


# A network of MLPs alone, which compiles at once.

MLPS = Architecture(
    vocab_size=23, max_length=9, embed_dim=22, num_layers=2, num_heads=1, mlp_dim=20,
    gated_mlp=False, activation="relu", position="none", norm_eps=1e-3,
)  # fmt: skip


def mlps(architecture, names=("before", "inner", "outer")):
    h, p = architecture.embed_dim, architecture.mlp_dim
    before, inner, outer = names
    layers = [{before: np.ones(h), inner: np.ones((h, p)), outer: np.ones((p, h))} for _ in "12"]
    if architecture.norm_placement == "sandwich":
        layers = [layer | {"norm_b": np.ones(h)} for layer in layers]
    return {
        "table": np.ones((23, h)), "blocks": layers, "norm": np.ones(h), "head": np.ones((h, 23))
    }  # fmt: skip


def apply_mlps(architecture, tree, tokens, names=("before", "inner", "outer"), width=None):
    def norm(x, gain):
        return (
            gain
            * x
            / np.sqrt(x.shape[-1])
            / jax.numpy.sqrt(
                (x * x).sum(-1, keepdims=True) / x.shape[-1] ** 2
                + architecture.norm_eps / x.shape[-1]
            )
        )

    x = tree["table"][tokens]
    for layer in tree["blocks"]:
        y = norm(x, layer[names[0]]) / (x.shape[-1] if width else 1)
        y = jax.nn.relu(y @ layer[names[1]]) @ layer[names[2]]
        x = x + (norm(y, layer["norm_b"]) if "norm_b" in layer else y)
    return norm(x, tree["norm"]) @ tree["head"]


def test_a_function_decides_where_names_say_nothing():
    """Which of two norms closes the branch, and which kernel is the first."""
    names = ("norm_a", "zyx", "xyz")
    architecture = MLPS.replace(norm_placement="sandwich")
    tree = mlps(architecture, names)
    with pytest.raises(BlueprintError, match="ambiguous"):
        Blueprint.infer(tree, architecture)
    apply = functools.partial(apply_mlps, names=names)
    inferred = Blueprint.infer(tree, architecture, apply=apply, inputs=TOKENS % 23)
    roles = {path: (role, axes) for path, role, axes in inferred.rules}
    assert roles["blocks/{layers}/norm_a"] == ("norm_gain", "embed")
    assert roles["blocks/{layers}/norm_b"] == ("closing_gain", "embed")
    assert roles["blocks/{layers}/zyx"] == ("mlp_in", "embed mlp")
    assert roles["blocks/{layers}/xyz"] == ("mlp_out", "mlp embed")


def test_a_function_that_no_reading_keeps_is_an_error():
    apply = functools.partial(apply_mlps, width=True)  # divides by a width that grows
    with pytest.raises(BlueprintError, match="growing embed_dim changes what the model computes"):
        Blueprint.infer(mlps(MLPS), MLPS, apply=apply, inputs=TOKENS % 23)


def test_a_model_that_runs_at_one_size_only_decides_nothing():
    def fixed(architecture, tree, tokens):
        assert architecture == MLPS
        return apply_mlps(architecture, tree, tokens)

    with pytest.raises(BlueprintError, match="at no other size, so nothing decides: mlp_dim: Asse"):
        Blueprint.infer(mlps(MLPS), MLPS, apply=fixed, inputs=TOKENS % 23)


def test_a_model_that_lacks_some_sizes_is_tried_at_the_others():
    def one_layer(architecture, tree, tokens):
        assert architecture.num_layers == 1
        return apply_mlps(architecture, tree, tokens)

    architecture = MLPS.replace(num_layers=1)
    tree = mlps(architecture)
    inferred = Blueprint.infer(
        tree | {"blocks": tree["blocks"][:1]}, architecture, apply=one_layer, inputs=TOKENS % 23
    )
    assert ("blocks/{layers}/inner", "mlp_in", "embed mlp") in inferred.rules


def test_what_is_no_array_is_named_where_the_model_is_run():
    tree = mlps(MLPS) | {"rate": 0.1}
    with pytest.raises(growth.InputError, match=r"rate is 0.1, but the leaves of parameters must"):
        Blueprint.infer(tree, MLPS, apply=apply_mlps, inputs=TOKENS % 23)


@pytest.mark.full
def test_names_that_lie_about_arrays_of_one_shape_are_caught():
    model = BY_HAND["Mixtral"]
    architecture = shapes_of("Mixtral")[1].replace(num_layers=2, v_dim=14)

    def swapped(tree):
        layers = [layer | {"wk": layer["wv"], "wv": layer["wk"]} for layer in tree["layers"]]
        return tree | {"layers": layers}

    def apply(architecture, tree, tokens):
        return model.apply(architecture, swapped(tree), tokens)

    tree = swapped(jax.eval_shape(lambda: model.init(architecture)))
    with pytest.raises(BlueprintError, match="changes what the model computes by"):
        Blueprint.infer(tree, architecture, apply=apply, inputs=TOKENS)
