"""Phi 3: a Llama whose queries, keys and values share a matrix, and gate and up another."""

from growth.huggingface.config_keys import shown
from growth.huggingface.families.config_values import windowed
from growth.huggingface.families.tensor_rows import (
    EMBEDDINGS,
    FINAL_NORM,
    LAYER,
    NORMS,
    fused_attention,
    linear,
)
from growth.huggingface.family import Config, Family, TensorRule
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


def _load_problem(config: Config) -> str | None:
    """Two types alone; lists of factors fit embed_dim / num_heads, however wide heads are."""
    table = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = table.get("rope_type", table.get("type", "default"))
    if kind not in ("default", "longrope", "su", "yarn"):  # the last three are one
        return f"rope_type is {kind}, but for a phi3 it must be default or longrope"
    share = table.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    embed, heads = config["hidden_size"], config["num_attention_heads"]
    wanted = int(embed // heads * share) // 2
    for name in ("short_factor", "long_factor"):
        factors = table.get(name)
        if factors is None or (isinstance(factors, list) and len(factors) == wanted):
            continue
        given = len(factors) if isinstance(factors, list) else shown(factors)
        return (
            f"{name} must have {wanted} entries where embed_dim is {embed} and num_heads {heads}, "
            f"but has {given}; it fits where embed_dim is num_heads × {config.get('head_dim')}"
        )
    return None


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
    # What the code that came with the first models read, as it is in all that were published.
    unchanging_keys=dict(
        attention_bias=(False,),
        full_attn_mod=(1,),
        interpolate_factor=(1,),
        lm_head_bias=(False,),
        mlp_bias=(False,),
    ),
    rotary_names=RotaryNames(fraction=("partial_rotary_factor",)),
    load_problem=_load_problem,
)
