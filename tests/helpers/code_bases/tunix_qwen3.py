"""Tunix's Qwen 3 (NNX): kernels of einsums called w, a norm of each query and key."""

from flax import nnx

from growth import Architecture, Blueprint
from tests.helpers.code_bases import functions as f
from tests.helpers.code_bases.code_base import GROUPED, CodeBase, nested


def contain(flat):
    """A state as `nnx.state(model, nnx.Param)` gives it: layers of a list have their numbers."""
    tree = nested({path: nnx.Param(array) for path, array in flat.items()})
    tree["layers"] = {int(index): layer for index, layer in tree["layers"].items()}
    return nnx.State(tree)


def shapes(arch):
    h = arch.embed_dim
    found = {"embedder/input_embedding": (arch.vocab_size, h)}
    for i, s in enumerate(arch.layers):
        e, g, k, v, p = s.num_heads, s.num_kv_heads, s.qk_dim, s.v_dim, s.mlp_dim
        found |= {
            f"layers/{i}/{name}": shape
            for name, shape in {
                "input_layernorm/w": (h,),
                "attn/q_proj/w": (h, e, k),
                "attn/k_proj/w": (h, g, k),
                "attn/v_proj/w": (h, g, v),
                "attn/o_proj/w": (e, v, h),
                "attn/q_norm/w": (k,),
                "attn/k_norm/w": (k,),
                "post_attention_layernorm/w": (h,),
                "mlp/gate_proj/kernel": (h, p),
                "mlp/up_proj/kernel": (h, p),
                "mlp/down_proj/kernel": (p, h),
            }.items()
        }
    return found | {"final_norm/w": (h,), "lm_head/w": (h, arch.vocab_size)}


def function(arch, p, tokens):
    eps = arch.norm_eps
    x = p["embedder/input_embedding"][tokens]
    for i, s in enumerate(arch.layers):
        at = f"layers/{i}/"
        w = {n.removeprefix(at): a for n, a in p.items() if n.startswith(at)}
        y = f.rms_norm(x, w["input_layernorm/w"], eps)
        q, k, v = (f.einsum("blh,hek->blek", y, w[f"attn/{n}_proj/w"]) for n in "qkv")
        q = f.rotate_halves(f.rms_norm(q, w["attn/q_norm/w"], eps), s.rope_theta)
        k = f.rotate_halves(f.rms_norm(k, w["attn/k_norm/w"], eps), s.rope_theta)
        x = x + f.einsum("blev,evh->blh", f.attend(q, k, v), w["attn/o_proj/w"])
        y = f.rms_norm(x, w["post_attention_layernorm/w"], eps)
        hidden = f.silu(y @ w["mlp/gate_proj/kernel"]) * (y @ w["mlp/up_proj/kernel"])
        x = x + hidden @ w["mlp/down_proj/kernel"]
    return f.rms_norm(x, p["final_norm/w"], eps) @ p["lm_head/w"]


TUNIX_QWEN3 = CodeBase(
    "NNX",
    Architecture(**GROUPED, qk_norm="head"),
    shapes,
    function,
    Blueprint(
        [
            ("embedder/input_embedding", "embedding", "vocab embed"),
            ("layers/{layers}/{which}_layernorm/w", "norm_gain", "embed"),
            ("layers/{layers}/attn/q_proj/w", "query", "embed (kv_heads group) qk"),
            ("layers/{layers}/attn/k_proj/w", "key", "embed kv_heads qk"),
            ("layers/{layers}/attn/v_proj/w", "value", "embed kv_heads v"),
            ("layers/{layers}/attn/o_proj/w", "attention_out", "(kv_heads group) v embed"),
            ("layers/{layers}/attn/{which}_norm/w", "qk_norm", "qk"),
            ("layers/{layers}/mlp/gate_proj/kernel", "mlp_in", "embed mlp"),
            ("layers/{layers}/mlp/up_proj/kernel", "mlp_in", "embed mlp"),
            ("layers/{layers}/mlp/down_proj/kernel", "mlp_out", "mlp embed"),
            ("final_norm/w", "final_gain", "embed"),
            ("lm_head/w", "unembed", "embed vocab"),
        ]
    ),
    contain=contain,
)
