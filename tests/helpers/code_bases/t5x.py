"""T5X's T5 1.1 (Linen): encoder and decoder, no scale of attention, tied logits over √embed_dim."""

import numpy as np

from growth import Architecture, Blueprint
from tests.helpers.code_bases import functions as f
from tests.helpers.code_bases.code_base import SIZES, CodeBase, nested

_BUCKETS = 8


def shapes(arch):
    h = arch.embed_dim
    found = {"token_embedder/embedding": (arch.vocab_size, h)}
    attentions = {"encoder": ("attention",), "decoder": _IN_DECODER}
    for stack, names in attentions.items():
        found[f"{stack}/relpos_bias/rel_embedding"] = (arch.layers[0].num_heads, _BUCKETS)
        found[f"{stack}/{stack}_norm/scale"] = (h,)
        for i, s in enumerate(arch.layers):
            at, qk, v = f"{stack}/layers_{i}", s.num_heads * s.qk_dim, s.num_heads * s.v_dim
            for name in names:
                found[f"{at}/pre_{_NORMS.get(name, name)}_layer_norm/scale"] = (h,)
                found[f"{at}/{name}/query/kernel"] = (h, qk)
                found[f"{at}/{name}/key/kernel"] = (h, qk)
                found[f"{at}/{name}/value/kernel"] = (h, v)
                found[f"{at}/{name}/out/kernel"] = (v, h)
            found[f"{at}/pre_mlp_layer_norm/scale"] = (h,)
            found[f"{at}/mlp/wi_0/kernel"] = found[f"{at}/mlp/wi_1/kernel"] = (h, s.mlp_dim)
            found[f"{at}/mlp/wo/kernel"] = (s.mlp_dim, h)
    return found


_IN_DECODER = ("self_attention", "encoder_decoder_attention")
_NORMS = {"encoder_decoder_attention": "cross_attention"}


def _bias(table, length, bidirectional):
    """Of each head for each distance: buckets, those of far distances in one."""
    distance = np.arange(length)[:, None] - np.arange(length)
    bucket = np.clip(distance, 0, _BUCKETS - 1)
    if bidirectional:
        half = _BUCKETS // 2
        bucket = np.clip(np.abs(distance), 0, half - 1) + half * (distance < 0)
    return table[:, bucket]


def _stack(arch, p, x, stack, memory=None):
    def norm(x, name):
        return f.rms_norm(x, p[f"{stack}/{name}/scale"], arch.norm_eps)

    def attention(x, memory, name, heads, **how):
        w = [p[f"{stack}/{name}/{part}/kernel"] for part in ("query", "key", "value", "out")]
        q = f.split_heads(x @ w[0], heads)
        k, v = (f.split_heads(memory @ kernel, heads) for kernel in w[1:3])
        return f.join_heads(f.attend(q, k, v, scale=1.0, **how)) @ w[3]

    causal = stack == "decoder"
    bias = _bias(p[f"{stack}/relpos_bias/rel_embedding"], x.shape[1], not causal)
    first, *others = _IN_DECODER if causal else ("attention",)
    for i, s in enumerate(arch.layers):
        at = f"layers_{i}"
        y = norm(x, f"{at}/pre_{first}_layer_norm")
        x = x + attention(y, y, f"{at}/{first}", s.num_heads, bias=bias, causal=causal)
        for name in others:
            y = norm(x, f"{at}/pre_{_NORMS[name]}_layer_norm")
            x = x + attention(y, memory, f"{at}/{name}", s.num_heads, causal=False)
        y = norm(x, f"{at}/pre_mlp_layer_norm")
        gate, up = (y @ p[f"{stack}/{at}/mlp/{name}/kernel"] for name in ("wi_0", "wi_1"))
        x = x + (f.gelu(gate) * up) @ p[f"{stack}/{at}/mlp/wo/kernel"]
    return norm(x, f"{stack}_norm")


def function(arch, p, tokens):
    table = p["token_embedder/embedding"]
    memory = _stack(arch, p, table[tokens], "encoder")
    x = _stack(arch, p, table[tokens[:, ::-1]], "decoder", memory)
    return x @ table.T / arch.embed_dim**0.5


T5X = CodeBase(
    "Linen",
    Architecture(
        **SIZES, activation="gelu", position="none", query_scale=1.0, tied_embeddings=True,
        scaled_logits=True,
    ),
    shapes,
    function,
    Blueprint(
        [
            ("token_embedder/embedding", "embedding", "vocab embed"),
            ("{stack}/relpos_bias/rel_embedding", "position_bias", "kv_heads buckets"),
            ("{stack}/layers_{layers}/pre_{part}_layer_norm/scale", "norm_gain", "embed"),
            ("{stack}/layers_{layers}/{attention}/query/kernel", "query", "embed (kv_heads qk)"),
            ("{stack}/layers_{layers}/{attention}/key/kernel", "key", "embed (kv_heads qk)"),
            ("{stack}/layers_{layers}/{attention}/value/kernel", "value", "embed (kv_heads v)"),
            (
                "{stack}/layers_{layers}/{attention}/out/kernel",
                "attention_out",
                "(kv_heads v) embed",
            ),
            ("{stack}/layers_{layers}/mlp/wi_{gate}/kernel", "mlp_in", "embed mlp"),
            ("{stack}/layers_{layers}/mlp/wo/kernel", "mlp_out", "mlp embed"),
            ("encoder/encoder_norm/scale", "norm_gain", "embed"),
            ("decoder/decoder_norm/scale", "final_gain", "embed"),
        ]
    ),
    contain=lambda flat: {"params": nested(flat)},
)  # fmt: skip
