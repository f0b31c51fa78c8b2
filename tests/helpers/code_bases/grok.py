"""xAI's Grok-1 (Haiku): experts, norms on both sides of each branch, caps, constant factors."""

from growth import Architecture, Blueprint
from tests.helpers.code_bases import functions as f
from tests.helpers.code_bases.code_base import GROUPED, CodeBase, haiku

_EXPERTS, _CHOSEN = 8, 2
_INPUT, _OUTPUT = 3.0, 0.577  # what embeddings and logits are multiplied by, at every width


def shapes(arch):
    h = arch.embed_dim
    found = {"language_model/in_out_embed/embeddings": (arch.vocab_size, h)}
    for i, s in enumerate(arch.layers):
        at, p = f"transformer/decoder_layer_{i}", s.mlp_dim
        found |= {f"{at}/rms_norm{n}/scale": (h,) for n in ("", "_1", "_2", "_3")}
        found |= {
            f"{at}/multi_head_attention/query/w": (h, s.num_heads * s.qk_dim),
            f"{at}/multi_head_attention/key/w": (h, s.num_kv_heads * s.qk_dim),
            f"{at}/multi_head_attention/value/w": (h, s.num_kv_heads * s.v_dim),
            f"{at}/multi_head_attention/linear/w": (s.num_heads * s.v_dim, h),
            f"{at}/router/w": (h, _EXPERTS),
            f"{at}/moe/linear/w": (_EXPERTS, h, p),
            f"{at}/moe/linear_v/w": (_EXPERTS, h, p),
            f"{at}/moe/linear_1/w": (_EXPERTS, p, h),
        }
    return found | {"language_model/rms_norm/scale": (h,)}


def function(arch, p, tokens):
    table, eps = p["language_model/in_out_embed/embeddings"], arch.norm_eps
    x = _INPUT * table[tokens]
    for i, s in enumerate(arch.layers):
        at = f"transformer/decoder_layer_{i}/"
        w = {n.removeprefix(at): a for n, a in p.items() if n.startswith(at)}
        norms = [w[f"rms_norm{n}/scale"] for n in ("", "_1", "_2", "_3")]
        y = f.rms_norm(x, norms[0], eps)
        q, k, v = (
            f.split_heads(y @ w[f"multi_head_attention/{name}/w"], number)
            for name, number in zip(
                ("query", "key", "value"), (s.num_heads, *2 * [s.num_kv_heads]), strict=True
            )
        )
        q, k = (f.rotate_halves(z, s.rope_theta) for z in (q, k))
        y = f.attend(q, k, v, scale=arch.query_scale, softcap=arch.attention_softcap)
        y = f.join_heads(y) @ w["multi_head_attention/linear/w"]
        x = x + f.rms_norm(y, norms[1], eps)
        y = f.rms_norm(x, norms[2], eps)
        share = f.softmax(y @ w["router/w"])
        least = f.namespace(share).sort(share, axis=-1)[..., -_CHOSEN, None]
        share = share * (share >= least)
        hidden = f.gelu(f.einsum("bth,xhp->btxp", y, w["moe/linear/w"]))
        hidden = hidden * f.einsum("bth,xhp->btxp", y, w["moe/linear_v/w"])
        y = f.einsum("btx,btxp,xph->bth", share, hidden, w["moe/linear_1/w"])
        x = x + f.rms_norm(y, norms[3], eps)
    return _OUTPUT * f.rms_norm(x, p["language_model/rms_norm/scale"], eps) @ table.T


GROK = CodeBase(
    "Haiku",
    Architecture(
        **GROUPED, activation="gelu", norm_placement="sandwich", tied_embeddings=True,
        query_scale=0.3, attention_softcap=3.0,
    ),
    shapes,
    function,
    Blueprint(
        [
            ("language_model/in_out_embed/embeddings", "embedding", "vocab embed"),
            ("transformer/decoder_layer_{layers}/rms_norm/scale", "norm_gain", "embed"),
            ("transformer/decoder_layer_{layers}/rms_norm_1/scale", "closing_gain", "embed"),
            ("transformer/decoder_layer_{layers}/rms_norm_2/scale", "norm_gain", "embed"),
            ("transformer/decoder_layer_{layers}/rms_norm_3/scale", "closing_gain", "embed"),
            (
                "transformer/decoder_layer_{layers}/multi_head_attention/query/w",
                "query",
                "embed (kv_heads group qk)",
            ),
            (
                "transformer/decoder_layer_{layers}/multi_head_attention/key/w",
                "key",
                "embed (kv_heads qk)",
            ),
            (
                "transformer/decoder_layer_{layers}/multi_head_attention/value/w",
                "value",
                "embed (kv_heads v)",
            ),
            (
                "transformer/decoder_layer_{layers}/multi_head_attention/linear/w",
                "attention_out",
                "(kv_heads group v) embed",
            ),
            ("transformer/decoder_layer_{layers}/router/w", "router", "embed experts"),
            ("transformer/decoder_layer_{layers}/moe/linear/w", "mlp_in", "experts embed mlp"),
            ("transformer/decoder_layer_{layers}/moe/linear_v/w", "mlp_in", "experts embed mlp"),
            ("transformer/decoder_layer_{layers}/moe/linear_1/w", "mlp_out", "experts mlp embed"),
            ("language_model/rms_norm/scale", "final_gain", "embed"),
        ]
    ),
    contain=haiku,
)  # fmt: skip
