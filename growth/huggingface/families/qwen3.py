"""Qwen 3: a Llama with a norm over each query and key; later layers may see a window only."""

from growth.huggingface.families.config_values import activation, all_or_no_biases, window_above
from growth.huggingface.families.tensor_rows import HEAD_NORMS, LLAMA
from growth.huggingface.family import Config, Family


def _fields(config: Config) -> dict:
    return dict(
        activation=activation(config["hidden_act"]),
        tied_embeddings=config["tie_word_embeddings"],
        use_bias=all_or_no_biases(attention=config["attention_bias"], mlp=False),
        qk_norm="head",
        window=window_above(config),
    )


FAMILY = Family(
    "qwen3",
    "Qwen3ForCausalLM",
    LLAMA + HEAD_NORMS,
    _fields,
    defaults=dict(
        hidden_act="silu",
        tie_word_embeddings=False,
        attention_bias=False,
        use_sliding_window=False,
        sliding_window=4096,
        max_window_layers=28,
        num_key_value_heads=32,
        head_dim=128,
        rms_norm_eps=1e-6,
        max_position_embeddings=32768,
    ),
    lists_layer_types=True,
)
