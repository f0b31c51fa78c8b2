"""GPT-2: LayerNorm, learned positions, weights that hold [inputs, outputs]."""

from growth.huggingface.families.config_values import activation
from growth.huggingface.families.tensor_rows import LAYER, fused_attention, norm
from growth.huggingface.family import Config, Family, Limits, TensorRule

_AT = "transformer.h.{layers}"


def _layer(
    path: str, role: str, axes: str, bias: str, reference: str
) -> tuple[TensorRule, TensorRule]:
    return (
        TensorRule(f"{_AT}.{path}.weight", role, axes, (f"{LAYER}{reference}/kernel",)),
        TensorRule(f"{_AT}.{path}.bias", role, bias, (f"{LAYER}{reference}/bias",)),
    )


_TENSORS = (
    TensorRule("transformer.wte.weight", "embedding", "vocab embed", ("embed/embedding",)),
    TensorRule("transformer.wpe.weight", "position", "length embed", ("position",)),
    *norm(f"{_AT}.ln_1", LAYER + "attention_norm"),
    *fused_attention(f"{_AT}.attn.c_attn", "embed (role kv_heads qk)", "(role kv_heads qk)"),
    *_layer("attn.c_proj", "attention_out", "(kv_heads v) embed", "embed", "attention/out"),
    *norm(f"{_AT}.ln_2", LAYER + "mlp_norm"),
    *_layer("mlp.c_fc", "mlp_in", "embed mlp", "mlp", "mlp/up"),
    *_layer("mlp.c_proj", "mlp_out", "mlp embed", "embed", "mlp/down"),
    *norm("transformer.ln_f", "final_norm"),
    TensorRule("lm_head.weight", "unembed", "vocab embed", ("unembed/kernel",)),
)


def _fields(config: Config) -> dict:
    return dict(
        norm="layernorm",
        position="learned",
        activation=activation(config["activation_function"]),
        gated_mlp=False,
        use_bias=True,
        tied_embeddings=config["tie_word_embeddings"],
        mlp_dim=config["n_inner"] or 4 * config["n_embd"],
        query_scale=None if config["scale_attn_weights"] else 1.0,
    )


def _limits(config: Config) -> Limits:
    if not config.get("scale_attn_by_inverse_layer_idx"):
        return Limits()
    reason = "scale_attn_by_inverse_layer_idx divides scores by the number of the layer"
    return Limits(growth={"num_layers": reason}, reference_model=reason)


FAMILY = Family(
    "gpt2",
    "GPT2LMHeadModel",
    _TENSORS,
    _fields,
    config_names=dict(
        vocab_size="vocab_size",
        max_length="n_positions",
        embed_dim="n_embd",
        num_layers="n_layer",
        num_heads="n_head",
        mlp_dim="n_inner",
        norm_eps="layer_norm_epsilon",
    ),
    defaults=dict(
        activation_function="gelu_new",
        tie_word_embeddings=True,
        n_inner=None,
        scale_attn_weights=True,
        layer_norm_epsilon=1e-5,
    ),
    other_keys=("scale_attn_by_inverse_layer_idx",),
    irrelevant_keys=(
        "n_ctx",
        "reorder_and_upcast_attn",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
    ),
    aliases=dict(
        hidden_size="n_embd",
        max_position_embeddings="n_positions",
        num_attention_heads="n_head",
        num_hidden_layers="n_layer",
    ),
    rotary_names=None,
    limits=_limits,
    prefix="transformer.",
    buffers=r".*\.attn\.(masked_)?bias",
)
