"""A network with arrays of embed_dim by embed_dim that are not the stream on both sides.

An embedder of places adds to the stream (as embedders of time do), a layer's hidden units and those
of the head (as in masked language models and poolers) are as many as the stream has dimensions.
"""

import jax
import jax.numpy as jnp
import numpy as np

import growth
from growth import Architecture, Blueprint

_SIZES = dict(vocab_size=11, max_length=8, embed_dim=6, num_layers=1, num_heads=1, mlp_dim=5)
_FIELDS = dict(position="none", gated_mlp=False, use_bias=True, norm_eps=1e-3)
PLACES, FEATURES = 8, 3

ARCHITECTURES = {
    "RMSNorm": Architecture(**_SIZES, **_FIELDS),
    "LayerNorm": Architecture(**_SIZES, **_FIELDS, norm="layernorm"),
}

BLUEPRINT = Blueprint(
    [
        ("embed", "embedding", "vocab embed"),
        ("places/in/kernel", "mlp_in", "features embed_units"),
        ("places/in/bias", "mlp_in", "embed_units"),
        ("places/out/kernel", "mlp_out", "embed_units embed"),
        ("places/out/bias", "mlp_out", "embed"),
        ("layers/{layers}/gain", "norm_gain", "embed"),
        ("layers/{layers}/up", "mlp_in", "embed mlp"),
        ("layers/{layers}/down", "mlp_out", "mlp embed"),
        ("layers/{layers}/square_up", "mlp_in", "embed_units embed"),
        ("layers/{layers}/square_down", "mlp_out", "embed_units embed"),
        ("gain", "norm_gain", "embed"),
        ("head/dense/kernel", "mlp_in", "embed embed_units"),
        ("head/dense/bias", "mlp_in", "embed_units"),
        ("head/out/kernel", "unembed", "embed_units vocab"),
        ("head/out/bias", "unembed", "vocab"),
    ]
)


def step(architecture):
    """Along all that it has."""
    return growth.grow_to(mlp_dim=7, embed_dim=8, num_layers=2)(architecture)


def init(arch, seed=0):
    """Random parameters, far from any initialization."""
    random = np.random.default_rng(seed)
    h, p = arch.embed_dim, arch.mlp_dim

    def array(*shape):
        return jnp.asarray(0.6 * random.standard_normal(shape))

    def linear(inputs, outputs):
        return {"kernel": array(inputs, outputs), "bias": array(outputs)}

    def layer():
        squares = {"square_up": array(h, h), "square_down": array(h, h)}
        return {"gain": 1 + array(h), "up": array(h, p), "down": array(p, h)} | squares

    return {
        "embed": array(arch.vocab_size, h),
        "places": {"in": linear(FEATURES, h), "out": linear(h, h)},
        "layers": [layer() for _ in range(arch.num_layers)],
        "gain": 1 + array(h),
        "head": {"dense": linear(h, h), "out": linear(h, arch.vocab_size)},
    }


def apply(arch, tree, tokens):
    """Tokens [batch, length] to logits [batch, length, vocab]."""

    def norm(x, gain):
        if arch.norm == "layernorm":
            x = x - x.mean(-1, keepdims=True)
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + arch.norm_eps) * gain

    def linear(x, at):
        return x @ at["kernel"] + at["bias"]

    place = jnp.cos(jnp.arange(PLACES)[:, None] / (1 + jnp.arange(FEATURES)))
    x = tree["embed"][tokens]
    x += linear(jax.nn.silu(linear(place, tree["places"]["in"])), tree["places"]["out"])
    for layer in tree["layers"]:
        y = norm(x, layer["gain"])
        x += jax.nn.gelu(y @ layer["up"]) @ layer["down"]
        x += jax.nn.gelu(y @ layer["square_up"].T) @ layer["square_down"]
    hidden = jax.nn.gelu(linear(norm(x, tree["gain"]), tree["head"]["dense"]))
    return linear(hidden, tree["head"]["out"])


def loss(arch, tokens, tree):
    """The mean square of the logits."""
    return (apply(arch, tree, tokens) ** 2).mean()
