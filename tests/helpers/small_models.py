"""Small models of transformers, one or more for every family, far from their initialization."""

import json
from pathlib import Path

import numpy as np
import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

_SIZES = dict(
    vocab_size=37,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=20,
    max_position_embeddings=40,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=2,
)
_GROUPS = dict(num_key_value_heads=2)
_WIDE = dict(**_GROUPS, head_dim=8)
# Heads of 8, of which 2 columns are turned.
_TURNED = {**_SIZES, "hidden_size": 32}
_SCALED = dict(
    rope_type="llama3", rope_theta=500.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=16,
)  # fmt: skip


def _gpt2(**fields):
    sizes = dict(vocab_size=37, n_embd=24, n_layer=2, n_head=4, n_positions=40)
    ends = dict(bos_token_id=0, eos_token_id=1)
    return transformers.GPT2Config(**sizes | ends | fields)


def _opt(**fields):
    sizes = {**_SIZES, "ffn_dim": 20}
    del sizes["intermediate_size"]
    return transformers.OPTConfig(**{**sizes, "word_embed_proj_dim": 24} | fields)


# By family, and what is special about it.
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**_SIZES, **_WIDE),
    "llama, biases, scaled rotary, tied, epsilon 1e-3": lambda: transformers.LlamaConfig(
        **_SIZES,
        **_GROUPS,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=True,
        rms_norm_eps=1e-3,
        rope_parameters=_SCALED,
    ),
    "llama, odd sizes": lambda: transformers.LlamaConfig(
        **{**_SIZES, "vocab_size": 101, "hidden_size": 27, "num_attention_heads": 9},
        num_key_value_heads=3,
        head_dim=10,
    ),
    "mistral": lambda: transformers.MistralConfig(**_SIZES, **_WIDE, sliding_window=5),
    "qwen2": lambda: transformers.Qwen2Config(
        **_SIZES, **_GROUPS, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "qwen3": lambda: transformers.Qwen3Config(**_SIZES, **_WIDE),
    "gemma": lambda: transformers.GemmaConfig(**_SIZES, **_WIDE, rms_norm_eps=1e-3),
    "gemma2": lambda: transformers.Gemma2Config(
        **_SIZES, **_WIDE, sliding_window=5, query_pre_attn_scalar=10
    ),
    "gpt2": _gpt2,
    "gpt2, unscaled attention, epsilon 1e-3": lambda: _gpt2(
        n_inner=52, scale_attn_weights=False, layer_norm_epsilon=1e-3
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**_TURNED),
    "gpt_neox, one branch after the other": lambda: transformers.GPTNeoXConfig(
        **_TURNED, use_parallel_residual=False, attention_bias=False, tie_word_embeddings=True
    ),
    "opt": _opt,
    "opt, norms after branches": lambda: _opt(do_layer_norm_before=False, word_embed_proj_dim=16),
    "olmo": lambda: transformers.OlmoConfig(**_SIZES, **_GROUPS),
    "olmo2": lambda: transformers.Olmo2Config(**_SIZES, **_GROUPS, rms_norm_eps=1e-3),
    "phi3": lambda: transformers.Phi3Config(**_SIZES, **_GROUPS),
    "mixtral": lambda: transformers.MixtralConfig(
        **_SIZES, **_WIDE, num_local_experts=3, num_experts_per_tok=2
    ),
    "starcoder2": lambda: transformers.Starcoder2Config(**_SIZES, **_GROUPS),
    "stablelm": lambda: transformers.StableLmConfig(**_TURNED, **_GROUPS, use_qkv_bias=True),
    "stablelm, branches behind one norm": lambda: transformers.StableLmConfig(
        **_TURNED, **_GROUPS, use_parallel_residual=True
    ),
}

# One for each family.
PLAIN = [name for name in CONFIGS if "," not in name]

NARROW = dict(
    mlp=dict(mlp_dim=30),
    heads=dict(num_heads=6),
    queries=dict(num_heads=8, num_kv_heads=2),
    head_dim=dict(head_dim=12),
    embed=dict(embed_dim=36),
    layers=dict(num_layers=4),
)
TIED_HEADS = dict(
    mlp=dict(mlp_dim=130),
    embed_and_heads=dict(embed_dim=36, num_heads=6),
    embed_and_head_dim=dict(embed_dim=40, head_dim=10),
    layers=dict(num_layers=4),
)
_NORMED = "a norm over queries and keys sees their new columns"

_TURNED_HEADS = {**TIED_HEADS, "embed_and_heads": dict(embed_dim=48, num_heads=6)}
_ODD = dict(
    heads=dict(num_heads=27),
    queries=dict(num_heads=27, num_kv_heads=3),
    embed=dict(embed_dim=54),
)

# The steps of models for which the usual ones are not possible.
STEPS = {
    "llama, odd sizes": {**NARROW, **_ODD},
    "gpt2": TIED_HEADS,
    "gpt2, unscaled attention, epsilon 1e-3": TIED_HEADS,
    "gpt_neox": _TURNED_HEADS,
    "gpt_neox, one branch after the other": _TURNED_HEADS,
    "opt": TIED_HEADS,
    "opt, norms after branches": dict(mlp=dict(mlp_dim=30)),
    "stablelm": _TURNED_HEADS,
    "stablelm, branches behind one norm": _TURNED_HEADS,
}
REFUSED = {
    "qwen3": dict(head_dim=_NORMED),
    "olmo2": dict(
        head_dim=_NORMED, heads="norm over all heads sees", queries="norm over all heads sees"
    ),
    "opt, norms after branches": dict(
        embed_and_heads="layernorm writes to the stream", layers="norm after a new layer"
    ),
}
for _name in ("gpt2", "gpt_neox", "opt", "stablelm"):
    REFUSED.setdefault(_name, {}).update(
        embed="heads of the width embed_dim / num_heads", head_dim="Near is --embed_dim="
    )


def steps(name):
    """The growth steps that are possible from a model, each alone, and all at once."""
    every = STEPS.get(name, NARROW)
    possible = {kind: s for kind, s in every.items() if kind not in REFUSED.get(name, {})}
    together = dict(possible)
    together.pop("queries", None)
    if "embed_and_heads" in together:
        together.pop("embed_and_head_dim")
    return {**possible, "all": {k: v for step in together.values() for k, v in step.items()}}


def make(name, directory, dtype=torch.float64, seed=0, **options):
    """Saves a model whose gains and biases are anything; gives the directory."""
    torch.manual_seed(seed)
    with torch.device("cpu"):
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name]())
    with torch.no_grad():
        for parameter in model.parameters():
            much = 0.3 if parameter.ndim == 1 else 0.1
            parameter.add_(much * torch.randn_like(parameter))
    model.to(dtype).save_pretrained(directory, **options)
    return Path(directory)


def load(directory, dtype=torch.float64):
    """A model as transformers loads it, unmodified."""
    options = {}
    if "num_local_experts" in json.loads((Path(directory) / "config.json").read_text()):
        options = dict(experts_implementation="eager")  # the other one has no float64
    kind = transformers.AutoModelForCausalLM
    return kind.from_pretrained(directory, dtype=dtype, **options).eval()


TOKENS = np.random.default_rng(0).integers(0, 37, (2, 32))


def logits(directory, dtype=torch.float64):
    """The logits of some tokens, as float64 numpy."""
    with torch.no_grad():
        return load(directory, dtype)(torch.from_numpy(TOKENS)).logits.double().numpy()


def difference(old, new):
    """The largest difference of logits, relative to the largest."""
    assert np.isfinite(old).all()
    assert np.isfinite(new).all()
    return float(np.abs(old - new).max() / np.abs(old).max())


# Where transformers computes in float32 whatever the dtype, and a grown model is not given the very
# same numbers: RMSNorm and OLMo's LayerNorm, where the stream is wider; rotary angles, where heads
# are turned whole and are wider.
_FLOAT32_NORMS = ("llama", "mistral", "qwen", "gemma", "olmo", "phi3", "mixtral")
_UNTURNED = ("gpt2", "opt", "gpt_neox", "stablelm")


def limit(name, step):
    """The largest difference of logits in float64 that a step may make."""
    family = name.split(",")[0]
    rounded = "embed_dim" in step and family.startswith(_FLOAT32_NORMS)
    turned = "head_dim" in step and family not in _UNTURNED
    return 1e-6 if rounded or turned else 1e-12
