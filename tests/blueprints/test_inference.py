"""Blueprints that are guessed: right where they are sure, open where nothing confirms a name."""

import collections
import functools
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import growth
from growth import Architecture, Blueprint, BlueprintError
from growth.blueprints import pytrees
from growth.blueprints.inference.guessing import guesses
from growth.blueprints.inference.listing import listing
from growth.models import blueprint, logical_axes
from tests.helpers import foreign_decoders, networks
from tests.helpers.inference_cases import (
    BY_HAND,
    DISTINCT,
    MODELS,
    TOKENS,
    assert_right,
    meaning,
    shapes_of,
    without_final,
)

README = (Path(__file__).parents[2] / "README.md").read_text()

# What names, shapes and the architecture leave open, and only the model's function can say.
OPEN = {
    "Linen GPT": ["blocks_{layers}/qkv/bias", "blocks_{layers}/qkv/kernel"],
    "plain Llama": ["layers/{layers}/w13"],
    "NNX encoder": ["layers/{layers}/qkv/bias", "layers/{layers}/qkv/kernel"],
}


@pytest.mark.parametrize("name", networks.ARCHITECTURES | networks.VARIANTS)
def test_axis_names_give_the_blueprint_of_the_reference_model(name):
    architecture = (networks.ARCHITECTURES | networks.VARIANTS)[name]
    tree, _ = networks.abstract_parameters(architecture)
    inferred = Blueprint.infer(tree, architecture, axes=logical_axes(architecture))
    want = meaning(blueprint(architecture), tree, architecture)
    assert meaning(inferred, tree, architecture) == want


@pytest.mark.parametrize("name", MODELS)
def test_names_and_shapes_say_what_a_model_is(name):
    tree, architecture = shapes_of(name)
    found = guesses(tree, architecture)
    assert [guess.path for guess in found if not guess.sure] == OPEN.get(name, [])
    for guess in (guess for guess in found if guess.sure and name in BY_HAND):
        assert_right(guess, name)
    if name in OPEN:
        return
    inferred = Blueprint.infer(tree, architecture)
    small = MODELS[name].architecture
    inferred.check(jax.eval_shape(lambda: MODELS[name].init(small)), small)


@pytest.mark.parametrize("name", foreign_decoders.MODELS)
def test_a_guessed_blueprint_grows_the_model_exactly(name, float64):
    model = MODELS[name]
    inferred = Blueprint.infer(*shapes_of(name))
    random = np.random.default_rng(0)

    def parameters(architecture):
        tree = jax.eval_shape(lambda: model.init(architecture))
        return jax.tree.map(lambda leaf: 0.6 * random.standard_normal(leaf.shape), tree)

    small, tokens = model.architecture, networks.TOKENS
    wide = dict(qk_dim=6, v_dim=6) if name == "NNX GPT" else dict(qk_dim=6, v_dim=5)
    heads = (3, 3) if name == "NNX GPT" else (12, 3)
    plan = growth.grow_to(
        num_heads=heads[0], num_kv_heads=heads[1], mlp_dim=7, embed_dim=8, num_layers=3, **wide
    )(small)
    tree = parameters(small)
    grown = growth.expand(tree, plan, blueprint=inferred, fresh=parameters(plan.target))
    before = jax.jit(functools.partial(model.apply, small))(tree, tokens)
    after = jax.jit(functools.partial(model.apply, plan.target))(grown, tokens)
    assert networks.difference(np.asarray(before), np.asarray(after)) <= 1e-12


NONSENSE = "zyx"
VOCABULARY = ("q", "k", "v", "out", "up", "gate", "down", "router", "norm", "embed", "head", "pos")


@functools.cache
def _renamings():
    """(model, kind, word): each kind is called nonsense, and what each role may be called."""
    found = [(name, guess.path) for name in BY_HAND for guess in guesses(*shapes_of(name))]
    return [(*kind, word) for word in (NONSENSE, *VOCABULARY) for kind in found]


def _renamed(pattern, word):
    """A function that gives the paths of one kind another name, where it has one of its own."""
    segments = pattern.split("/")
    plain = ("kernel", "bias", "scale", "embedding")
    at = max((i for i, s in enumerate(segments) if s not in plain), default=0)
    kind = re.compile(re.sub(r"\\{\w+\\}", r"\\d+", re.escape(pattern)))

    def rename(path):
        parts = path.split("/")
        if not kind.fullmatch(path) or parts[at].isdecimal():
            return path
        index = re.search(r"^\w*?_\d+_?", parts[at])
        parts[at] = f"{index[0] if index else ''}{word}"
        return "/".join(parts)

    return rename


def _outcome(name, pattern, word):
    """What becomes of a renaming: "right" or "open", or what is sure and wrong."""
    tree, architecture = shapes_of(name)
    rename = _renamed(pattern, word)
    leaves = {leaf.path.removeprefix("params/"): leaf.value for leaf in pytrees.leaves(tree)}
    renamed = {rename(path): shape for path, shape in leaves.items()}
    if len(renamed) != len(leaves):
        return "open"  # two arrays of one name, which no tree has
    found = guesses(renamed, architecture)
    for guess in (guess for guess in found if guess.sure):
        try:
            assert_right(guess, name, rename)
        except AssertionError:
            return f"{name}: {pattern} called {word}: {guess.path} is taken for {guess.readings}"
    return "right" if all(guess.sure for guess in found) else "open"


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.full), 29])
def test_a_misleading_name_makes_nothing_wrong_that_is_sure(every):
    """A name that shape, place and numbers contradict is not believed."""
    outcomes = collections.Counter(_outcome(*case) for case in _renamings()[::every])
    assert outcomes.total() > 900 / every
    assert {*outcomes} == {"right", "open"}


def test_what_is_open_is_listed_to_be_completed():
    tree, architecture = shapes_of("Linen GPT")
    with pytest.raises(BlueprintError, match="not all parameters can be guessed") as error:
        Blueprint.infer(tree, architecture)
    lines = str(error.value).splitlines()
    assert lines[1] == "growth.Blueprint(["
    assert lines[-1] == "])"
    (fused,) = (line for line in lines if "qkv/kernel" in line)
    assert '("query", "key", "value"), "?"),' in fused
    assert fused.endswith(
        "# (34, 78) ambiguous: embed (role kv_heads qk) or embed (kv_heads role qk)"
    )
    (sure,) = (line for line in lines if "/fc/kernel" in line)
    assert '"mlp_in",' in sure
    assert '"embed mlp"' in sure


def test_equal_sizes_are_ambiguous_and_not_guessed():
    architecture = Architecture(
        vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, qk_dim=4, mlp_dim=8
    )
    shape = jax.ShapeDtypeStruct((8, 8), "float32")
    tree = {f"layers_{i}": {"q_proj": {"kernel": shape}} for i in range(2)}
    (guess,) = guesses(tree, architecture)
    assert guess.path == "layers_{layers}/q_proj/kernel"
    assert not guess.sure
    axes = {reading.axes for reading in guess.readings}
    assert axes == {"embed (kv_heads qk)", "(kv_heads qk) embed"}
    assert "ambiguous: embed (kv_heads qk) or (kv_heads qk) embed" in listing([guess])


def test_a_wrong_architecture_is_not_explained():
    tree, architecture = shapes_of("T5")
    with pytest.raises(BlueprintError, match=r"lm_head/kernel.*unmatched[\s\S]*shape is another"):
        Blueprint.infer(tree, architecture.replace(vocab_size=100))


def test_the_model_of_the_readme_is_found_without_help():
    (block,) = re.findall(r"```python\n(import flax[\s\S]*?)step = growth.compose", README)
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    sizes = names["small"].replace(**DISTINCT | dict(v_dim=14))
    shapes = jax.eval_shape(names["Encoder"](sizes).init, jax.random.key(0), TOKENS)
    inferred = meaning(Blueprint.infer(shapes, sizes), shapes, sizes)
    for path, (roles, dims) in meaning(names["blueprint"], shapes, sizes).items():
        assert list(map(without_final, inferred[path][0])) == list(map(without_final, roles))
        assert inferred[path][1] == dims
