"""OLMo: LayerNorm without gains and biases, whose epsilon is not in the config."""

from growth.huggingface.families.config_values import activation, all_or_no_biases
from growth.huggingface.families.tensor_rows import ATTENTION, EMBEDDINGS, MLP
from growth.huggingface.family import USUAL_NAMES, Config, Family, Limits


def _fields(config: Config) -> dict:
    return dict(
        norm="layernorm",
        norm_eps=1e-5,
        fixed_norm_eps=True,
        norm_gain=False,
        activation=activation(config["hidden_act"]),
        tied_embeddings=config["tie_word_embeddings"],
        use_bias=all_or_no_biases(attention=config["attention_bias"], mlp=False),
    )


def _limits(config: Config) -> Limits:
    if config.get("clip_qkv") is None:
        return Limits()
    reason = f"clip_qkv is {config['clip_qkv']}, and keys, which are multiplied, would be clipped"
    return Limits(
        growth={"qk_dim": reason}, reference_model="clip_qkv clips queries, keys and values"
    )


FAMILY = Family(
    "olmo",
    "OlmoForCausalLM",
    (*EMBEDDINGS, *ATTENTION, *MLP),
    _fields,
    config_names={name: key for name, key in USUAL_NAMES.items() if name != "norm_eps"},
    defaults=dict(
        hidden_act="silu",
        tie_word_embeddings=False,
        attention_bias=False,
        max_position_embeddings=2048,
    ),
    other_keys=("clip_qkv",),
    limits=_limits,
)
