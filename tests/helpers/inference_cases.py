"""Models whose blueprints are guessed, at sizes that all differ; and what would be right."""

import functools

import jax
import numpy as np

from growth import Blueprint
from tests.helpers import foreign_decoders, foreign_models, foreign_stacks

BY_HAND = foreign_models.MODELS | foreign_stacks.MODELS
MODELS = BY_HAND | foreign_decoders.MODELS
DISTINCT = dict(
    vocab_size=101, max_length=31, embed_dim=34, num_layers=3, qk_dim=14, v_dim=11, mlp_dim=58
)
TOKENS = np.random.default_rng(0).integers(0, 101, (2, 8))


@functools.cache
def shapes_of(name):
    """A model at sizes that all differ, as shapes."""
    model = MODELS[name]
    one_width = {"v_dim": 14} if name == "NNX GPT" else {}
    architecture = model.architecture.replace(**DISTINCT | one_width)
    return jax.eval_shape(lambda: model.init(architecture)), architecture


def meaning(rules, tree, architecture):
    parameters = rules.parameters(tree, architecture)
    return {path: (p.rule.roles, p.rule.dims) for path, p in parameters.items()}


def without_final(role):
    """A blueprint by hand may call a final norm a norm, which is the same if nothing is scaled."""
    return role.replace("final_", "norm_")


@functools.cache
def right_parameters(name):
    return BY_HAND[name].blueprint.parameters(*shapes_of(name))


def assert_right(guess, name, rename=lambda path: path):
    """What is sure of a model is what its blueprint by hand says."""
    parameters = right_parameters(name)
    (reading,) = guess.readings
    rules = Blueprint([(guess.path, reading.role, reading.axes)])
    paths = {rename(path.removeprefix("params/")): path for path in parameters}
    found = rules.locate((p for p, _ in guess.kind.shapes), shapes_of(name)[1])
    assert found
    for path, (rule, _, _) in found.items():
        want = parameters[paths[path]].rule
        assert list(map(without_final, rule.roles)) == list(map(without_final, want.roles)), path
        assert rule.dims == want.dims, path
