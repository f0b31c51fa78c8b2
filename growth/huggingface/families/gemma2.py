"""Gemma 2: a Gemma with norms on both sides of a branch, soft caps, windows in every other layer.

The closing norm is the last that writes to the stream, so a new layer has a closing gain of zero.
"""

from growth.huggingface.families.config_values import activation, all_or_no_biases, windows
from growth.huggingface.families.tensor_rows import (
    ATTENTION,
    EMBEDDINGS,
    FINAL_NORM,
    LAYER,
    MLP,
    norm,
)
from growth.huggingface.family import Config, Family


def _fields(config: Config) -> dict:
    return dict(
        activation=activation(config["hidden_activation"]),
        tied_embeddings=config["tie_word_embeddings"],
        use_bias=all_or_no_biases(attention=config["attention_bias"], mlp=False),
        unit_offset=True,
        scaled_embedding=True,
        norm_placement="sandwich",
        query_scale=config["query_pre_attn_scalar"] ** -0.5,
        attention_softcap=config["attn_logit_softcapping"],
        logit_softcap=config["final_logit_softcapping"],
        window=windows(config, config["sliding_window"], lambda layer: layer % 2 == 0),
    )


_NORMS = (
    *norm("model.layers.{layers}.input_layernorm", LAYER + "attention_norm"),
    *norm("model.layers.{layers}.post_attention_layernorm", LAYER + "attention_closing_norm"),
    *norm("model.layers.{layers}.pre_feedforward_layernorm", LAYER + "mlp_norm"),
    *norm("model.layers.{layers}.post_feedforward_layernorm", LAYER + "mlp_closing_norm"),
)

FAMILY = Family(
    "gemma2",
    "Gemma2ForCausalLM",
    (*EMBEDDINGS, *_NORMS, *ATTENTION, *MLP, *FINAL_NORM),
    _fields,
    defaults=dict(
        hidden_activation="gelu_pytorch_tanh",
        tie_word_embeddings=True,
        attention_bias=False,
        query_pre_attn_scalar=256,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        sliding_window=4096,
        num_key_value_heads=4,
        head_dim=256,
        rms_norm_eps=1e-6,
        max_position_embeddings=8192,
    ),
    irrelevant_keys=("hidden_act",),  # transformers reads hidden_activation alone
    lists_layer_types=True,
    heads_must_divide=True,
)
