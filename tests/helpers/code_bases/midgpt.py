"""midGPT (Equinox): one kernel for queries, keys and values, a norm of each query and key.

The norms of the stream have no gains, layers are stacked by vmap, neighbouring columns are turned.
"""

import equinox as eqx
import jax

from growth import Architecture, Blueprint
from tests.helpers.code_bases import functions as f
from tests.helpers.code_bases.code_base import SIZES, CodeBase, nested


class Linear(eqx.Module):
    weight: jax.Array  # [outputs, inputs]


class Norm(eqx.Module):
    weight: jax.Array | None


class Attention(eqx.Module):
    c_attn: Linear
    c_proj: Linear
    q_ln: Norm
    k_ln: Norm
    heads: int = eqx.field(static=True)


class MLP(eqx.Module):
    c_fc: Linear
    c_proj: Linear


class Block(eqx.Module):
    attn: Attention
    mlp: MLP
    ln1: Norm
    ln2: Norm


class GPT(eqx.Module):
    wte: Linear
    blocks: Block
    ln_f: Norm
    lm_head: Linear


def contain(flat):
    tree = nested(flat)
    attn, mlp = tree["blocks"]["attn"], tree["blocks"]["mlp"]
    linears = (Linear(attn[name]["weight"]) for name in ("c_attn", "c_proj"))
    norms = (Norm(attn[name]["weight"]) for name in ("q_ln", "k_ln"))
    attention = Attention(*linears, *norms, heads=2)
    hidden = MLP(*(Linear(mlp[name]["weight"]) for name in ("c_fc", "c_proj")))
    block = Block(attention, hidden, Norm(None), Norm(None))
    ends = (Linear(tree[name]["weight"]) for name in ("wte", "lm_head"))
    return GPT(next(ends), block, Norm(None), next(ends))


def shapes(arch):
    h, n, s = arch.embed_dim, arch.num_layers, arch.layers[0]
    qk, v, p = s.num_heads * s.qk_dim, s.num_heads * s.v_dim, s.mlp_dim
    return {
        "wte/weight": (arch.vocab_size, h),
        "blocks/attn/c_attn/weight": (n, 2 * qk + v, h),
        "blocks/attn/c_proj/weight": (n, h, v),
        "blocks/attn/q_ln/weight": (n, s.qk_dim),
        "blocks/attn/k_ln/weight": (n, s.qk_dim),
        "blocks/mlp/c_fc/weight": (n, p, h),
        "blocks/mlp/c_proj/weight": (n, h, p),
        "lm_head/weight": (arch.vocab_size, h),
    }


def function(arch, p, tokens):
    eps, xp = arch.norm_eps, f.namespace(p["wte/weight"])
    x = p["wte/weight"][tokens]
    for i, s in enumerate(arch.layers):
        at, qk = "blocks/attn", s.num_heads * s.qk_dim
        y = f.rms_norm(x, 1.0, eps) @ p[f"{at}/c_attn/weight"][i].T
        q, k, v = (f.split_heads(z, s.num_heads) for z in xp.split(y, [qk, 2 * qk], axis=-1))
        q = f.layer_norm(q, p[f"{at}/q_ln/weight"][i], 0.0, eps)
        k = f.layer_norm(k, p[f"{at}/k_ln/weight"][i], 0.0, eps)
        q, k = (f.rotate_neighbours(z, s.rope_theta) for z in (q, k))
        x = x + f.join_heads(f.attend(q, k, v)) @ p[f"{at}/c_proj/weight"][i].T
        y = f.rms_norm(x, 1.0, eps) @ p["blocks/mlp/c_fc/weight"][i].T
        x = x + f.gelu(y) @ p["blocks/mlp/c_proj/weight"][i].T
    return f.rms_norm(x, 1.0, eps) @ p["lm_head/weight"].T


MIDGPT = CodeBase(
    "Equinox",
    Architecture(
        **SIZES, activation="gelu", gated_mlp=False, norm_gain=False, qk_norm="head",
        rotary_interleaved=True,
    ),
    shapes,
    function,
    Blueprint(
        [
            ("wte/weight", "embedding", "vocab embed"),
            (
                "blocks/attn/c_attn/weight",
                ("query", "key", "value"),
                "layers (role kv_heads qk) embed",
            ),
            ("blocks/attn/c_proj/weight", "attention_out", "layers embed (kv_heads v)"),
            ("blocks/attn/q_ln/weight", "qk_norm", "layers qk"),
            ("blocks/attn/k_ln/weight", "qk_norm", "layers qk"),
            ("blocks/mlp/c_fc/weight", "mlp_in", "layers mlp embed"),
            ("blocks/mlp/c_proj/weight", "mlp_out", "layers embed mlp"),
            ("lm_head/weight", "unembed", "vocab embed"),
        ]
    ),
    contain=contain,
)  # fmt: skip
