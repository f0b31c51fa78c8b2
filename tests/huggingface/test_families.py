"""Every family: grown checkpoints are what transformers says the same with, or are refused."""

import json
from pathlib import Path

import pytest
import torch

from growth.errors import InputError
from growth.huggingface import expand_checkpoint, plan_expansion
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


@pytest.mark.parametrize("name", first(PLAIN, "llama", "gpt2", "gemma2", "mixtral"))
def test_new_entries_learn(name, source, tmp_path):
    """After three steps of Adam almost every entry of every tensor has moved.

    Where embeddings are tied, the gradient of the last gains has to pass two zero sides.
    """
    directory, *_ = source(name)
    step = steps(name)["all"]
    expansion = plan_expansion(directory, **step)
    expand_checkpoint(directory, tmp_path / "grown", verify=False, **step)
    model = small_models.load(tmp_path / "grown", torch.float64).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    random = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, expansion.plan.source.vocab_size, (16, 32), generator=random)
    for _ in range(3):
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
    for name_, parameter in model.named_parameters():
        still = (parameter == before[name_]).double().mean()
        # A position or a token that is not in the batch has no gradient, old or new; nor has a bias
        # of keys, which softmax does not see, or a unit that relu silences.
        assert still < (0.5 if "embed" in name_ or "wpe" in name_ else 0.2), name_


@pytest.mark.parametrize("name", [n for n in PLAIN if FAMILIES[n].rope is not None])
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
