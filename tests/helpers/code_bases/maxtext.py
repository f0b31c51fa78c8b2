"""MaxText's Llama (Linen): layers are scanned, and stand behind the first axis of each array."""

from growth import Architecture, Blueprint
from tests.helpers.code_bases import functions as f
from tests.helpers.code_bases.code_base import GROUPED, CodeBase, nested

_AT = "decoder/layers"


def shapes(arch):
    h, n, s = arch.embed_dim, arch.num_layers, arch.layers[0]
    return {
        "token_embedder/embedding": (arch.vocab_size, h),
        f"{_AT}/pre_self_attention_layer_norm/scale": (h, n),
        f"{_AT}/self_attention/query/kernel": (h, n, s.num_heads, s.qk_dim),
        f"{_AT}/self_attention/key/kernel": (h, n, s.num_kv_heads, s.qk_dim),
        f"{_AT}/self_attention/value/kernel": (h, n, s.num_kv_heads, s.v_dim),
        f"{_AT}/self_attention/out/kernel": (s.num_heads, n, s.v_dim, h),
        f"{_AT}/post_self_attention_layer_norm/scale": (h, n),
        f"{_AT}/mlp/wi_0/kernel": (h, n, s.mlp_dim),
        f"{_AT}/mlp/wi_1/kernel": (h, n, s.mlp_dim),
        f"{_AT}/mlp/wo/kernel": (s.mlp_dim, n, h),
        "decoder/decoder_norm/scale": (h,),
        "decoder/logits_dense/kernel": (h, arch.vocab_size),
    }


def function(arch, p, tokens):
    x = p["token_embedder/embedding"][tokens]
    for i, s in enumerate(arch.layers):
        w = {n.removeprefix(f"{_AT}/"): a[:, i] for n, a in p.items() if n.startswith(_AT)}
        y = f.rms_norm(x, w["pre_self_attention_layer_norm/scale"], arch.norm_eps)
        q, k, v = (
            f.einsum("blh,hek->blek", y, w[f"self_attention/{name}/kernel"])
            for name in ("query", "key", "value")
        )
        q, k = (f.rotate_halves(z, s.rope_theta) for z in (q, k))
        mixed = f.attend(q, k, v, scale=arch.query_scale)
        x = x + f.einsum("blev,evh->blh", mixed, w["self_attention/out/kernel"])
        y = f.rms_norm(x, w["post_self_attention_layer_norm/scale"], arch.norm_eps)
        hidden = f.silu(y @ w["mlp/wi_0/kernel"]) * (y @ w["mlp/wi_1/kernel"])
        x = x + hidden @ w["mlp/wo/kernel"]
    x = f.rms_norm(x, p["decoder/decoder_norm/scale"], arch.norm_eps)
    return x @ p["decoder/logits_dense/kernel"]


MAXTEXT = CodeBase(
    "Linen, scanned",
    Architecture.llama(**GROUPED, query_scale=1.0),
    shapes,
    function,
    Blueprint(
        [
            ("token_embedder/embedding", "embedding", "vocab embed"),
            (f"{_AT}/{{which}}_layer_norm/scale", "norm_gain", "embed layers"),
            (f"{_AT}/self_attention/query/kernel", "query", "embed layers (kv_heads group) qk"),
            (f"{_AT}/self_attention/key/kernel", "key", "embed layers kv_heads qk"),
            (f"{_AT}/self_attention/value/kernel", "value", "embed layers kv_heads v"),
            (
                f"{_AT}/self_attention/out/kernel",
                "attention_out",
                "(kv_heads group) layers v embed",
            ),
            (f"{_AT}/mlp/wi_{{gate}}/kernel", "mlp_in", "embed layers mlp"),
            (f"{_AT}/mlp/wo/kernel", "mlp_out", "mlp layers embed"),
            ("decoder/decoder_norm/scale", "final_gain", "embed"),
            ("decoder/logits_dense/kernel", "unembed", "embed vocab"),
        ]
    ),
    contain=lambda flat: {"params": nested(flat)},
)
