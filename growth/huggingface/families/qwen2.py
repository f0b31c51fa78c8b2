"""Qwen 2: a Llama with biases of queries, keys and values; later layers may see a window only."""

from growth.huggingface.families.config_values import activation, window_above
from growth.huggingface.families.tensor_rows import LLAMA
from growth.huggingface.family import Config, Family


def _fields(config: Config) -> dict:
    return dict(
        activation=activation(config["hidden_act"]),
        tied_embeddings=config["tie_word_embeddings"],
        use_bias=("query", "key", "value"),
        window=window_above(config),
    )


FAMILY = Family(
    "qwen2",
    "Qwen2ForCausalLM",
    LLAMA,
    _fields,
    defaults=dict(
        hidden_act="silu",
        tie_word_embeddings=False,
        use_sliding_window=False,
        sliding_window=4096,
        max_window_layers=28,
        num_key_value_heads=32,
        rms_norm_eps=1e-6,
        max_position_embeddings=32768,
    ),
    lists_layer_types=True,
)
