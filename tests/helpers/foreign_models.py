"""Transformers as other people write them, each with a blueprint: growth knows nothing of them.

`MODELS` holds, by name, what a test needs: an architecture, `init(architecture)` for a freshly
initialized tree of parameters, `apply(architecture, tree, tokens)` for the logits, and a blueprint.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from growth import Architecture, Blueprint

KEY = jax.random.key(7, impl="rbg")
TOKENS = jnp.zeros((1, 1), jnp.int32)
SIZES = dict(vocab_size=11, max_length=8, embed_dim=6, num_layers=2, num_heads=2, mlp_dim=5)


@dataclasses.dataclass(frozen=True)
class Model:
    architecture: Architecture
    init: Callable[[Architecture], Any]
    apply: Callable[[Architecture, Any, jax.Array], jax.Array]
    blueprint: Blueprint


def causal_attention(q, k, v):
    """[..., length, width] each; one head."""
    scores = q @ jnp.swapaxes(k, -1, -2) / k.shape[-1] ** 0.5
    seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    return nn.softmax(jnp.where(seen, scores, -jnp.inf)) @ v


# A GPT in Linen: blocks one by one, query, key and value fused in one kernel, tied embeddings.


class GPTBlock(nn.Module):
    arch: Architecture
    index: int

    @nn.compact
    def __call__(self, x):
        shape, eps = self.arch.layers[self.index], self.arch.norm_eps
        heads, k, v = shape.num_heads, shape.qk_dim, shape.v_dim
        h = nn.LayerNorm(epsilon=eps, name="ln_1")(x)
        qkv = nn.Dense(heads * (2 * k + v), name="qkv")(h)
        q, key, value = jnp.split(qkv, [heads * k, 2 * heads * k], axis=-1)

        def split(y):
            return jnp.swapaxes(y.reshape(*y.shape[:2], heads, -1), 1, 2)

        mixed = jnp.swapaxes(causal_attention(split(q), split(key), split(value)), 1, 2)
        x = x + nn.Dense(x.shape[-1], name="proj")(mixed.reshape(*x.shape[:2], -1))
        h = nn.gelu(nn.Dense(shape.mlp_dim, name="fc")(nn.LayerNorm(epsilon=eps, name="ln_2")(x)))
        return x + nn.Dense(x.shape[-1], name="out")(h)


class GPT(nn.Module):
    arch: Architecture

    @nn.compact
    def __call__(self, tokens):
        wte = nn.Embed(self.arch.vocab_size, self.arch.embed_dim, name="wte")
        wpe = nn.Embed(self.arch.max_length, self.arch.embed_dim, name="wpe")
        x = wte(tokens) + wpe(jnp.arange(tokens.shape[-1]))
        for i in range(self.arch.num_layers):
            x = GPTBlock(self.arch, i, name=f"blocks_{i}")(x)
        return wte.attend(nn.LayerNorm(epsilon=self.arch.norm_eps, name="ln_f")(x))


_QKV = ("query", "key", "value")
GPT_MODEL = Model(
    Architecture.gpt2(**SIZES, qk_dim=3, v_dim=4),
    lambda arch: GPT(arch).init(KEY, TOKENS),
    lambda arch, tree, tokens: GPT(arch).apply(tree, tokens),
    Blueprint(
        [
            ("wte/embedding", "embedding", "vocab embed"),
            ("wpe/embedding", "position", "length embed"),
            ("blocks_{layers}/{norm}/scale", "norm_gain", "embed"),
            ("blocks_{layers}/ln_1/bias", "norm_bias", "embed"),
            ("blocks_{layers}/ln_2/bias", "norm_bias", "embed"),
            ("blocks_{layers}/qkv/kernel", _QKV, "embed (role kv_heads qk)"),
            ("blocks_{layers}/qkv/bias", _QKV, "(role kv_heads qk)"),
            ("blocks_{layers}/proj/kernel", "attention_out", "(kv_heads v) embed"),
            ("blocks_{layers}/proj/bias", "attention_out", "embed"),
            ("blocks_{layers}/fc/kernel", "mlp_in", "embed mlp"),
            ("blocks_{layers}/fc/bias", "mlp_in", "mlp"),
            ("blocks_{layers}/out/kernel", "mlp_out", "mlp embed"),
            ("blocks_{layers}/out/bias", "mlp_out", "embed"),
            ("ln_f/scale", "norm_gain", "embed"),
            ("ln_f/bias", "norm_bias", "embed"),
        ]
    ),
)


# The style of the paper's authors: a module for each head, with an output kernel of its own.


class Head(nn.Module):
    arch: Architecture
    index: int

    @nn.compact
    def __call__(self, x):
        shape = self.arch.layers[self.index]
        init, h = nn.initializers.lecun_normal(), x.shape[-1]
        q, k = (x @ self.param(n, init, (h, shape.qk_dim)) for n in ("W_Q", "W_K"))
        v = x @ self.param("W_V", init, (h, shape.v_dim))
        return causal_attention(q, k, v) @ self.param("W_O", init, (shape.v_dim, h))


class MHA(nn.Module):
    arch: Architecture
    index: int

    @nn.compact
    def __call__(self, x):
        heads = range(self.arch.layers[self.index].num_heads)
        return sum(Head(self.arch, self.index, name=f"heads_{j}")(x) for j in heads)


class PaperLayer(nn.Module):
    arch: Architecture
    index: int

    @nn.compact
    def __call__(self, x):

        def norm(name):
            return nn.RMSNorm(epsilon=self.arch.norm_eps, name=name)

        x = x + MHA(self.arch, self.index, name="MHA")(norm("Norm_MHA")(x))
        hidden = nn.Dense(self.arch.layers[self.index].mlp_dim, name="MLP_1")(norm("Norm_MLP")(x))
        return x + nn.Dense(x.shape[-1], name="MLP_2")(nn.relu(hidden))


class PaperNetwork(nn.Module):
    arch: Architecture

    @nn.compact
    def __call__(self, tokens):
        init = nn.initializers.normal(0.5)
        x = self.param("embedding", init, (self.arch.vocab_size, self.arch.embed_dim))[tokens]
        position = self.param("position", init, (1, self.arch.max_length, self.arch.embed_dim))
        x = x + position[:, : tokens.shape[-1]]
        for i in range(self.arch.num_layers):
            x = PaperLayer(self.arch, i, name=f"layers_{i}")(x)
        return nn.Dense(self.arch.vocab_size, name="W_out")(x)


PAPER_MODEL = Model(
    Architecture.paper(**SIZES, qk_dim=3, v_dim=4, norm_eps=1e-3),
    lambda arch: PaperNetwork(arch).init(KEY, TOKENS)["params"],
    lambda arch, tree, tokens: PaperNetwork(arch).apply({"params": tree}, tokens),
    Blueprint(
        [
            ("embedding", "embedding", "vocab embed"),
            ("position", "position", "1 length embed"),
            ("layers_{layers}/Norm_{which}/scale", "norm_gain", "embed"),
            ("layers_{layers}/MHA/heads_{kv_heads}/W_Q", "query", "embed qk"),
            ("layers_{layers}/MHA/heads_{kv_heads}/W_K", "key", "embed qk"),
            ("layers_{layers}/MHA/heads_{kv_heads}/W_V", "value", "embed v"),
            ("layers_{layers}/MHA/heads_{kv_heads}/W_O", "attention_out", "v embed"),
            ("layers_{layers}/MLP_1/kernel", "mlp_in", "embed mlp"),
            ("layers_{layers}/MLP_1/bias", "mlp_in", "mlp"),
            ("layers_{layers}/MLP_2/kernel", "mlp_out", "mlp embed"),
            ("layers_{layers}/MLP_2/bias", "mlp_out", "embed"),
            ("W_out/kernel", "unembed", "embed vocab"),
            ("W_out/bias", "unembed", "vocab"),
        ]
    ),
)


# A Llama in plain JAX: a dict, a list of layers, flat heads, queries in groups, output rows first.


def llama_init(arch):
    h, layers = arch.embed_dim, []
    for i, shape in enumerate(arch.layers):
        keys = iter(jax.random.split(jax.random.fold_in(KEY, i), 7))

        def init(*shape, keys=keys):
            return jax.random.normal(next(keys), shape) * shape[-1] ** -0.5

        layers.append(
            {
                "wq": init(shape.num_heads * shape.qk_dim, h),
                "wk": init(shape.num_kv_heads * shape.qk_dim, h),
                "wv": init(shape.num_kv_heads * shape.v_dim, h),
                "wo": init(h, shape.num_heads * shape.v_dim),
                "w13": init(2 * shape.mlp_dim, h),
                "w2": init(h, shape.mlp_dim),
                "norms": (jnp.ones(h), jnp.ones(h)),
            }
        )
    table = jax.random.normal(KEY, (arch.vocab_size, h))
    return {"embed": table, "layers": layers, "norm": jnp.ones(h), "head": table * h**-0.5}


def llama_apply(arch, tree, tokens):

    def norm(x, gain):
        return gain * x / jnp.sqrt((x * x).mean(-1, keepdims=True) + arch.norm_eps)

    def rotate(x, theta):
        width = x.shape[-1]
        angles = jnp.arange(x.shape[-2])[:, None] * theta ** (-jnp.arange(0, width, 2) / width)
        turn = jnp.exp(1j * angles)
        pairs = (x[..., : width // 2] + 1j * x[..., width // 2 :]) * turn
        return jnp.concatenate([pairs.real, pairs.imag], axis=-1)

    x = tree["embed"][tokens]
    for shape, layer in zip(arch.layers, tree["layers"], strict=True):
        a = norm(x, layer["norms"][0])

        def heads(y, n):
            return y.reshape(*y.shape[:2], n, -1).swapaxes(1, 2)

        q = rotate(heads(a @ layer["wq"].T, shape.num_heads), shape.rope_theta)
        k = rotate(heads(a @ layer["wk"].T, shape.num_kv_heads), shape.rope_theta)
        v = heads(a @ layer["wv"].T, shape.num_kv_heads)
        k, v = (jnp.repeat(y, shape.queries_per_group, axis=1) for y in (k, v))
        mixed = causal_attention(q, k, v).swapaxes(1, 2).reshape(*x.shape[:2], -1)
        x = x + mixed @ layer["wo"].T
        gate, up = jnp.split(norm(x, layer["norms"][1]) @ layer["w13"].T, 2, axis=-1)
        x = x + (jax.nn.silu(gate) * up) @ layer["w2"].T
    return norm(x, tree["norm"]) @ tree["head"].T


LLAMA_MODEL = Model(
    Architecture.llama(**SIZES | dict(num_heads=4), num_kv_heads=2, qk_dim=4, norm_eps=1e-3),
    llama_init,
    llama_apply,
    Blueprint(
        [
            ("embed", "embedding", "vocab embed"),
            ("layers/{layers}/wq", "query", "(kv_heads group qk) embed"),
            ("layers/{layers}/wk", "key", "(kv_heads qk) embed"),
            ("layers/{layers}/wv", "value", "(kv_heads v) embed"),
            ("layers/{layers}/wo", "attention_out", "embed (kv_heads group v)"),
            ("layers/{layers}/w13", ("mlp_in", "mlp_in"), "(role mlp) embed"),
            ("layers/{layers}/w2", "mlp_out", "embed mlp"),
            ("layers/{layers}/norms/{which}", "norm_gain", "embed"),
            ("norm", "norm_gain", "embed"),
            ("head", "unembed", "vocab embed"),
        ]
    ),
)


# A bidirectional encoder in NNX, through its pure dict; no final norm, so the mean of the stream's
# old dimensions is read without a norm in between.


class EncoderLayer(nnx.Module):
    def __init__(self, arch, shape, rngs):
        h = arch.embed_dim
        self.norms = nnx.List([nnx.LayerNorm(h, epsilon=arch.norm_eps, rngs=rngs) for _ in "12"])
        widths = dict(qkv=shape.num_heads * (2 * shape.qk_dim + shape.v_dim), fc=shape.mlp_dim)
        self.qkv, self.fc = (nnx.Linear(h, widths[n], rngs=rngs) for n in ("qkv", "fc"))
        self.out = nnx.LinearGeneral((shape.num_heads, shape.v_dim), h, axis=(-2, -1), rngs=rngs)
        self.back = nnx.Linear(shape.mlp_dim, h, rngs=rngs)
        self.shape = shape

    def __call__(self, x):
        heads = self.qkv(self.norms[0](x)).reshape(*x.shape[:2], self.shape.num_heads, -1)
        k = self.shape.qk_dim
        q, key, value = jnp.split(heads, [k, 2 * k], axis=-1)
        weights = nn.softmax(jnp.einsum("blhk,bmhk->bhlm", q, key) / k**0.5)
        x = x + self.out(jnp.einsum("bhlm,bmhv->blhv", weights, value))
        return x + self.back(nnx.relu(self.fc(self.norms[1](x))))


class Encoder(nnx.Module):
    def __init__(self, arch, rngs):
        dtype = jnp.result_type(float)  # else it rounds to float32
        self.table = nnx.Embed(arch.vocab_size, arch.embed_dim, dtype=dtype, rngs=rngs)
        self.layers = nnx.List([EncoderLayer(arch, shape, rngs) for shape in arch.layers])
        self.head = nnx.Linear(arch.embed_dim, arch.vocab_size, rngs=rngs)

    def __call__(self, tokens):
        x = self.table(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def encoder_init(arch):
    return nnx.to_pure_dict(nnx.state(Encoder(arch, nnx.Rngs(0)), nnx.Param))


def encoder_apply(arch, tree, tokens):
    model = nnx.eval_shape(lambda: Encoder(arch, nnx.Rngs(0)))
    graph, state = nnx.split(model)
    nnx.replace_by_pure_dict(state, tree)
    return nnx.merge(graph, state)(tokens)


ENCODER_MODEL = Model(
    Architecture(
        **SIZES, qk_dim=2, v_dim=3, norm="layernorm", position="none", activation="relu",
        gated_mlp=False, use_bias=True, final_norm=False, causal=False, norm_eps=1e-3,
    ),
    encoder_init,
    encoder_apply,
    Blueprint(
        [
            ("table/embedding", "embedding", "vocab embed"),
            ("layers/{layers}/norms/{which}/scale", "norm_gain", "embed"),
            ("layers/{layers}/norms/{which}/bias", "norm_bias", "embed"),
            ("layers/{layers}/qkv/kernel", _QKV, "embed (kv_heads role qk)"),
            ("layers/{layers}/qkv/bias", _QKV, "(kv_heads role qk)"),
            ("layers/{layers}/out/kernel", "attention_out", "kv_heads v embed"),
            ("layers/{layers}/out/bias", "attention_out", "embed"),
            ("layers/{layers}/fc/kernel", "mlp_in", "embed mlp"),
            ("layers/{layers}/fc/bias", "mlp_in", "mlp"),
            ("layers/{layers}/back/kernel", "mlp_out", "mlp embed"),
            ("layers/{layers}/back/bias", "mlp_out", "embed"),
            ("head/kernel", "unembed", "embed vocab"),
            ("head/bias", "unembed", "vocab"),
        ]
    ),
)  # fmt: skip

MODELS = {
    "Linen GPT": GPT_MODEL,
    "paper's authors": PAPER_MODEL,
    "plain Llama": LLAMA_MODEL,
    "NNX encoder": ENCODER_MODEL,
}
