"""Phi 3: a Llama whose queries, keys and values share a matrix, and gate and up another."""

from growth.huggingface.families.config_values import windowed
from growth.huggingface.families.tensor_rows import (
    EMBEDDINGS,
    FINAL_NORM,
    LAYER,
    NORMS,
    fused_attention,
    linear,
)
from growth.huggingface.family import Family, TensorRule
from growth.huggingface.rotary_config import RotaryNames

_AT = "model.layers.{layers}"

_TENSORS = (
    *EMBEDDINGS,
    *NORMS,
    *fused_attention(
        f"{_AT}.self_attn.qkv_proj", "(role kv_heads group qk) embed", "(role kv_heads group qk)"
    ),
    *linear(
        f"{_AT}.self_attn.o_proj",
        "attention_out",
        "embed (kv_heads group v)",
        LAYER + "attention/out",
    ),
    TensorRule(
        f"{_AT}.mlp.gate_up_proj.weight",
        ("mlp_in", "mlp_in"),
        "(role mlp) embed",
        (f"{LAYER}mlp/gate/kernel", f"{LAYER}mlp/up/kernel"),
    ),
    *linear(f"{_AT}.mlp.down_proj", "mlp_out", "embed mlp", LAYER + "mlp/down"),
    *FINAL_NORM,
)


FAMILY = Family(
    "phi3",
    "Phi3ForCausalLM",
    _TENSORS,
    windowed,
    defaults=dict(
        hidden_act="silu",
        tie_word_embeddings=False,
        sliding_window=None,
        rms_norm_eps=1e-5,
        max_position_embeddings=4096,
    ),
    rotary_names=RotaryNames(fraction="partial_rotary_factor"),
)
