"""GPT-J in transformers' Flax layout: both branches behind one norm, part of a head is turned."""

from growth import Architecture, Blueprint
from tests.helpers.code_bases import functions as f
from tests.helpers.code_bases.code_base import SIZES, CodeBase, nested


def shapes(arch):
    h = arch.embed_dim
    found = {"transformer/wte/embedding": (arch.vocab_size, h)}
    for i, s in enumerate(arch.layers):
        found |= {
            f"transformer/h/{i}/{name}": shape
            for name, shape in {
                "ln_1/scale": (h,),
                "ln_1/bias": (h,),
                "attn/q_proj/kernel": (h, s.num_heads * s.qk_dim),
                "attn/k_proj/kernel": (h, s.num_heads * s.qk_dim),
                "attn/v_proj/kernel": (h, s.num_heads * s.v_dim),
                "attn/out_proj/kernel": (s.num_heads * s.v_dim, h),
                "mlp/fc_in/kernel": (h, s.mlp_dim),
                "mlp/fc_in/bias": (s.mlp_dim,),
                "mlp/fc_out/kernel": (s.mlp_dim, h),
                "mlp/fc_out/bias": (h,),
            }.items()
        }
    return found | {
        "transformer/ln_f/scale": (h,),
        "transformer/ln_f/bias": (h,),
        "lm_head/kernel": (h, arch.vocab_size),
        "lm_head/bias": (arch.vocab_size,),
    }


def function(arch, p, tokens):
    x = p["transformer/wte/embedding"][tokens]
    for i, s in enumerate(arch.layers):
        at = f"transformer/h/{i}/"
        w = {n.removeprefix(at): a for n, a in p.items() if n.startswith(at)}
        y = f.layer_norm(x, w["ln_1/scale"], w["ln_1/bias"], arch.norm_eps)
        q, k, v = (f.split_heads(y @ w[f"attn/{n}_proj/kernel"], s.num_heads) for n in "qkv")
        q, k = (f.rotate_neighbours(z, s.rope_theta, arch.rotary_dim) for z in (q, k))
        mixed = f.join_heads(f.attend(q, k, v)) @ w["attn/out_proj/kernel"]
        hidden = f.gelu(y @ w["mlp/fc_in/kernel"] + w["mlp/fc_in/bias"])
        x = x + mixed + hidden @ w["mlp/fc_out/kernel"] + w["mlp/fc_out/bias"]
    x = f.layer_norm(x, p["transformer/ln_f/scale"], p["transformer/ln_f/bias"], arch.norm_eps)
    return x @ p["lm_head/kernel"] + p["lm_head/bias"]


GPTJ = CodeBase(
    "Linen",
    Architecture(
        **SIZES, norm="layernorm", activation="gelu", gated_mlp=False, parallel="shared_norm",
        rotary_dim=2, rotary_interleaved=True, use_bias=("norm", "mlp_in", "mlp_out"),
    ),
    shapes,
    function,
    Blueprint(
        [
            ("transformer/wte/embedding", "embedding", "vocab embed"),
            ("transformer/h/{layers}/ln_1/scale", "norm_gain", "embed"),
            ("transformer/h/{layers}/ln_1/bias", "norm_bias", "embed"),
            ("transformer/h/{layers}/attn/q_proj/kernel", "query", "embed (kv_heads qk)"),
            ("transformer/h/{layers}/attn/k_proj/kernel", "key", "embed (kv_heads qk)"),
            ("transformer/h/{layers}/attn/v_proj/kernel", "value", "embed (kv_heads v)"),
            ("transformer/h/{layers}/attn/out_proj/kernel", "attention_out", "(kv_heads v) embed"),
            ("transformer/h/{layers}/mlp/fc_in/kernel", "mlp_in", "embed mlp"),
            ("transformer/h/{layers}/mlp/fc_in/bias", "mlp_in", "mlp"),
            ("transformer/h/{layers}/mlp/fc_out/kernel", "mlp_out", "mlp embed"),
            ("transformer/h/{layers}/mlp/fc_out/bias", "mlp_out", "embed"),
            ("transformer/ln_f/scale", "final_gain", "embed"),
            ("transformer/ln_f/bias", "final_bias", "embed"),
            ("lm_head/kernel", "unembed", "embed vocab"),
            ("lm_head/bias", "unembed", "vocab"),
        ]
    ),
    contain=nested,
)  # fmt: skip
