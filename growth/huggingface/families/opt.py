"""OPT: LayerNorm, learned positions, ReLU.

Its table of positions begins with two rows that no token has. OPT-350m has its norms after the
branches, and words of another width than the stream.
"""

import dataclasses

from growth.architecture.cost import ExtraParts
from growth.huggingface.families.config_values import LAYERNORM_NAMES, activation
from growth.huggingface.families.tensor_rows import (
    LAYER,
    attention,
    embedding,
    linear,
    norm,
    unembed,
)
from growth.huggingface.family import Config, Family, Limits, TensorRule

_AT = "model.decoder.layers.{layers}"

_TENSORS = (
    *embedding("model.decoder.embed_tokens.weight"),
    TensorRule(
        "model.decoder.embed_positions.weight", "position", "length embed", ("position",), skipped=2
    ),
    *norm(f"{_AT}.self_attn_layer_norm", LAYER + "attention_norm"),
    *attention(f"{_AT}.self_attn", out="out_proj"),
    *norm(f"{_AT}.final_layer_norm", LAYER + "mlp_norm"),
    *linear(f"{_AT}.fc1", "mlp_in", "mlp embed", LAYER + "mlp/up"),
    *linear(f"{_AT}.fc2", "mlp_out", "embed mlp", LAYER + "mlp/down"),
    *norm("model.decoder.final_layer_norm", "final_norm"),
    *unembed("lm_head.weight"),
)


def _fields(config: Config) -> dict:
    before = config["do_layer_norm_before"]
    linear_biases = ("query", "key", "value", "attention_out", "mlp_in", "mlp_out")
    gains = config["layer_norm_elementwise_affine"]
    return dict(
        norm="layernorm",
        norm_eps=1e-5,  # always: the config does not say it
        fixed_norm_eps=True,
        norm_gain=gains,
        norm_placement="pre" if before else "post",
        final_norm=before and not config["_remove_final_layer_norm"],
        position="learned",
        activation=activation(config["activation_function"]),
        gated_mlp=False,
        use_bias=("norm",) * gains + linear_biases * config["enable_bias"],
        tied_embeddings=config["tie_word_embeddings"],
    )


def _is_projected(config: Config) -> bool:
    return config.get("word_embed_proj_dim") not in (None, config.get("hidden_size"))


def _variant(config: Config) -> Family:
    return PROJECTED if _is_projected(config) else FAMILY


FAMILY = Family(
    "opt",
    "OPTForCausalLM",
    _TENSORS,
    _fields,
    config_names={name: key for name, key in LAYERNORM_NAMES.items() if name != "norm_eps"}
    | dict(mlp_dim="ffn_dim"),
    defaults=dict(
        activation_function="relu",
        tie_word_embeddings=True,
        do_layer_norm_before=True,
        _remove_final_layer_norm=False,
        layer_norm_elementwise_affine=True,
        enable_bias=True,
    ),
    other_keys=("word_embed_proj_dim",),
    rotary_names=None,
    repeated_names=dict(word_embed_proj_dim="hidden_size"),
    variant=_variant,
    init_std_name="init_std",
)

_WORDS = (
    TensorRule("model.decoder.embed_tokens.weight", "embedding", "vocab word"),
    TensorRule("model.decoder.project_in.weight", "embedding", "embed word"),
    TensorRule("model.decoder.project_out.weight", "unembed", "word embed"),
)

PROJECTED = dataclasses.replace(
    FAMILY,
    tensors=_WORDS + tuple(t for t in _TENSORS if t.reference != ("embed/embedding",)),
    limits=lambda config: Limits(reference_model="words have another width than the stream"),
    extra_parts=lambda config: ExtraParts(word_dim=config["word_embed_proj_dim"]),
)
