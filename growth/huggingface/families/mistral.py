"""Mistral: a Llama that may see a window only."""

from growth.huggingface.families.parts import activation
from growth.huggingface.families.tables import LLAMA
from growth.huggingface.family import Config, Family


def _fields(config: Config) -> dict:
    return dict(
        activation=activation(config["hidden_act"]),
        tied_embeddings=config["tie_word_embeddings"],
        window=config["sliding_window"],
    )


FAMILY = Family(
    "mistral",
    "MistralForCausalLM",
    LLAMA,
    _fields,
    defaults=dict(
        hidden_act="silu",
        tie_word_embeddings=False,
        sliding_window=4096,
        num_key_value_heads=8,
        rms_norm_eps=1e-6,
        max_position_embeddings=131072,
    ),
)
