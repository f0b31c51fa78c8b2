"""Google DeepMind's Gemma (Linen): kernels of einsums, keys and values in one, gains as 1 + w."""

from growth import Architecture, Blueprint
from tests.helpers.code_bases import functions as f
from tests.helpers.code_bases.code_base import GROUPED, CodeBase, nested


def shapes(arch):
    h = arch.embed_dim
    found = {"embedder/input_embedding": (arch.vocab_size, h), "final_norm/scale": (h,)}
    for i, s in enumerate(arch.layers):
        found |= {
            f"layer_{i}/pre_attention_norm/scale": (h,),
            f"layer_{i}/attn/q_einsum/w": (s.num_heads, h, s.qk_dim),
            f"layer_{i}/attn/kv_einsum/w": (2, s.num_kv_heads, h, s.qk_dim),
            f"layer_{i}/attn/attn_vec_einsum/w": (s.num_heads, s.v_dim, h),
            f"layer_{i}/pre_ffw_norm/scale": (h,),
            f"layer_{i}/mlp/gating_einsum": (2, h, s.mlp_dim),
            f"layer_{i}/mlp/linear": (s.mlp_dim, h),
        }
    return found


def function(arch, p, tokens):
    table = p["embedder/input_embedding"]
    x = table[tokens] * arch.embed_dim**0.5
    for i, s in enumerate(arch.layers):
        at = f"layer_{i}"
        y = f.rms_norm(x, 1 + p[f"{at}/pre_attention_norm/scale"], arch.norm_eps)
        q = f.rotate_halves(f.einsum("bth,ehk->btek", y, p[f"{at}/attn/q_einsum/w"]), s.rope_theta)
        k, v = f.einsum("bth,nehk->nbtek", y, p[f"{at}/attn/kv_einsum/w"])
        mixed = f.attend(q, f.rotate_halves(k, s.rope_theta), v)
        x = x + f.einsum("btev,evh->bth", mixed, p[f"{at}/attn/attn_vec_einsum/w"])
        y = f.rms_norm(x, 1 + p[f"{at}/pre_ffw_norm/scale"], arch.norm_eps)
        gate, up = f.einsum("bth,nhp->nbtp", y, p[f"{at}/mlp/gating_einsum"])
        x = x + (f.gelu(gate) * up) @ p[f"{at}/mlp/linear"]
    return f.rms_norm(x, 1 + p["final_norm/scale"], arch.norm_eps) @ table.T


GEMMA = CodeBase(
    "Linen",
    Architecture(
        **GROUPED | dict(v_dim=4), activation="gelu", unit_offset=True, scaled_embedding=True,
        tied_embeddings=True,
    ),
    shapes,
    function,
    Blueprint(
        [
            ("embedder/input_embedding", "embedding", "vocab embed"),
            ("layer_{layers}/pre_{part}_norm/scale", "norm_gain", "embed"),
            ("layer_{layers}/attn/q_einsum/w", "query", "(kv_heads group) embed qk"),
            ("layer_{layers}/attn/kv_einsum/w", ("key", "value"), "role kv_heads embed qk"),
            ("layer_{layers}/attn/attn_vec_einsum/w", "attention_out", "(kv_heads group) v embed"),
            ("layer_{layers}/mlp/gating_einsum", ("mlp_in", "mlp_in"), "role embed mlp"),
            ("layer_{layers}/mlp/linear", "mlp_out", "mlp embed"),
            ("final_norm/scale", "final_gain", "embed"),
        ]
    ),
    contain=lambda flat: {"params": nested(flat)},
    one_width=True,
)  # fmt: skip
