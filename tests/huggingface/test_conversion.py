"""Checkpoints as parameters of the reference model, and back."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import growth
from growth import huggingface
from growth.errors import InputError
from growth.huggingface.config_keys import FamilyError
from growth.models import apply, initial_parameters
from tests.helpers.networks import first
from tests.helpers.small_models import CONFIGS, PLAIN, TOKENS, difference, load, logits, make

COVERED = [n for n in CONFIGS if n not in ("mixtral", "opt, norms after branches")]
CHOSEN = ("llama", "mistral", "qwen2", "gpt2", "gpt_neox", "gemma2", "olmo2", "opt")


@pytest.mark.parametrize("name", first(COVERED, *CHOSEN))
def test_the_reference_model_computes_the_same(name, tmp_path):
    directory = make(name, tmp_path / "source", torch.float32)
    architecture, params = huggingface.load(directory)
    assert architecture == huggingface.load_architecture(directory)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    computed = np.asarray(apply(architecture, params, jnp.asarray(TOKENS)), np.float64)
    assert difference(logits(directory, torch.float32), computed) <= 1e-5
    if not name.startswith("opt"):  # whose table of positions has two rows that no token has
        count = sum(p.numel() for p in load(directory).parameters())
        assert architecture.num_parameters == count


@pytest.mark.parametrize("name", first(COVERED, *CHOSEN))
def test_a_round_trip_loses_no_bit(name, tmp_path):
    directory = make(name, tmp_path / "source", torch.float32)
    huggingface.save(*huggingface.load(directory), tmp_path / "back", like=directory)
    before, after = (load(d, torch.float32).state_dict() for d in (directory, tmp_path / "back"))
    assert before.keys() == after.keys()
    for key, value in before.items():
        if "embed_positions" in key:
            value, after[key] = value[2:], after[key][2:]
        assert torch.equal(value, after[key]), key
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config == json.loads((directory / "config.json").read_text())


@pytest.mark.parametrize(
    "name", first([n for n in PLAIN if n != "mixtral"], "llama", "gpt2", "gemma2")
)
def test_a_model_that_was_never_of_hugging_face_is_saved(name, tmp_path):
    directory = make(name, tmp_path / "source", torch.float32)
    architecture, params = huggingface.load(directory)
    special = dict(bos_token_id=0, eos_token_id=1, pad_token_id=2)
    special |= {k: v for k, v in _own_fields(directory, name).items() if v is not None}
    huggingface.save(architecture, params, tmp_path / "new", family=name, config=special)
    assert (
        difference(logits(directory, torch.float32), logits(tmp_path / "new", torch.float32)) == 0
    )


def _own_fields(directory, name):
    """What cannot be known from an architecture alone, or is not the family's default."""
    config = json.loads((directory / "config.json").read_text())
    names = ("attention_bias", "use_qkv_bias", "query_pre_attn_scalar", "use_sliding_window",
             "max_window_layers", "word_embed_proj_dim")  # fmt: skip
    return {key: config[key] for key in names if key in config}


def test_low_precision_is_kept_or_widened(tmp_path):
    directory = make("llama", tmp_path / "source", torch.bfloat16)
    _, params = huggingface.load(directory, dtype=None)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    architecture, wide = huggingface.load(directory)
    huggingface.save(architecture, wide, tmp_path / "back", like=directory, dtype="bfloat16")
    before, after = (load(d, torch.bfloat16).state_dict() for d in (directory, tmp_path / "back"))
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_a_model_that_grew_in_training_is_saved(tmp_path):
    directory = make("qwen2", tmp_path / "source", torch.float32)
    architecture, params = huggingface.load(directory)
    short = architecture.replace(max_length=16)  # on which no parameter depends
    plan = growth.grow_to(mlp_dim=30, num_layers=3, qk_dim=12, v_dim=12)(short)
    grown = growth.expand(params, plan, key=jax.random.key(0))
    huggingface.save(plan.target, grown, tmp_path / "grown", like=directory, max_shard_size="10KB")
    assert len(list((tmp_path / "grown").glob("*.safetensors"))) > 2
    old, new = (logits(d, torch.float32) for d in (directory, tmp_path / "grown"))
    assert difference(old, new) <= 1e-5
    config = json.loads((tmp_path / "grown" / "config.json").read_text())
    assert config["max_position_embeddings"] == 40


def test_what_cannot_be_saved_is_refused(tmp_path):
    directory = make("gpt2", tmp_path / "source", torch.float32)
    architecture, params = huggingface.load(directory)
    plan = growth.attention_expansion(12)(architecture)
    grown = growth.expand(params, plan, key=jax.random.key(0))
    output = tmp_path / "output"
    with pytest.raises(growth.GrowthError, match="embed_dim / num_heads"):
        huggingface.save(plan.target, grown, output, like=directory)
    with pytest.raises(FamilyError, match="family is None, but it must be one of gemma"):
        huggingface.save(architecture, params, output)
    llama = growth.Architecture.llama(
        vocab_size=11, max_length=8, embed_dim=8, num_layers=1, num_heads=2, mlp_dim=8, v_dim=6
    )
    untied = initial_parameters(llama, jax.random.key(0))
    with pytest.raises(growth.GrowthError, match="have one width: give head_dim"):
        huggingface.save(llama, untied, output, family="llama")
    with pytest.raises(InputError, match="dtype is 'int8', but it must be one of float64"):
        huggingface.save(architecture, params, output, like=directory, dtype="int8")
    assert not output.exists()


def test_what_the_reference_model_does_not_compute_is_refused(tmp_path):
    directory = make("mixtral", tmp_path / "source", torch.float32)
    with pytest.raises(FamilyError, match="it is a mixture of experts"):
        huggingface.load(directory)
    architecture, params = huggingface.load(make("mistral", tmp_path / "dense", torch.float32))
    with pytest.raises(FamilyError, match="it is a mixture of experts"):
        huggingface.save(architecture, params, tmp_path / "output", family="mixtral")


def test_a_config_of_positions_that_the_reference_model_does_not_compute_is_refused(tmp_path):
    """Whether a checkpoint says them, or who saves one."""
    architecture, params = huggingface.load(make("llama", tmp_path / "source", torch.float32))
    scaling = {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}
    for how in (dict(family="llama"), dict(like=tmp_path / "source")):
        config = scaling | dict(rope_parameters=None)
        with pytest.raises(FamilyError, match="does not compute this model: rope_type is 'yarn'"):
            huggingface.save(architecture, params, tmp_path / "output", config=config, **how)
    assert not (tmp_path / "output").exists()
