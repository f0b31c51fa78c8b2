"""Rows of the tables of tensors that many families share.

Linear layers of PyTorch hold [outputs, inputs].
"""

from growth.huggingface.family import TensorRule

LAYER = "layers_{layers}/"


def linear(path: str, role: str, axes: str, reference: str) -> tuple[TensorRule, TensorRule]:
    """A linear layer, and its bias, which is optional.

    Args:
      path: of the module.
      role: its role.
      axes: of its weight, outputs first; a factored axis is in parentheses.
      reference: the path of the reference model's module.
    """
    outputs = axes[: axes.index(")") + 1] if axes.startswith("(") else axes.split()[0]
    return (
        TensorRule(f"{path}.weight", role, axes, (f"{reference}/kernel",)),
        TensorRule(f"{path}.bias", role, outputs, (f"{reference}/bias",)),
    )


def norm(path: str, reference: str) -> tuple[TensorRule, TensorRule]:
    """A norm over the stream: its gain, and its bias, if it has one."""
    kind = "final" if reference == "final_norm" else "norm"
    if reference.endswith("closing_norm"):
        kind = "closing"
    return (
        TensorRule(f"{path}.weight", f"{kind}_gain", "embed", (f"{reference}/scale",)),
        TensorRule(f"{path}.bias", f"{kind}_bias", "embed", (f"{reference}/bias",)),
    )


def qk_norm(path: str, reference: str, axes: str) -> tuple[TensorRule]:
    """A norm over queries or keys."""
    return (TensorRule(f"{path}.weight", "qk_norm", axes, (f"{reference}/scale",)),)


def fused_attention(path: str, weight: str, bias: str) -> tuple[TensorRule, TensorRule]:
    """Queries, keys and values in one linear layer.

    Args:
      path: of the module.
      weight, bias: the axes of its arrays, one of them `role`.
    """
    roles = ("query", "key", "value")
    at = [f"{LAYER}attention/{role}" for role in roles]
    return (
        TensorRule(f"{path}.weight", roles, weight, tuple(f"{path}/kernel" for path in at)),
        TensorRule(f"{path}.bias", roles, bias, tuple(f"{path}/bias" for path in at)),
    )


def attention(prefix: str, out: str = "o_proj") -> tuple[TensorRule, ...]:
    """Attention of four linear layers: `q_proj`, `k_proj`, `v_proj`, and one that writes."""
    at = LAYER + "attention/"
    return (
        *linear(f"{prefix}.q_proj", "query", "(kv_heads group qk) embed", f"{at}query"),
        *linear(f"{prefix}.k_proj", "key", "(kv_heads qk) embed", f"{at}key"),
        *linear(f"{prefix}.v_proj", "value", "(kv_heads v) embed", f"{at}value"),
        *linear(f"{prefix}.{out}", "attention_out", "embed (kv_heads group v)", f"{at}out"),
    )


def gated_mlp(prefix: str) -> tuple[TensorRule, ...]:
    """An MLP of `gate_proj`, `up_proj` and `down_proj`."""
    at = LAYER + "mlp/"
    return (
        *linear(f"{prefix}.gate_proj", "mlp_in", "mlp embed", f"{at}gate"),
        *linear(f"{prefix}.up_proj", "mlp_in", "mlp embed", f"{at}up"),
        *linear(f"{prefix}.down_proj", "mlp_out", "embed mlp", f"{at}down"),
    )


def embedding(path: str) -> tuple[TensorRule]:
    """The table of embeddings."""
    return (TensorRule(path, "embedding", "vocab embed", ("embed/embedding",)),)


def unembed(path: str) -> tuple[TensorRule]:
    """The output layer, which tied models have not."""
    return (TensorRule(path, "unembed", "vocab embed", ("unembed/kernel",)),)


# What Llama has, and in its names most of those that came after it.
_LLAMA = "model.layers.{layers}"
EMBEDDINGS = (*embedding("model.embed_tokens.weight"), *unembed("lm_head.weight"))
NORMS = (
    *norm(f"{_LLAMA}.input_layernorm", LAYER + "attention_norm"),
    *norm(f"{_LLAMA}.post_attention_layernorm", LAYER + "mlp_norm"),
)
FINAL_NORM = norm("model.norm", "final_norm")
ATTENTION = attention(f"{_LLAMA}.self_attn")
MLP = gated_mlp(f"{_LLAMA}.mlp")
HEAD_NORMS = (
    *qk_norm(f"{_LLAMA}.self_attn.q_norm", LAYER + "attention/query_norm", "qk"),
    *qk_norm(f"{_LLAMA}.self_attn.k_norm", LAYER + "attention/key_norm", "qk"),
)
LLAMA = (*EMBEDDINGS, *NORMS, *ATTENTION, *MLP, *FINAL_NORM)
