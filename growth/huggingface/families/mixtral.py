"""Mixtral: a Mistral whose MLP is one of several experts, which a router chooses for each token."""

from growth.huggingface.families.parts import windowed
from growth.huggingface.families.tables import ATTENTION, EMBEDDINGS, FINAL_NORM, NORMS
from growth.huggingface.family import Family, Tensor

_MOE = "model.layers.{layers}.block_sparse_moe"

_EXPERTS = (
    Tensor(f"{_MOE}.gate.weight", "router", "experts embed"),
    Tensor(f"{_MOE}.experts.{{expert}}.w1.weight", "mlp_in", "mlp embed"),
    Tensor(f"{_MOE}.experts.{{expert}}.w3.weight", "mlp_in", "mlp embed"),
    Tensor(f"{_MOE}.experts.{{expert}}.w2.weight", "mlp_out", "embed mlp"),
)


FAMILY = Family(
    "mixtral",
    "MixtralForCausalLM",
    (*EMBEDDINGS, *NORMS, *ATTENTION, *_EXPERTS, *FINAL_NORM),
    windowed,
    defaults=dict(
        hidden_act="silu",
        tie_word_embeddings=False,
        sliding_window=None,
        num_key_value_heads=8,
        rms_norm_eps=1e-5,
        max_position_embeddings=131072,
    ),
    limits=lambda config: {"reference": "it is a mixture of experts"},
)
