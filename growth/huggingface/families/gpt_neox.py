"""GPT-NeoX (Pythia): LayerNorm, branches that read the same stream, a turned part of each head."""

from growth.huggingface.families.config_values import LAYERNORM_NAMES, activation
from growth.huggingface.families.tensor_rows import LAYER, embedding, fused_attention, linear, norm
from growth.huggingface.family import Config, Family, TensorRule
from growth.huggingface.rotary_config import RotaryNames

_AT = "gpt_neox.layers.{layers}"

_TENSORS = (
    *embedding("gpt_neox.embed_in.weight"),
    *norm(f"{_AT}.input_layernorm", LAYER + "attention_norm"),
    *norm(f"{_AT}.post_attention_layernorm", LAYER + "mlp_norm"),
    *fused_attention(
        f"{_AT}.attention.query_key_value", "(kv_heads role qk) embed", "(kv_heads role qk)"
    ),
    *linear(
        f"{_AT}.attention.dense", "attention_out", "embed (kv_heads v)", LAYER + "attention/out"
    ),
    *linear(f"{_AT}.mlp.dense_h_to_4h", "mlp_in", "mlp embed", LAYER + "mlp/up"),
    *linear(f"{_AT}.mlp.dense_4h_to_h", "mlp_out", "embed mlp", LAYER + "mlp/down"),
    *norm("gpt_neox.final_layer_norm", "final_norm"),
    TensorRule("embed_out.weight", "unembed", "vocab embed", ("unembed/kernel",)),
)


def _fields(config: Config) -> dict:
    attention = ("query", "key", "value", "attention_out") * config["attention_bias"]
    return dict(
        norm="layernorm",
        activation=activation(config["hidden_act"]),
        gated_mlp=False,
        use_bias=("norm", "mlp_in", "mlp_out", *attention),
        parallel="two_norms" if config["use_parallel_residual"] else "none",
        tied_embeddings=config["tie_word_embeddings"],
    )


FAMILY = Family(
    "gpt_neox",
    "GPTNeoXForCausalLM",
    _TENSORS,
    _fields,
    config_names=LAYERNORM_NAMES,
    defaults=dict(
        hidden_act="gelu",
        tie_word_embeddings=False,
        attention_bias=True,
        use_parallel_residual=True,
        layer_norm_eps=1e-5,
        max_position_embeddings=2048,
    ),
    # Versions before 5 also wrote the names that transformers reads of other families.
    rotary_names=RotaryNames(
        ("rotary_emb_base", "rope_theta"),
        ("rotary_pct", "partial_rotary_factor"),
        default_fraction=0.25,
    ),
    prefix="gpt_neox.",
    buffers=r".*\.attention\.((masked_)?bias|rotary_emb\.inv_freq)",
)
