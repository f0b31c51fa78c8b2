"""nanodo (Linen): names that Linen makes itself, LayerNorm without biases, tied embeddings."""

from growth import Architecture, Blueprint
from tests.helpers.code_bases import functions as f
from tests.helpers.code_bases.code_base import SIZES, CodeBase, nested


def shapes(arch):
    h = arch.embed_dim
    found = {
        "embed/embedding": (arch.vocab_size, h),
        "pos_embed/embedding": (arch.max_length, h),
        "out_ln/scale": (h,),
    }
    for i, s in enumerate(arch.layers):
        e, k, v = s.num_heads, s.qk_dim, s.v_dim
        found |= {
            f"blocks_{i}/LayerNorm_0/scale": (h,),
            f"blocks_{i}/CausalAttn_0/query/kernel": (h, e, k),
            f"blocks_{i}/CausalAttn_0/key/kernel": (h, e, k),
            f"blocks_{i}/CausalAttn_0/value/kernel": (h, e, v),
            f"blocks_{i}/CausalAttn_0/attn_out_proj/kernel": (e, v, h),
            f"blocks_{i}/LayerNorm_1/scale": (h,),
            f"blocks_{i}/Mlp_0/Dense_0/kernel": (h, s.mlp_dim),
            f"blocks_{i}/Mlp_0/Dense_1/kernel": (s.mlp_dim, h),
        }
    return found


def function(arch, p, tokens):
    table = p["embed/embedding"]
    x = table[tokens] + p["pos_embed/embedding"][: tokens.shape[1]]
    for i in range(arch.num_layers):
        at = f"blocks_{i}/CausalAttn_0"
        y = f.layer_norm(x, p[f"blocks_{i}/LayerNorm_0/scale"], 0.0, arch.norm_eps)
        q, k, v = (
            f.einsum("blh,hek->blek", y, p[f"{at}/{name}/kernel"])
            for name in ("query", "key", "value")
        )
        x = x + f.einsum("blev,evh->blh", f.attend(q, k, v), p[f"{at}/attn_out_proj/kernel"])
        y = f.layer_norm(x, p[f"blocks_{i}/LayerNorm_1/scale"], 0.0, arch.norm_eps)
        x = (
            x
            + f.gelu(y @ p[f"blocks_{i}/Mlp_0/Dense_0/kernel"])
            @ (p[f"blocks_{i}/Mlp_0/Dense_1/kernel"])
        )
    return f.layer_norm(x, p["out_ln/scale"], 0.0, arch.norm_eps) @ table.T


NANODO = CodeBase(
    "Linen",
    Architecture(
        **SIZES, norm="layernorm", activation="gelu", gated_mlp=False, position="learned",
        tied_embeddings=True,
    ),
    shapes,
    function,
    Blueprint(
        [
            ("embed/embedding", "embedding", "vocab embed"),
            ("pos_embed/embedding", "position", "length embed"),
            ("blocks_{layers}/LayerNorm_{which}/scale", "norm_gain", "embed"),
            ("blocks_{layers}/CausalAttn_0/query/kernel", "query", "embed kv_heads qk"),
            ("blocks_{layers}/CausalAttn_0/key/kernel", "key", "embed kv_heads qk"),
            ("blocks_{layers}/CausalAttn_0/value/kernel", "value", "embed kv_heads v"),
            (
                "blocks_{layers}/CausalAttn_0/attn_out_proj/kernel",
                "attention_out",
                "kv_heads v embed",
            ),
            ("blocks_{layers}/Mlp_0/Dense_0/kernel", "mlp_in", "embed mlp"),
            ("blocks_{layers}/Mlp_0/Dense_1/kernel", "mlp_out", "mlp embed"),
            ("out_ln/scale", "final_gain", "embed"),
        ]
    ),
    contain=lambda flat: {"params": nested(flat)},
)  # fmt: skip
