"""Gemma: gains stored as what they add to 1, embeddings multiplied by √embed_dim, a GELU gate."""

from growth.huggingface.families.config_values import activation, all_or_no_biases
from growth.huggingface.families.tensor_rows import LLAMA
from growth.huggingface.family import Config, Family


def _fields(config: Config) -> dict:
    return dict(
        # transformers takes "gelu", which old configs say, for the tanh form.
        activation=activation(config["hidden_act"]).removesuffix("_exact"),
        tied_embeddings=config["tie_word_embeddings"],
        use_bias=all_or_no_biases(attention=config["attention_bias"], mlp=False),
        unit_offset=True,
        scaled_embedding=True,
    )


FAMILY = Family(
    "gemma",
    "GemmaForCausalLM",
    LLAMA,
    _fields,
    defaults=dict(
        hidden_act="gelu_pytorch_tanh",
        tie_word_embeddings=True,
        attention_bias=False,
        num_key_value_heads=16,
        head_dim=256,
        rms_norm_eps=1e-6,
        max_position_embeddings=8192,
    ),
    irrelevant_keys=("hidden_activation",),  # transformers reads hidden_act alone
)
