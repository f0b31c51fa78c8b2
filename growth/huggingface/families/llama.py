"""Llama: RMSNorm, a SiLU gate, grouped heads, rotary positions, also stretched ones (Llama 3.1)."""

from growth.huggingface.families.config_values import activation, all_or_no_biases
from growth.huggingface.families.tensor_rows import LLAMA
from growth.huggingface.family import Config, Family


def _fields(config: Config) -> dict:
    return dict(
        activation=activation(config["hidden_act"]),
        tied_embeddings=config["tie_word_embeddings"],
        use_bias=all_or_no_biases(attention=config["attention_bias"], mlp=config["mlp_bias"]),
    )


FAMILY = Family(
    "llama",
    "LlamaForCausalLM",
    LLAMA,
    _fields,
    defaults=dict(
        hidden_act="silu",
        tie_word_embeddings=False,
        attention_bias=False,
        mlp_bias=False,
        rms_norm_eps=1e-6,
        max_position_embeddings=2048,
    ),
    heads_must_divide=True,
)
