"""Every key of config.json: those that are read × wrong values, those that are not, those written.

The judge of what is accepted is the config class of transformers.
"""

import copy
import dataclasses
import importlib.util
import json
import math
import time

import pytest
import transformers
from transformers import CONFIG_MAPPING

import growth
from growth.errors import InputError
from growth.huggingface import config_keys, transformers_config
from growth.huggingface.config_map import check_config, grown_config, limits_of, read_config
from growth.huggingface.families import FAMILIES, family_of
from tests.helpers.small_models import CONFIGS, PLAIN, steps

transformers.logging.set_verbosity_error()

NESTED = [[[[[[[[[[[[[[[["a"]]]]]]]]]]]]]]]]
# No key may say these,
NEVER = [math.nan, math.inf, -math.inf, -1, -(10**12), -0.5, [1], {"a": 1}, NESTED, {"a": NESTED}]
# and few keys these.
SELDOM = [None, True, False, "4", "text", "", 0, 0.0, 0.5, 1, 2.0, 10**12, 1e300, 10**400, [], {},
          ["text"], [None]]  # fmt: skip
ROTARY = ("rope_type", "type", "rope_theta", "factor", "partial_rotary_factor", "low_freq_factor",
          "high_freq_factor", "original_max_position_embeddings")  # fmt: skip
SCALED = dict(rope_type="llama3", rope_theta=1e4, factor=2.0, low_freq_factor=1.0,
              high_freq_factor=4.0, original_max_position_embeddings=8)  # fmt: skip


def config_of(name):
    """What config.json says of a small model, as transformers writes it."""
    return json.loads(CONFIGS[name]().to_json_string())


def grown(config, ignored=()):
    """What becomes of a config whose model grows."""
    family = family_of(config)
    check_config(config, family, ignored)
    architecture = read_config(config, family)
    limits_of(config, family)
    plan = growth.grow_to(num_layers=architecture.num_layers + 1)(architecture)
    return grown_config(config, family, plan.target)


def tried_to_grow(config):
    """Why a config is refused, and what becomes of it; one of both."""
    try:
        return "", grown(config)
    except InputError as error:
        return str(error), None


def loads(config):
    """Whether transformers loads a config."""
    try:
        CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(config))
    except Exception:
        return False
    return True


def with_wrong_values(name):
    """A config for every key that a family reads, and every wrong value; the key and the value."""
    config, family = config_of(name), FAMILIES[name]
    for key in sorted(family.keys - {"transformers_weights"}):
        for value in NEVER + SELDOM:
            yield key, value, {**config, key: value}
    if family.rotary_names is not None:
        for key in ROTARY:
            for value in NEVER + SELDOM:
                yield key, value, {**config, "rope_parameters": {**SCALED, key: value}}


@pytest.mark.parametrize("name", PLAIN)
def test_every_key_says_what_it_may_say_or_is_refused_in_a_line(name):
    tried, accepted = 0, 0
    for key, value, config in with_wrong_values(name):
        began = time.perf_counter()
        message, result = tried_to_grow(config)
        assert time.perf_counter() - began < 1, (key, value)
        if result is None:
            assert message
            assert "\n" not in message
            assert len(message) < 800
        else:
            assert not any(value is never for never in NEVER), (key, value)
            assert loads(config), (key, value)
            assert loads(result), (key, value)
            accepted += 1
        tried += 1
    assert tried >= 500
    assert 0 < accepted < tried / 5


# Keys that nobody reads.


@pytest.mark.parametrize("name", FAMILIES)
def test_every_field_of_the_class_in_transformers_is_known(name):
    """Is read, changes nothing, or may say its default alone; a class that has more shows here."""
    family, kind = FAMILIES[name], CONFIG_MAPPING[name]
    check_config(json.loads(kind().to_json_string(use_diff=False)), family)
    known = family.keys | config_keys.IRRELEVANT | set(family.irrelevant_keys)
    unchanging = {**config_keys.UNCHANGING, **family.unchanging_keys}
    fields = {field.name for field in dataclasses.fields(kind)} | set(kind.attribute_map)
    assert fields - known - set(unchanging) == set()
    assert known & set(unchanging) == set()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_key_that_is_not_read_is_refused_by_name(name):
    config, family = config_of(name), FAMILIES[name]
    unchanging = {**config_keys.UNCHANGING, **family.unchanging_keys}
    for key, usual in {"scale_emb": (), "mup": (), "per_layer_config": (), **unchanging}.items():
        for value in (None, *usual):
            check_config({**config, key: value}, family)
        for value in (True, 3, "x", {"0": {"hidden_size": 3}}, [1, 2]):
            wrong = {**config, key: value}
            with pytest.raises(InputError, match=rf"does not read.*--ignore_config_keys={key}$"):
                check_config(wrong, family)
            check_config(wrong, family, [key])
    if family.rotary_names is not None:
        table = {"rope_type": "default", "rope_theta": 1e4, "short_mscale": 1.1}
        wrong = {**config, "rope_scaling": table}
        with pytest.raises(InputError, match=r"--ignore_config_keys=rope_scaling\.short_mscale$"):
            check_config(wrong, family)
        check_config(wrong, family, ["rope_scaling.short_mscale"])


# What configs on the Hub say besides.
PUBLISHED = {
    "llama": dict(is_llama_config=True, rope_interleaved=False, pretraining_tp=1, mlp_bias=False,
                  _name_or_path="x", rope_scaling=None, unsloth_version="1", torch_dtype="float16"),
    "gpt2": dict(n_ctx=40, summary_type="cls_index", summary_use_proj=True, embd_pdrop=0.1,
                 task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}}),
    "gpt_neox": dict(rotary_pct=0.25, rotary_emb_base=10000, rope_theta=10000, hidden_dropout=0.0,
                     partial_rotary_factor=0.25, classifier_dropout=0.1, num_labels=2),
    "opt": dict(prefix="</s>", activation_dropout=0.0, layerdrop=0.0, dropout=0.1),
    "phi3": dict(auto_map={"AutoConfig": "c.C"}, attention_bias=False, full_attn_mod=1,
                 interpolate_factor=1, lm_head_bias=False, mlp_bias=False, resid_pdrop=0.0,
                 original_max_position_embeddings=4096, rope_scaling=None),
    "gemma2": dict(hidden_act="gelu_pytorch_tanh", cache_implementation="hybrid",
                   eos_token_id=[1, 107]),
    "mixtral": dict(output_router_logits=False, router_aux_loss_coef=0.02, num_labels=2),
    "starcoder2": dict(activation_function="gelu", mlp_type="default", norm_type="layer_norm",
                       residual_dropout=0.1, embedding_dropout=0.1),
    "qwen2": dict(use_mrope=False, max_window_layers=21, sliding_window=131072, rope_scaling=None),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_published_configs_say_is_known(name):
    grown({**config_of(name), **PUBLISHED[name]})


@pytest.mark.parametrize("name", ["gpt2", "gpt_neox", "opt", "stablelm"])
def test_a_width_of_heads_that_follows_from_others_is_checked_and_grows(name):
    """GPT-NeoX and StableLM read head_dim for the angles, and for nothing else."""
    config, family = config_of(name), FAMILIES[name]
    source = read_config(config, family)
    width = source.layers[0].qk_dim
    with pytest.raises(InputError, match=rf"says head_dim {width + 2}, but heads of a {name} are"):
        read_config({**config, "head_dim": width + 2}, family)
    sizes = steps(name)["embed_and_head_dim"]
    target = growth.grow_to(
        embed_dim=sizes["embed_dim"], qk_dim=sizes["head_dim"], v_dim=sizes["head_dim"]
    )(source).target
    assert "head_dim" not in grown_config(config, family, target)
    written = grown_config({**config, "head_dim": width}, family, target)
    assert written["head_dim"] == sizes["head_dim"]


@pytest.mark.parametrize(
    ("name", "alias", "key", "value"),
    [
        ("gpt2", "hidden_size", "n_embd", 48),
        ("gpt2", "num_hidden_layers", "n_layer", 3),
        ("gpt2", "num_attention_heads", "n_head", 6),
        ("gpt2", "max_position_embeddings", "n_positions", 50),
        ("mixtral", "num_experts", "num_local_experts", 5),
    ],
)
def test_other_names_of_keys_count_as_in_transformers(name, alias, key, value):
    """And all of them are written."""
    config = {**config_of(name), alias: value}
    assert getattr(CONFIG_MAPPING[name].from_dict(copy.deepcopy(config)), key) == value
    result = grown(config)
    assert result[key] == result[alias] == value + (key == "n_layer")


# Configs that are written.


@pytest.fixture
def without_transformers(monkeypatch):
    """As where it is not installed: rules of our own judge."""
    real = importlib.util.find_spec

    def find(name, *rest):
        return None if name == "transformers" else real(name, *rest)

    monkeypatch.setattr(transformers_config.importlib.util, "find_spec", find)


SIZES = [
    dict(embed_dim=embed, num_heads=heads, qk_dim=width, v_dim=width)
    for embed in (None, 32, 36, 48, 54, 64)
    for heads in (None, 6, 8, 12)
    for width in (None, 8, 10, 12, 16)
]
LONGROPE = dict(rope_type="longrope", rope_theta=1e4, short_factor=[1.0] * 3,
                long_factor=[2.0] * 3)  # fmt: skip


def possible(config):
    """What configs of larger models are written, of many sizes."""
    family = FAMILIES[config["model_type"]]
    for sizes in SIZES:
        try:
            target = growth.grow_to(**sizes)(read_config(config, family)).target
            written = grown_config(config, family, target)
        except InputError as error:
            yield str(error), None
        else:
            yield "", written


@pytest.mark.parametrize("name", [*PLAIN, "phi3, longrope"])
def test_own_rules_refuse_what_transformers_does_not_load(name, without_transformers):
    config = config_of(name.split(",")[0])
    if "longrope" in name:
        config["rope_parameters"] = LONGROPE
    written = [result for _, result in possible(config) if result is not None]
    assert written
    assert all(loads(result) for result in written)


def test_a_list_of_factors_that_a_larger_model_does_not_fit():
    """Phi 3 takes the width of a head for embed_dim / num_heads where it reads its lists."""
    config = {**config_of("phi3"), "rope_parameters": LONGROPE}
    messages = {message for message, _ in possible(config)}
    assert any("it fits where embed_dim is num_heads × 6" in message for message in messages)
    assert any(result and result["hidden_size"] > 24 for _, result in possible(config))


def test_a_config_that_transformers_does_not_load_is_not_written(monkeypatch):
    """Also where no rule of our own says so."""
    config = {**config_of("phi3"), "rope_parameters": LONGROPE}
    family = dataclasses.replace(FAMILIES["phi3"], load_problem=lambda config: None)
    monkeypatch.setitem(FAMILIES, "phi3", family)
    messages = {message for message, _ in possible(config)}
    assert any("would not load the config.json to be written: Strict" in m for m in messages)
    assert all("\n" not in message for message in messages)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_list_by_layer_grows_or_is_refused(name):
    config, family = config_of(name), FAMILIES[name]
    layers = read_config(config, family).num_layers
    result = grown(config)
    lists = {k: v for k, v in result.items() if isinstance(v, list) and len(v) == layers + 1}
    assert set(lists) == ({"layer_types"} if family.lists_layer_types else set())
    with pytest.raises(
        InputError, match=r"num_layers cannot grow: config\.json says scales, a list"
    ):
        grown({**config, "scales": [1.0] * layers}, ignored=["scales"])
