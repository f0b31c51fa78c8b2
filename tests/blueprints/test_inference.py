"""Blueprints that are guessed: right where nothing is open, and open where something is unsure."""

import jax
import pytest

from growth import Architecture, Blueprint, BlueprintError
from growth.blueprints import inference
from growth.models import blueprint, logical_axes
from tests.helpers import foreign_models, foreign_stacks, networks

MODELS = foreign_models.MODELS | foreign_stacks.MODELS
DISTINCT = dict(
    vocab_size=101, max_length=31, embed_dim=34, num_layers=3, qk_dim=14, v_dim=11, mlp_dim=58
)


def shapes_of(name):
    """A model at sizes that all differ, as shapes."""
    model = MODELS[name]
    architecture = model.architecture.replace(**DISTINCT)
    return jax.eval_shape(lambda: model.init(architecture)), architecture


def meaning(rules, tree, architecture):
    parameters = rules.parameters(tree, architecture)
    return {path: (p.rule.roles, p.rule.dims) for path, p in parameters.items()}


@pytest.mark.parametrize("name", networks.ARCHITECTURES | networks.VARIANTS)
def test_axis_names_give_the_blueprint_of_the_reference_model(name):
    architecture = (networks.ARCHITECTURES | networks.VARIANTS)[name]
    tree, _ = networks.abstract_parameters(architecture)
    inferred = Blueprint.infer(tree, architecture, axes=logical_axes(architecture))
    want = meaning(blueprint(architecture), tree, architecture)
    assert meaning(inferred, tree, architecture) == want


@pytest.mark.parametrize("name", MODELS)
def test_what_is_sure_of_another_model_is_right(name):
    tree, architecture = shapes_of(name)
    parameters = MODELS[name].blueprint.parameters(tree, architecture)
    sure = [guess for guess in inference.guesses(tree, architecture) if guess.sure]
    assert len(sure) >= 9
    for guess in sure:
        rules = Blueprint([(guess.path, guess.roles[0], guess.readings[0])])
        found = [path for path in parameters if next(rules._matches(path), None)]
        assert found, guess
        for path in found:
            (role,), want = parameters[path].rule.roles, parameters[path].rule.dims
            # A final norm is a norm; the difference is one of scaled embeddings.
            assert guess.roles[0].replace("final", "norm") == role.replace("final", "norm"), path
            (rule, _, _) = next(rules._matches(path))
            plain = [tuple(n for n in names if n != "group") for names in rule.dims]
            asked = [tuple(n for n in names if n != "group") for names in want]
            assert [d for d in plain if d] == [d for d in asked if d], path


@pytest.mark.parametrize("name", ["paper's authors", "T5", "Mixtral"])
def test_a_model_with_usual_names_needs_no_blueprint_by_hand(name):
    tree, architecture = shapes_of(name)
    inferred = Blueprint.infer(tree, architecture)
    small = MODELS[name].architecture
    inferred.check(jax.eval_shape(lambda: MODELS[name].init(small)), small)


def test_what_is_open_is_listed_to_be_completed():
    tree, architecture = shapes_of("Linen GPT")
    with pytest.raises(BlueprintError, match="not all parameters can be guessed") as error:
        Blueprint.infer(tree, architecture)
    lines = str(error.value).splitlines()
    assert lines[1] == "growth.Blueprint(["
    assert lines[-1] == "])"
    (fused,) = (line for line in lines if "qkv/kernel" in line)
    assert fused.split() == (
        ['("blocks_{layers}/qkv/kernel",', '"?",', '"?"),', "#", "(34,", "78)", "unmatched"]
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
    (guess,) = inference.guesses(tree, architecture)
    assert guess.path == "layers_{layers}/q_proj/kernel"
    assert not guess.sure
    assert set(guess.readings) == {"embed (kv_heads qk)", "(kv_heads qk) embed"}
    assert "ambiguous: embed (kv_heads qk) or (kv_heads qk) embed" in inference.listing([guess])


def test_a_wrong_architecture_is_not_explained():
    tree, architecture = shapes_of("T5")
    with pytest.raises(BlueprintError, match=r"lm_head/kernel.*unmatched"):
        Blueprint.infer(tree, architecture.replace(vocab_size=100))
