"""Two more transformers as other people write them: an encoder-decoder, and a mixture of experts.

`T5` has the shape of T5 1.1: relative position buckets, no biases, products of queries and keys
that are not divided, RMSNorm. `Mixtral` has experts stacked in one array and a router that picks
two of them for each token.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from growth import Architecture, Blueprint
from tests.helpers.foreign_models import KEY, SIZES, TOKENS, Model


def dense(features, name):
    return nn.Dense(features, use_bias=False, name=name)


# An encoder-decoder in Linen.


def buckets(length, bidirectional):
    """Distances in 8 buckets, those of four and more in one."""
    distance = jnp.arange(length)[:, None] - jnp.arange(length)
    if not bidirectional:
        return jnp.clip(distance, 0, 7)
    return jnp.clip(jnp.abs(distance), 0, 3) + 4 * (distance < 0)


class T5Attention(nn.Module):
    shape: object
    width: int

    @nn.compact
    def __call__(self, x, memory, bias):

        def split(y, n):
            return jnp.moveaxis(y.reshape(*y.shape[:2], -1, n), 2, 1)

        heads, qk, v = self.shape.num_heads, self.shape.qk_dim, self.shape.v_dim
        query = split(dense(heads * qk, "q")(x), qk)
        key = split(dense(heads * qk, "k")(memory), qk)
        value = split(dense(heads * v, "v")(memory), v)
        mixed = nn.softmax(query @ jnp.swapaxes(key, -1, -2) + bias) @ value
        mixed = jnp.moveaxis(mixed, 1, 2)
        return dense(self.width, "o")(mixed.reshape(*mixed.shape[:2], -1))


class T5Stack(nn.Module):
    arch: Architecture
    decoder: bool

    @nn.compact
    def __call__(self, x, memory=None):
        arch, length = self.arch, x.shape[1]

        def norm(name):
            return nn.RMSNorm(epsilon=arch.norm_eps, name=name)

        table = nn.Embed(8, arch.layers[0].num_heads, name="relative_attention_bias")
        bias = jnp.moveaxis(table(buckets(length, not self.decoder)), -1, 0)
        if self.decoder:
            bias = jnp.where(jnp.tril(jnp.ones((length, length), bool)), bias, -jnp.inf)
        for i, shape in enumerate(arch.layers):
            y = norm(f"block_{i}_ln_self")(x)
            x += T5Attention(shape, arch.embed_dim, name=f"block_{i}_self")(y, y, bias)
            if self.decoder:
                y = norm(f"block_{i}_ln_cross")(x)
                x += T5Attention(shape, arch.embed_dim, name=f"block_{i}_cross")(y, memory, 0.0)
            y = norm(f"block_{i}_ln_mlp")(x)
            hidden = nn.gelu(dense(shape.mlp_dim, f"block_{i}_wi_0")(y))
            hidden *= dense(shape.mlp_dim, f"block_{i}_wi_1")(y)
            x += dense(arch.embed_dim, f"block_{i}_wo")(hidden)
        return norm("final_ln")(x)


class T5(nn.Module):
    encoder: Architecture
    decoder: Architecture

    @nn.compact
    def __call__(self, tokens):
        shared = nn.Embed(self.encoder.vocab_size, self.encoder.embed_dim, name="shared")
        memory = T5Stack(self.encoder, False, name="encoder")(shared(tokens))
        x = T5Stack(self.decoder, True, name="decoder")(shared(tokens[:, ::-1]), memory)
        return dense(self.decoder.vocab_size, "lm_head")(x)


STACK_RULES = (
    ("{stack}/relative_attention_bias/embedding", "position_bias", "buckets kv_heads"),
    ("{stack}/block_{layers}_ln_{part}/scale", "norm_gain", "embed"),
    ("{stack}/block_{layers}_{part}/q/kernel", "query", "embed (kv_heads qk)"),
    ("{stack}/block_{layers}_{part}/k/kernel", "key", "embed (kv_heads qk)"),
    ("{stack}/block_{layers}_{part}/v/kernel", "value", "embed (kv_heads v)"),
    ("{stack}/block_{layers}_{part}/o/kernel", "attention_out", "(kv_heads v) embed"),
    ("{stack}/block_{layers}_wi_{gate}/kernel", "mlp_in", "embed mlp"),
    ("{stack}/block_{layers}_wo/kernel", "mlp_out", "mlp embed"),
    ("{stack}/final_ln/scale", "norm_gain", "embed"),
)
T5_MODEL = Model(
    Architecture(**SIZES, position="none", query_scale=1.0, qk_dim=3, v_dim=4),
    lambda arch: T5(arch, arch).init(KEY, TOKENS)["params"],
    lambda arch, tree, tokens: T5(arch, arch).apply({"params": tree}, tokens),
    Blueprint(
        (
            ("shared/embedding", "embedding", "vocab embed"),
            *STACK_RULES,
            ("lm_head/kernel", "unembed", "embed vocab"),
        )
    ),
)


# A mixture of experts as plain functions on a dict.


def mixtral_init(arch):
    random = iter(jax.random.split(KEY, 100))
    h, experts = arch.embed_dim, 4

    def array(*shape):
        return 0.5 * jax.random.normal(next(random), shape)

    def layer(s):
        return {
            "wq": array(h, s.num_heads, s.qk_dim),
            "wk": array(h, s.num_heads, s.qk_dim),
            "wv": array(h, s.num_heads, s.v_dim),
            "wo": array(s.num_heads, s.v_dim, h),
            "gate": array(h, experts),
            "w1": array(experts, h, s.mlp_dim),
            "w3": array(experts, h, s.mlp_dim),
            "w2": array(experts, s.mlp_dim, h),
            "norm1": jnp.ones(h),
            "norm2": jnp.ones(h),
        }

    return {
        "table": array(arch.vocab_size, h),
        "layers": [layer(shape) for shape in arch.layers],
        "norm": jnp.ones(h),
        "head": array(h, arch.vocab_size),
    }


def mixtral_apply(arch, tree, tokens):
    def norm(x, gain):
        return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + arch.norm_eps) * gain

    x = tree["table"][tokens]
    seen = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))
    for p in tree["layers"]:
        y = norm(x, p["norm1"])
        q, k, v = (jnp.einsum("blh,hek->belk", y, p[w]) for w in ("wq", "wk", "wv"))
        scores = q @ jnp.swapaxes(k, -1, -2) / k.shape[-1] ** 0.5
        weights = nn.softmax(jnp.where(seen, scores, -jnp.inf))
        x += jnp.einsum("belm,bemv,evh->blh", weights, v, p["wo"])
        y = norm(x, p["norm2"])
        best, chosen = jax.lax.top_k(y @ p["gate"], 2)
        share = nn.softmax(best)[..., None] * jax.nn.one_hot(chosen, p["gate"].shape[1])
        hidden = nn.silu(jnp.einsum("blh,xhp->blxp", y, p["w1"]))
        hidden *= jnp.einsum("blh,xhp->blxp", y, p["w3"])
        x += jnp.einsum("blx,blxp,xph->blh", share.sum(-2), hidden, p["w2"])
    return norm(x, tree["norm"]) @ tree["head"]


MIXTRAL_MODEL = Model(
    Architecture.llama(**SIZES, position="none", qk_dim=3, v_dim=4),
    mixtral_init,
    mixtral_apply,
    Blueprint(
        [
            ("table", "embedding", "vocab embed"),
            ("layers/{layers}/norm{which}", "norm_gain", "embed"),
            ("layers/{layers}/wq", "query", "embed kv_heads qk"),
            ("layers/{layers}/wk", "key", "embed kv_heads qk"),
            ("layers/{layers}/wv", "value", "embed kv_heads v"),
            ("layers/{layers}/wo", "attention_out", "kv_heads v embed"),
            ("layers/{layers}/gate", "router", "embed experts"),
            ("layers/{layers}/w1", "mlp_in", "experts embed mlp"),
            ("layers/{layers}/w3", "mlp_in", "experts embed mlp"),
            ("layers/{layers}/w2", "mlp_out", "experts mlp embed"),
            ("norm", "norm_gain", "embed"),
            ("head", "unembed", "embed vocab"),
        ]
    ),
)

MODELS = {"T5": T5_MODEL, "Mixtral": MIXTRAL_MODEL}
