"""llama-2-jax (no module system): named tuples of arrays that hold all layers, groups first.

Query heads are [queries of a group, groups], where others have [groups, queries of a group].
"""

from typing import Any, NamedTuple

from growth import Architecture, Blueprint
from tests.helpers.code_bases import functions as f
from tests.helpers.code_bases.code_base import GROUPED, CodeBase, nested


class Attention(NamedTuple):
    q_proj: Any
    k_proj: Any
    v_proj: Any
    out_proj: Any


class Decoder(NamedTuple):
    input_norm: Any
    attention: Attention
    post_attn_norm: Any
    gate_proj: Any
    up_proj: Any
    down_proj: Any


class Body(NamedTuple):
    embedding: Any
    decoder: Decoder
    norm: Any


class Llama(NamedTuple):
    model: Body
    lm_head: Any


def contain(flat):
    tree = nested(flat)
    decoder = tree["model"]["decoder"]
    decoder["attention"] = Attention(**decoder["attention"])
    body = Body(**tree["model"] | {"decoder": Decoder(**decoder)})
    return Llama(body, tree["lm_head"])


def shapes(arch):
    h, n, s = arch.embed_dim, arch.num_layers, arch.layers[0]
    g, r, p = s.num_kv_heads, s.queries_per_group, s.mlp_dim
    return {
        "model/embedding": (arch.vocab_size, h),
        "model/decoder/input_norm": (n, h),
        "model/decoder/attention/q_proj": (n, h, r, g, s.qk_dim),
        "model/decoder/attention/k_proj": (n, h, g, s.qk_dim),
        "model/decoder/attention/v_proj": (n, h, g, s.v_dim),
        "model/decoder/attention/out_proj": (n, r, g, s.v_dim, h),
        "model/decoder/post_attn_norm": (n, h),
        "model/decoder/gate_proj": (n, h, p),
        "model/decoder/up_proj": (n, h, p),
        "model/decoder/down_proj": (n, p, h),
        "model/norm": (h,),
        "lm_head": (h, arch.vocab_size),
    }


def function(arch, p, tokens):
    x = p["model/embedding"][tokens]
    for i, s in enumerate(arch.layers):
        w = {n.split("/")[-1]: a[i] for n, a in p.items() if "decoder" in n}
        y = f.rms_norm(x, w["input_norm"], arch.norm_eps)
        q = f.einsum("blm,mrhk->blhrk", y, w["q_proj"])
        q = f.rotate_halves(q.reshape(*q.shape[:2], s.num_heads, -1), s.rope_theta)
        k = f.rotate_halves(f.einsum("blm,mhk->blhk", y, w["k_proj"]), s.rope_theta)
        mixed = f.attend(q, k, f.einsum("blm,mhv->blhv", y, w["v_proj"]))
        mixed = mixed.reshape(*mixed.shape[:2], s.num_kv_heads, s.queries_per_group, -1)
        x = x + f.einsum("blhrv,rhvm->blm", mixed, w["out_proj"])
        y = f.rms_norm(x, w["post_attn_norm"], arch.norm_eps)
        x = x + (f.silu(y @ w["gate_proj"]) * (y @ w["up_proj"])) @ w["down_proj"]
    return f.rms_norm(x, p["model/norm"], arch.norm_eps) @ p["lm_head"]


LLAMA2_JAX = CodeBase(
    "plain pytree",
    Architecture.llama(**GROUPED | dict(num_heads=6)),
    shapes,
    function,
    Blueprint(
        [
            ("model/embedding", "embedding", "vocab embed"),
            ("model/decoder/{which}_norm", "norm_gain", "layers embed"),
            ("model/decoder/attention/q_proj", "query", "layers embed group kv_heads qk"),
            ("model/decoder/attention/k_proj", "key", "layers embed kv_heads qk"),
            ("model/decoder/attention/v_proj", "value", "layers embed kv_heads v"),
            ("model/decoder/attention/out_proj", "attention_out", "layers group kv_heads v embed"),
            ("model/decoder/gate_proj", "mlp_in", "layers embed mlp"),
            ("model/decoder/up_proj", "mlp_in", "layers embed mlp"),
            ("model/decoder/down_proj", "mlp_out", "layers mlp embed"),
            ("model/norm", "final_gain", "embed"),
            ("lm_head", "unembed", "embed vocab"),
        ]
    ),
    contain=contain,
)
