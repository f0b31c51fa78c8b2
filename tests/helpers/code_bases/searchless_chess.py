"""DeepMind's searchless chess (Haiku): the arrays of all layers are counted in one row.

Haiku gives the first module of a name no number; seven linear maps and two norms a layer.
"""

from growth import Architecture, Blueprint
from tests.helpers.code_bases import functions as f
from tests.helpers.code_bases.code_base import SIZES, CodeBase, haiku


def _counted(name, number):
    return f"{name}_{number}" if number else name


def shapes(arch):
    h, n = arch.embed_dim, arch.num_layers
    found = {
        "embed/embeddings": (arch.vocab_size, h),
        "embed_1/embeddings": (arch.max_length, h),
        f"linear_{7 * n}/w": (h, arch.vocab_size),
        f"linear_{7 * n}/b": (arch.vocab_size,),
    }
    for i, s in enumerate(arch.layers):
        qk, v, p = s.num_heads * s.qk_dim, s.num_heads * s.v_dim, s.mlp_dim
        for j, shape in enumerate([(h, qk), (h, qk), (h, v), (v, h), (h, p), (h, p), (p, h)]):
            found[f"{_counted('linear', 7 * i + j)}/w"] = shape
    for number in range(2 * n + 1):
        found[f"{_counted('layer_norm', number)}/scale"] = (h,)
        found[f"{_counted('layer_norm', number)}/offset"] = (h,)
    return found


def function(arch, p, tokens):
    def norm(x, number):
        name = _counted("layer_norm", number)
        return f.layer_norm(x, p[f"{name}/scale"], p[f"{name}/offset"], arch.norm_eps)

    x = p["embed/embeddings"][tokens] + p["embed_1/embeddings"][: tokens.shape[1]]
    for i, s in enumerate(arch.layers):
        w = [p[f"{_counted('linear', 7 * i + j)}/w"] for j in range(7)]
        y = norm(x, 2 * i)
        q, k, v = (f.split_heads(y @ kernel, s.num_heads) for kernel in w[:3])
        x = x + f.join_heads(f.attend(q, k, v)) @ w[3]
        y = norm(x, 2 * i + 1)
        x = x + (f.silu(y @ w[4]) * (y @ w[5])) @ w[6]
    x, last = norm(x, 2 * arch.num_layers), f"linear_{7 * arch.num_layers}"
    return x @ p[f"{last}/w"] + p[f"{last}/b"]


SEARCHLESS_CHESS = CodeBase(
    "Haiku",
    Architecture(**SIZES, norm="layernorm", position="learned", use_bias=("norm",)),
    shapes,
    function,
    Blueprint(
        [
            ("embed/embeddings", "embedding", "vocab embed"),
            ("embed_1/embeddings", "position", "length embed"),
            ("layer_norm{_2*layers}/scale", "norm_gain", "embed"),
            ("layer_norm{_2*layers}/offset", "norm_bias", "embed"),
            ("layer_norm_{2*layers+1}/scale", "norm_gain", "embed"),
            ("layer_norm_{2*layers+1}/offset", "norm_bias", "embed"),
            ("layer_norm_{2*num_layers}/scale", "final_gain", "embed"),
            ("layer_norm_{2*num_layers}/offset", "final_bias", "embed"),
            ("linear{_7*layers}/w", "query", "embed (kv_heads qk)"),
            ("linear_{7*layers+1}/w", "key", "embed (kv_heads qk)"),
            ("linear_{7*layers+2}/w", "value", "embed (kv_heads v)"),
            ("linear_{7*layers+3}/w", "attention_out", "(kv_heads v) embed"),
            ("linear_{7*layers+4}/w", "mlp_in", "embed mlp"),
            ("linear_{7*layers+5}/w", "mlp_in", "embed mlp"),
            ("linear_{7*layers+6}/w", "mlp_out", "mlp embed"),
            ("linear_{7*num_layers}/w", "unembed", "embed vocab"),
            ("linear_{7*num_layers}/b", "unembed", "vocab"),
        ]
    ),
    contain=haiku,
)
