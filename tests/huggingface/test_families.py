"""Every family: grown checkpoints are what transformers says the same with, or are refused."""

import json
from pathlib import Path

import pytest
import torch

from growth.errors import InputError
from growth.huggingface import CheckpointExpansion, expand_checkpoint, plan_expansion
from growth.huggingface.expansion.transformers_models import float64_everywhere
from growth.huggingface.families import FAMILIES
from tests.helpers import small_models
from tests.helpers.networks import first
from tests.helpers.small_models import (
    CONFIGS,
    PLAIN,
    REFUSED,
    difference,
    limit,
    logits,
    make,
    steps,
)

DOCS = Path(__file__).parents[2] / "docs" / "huggingface.md"
CASES = [(name, kind) for name in CONFIGS for kind in steps(name)]
TRIED = [case for case in CASES if case[1] == "all"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Makes each model once, and its logits, also those in float64 everywhere."""
    made = {}

    def get(name):
        if name not in made:
            directory = make(name, tmp_path_factory.mktemp("model") / "source")
            with float64_everywhere():
                exact = logits(directory)
            made[name] = directory, logits(directory), exact
        return made[name]

    return get


def test_every_family_has_a_model_here():
    assert {name.split(",")[0] for name in CONFIGS} == set(FAMILIES)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_model_stands_in_the_table_of_the_docs(name):
    assert f"\n| {name} |" in DOCS.read_text()


@pytest.mark.parametrize(
    ("name", "kind"),
    [pytest.param(*c, marks=[] if c in TRIED else [pytest.mark.full]) for c in CASES],
)
def test_a_grown_model_says_the_same(name, kind, source, tmp_path):
    directory, old, exact = source(name)
    step = steps(name)[kind]
    expand_checkpoint(directory, tmp_path / "grown", verify=False, **step)
    assert difference(old, logits(tmp_path / "grown")) <= limit(name, step)
    with float64_everywhere():
        assert difference(exact, logits(tmp_path / "grown")) <= 1e-12


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, kinds in REFUSED.items() for kind in kinds]
)
def test_what_is_impossible_is_refused_with_the_reason(name, kind, source):
    directory, *_ = source(name)
    step = {**small_models.NARROW, **small_models.TIED_HEADS}[kind]
    with pytest.raises(InputError, match=REFUSED[name][kind]):
        plan_expansion(directory, **step)


def grown_twice(name, directory, **options):
    """A grown model, and which of its entries are new, by the names of its parameters.

    Those are the entries that are the same if other numbers grow. A mean of old ones is not.
    """
    models = []
    for seed in range(2):
        source = make(name, directory / f"source_{seed}", seed=seed)
        grown = directory / f"grown_{seed}"
        expand_checkpoint(source, grown, verify=False, **steps(name)["all"], **options)
        models.append(small_models.load(grown, torch.float64))
    one, other = (dict(model.named_parameters()) for model in models)
    return models[0], {key: value.detach() == other[key] for key, value in one.items()}


def without_gradient(model, entries, steps=3):
    """How many of some entries of each parameter have no gradient in any of the first steps.

    Not counted is what data or the function itself give none: the embedding of the padding token,
    biases of keys, which softmax does not see, and units that relu silences in a whole step.
    """
    random = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, 37, (16, 40), generator=random)  # at every position
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    left = {key: mask.clone() for key, mask in entries.items()}
    speaks = {}

    def watch(module, _, hidden):
        hidden = hidden.reshape(*tokens.shape, -1)[:, :-1]  # nothing is predicted at the last
        active = (hidden > 0).flatten(0, 1).any(0)
        speaks[module] = active & speaks.get(module, True)

    relu = getattr(model.config, "activation_function", None) == "relu"
    layers = {name: module for name, module in model.named_modules() if name.endswith(".fc1")}
    for module in layers.values() if relu else ():
        module.register_forward_hook(watch)
    for _ in range(steps):
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
        for key, parameter in model.named_parameters():
            left[key] &= parameter.grad == 0
    for key, mask in left.items():
        if key.endswith(("embed_tokens.weight", "wte.weight", "embed_in.weight")):
            mask[model.config.pad_token_id] = False
        if key.endswith("k_proj.bias"):
            mask[:] = False
        module = layers.get(key.rpartition(".")[0].replace(".fc2", ".fc1"))
        if module in speaks and not key.endswith("fc2.bias"):
            units = mask.T if key.endswith("fc2.weight") else mask
            units[~speaks[module]] = False
    return {key: int(mask.sum()) for key, mask in left.items() if mask.any()}


@pytest.mark.parametrize("name", first(PLAIN, "llama", "gpt2", "gemma2", "mixtral", "opt"))
def test_new_entries_learn(name, tmp_path):
    """Every one has a gradient within three steps of Adam.

    Where embeddings are tied, the gradient of the last gains has to pass two zero sides.
    """
    model, new = grown_twice(name, tmp_path)
    assert sum(mask.sum() for mask in new.values()) > sum(mask.numel() for mask in new.values()) / 2
    assert without_gradient(model, new) == {}


def test_entries_that_can_never_learn_are_seen(tmp_path, monkeypatch):
    """New units of an MLP that are zero on both sides."""
    real = CheckpointExpansion._initializer

    def zeros(self, name, role):
        return (0.0, 0.0) if role == "mlp_in" else real(self, name, role)

    monkeypatch.setattr(CheckpointExpansion, "_initializer", zeros)
    model, new = grown_twice("llama", tmp_path)
    dead = without_gradient(model, new)
    for kind in ("gate_proj", "up_proj", "down_proj"):
        assert all(f"model.layers.{layer}.mlp.{kind}.weight" in dead for layer in range(4))
    assert dead["model.layers.0.mlp.down_proj.weight"] == 36 * 10  # [embed, new units]


@pytest.mark.parametrize("name", [n for n in PLAIN if FAMILIES[n].rotary_names is not None])
def test_configs_of_older_versions_are_read_and_written_in_their_way(name, source, tmp_path):
    """Before version 5 there was no table of rotary positions."""
    directory, old, _ = source(name)
    config = json.loads((directory / "config.json").read_text())
    table = config.pop("rope_parameters")
    neox = name == "gpt_neox"
    config["rotary_emb_base" if neox else "rope_theta"] = table["rope_theta"]
    if "partial_rotary_factor" in table:
        fraction = "rotary_pct" if neox else "partial_rotary_factor"
        config[fraction] = table["partial_rotary_factor"]
    for path in directory.glob("*.safetensors"):
        (tmp_path / "old").mkdir(exist_ok=True)
        (tmp_path / "old" / path.name).symlink_to(path)
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    step = steps(name)["all"]
    expand_checkpoint(tmp_path / "old", tmp_path / "grown", verify=False, **step)
    assert "rope_parameters" not in json.loads((tmp_path / "grown" / "config.json").read_text())
    assert difference(old, logits(tmp_path / "grown")) <= limit(name, step)
