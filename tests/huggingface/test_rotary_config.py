"""Rotary positions that a config says twice: transformers judges which of both counts.

A config may say base, turned fraction, type, factor and original length in tables of two
generations and beside them. Here every two of these places say different things, in every family,
and the frequencies are those of its module in transformers.
"""

import functools
import importlib
import itertools
import json
import math

import numpy as np
import pytest
import transformers
from transformers import CONFIG_MAPPING

import growth
from growth.errors import InputError
from growth.huggingface.config_map import check_config, grown_config, read_config
from growth.huggingface.families import FAMILIES
from growth.huggingface.rotary_config import TABLES
from tests.helpers.networks import first

ROTARY = [name for name, family in FAMILIES.items() if family.rotary_names is not None]
NAMES = first(ROTARY, "mixtral", "gpt_neox")

# Heads of 16, of which any quarter may be turned.
SIZES = dict(
    vocab_size=31, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, head_dim=16,
    intermediate_size=8, max_position_embeddings=512,
)  # fmt: skip
BANDS = dict(low_freq_factor=1.0, high_freq_factor=4.0)
KINDS = {"default": {}, "linear": dict(factor=2.0), "llama3": dict(factor=2.0, **BANDS)}
VALUES = {
    "rope_theta": (3e3, 5e4),
    "partial_rotary_factor": (0.5, 0.75),
    "original_max_position_embeddings": (64, 128),
    "rope_type": ("linear", "default"),
    "type": ("default", "linear"),
    "factor": (3.0, 5.0),
}


def places(family):
    """Where a config of a family may say something: the table, or None, and the key."""
    names = family.rotary_names
    beside = [*names.theta, *names.fraction, "original_max_position_embeddings"]
    inside = [key for key in VALUES if names.fraction or key != "partial_rotary_factor"]
    return [(None, key) for key in beside] + [(t, key) for t in TABLES for key in inside]


def configs(name):
    """A config for every two places, and for every kind of table."""
    family = FAMILIES[name]
    sizes = {k: v for k, v in SIZES.items() if k != "head_dim" or not family.heads_are_tied}
    if "num_kv_heads" in family.config_names:
        sizes["num_key_value_heads"] = 2
    value_of = {
        **dict.fromkeys(family.rotary_names.theta, VALUES["rope_theta"]),
        **dict.fromkeys(family.rotary_names.fraction, VALUES["partial_rotary_factor"]),
        **VALUES,
    }
    for kind, pair in itertools.product(KINDS, itertools.combinations(places(family), 2)):
        config = dict(sizes, model_type=name)
        for at, (table, key) in enumerate(pair):
            if table is None:
                config[key] = value_of[key][at]
            else:
                base = dict(rope_type=kind, **KINDS[kind])
                if key in ("rope_type", "type"):
                    base = dict(factor=2.0)
                config[table] = {**base, **config.get(table, {}), key: value_of[key][at]}
        yield config


def judged(config):
    """The frequencies in transformers; None where it does not load the config."""
    return judged_text(json.dumps(config))


@functools.cache
def judged_text(text):
    config = json.loads(text)
    name = config["model_type"]
    module = importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    kind = next(v for k, v in vars(module).items() if k.endswith("RotaryEmbedding"))
    try:
        return kind(CONFIG_MAPPING[name].from_dict(config)).inv_freq.numpy()
    except Exception:
        return None


def read(config):
    """The frequencies as they are read here; None where the config is refused."""
    family = FAMILIES[config["model_type"]]
    try:
        check_config(config, family)
        architecture = read_config(config, family)
    except InputError:
        return None
    width = architecture.rotary_dim or architecture.layers[0].qk_dim
    frequencies = architecture.rope_theta ** (-np.arange(0, width, 2) / width)
    scaling = architecture.rope_scaling
    return frequencies if scaling is None else scaling(frequencies)


@pytest.fixture(autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()


@pytest.mark.parametrize("name", NAMES)
def test_of_two_places_the_one_counts_that_counts_in_transformers(name):
    compared = 0
    for config in configs(name):
        wanted, found = judged(config), read(config)
        if wanted is None:
            continue
        assert found is not None, config
        assert found.shape == wanted.shape, config
        np.testing.assert_allclose(found, wanted, rtol=2e-6, err_msg=str(config))
        compared += 1
    number = math.comb(len(places(FAMILIES[name])), 2)
    # A phi3 has the default type alone, or one whose frequencies depend on the text.
    assert compared >= (number if name == "phi3" else len(KINDS) * number)


@pytest.mark.parametrize("name", NAMES)
def test_what_grows_is_written_in_all_places_that_say_it(name):
    """A larger head has the old frequencies, whichever place counts."""
    family, compared = FAMILIES[name], 0
    widen = growth.grow_to(qk_dim=24, v_dim=24, embed_dim=48 if family.heads_are_tied else None)
    for config in configs(name):
        before = judged(config)
        if before is None:
            continue
        try:
            plan = widen(read_config(config, family))
        except growth.GrowthError:  # a norm over queries sees their new columns
            continue
        grown = grown_config(config, family, plan.target)
        after = judged(grown)
        turned = plan.source.rotary_dim is None
        assert len(after) == (12 if turned else len(before)), config
        np.testing.assert_allclose(after[: len(before)], before, rtol=2e-5, err_msg=str(config))
        changed = "partial_rotary_factor" if not turned else "rope_theta"
        said = {
            value
            for table in (grown, *(grown.get(t) or {} for t in TABLES))
            for key, value in table.items()
            if key in (changed, *family.rotary_names.beside(changed))
        }
        assert len(said) == 1, (config, grown)
        compared += 1
    assert compared or name in ("qwen3", "olmo2")
