"""EasyLM's Llama (Linen): neighbouring columns are turned, and gains are called kernels."""

from growth import Architecture, Blueprint
from tests.helpers.code_bases import functions as f
from tests.helpers.code_bases.code_base import GROUPED, CodeBase, nested


def shapes(arch):
    h = arch.embed_dim
    found = {"transformer/wte/embedding": (arch.vocab_size, h), "transformer/ln_f/kernel": (h,)}
    for i, s in enumerate(arch.layers):
        found |= {
            f"transformer/h/{i}/{name}/kernel": shape
            for name, shape in {
                "attention/wq": (h, s.num_heads * s.qk_dim),
                "attention/wk": (h, s.num_kv_heads * s.qk_dim),
                "attention/wv": (h, s.num_kv_heads * s.v_dim),
                "attention/wo": (s.num_heads * s.v_dim, h),
                "feed_forward/w1": (h, s.mlp_dim),
                "feed_forward/w2": (s.mlp_dim, h),
                "feed_forward/w3": (h, s.mlp_dim),
                "attention_norm": (h,),
                "ffn_norm": (h,),
            }.items()
        }
    return found | {"lm_head/kernel": (h, arch.vocab_size)}


def function(arch, p, tokens):
    x = p["transformer/wte/embedding"][tokens]
    for i, s in enumerate(arch.layers):
        w = {n.split("/")[-2]: a for n, a in p.items() if n.startswith(f"transformer/h/{i}/")}
        y = f.rms_norm(x, w["attention_norm"], arch.norm_eps)
        q = f.rotate_neighbours(f.split_heads(y @ w["wq"], s.num_heads), s.rope_theta)
        k = f.rotate_neighbours(f.split_heads(y @ w["wk"], s.num_kv_heads), s.rope_theta)
        v = f.split_heads(y @ w["wv"], s.num_kv_heads)
        x = x + f.join_heads(f.attend(q, k, v)) @ w["wo"]
        y = f.rms_norm(x, w["ffn_norm"], arch.norm_eps)
        x = x + (f.silu(y @ w["w1"]) * (y @ w["w3"])) @ w["w2"]
    return f.rms_norm(x, p["transformer/ln_f/kernel"], arch.norm_eps) @ p["lm_head/kernel"]


EASYLM = CodeBase(
    "Linen",
    Architecture.llama(**GROUPED, rotary_interleaved=True),
    shapes,
    function,
    Blueprint(
        [
            ("transformer/wte/embedding", "embedding", "vocab embed"),
            ("transformer/h/{layers}/{part}_norm/kernel", "norm_gain", "embed"),
            ("transformer/h/{layers}/attention/wq/kernel", "query", "embed (kv_heads group qk)"),
            ("transformer/h/{layers}/attention/wk/kernel", "key", "embed (kv_heads qk)"),
            ("transformer/h/{layers}/attention/wv/kernel", "value", "embed (kv_heads v)"),
            (
                "transformer/h/{layers}/attention/wo/kernel",
                "attention_out",
                "(kv_heads group v) embed",
            ),
            ("transformer/h/{layers}/feed_forward/w1/kernel", "mlp_in", "embed mlp"),
            ("transformer/h/{layers}/feed_forward/w3/kernel", "mlp_in", "embed mlp"),
            ("transformer/h/{layers}/feed_forward/w2/kernel", "mlp_out", "mlp embed"),
            ("transformer/ln_f/kernel", "final_gain", "embed"),
            ("lm_head/kernel", "unembed", "embed vocab"),
        ]
    ),
    contain=lambda flat: {"params": nested(flat)},
)
