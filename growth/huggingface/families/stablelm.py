"""StableLM: LayerNorm, a SiLU gate, a turned part of each head."""

from growth.huggingface.config_keys import FamilyError
from growth.huggingface.families.config_values import LAYERNORM_NAMES, activation
from growth.huggingface.families.tensor_rows import LLAMA
from growth.huggingface.family import Config, Family
from growth.huggingface.rotary_config import RotaryNames


def _fields(config: Config) -> dict:
    if config["qk_layernorm"]:
        raise FamilyError(
            "config.json says qk_layernorm, a norm with a gain for each head, which is not known"
        )
    return dict(
        norm="layernorm",
        activation=activation(config["hidden_act"]),
        use_bias=("norm", *("query", "key", "value") * config["use_qkv_bias"]),
        parallel="shared_norm" if config["use_parallel_residual"] else "none",
        tied_embeddings=config["tie_word_embeddings"],
    )


FAMILY = Family(
    "stablelm",
    "StableLmForCausalLM",
    LLAMA,
    _fields,
    config_names=LAYERNORM_NAMES | dict(num_kv_heads="num_key_value_heads"),
    defaults=dict(
        hidden_act="silu",
        tie_word_embeddings=False,
        qk_layernorm=False,
        use_qkv_bias=False,
        use_parallel_residual=False,
        num_key_value_heads=32,
        layer_norm_eps=1e-5,
        max_position_embeddings=4096,
    ),
    rotary_names=RotaryNames(fraction=("partial_rotary_factor",), default_fraction=0.25),
)
