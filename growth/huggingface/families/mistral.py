"""Mistral: a Llama that may see a window only."""

from growth.huggingface.families.config_values import windowed
from growth.huggingface.families.tensor_rows import LLAMA
from growth.huggingface.family import Family

FAMILY = Family(
    "mistral",
    "MistralForCausalLM",
    LLAMA,
    windowed,
    defaults=dict(
        hidden_act="silu",
        tie_word_embeddings=False,
        sliding_window=4096,
        num_key_value_heads=8,
        rms_norm_eps=1e-6,
        max_position_embeddings=131072,
    ),
)
