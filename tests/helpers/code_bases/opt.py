"""OPT in transformers' Flax layout: an epsilon that is a literal, positions that begin at row 2.

The norm before each MLP is called `final_layer_norm`, and so is the last one of all.
"""

from growth import Architecture, Blueprint
from tests.helpers.code_bases import functions as f
from tests.helpers.code_bases.code_base import SIZES, CodeBase, nested

_EPS, _FIRST = 1e-5, 2


def shapes(arch):
    h, top = arch.embed_dim, "model/decoder"
    found = {
        f"{top}/embed_tokens/embedding": (arch.vocab_size, h),
        f"{top}/embed_positions/embedding": (arch.max_length, h),
        f"{top}/final_layer_norm/scale": (h,),
        f"{top}/final_layer_norm/bias": (h,),
    }
    for i, s in enumerate(arch.layers):
        qk, v = s.num_heads * s.qk_dim, s.num_heads * s.v_dim
        dense = {
            "self_attn/q_proj": (h, qk),
            "self_attn/k_proj": (h, qk),
            "self_attn/v_proj": (h, v),
            "self_attn/out_proj": (v, h),
            "fc1": (h, s.mlp_dim),
            "fc2": (s.mlp_dim, h),
        }
        for name, shape in dense.items():
            found[f"{top}/layers/{i}/{name}/kernel"] = shape
            found[f"{top}/layers/{i}/{name}/bias"] = shape[1:]
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            found[f"{top}/layers/{i}/{name}/scale"] = (h,)
            found[f"{top}/layers/{i}/{name}/bias"] = (h,)
    return found


def function(arch, p, tokens):
    p = {name.removeprefix("model/decoder/"): array for name, array in p.items()}

    def norm(x, name):
        return f.layer_norm(x, p[f"{name}/scale"], p[f"{name}/bias"], _EPS)

    def dense(x, name):
        return x @ p[f"{name}/kernel"] + p[f"{name}/bias"]

    table, length = p["embed_tokens/embedding"], tokens.shape[1]
    x = table[tokens] + p["embed_positions/embedding"][_FIRST : _FIRST + length]
    for i, s in enumerate(arch.layers):
        at = f"layers/{i}"
        y = norm(x, f"{at}/self_attn_layer_norm")
        q, k, v = (f.split_heads(dense(y, f"{at}/self_attn/{n}_proj"), s.num_heads) for n in "qkv")
        x = x + dense(f.join_heads(f.attend(q, k, v)), f"{at}/self_attn/out_proj")
        y = f.relu(dense(norm(x, f"{at}/final_layer_norm"), f"{at}/fc1"))
        x = x + dense(y, f"{at}/fc2")
    return norm(x, "final_layer_norm") @ table.T


_LAYER = "model/decoder/layers/{layers}"
OPT = CodeBase(
    "Linen",
    Architecture(
        **SIZES | dict(max_length=10, norm_eps=_EPS), norm="layernorm", activation="relu",
        gated_mlp=False, position="learned", use_bias=True, tied_embeddings=True,
        fixed_norm_eps=True,
    ),
    shapes,
    function,
    Blueprint(
        [
            ("model/decoder/embed_tokens/embedding", "embedding", "vocab embed"),
            ("model/decoder/embed_positions/embedding", "position", "length embed"),
            (f"{_LAYER}/{{which}}_layer_norm/scale", "norm_gain", "embed"),
            (f"{_LAYER}/{{which}}_layer_norm/bias", "norm_bias", "embed"),
            (f"{_LAYER}/self_attn/q_proj/kernel", "query", "embed (kv_heads qk)"),
            (f"{_LAYER}/self_attn/q_proj/bias", "query", "(kv_heads qk)"),
            (f"{_LAYER}/self_attn/k_proj/kernel", "key", "embed (kv_heads qk)"),
            (f"{_LAYER}/self_attn/k_proj/bias", "key", "(kv_heads qk)"),
            (f"{_LAYER}/self_attn/v_proj/kernel", "value", "embed (kv_heads v)"),
            (f"{_LAYER}/self_attn/v_proj/bias", "value", "(kv_heads v)"),
            (
                f"{_LAYER}/self_attn/out_proj/kernel",
                "attention_out",
                "(kv_heads v) embed",
            ),
            (f"{_LAYER}/self_attn/out_proj/bias", "attention_out", "embed"),
            (f"{_LAYER}/fc1/kernel", "mlp_in", "embed mlp"),
            (f"{_LAYER}/fc1/bias", "mlp_in", "mlp"),
            (f"{_LAYER}/fc2/kernel", "mlp_out", "mlp embed"),
            (f"{_LAYER}/fc2/bias", "mlp_out", "embed"),
            ("model/decoder/final_layer_norm/scale", "final_gain", "embed"),
            ("model/decoder/final_layer_norm/bias", "final_bias", "embed"),
        ]
    ),
    contain=nested,
)  # fmt: skip
