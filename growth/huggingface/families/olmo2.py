"""OLMo 2: norms on what a branch gives, and over all queries and all keys of a layer."""

from growth.huggingface.families.config_values import activation, all_or_no_biases
from growth.huggingface.families.tensor_rows import (
    ATTENTION,
    EMBEDDINGS,
    FINAL_NORM,
    LAYER,
    MLP,
    norm,
    qk_norm,
)
from growth.huggingface.family import Config, Family

_AT = "model.layers.{layers}"


def _fields(config: Config) -> dict:
    return dict(
        norm_placement="closing",
        qk_norm="all",
        activation=activation(config["hidden_act"]),
        tied_embeddings=config["tie_word_embeddings"],
        use_bias=all_or_no_biases(attention=config["attention_bias"], mlp=False),
    )


_NORMS = (
    *norm(f"{_AT}.post_attention_layernorm", LAYER + "attention_closing_norm"),
    *norm(f"{_AT}.post_feedforward_layernorm", LAYER + "mlp_closing_norm"),
    *qk_norm(f"{_AT}.self_attn.q_norm", LAYER + "attention/query_norm", "(kv_heads group qk)"),
    *qk_norm(f"{_AT}.self_attn.k_norm", LAYER + "attention/key_norm", "(kv_heads qk)"),
)

FAMILY = Family(
    "olmo2",
    "Olmo2ForCausalLM",
    (*EMBEDDINGS, *_NORMS, *ATTENTION, *MLP, *FINAL_NORM),
    _fields,
    defaults=dict(
        hidden_act="silu",
        tie_word_embeddings=False,
        attention_bias=False,
        rms_norm_eps=1e-5,
        max_position_embeddings=2048,
    ),
)
