"""Mixtral: a Mistral whose MLP is one of several experts, which a router chooses for each token."""

from growth.architecture.cost import Experts, ExtraParts
from growth.huggingface.families.config_values import windowed
from growth.huggingface.families.tensor_rows import ATTENTION, EMBEDDINGS, FINAL_NORM, NORMS
from growth.huggingface.family import Config, Family, Limits, TensorRule
from growth.huggingface.rotary_config import RotaryNames

_MOE = "model.layers.{layers}.block_sparse_moe"

_EXPERTS = (
    TensorRule(f"{_MOE}.gate.weight", "router", "experts embed"),
    TensorRule(f"{_MOE}.experts.{{expert}}.w1.weight", "mlp_in", "mlp embed"),
    TensorRule(f"{_MOE}.experts.{{expert}}.w3.weight", "mlp_in", "mlp embed"),
    TensorRule(f"{_MOE}.experts.{{expert}}.w2.weight", "mlp_out", "embed mlp"),
)


def _extra_parts(config: Config) -> ExtraParts:
    return ExtraParts(experts=Experts(config["num_local_experts"], config["num_experts_per_tok"]))


FAMILY = Family(
    "mixtral",
    "MixtralForCausalLM",
    (*EMBEDDINGS, *NORMS, *ATTENTION, *_EXPERTS, *FINAL_NORM),
    windowed,
    defaults=dict(
        hidden_act="silu",
        num_local_experts=8,
        num_experts_per_tok=2,
        tie_word_embeddings=False,
        sliding_window=None,
        num_key_value_heads=8,
        rms_norm_eps=1e-5,
        max_position_embeddings=131072,
    ),
    irrelevant_keys=("output_router_logits", "router_aux_loss_coef", "router_jitter_noise"),
    aliases=dict(num_experts="num_local_experts"),
    rotary_names=RotaryNames(default_theta=1e6),
    limits=lambda config: Limits(reference_model="it is a mixture of experts"),
    extra_parts=_extra_parts,
)
