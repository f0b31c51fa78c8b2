"""Checkpoints whose names are those of wrappers, and those with a head of another task."""

import json

import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from growth.errors import InputError
from growth.huggingface import FamilyError, expand_checkpoint, load, plan_expansion
from growth.huggingface.expansion.transformers_models import float64_everywhere, load_model
from growth.huggingface.wrapped_names import unwrap
from tests.helpers.small_models import CONFIGS, PLAIN, TOKENS, difference, make, steps

MORE = dict(embed_dim=36, head_dim=12, mlp_dim=32, num_layers=4)


def renamed(source, directory, rename):
    directory.mkdir()
    tensors = safetensors.numpy.load_file(source / "model.safetensors")
    safetensors.numpy.save_file(
        {rename(name): value for name, value in tensors.items()},
        directory / "model.safetensors",
        {"format": "pt"},
    )
    (directory / "config.json").write_text((source / "config.json").read_text())
    return directory


WRAPPERS = {
    "_orig_mod.": lambda name: f"_orig_mod.{name}",
    "module.": lambda name: f"module.{name}",
    "base_model.model.": lambda name: f"base_model.model.{name}",
    "module._orig_mod.": lambda name: f"module._orig_mod.{name}",
    "_orig_mod.module.": lambda name: f"_orig_mod.module.{name}",
    "each layer": lambda name: name.replace(".mlp.", "._orig_mod.mlp.").replace(
        ".self_attn.", "._orig_mod.self_attn."
    ),
    "two in each layer": lambda name: (
        "_fsdp_wrapped_module."
        + name.replace(".mlp.", "._fsdp_wrapped_module._checkpoint_wrapped_module.mlp.")
    ),
    "the body alone": lambda name: "_orig_mod." + name.removeprefix("model."),
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make("llama", tmp_path_factory.mktemp("llama") / "source", torch.float32)


@pytest.fixture(scope="module")
def plain(llama, tmp_path_factory):
    """The names of the tensors of what grows from it, and the tensors."""
    output = tmp_path_factory.mktemp("plain") / "grown"
    expand_checkpoint(llama, output, verify=False, **MORE)
    return safetensors.numpy.load_file(output / "model.safetensors")


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_names_of_wrappers_are_read_and_written(wrapper, llama, plain, tmp_path):
    """Also those of layers that are new; the numbers are those of the plain checkpoint."""
    given = renamed(llama, tmp_path / "given", WRAPPERS[wrapper])
    expand_checkpoint(given, tmp_path / "grown", verify=False, **MORE)
    found = safetensors.numpy.load_file(tmp_path / "grown" / "model.safetensors")
    expected = {WRAPPERS[wrapper](name): value for name, value in plain.items()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    assert "names of a wrapped module" in plan_expansion(given, **MORE).source.notes[0]
    assert not plan_expansion(llama, **MORE).source.notes


def test_what_has_names_of_wrappers_is_verified(llama, tmp_path, monkeypatch):
    """The function is, though transformers does not find the tensors of these files."""
    given = renamed(llama, tmp_path / "given", WRAPPERS["_orig_mod."])
    verified = expand_checkpoint(given, tmp_path / "grown", **MORE)
    assert verified.exact <= 1e-12
    assert verified.run is None
    assert "transformers finds no numbers for" in str(verified)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.0.w", "_orig_mod.a.0.w"], r"both a\.0\.w and _orig_mod\.a\.0\.w, which are one"),
        (["a.0.w", "a.1._orig_mod.w"], r"wrapped in another way than in other layers, a\.#\.w"),
    ],
)
def test_names_that_contradict_each_other_are_refused(names, message):
    with pytest.raises(InputError, match=message):
        unwrap(names)


@pytest.mark.parametrize("name", ["module_norm.weight", "a.module.w", "my_orig_mod.w", "module"])
def test_names_that_are_like_those_of_wrappers_are_kept(name):
    assert unwrap([name]).plain == {name: name}
    assert unwrap([name]).in_files(name) == name


def with_task(name, task, directory, **fields):
    """A model with the head of a task, whose numbers are anything."""
    torch.manual_seed(0)
    config = CONFIGS[name]()
    config.num_labels = 3
    kind = getattr(transformers, f"AutoModelFor{task}Classification")
    model = kind.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_((0.3 if parameter.ndim == 1 else 0.1) * torch.randn_like(parameter))
    model.to(torch.float64).save_pretrained(directory)
    return directory


def outputs(directory):
    with float64_everywhere(), torch.no_grad():
        model = load_model(directory, "float64")
        tokens = torch.from_numpy(np.maximum(TOKENS, 3))  # no padding
        return torch.cat([model(row).logits for row in tokens.split(1)]).numpy()


TRIED = [("llama", "Token"), ("opt", "Sequence")]
HEADED = [name for name in PLAIN if name != "olmo" and name != "olmo2"]


@pytest.mark.parametrize(
    ("name", "task"),
    [
        pytest.param(name, task, marks=[] if (name, task) in TRIED else [pytest.mark.full])
        for name in HEADED
        for task in ("Sequence", "Token")
    ],
)
def test_heads_of_other_tasks_are_carried_along(name, task, tmp_path):
    """The larger model says the same of sequences, or of each token, and it is verified.

    OPT's and Gemma's embeddings are multiplied: what makes up for it where they are the output
    layer must not be there for a head.
    """
    kind = getattr(transformers, f"AutoModelFor{task}Classification")
    if type(CONFIGS[name]()) not in kind._model_mapping:
        pytest.skip("transformers has no such model")
    source = with_task(name, task, tmp_path / "source")
    verified = expand_checkpoint(source, tmp_path / "grown", **steps(name)["all"])
    assert verified.exact <= 1e-12
    assert verified.generated is None
    old, new = outputs(source), outputs(tmp_path / "grown")
    assert old.shape[-1] == 3
    assert difference(old, new) <= 1e-12
    with pytest.raises(FamilyError, match=r"it has the head of another task, (score|classifier)"):
        load(source)


def with_value_head(name, directory):
    """As TRL saves it, beside the output layer."""
    source = make(name, directory)
    tensors = safetensors.numpy.load_file(source / "model.safetensors")
    random = np.random.default_rng(0)
    tensors["v_head.summary.weight"] = random.standard_normal((1, 24))
    tensors["v_head.summary.bias"] = np.array([0.7])
    safetensors.numpy.save_file(tensors, source / "model.safetensors", {"format": "pt"})
    return source


def test_a_value_head_beside_the_output_layer_is_carried_along(tmp_path):
    """The value of each token before and after is the same."""
    source = with_value_head("llama", tmp_path / "source")
    verified = expand_checkpoint(source, tmp_path / "grown", **MORE)
    assert verified.exact <= 1e-12
    values = []
    for directory in (source, tmp_path / "grown"):
        held = safetensors.numpy.load_file(directory / "model.safetensors")
        with float64_everywhere(), torch.no_grad():
            body = load_model(directory, "float64").model
            stream = body(torch.from_numpy(TOKENS)).last_hidden_state.numpy()
        head = held["v_head.summary.weight"].astype(np.float64)
        values.append(stream @ head.T + held["v_head.summary.bias"])
        assert json.loads((directory / "config.json").read_text())["hidden_size"] == head.shape[1]
    assert difference(*values) <= 1e-12


def test_a_value_head_beside_an_embedding_that_is_multiplied_is_refused(tmp_path):
    source = with_value_head("opt", tmp_path / "source")
    with pytest.raises(InputError, match=r"embed_dim cannot grow exactly: .*v_head\.summary\."):
        plan_expansion(source, embed_dim=36, num_heads=6)
    assert plan_expansion(source, mlp_dim=130).plan
