"""An encoder that a learned query pools, in plain JAX, as vision models have it (a MAP head).

No norm touches the query, and none stands before the head: both see the stream as it is.
"""

import jax
import jax.numpy as jnp
import numpy as np

import growth
from growth import Architecture, Blueprint

_SIZES = dict(vocab_size=11, max_length=8, embed_dim=6, num_layers=2, num_heads=2, qk_dim=3)
_FIELDS = dict(v_dim=4, mlp_dim=5, norm_eps=1e-3, position="learned", causal=False, gated_mlp=False)

ARCHITECTURES = {
    "LayerNorm": Architecture(**_SIZES, **_FIELDS, norm="layernorm", use_bias=True),
    "fixed epsilon": Architecture(**_SIZES, **_FIELDS, use_bias=True, fixed_norm_eps=True),
    "scaled logits": Architecture(**_SIZES, **_FIELDS, use_bias=True, scaled_logits=True),
    "norm over each query and key": Architecture(
        **_SIZES, **_FIELDS, use_bias=("query", "key", "value"), qk_norm="head"
    ),
}

_RULES = (
    ("embed", "embedding", "vocab embed"),
    ("position", "position", "length embed"),
    ("layers/{layers}/norm/scale", "norm_gain", "embed"),
    ("layers/{layers}/norm/bias", "norm_bias", "embed"),
    ("layers/{layers}/up/kernel", "mlp_in", "embed mlp"),
    ("layers/{layers}/up/bias", "mlp_in", "mlp"),
    ("layers/{layers}/down/kernel", "mlp_out", "mlp embed"),
    ("layers/{layers}/down/bias", "mlp_out", "embed"),
    ("norm/scale", "norm_gain", "embed"),
    ("norm/bias", "norm_bias", "embed"),
    ("pool/probe", "probe", "embed"),
    ("pool/query/kernel", "probe_query", "embed kv_heads qk"),
    ("pool/query/bias", "probe_query", "kv_heads qk"),
    ("pool/key/kernel", "key", "embed kv_heads qk"),
    ("pool/key/bias", "key", "kv_heads qk"),
    ("pool/value/kernel", "value", "embed kv_heads v"),
    ("pool/value/bias", "value", "kv_heads v"),
    ("pool/out/kernel", "attention_out", "kv_heads v embed"),
    ("pool/out/bias", "attention_out", "embed"),
    ("pool/{which}_norm", "qk_norm", "qk"),
    ("pool/norm/scale", "norm_gain", "embed"),
    ("pool/norm/bias", "norm_bias", "embed"),
    ("pool/up/kernel", "mlp_in", "embed mlp"),
    ("pool/up/bias", "mlp_in", "mlp"),
    ("pool/down/kernel", "mlp_out", "mlp embed"),
    ("pool/down/bias", "mlp_out", "embed"),
    ("head/kernel", "stream_unembed", "embed classes"),
    ("head/bias", "stream_unembed", "classes"),
)
BLUEPRINT = Blueprint(_RULES)

# What one writes who does not know the roles of pooling: it fits the arrays, and is wrong.
_GUESSES = {"probe": "position", "probe_query": "query", "stream_unembed": "unembed"}
WRONG = Blueprint([(path, _GUESSES.get(role, role), axes) for path, role, axes in _RULES])


def step(architecture):
    """Along all that it has."""
    qk_dim = 6 if architecture.qk_norm == "none" else None
    sizes = dict(mlp_dim=7, num_heads=3, v_dim=5, qk_dim=qk_dim, embed_dim=8, num_layers=3)
    return growth.grow_to(**sizes)(architecture)


def init(arch, seed=0):
    """Random parameters, far from any initialization."""
    random = np.random.default_rng(seed)
    h, p, e, k, v = arch.embed_dim, arch.mlp_dim, arch.num_heads, arch.qk_dim, arch.v_dim

    def array(*shape):
        return jnp.asarray(0.6 * random.standard_normal(shape))

    def linear(*shape, outputs):
        return {"kernel": array(*shape), "bias": array(*outputs)}

    def norm():
        has_bias = arch.has_bias("norm")
        return {"scale": 1 + array(h)} | ({"bias": array(h)} if has_bias else {})

    def mlp():
        return {
            "norm": norm(),
            "up": linear(h, p, outputs=(p,)),
            "down": linear(p, h, outputs=(h,)),
        }

    pool = mlp() | {
        "probe": array(h),
        "query": linear(h, e, k, outputs=(e, k)),
        "key": linear(h, e, k, outputs=(e, k)),
        "value": linear(h, e, v, outputs=(e, v)),
        "out": linear(e, v, h, outputs=(h,)),
    }
    if arch.qk_norm == "head":
        pool |= {"query_norm": array(k), "key_norm": array(k)}
    return {
        "embed": array(arch.vocab_size, h),
        "position": array(arch.max_length, h),
        "layers": [mlp() for _ in range(arch.num_layers)],
        "norm": norm(),
        "pool": pool,
        "head": linear(h, 7, outputs=(7,)),
    }


def apply(arch, tree, tokens):
    """Tokens [batch, length] to logits [batch, classes]."""

    def normed(x, gain, bias=0.0):
        if arch.norm == "layernorm":
            x = x - x.mean(-1, keepdims=True)
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + arch.norm_eps) * gain + bias

    def norm(x, at):
        return normed(x, at["scale"], at.get("bias", 0.0))

    def linear(x, at, over=1):
        return jnp.tensordot(x, at["kernel"], over) + at["bias"]

    def mlp(x, at):
        return x + linear(jax.nn.silu(linear(norm(x, at["norm"]), at["up"])), at["down"])

    x = tree["embed"][tokens] + tree["position"][: tokens.shape[-1]]
    for layer in tree["layers"]:
        x = mlp(x, layer)
    x = norm(x, tree["norm"])
    pool = tree["pool"]
    q, k, v = linear(pool["probe"], pool["query"]), linear(x, pool["key"]), linear(x, pool["value"])
    if arch.qk_norm == "head":
        q, k = normed(q, pool["query_norm"]), normed(k, pool["key_norm"])
    weights = jax.nn.softmax(jnp.einsum("ek,btek->bet", q, k) / q.shape[-1] ** 0.5, axis=-1)
    pooled = linear(jnp.einsum("bet,btev->bev", weights, v), pool["out"], over=2)
    products = mlp(pooled, pool) @ tree["head"]["kernel"]
    return products / (arch.embed_dim**0.5 if arch.scaled_logits else 1) + tree["head"]["bias"]


def loss(arch, tokens, tree):
    """The mean square of the logits."""
    return (apply(arch, tree, tokens) ** 2).mean()
