"""StarCoder 2: LayerNorm, grouped heads, rotary positions, an MLP without a gate."""

from growth.huggingface.families.config_values import activation
from growth.huggingface.families.tensor_rows import (
    ATTENTION,
    EMBEDDINGS,
    FINAL_NORM,
    LAYER,
    NORMS,
    linear,
)
from growth.huggingface.family import USUAL_NAMES, Config, Family

_AT = "model.layers.{layers}"

_MLP = (
    *linear(f"{_AT}.mlp.c_fc", "mlp_in", "mlp embed", LAYER + "mlp/up"),
    *linear(f"{_AT}.mlp.c_proj", "mlp_out", "embed mlp", LAYER + "mlp/down"),
)


def _fields(config: Config) -> dict:
    linear_biases = ("query", "key", "value", "attention_out", "mlp_in", "mlp_out")
    return dict(
        norm="layernorm",
        activation=activation(config["hidden_act"]),
        gated_mlp=False,
        use_bias=("norm", *linear_biases * config["use_bias"]),
        tied_embeddings=config["tie_word_embeddings"],
        window=config["sliding_window"],
    )


FAMILY = Family(
    "starcoder2",
    "Starcoder2ForCausalLM",
    (*EMBEDDINGS, *NORMS, *ATTENTION, *_MLP, *FINAL_NORM),
    _fields,
    config_names=USUAL_NAMES | dict(norm_eps="norm_epsilon"),
    defaults=dict(
        hidden_act="gelu_pytorch_tanh",
        tie_word_embeddings=True,
        use_bias=True,
        sliding_window=None,
        num_key_value_heads=2,
        norm_epsilon=1e-5,
        max_position_embeddings=4096,
    ),
    irrelevant_keys=("activation_function",),  # transformers reads hidden_act alone
    unchanging_keys=dict(mlp_type=("default",), norm_type=("layer_norm",)),
)
