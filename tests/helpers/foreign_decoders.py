"""Decoders of the usual kind in Linen, NNX and Equinox, whose blueprints nobody has written.

`growth.Blueprint.infer` finds them. Each is a Llama or a GPT as its module system's own tutorials
write it, with the names that are in use.
"""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from growth import Architecture
from tests.helpers.foreign_models import KEY, SIZES, TOKENS, Model


def attend(q, k, v):
    """Causal attention: [batch, length, heads, width] each; queries in groups."""
    k, v = (jnp.repeat(y, q.shape[2] // k.shape[2], axis=2) for y in (k, v))
    scores = jnp.einsum("blhk,bmhk->bhlm", q, k) / q.shape[-1] ** 0.5
    seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    return jnp.einsum("bhlm,bmhv->blhv", nn.softmax(jnp.where(seen, scores, -jnp.inf)), v)


# A Llama in Linen: grouped heads in three dimensions, a gate, one module for each layer.


class LinenBlock(nn.Module):
    arch: Architecture
    index: int

    @nn.compact
    def __call__(self, x):
        shape = self.arch.layers[self.index]

        def heads(name, number, width):
            return nn.DenseGeneral((number, width), use_bias=False, name=name)

        y = nn.RMSNorm(self.arch.norm_eps, name="input_layernorm")(x)
        q = heads("q_proj", shape.num_heads, shape.qk_dim)(y)
        k = heads("k_proj", shape.num_kv_heads, shape.qk_dim)(y)
        v = heads("v_proj", shape.num_kv_heads, shape.v_dim)(y)
        out = nn.DenseGeneral(x.shape[-1], axis=(-2, -1), use_bias=False, name="o_proj")
        x = x + out(attend(q, k, v))
        y = nn.RMSNorm(self.arch.norm_eps, name="post_attention_layernorm")(x)
        gate, up = (
            nn.Dense(shape.mlp_dim, use_bias=False, name=f"{name}_proj")(y)
            for name in ("gate", "up")
        )
        return x + nn.Dense(x.shape[-1], use_bias=False, name="down_proj")(nn.silu(gate) * up)


class LinenLlama(nn.Module):
    arch: Architecture

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(self.arch.vocab_size, self.arch.embed_dim, name="embed_tokens")(tokens)
        for i in range(self.arch.num_layers):
            x = LinenBlock(self.arch, i, name=f"layers_{i}")(x)
        x = nn.RMSNorm(self.arch.norm_eps, name="norm")(x)
        return nn.Dense(self.arch.vocab_size, use_bias=False, name="lm_head")(x)


# A GPT in NNX, of NNX's own attention and norms.


class NNXBlock(nnx.Module):
    def __init__(self, arch, shape, rngs):
        h = arch.embed_dim
        self.ln1, self.ln2 = (nnx.LayerNorm(h, epsilon=arch.norm_eps, rngs=rngs) for _ in "12")
        self.attn = nnx.MultiHeadAttention(
            shape.num_heads, h, shape.num_heads * shape.qk_dim, decode=False, rngs=rngs
        )
        self.linear1 = nnx.Linear(h, shape.mlp_dim, rngs=rngs)
        self.linear2 = nnx.Linear(shape.mlp_dim, h, rngs=rngs)

    def __call__(self, x):
        seen = nnx.make_causal_mask(jnp.zeros(x.shape[:2]))
        x = x + self.attn(self.ln1(x), mask=seen)
        return x + self.linear2(nnx.gelu(self.linear1(self.ln2(x))))


class NNXGPT(nnx.Module):
    def __init__(self, arch, rngs):
        h, dtype = arch.embed_dim, jnp.result_type(float)  # else it rounds to float32
        self.token_emb = nnx.Embed(arch.vocab_size, h, dtype=dtype, rngs=rngs)
        self.pos_emb = nnx.Embed(arch.max_length, h, dtype=dtype, rngs=rngs)
        self.blocks = nnx.List([NNXBlock(arch, shape, rngs) for shape in arch.layers])
        self.ln_f = nnx.LayerNorm(h, epsilon=arch.norm_eps, rngs=rngs)
        self.head = nnx.Linear(h, arch.vocab_size, use_bias=False, rngs=rngs)

    def __call__(self, tokens):
        x = self.token_emb(tokens) + self.pos_emb(jnp.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))


def nnx_init(arch):
    return nnx.state(NNXGPT(arch, nnx.Rngs(0)), nnx.Param)


def nnx_apply(arch, state, tokens):
    graph, other = nnx.split(nnx.eval_shape(lambda: NNXGPT(arch, nnx.Rngs(0))))
    nnx.replace_by_pure_dict(other, nnx.to_pure_dict(state))
    return nnx.merge(graph, other)(tokens)


# A Llama in Equinox: output rows first, flat heads, and None where there is no array.


class EqxBlock(eqx.Module):
    attention_norm: eqx.nn.RMSNorm
    ffn_norm: eqx.nn.RMSNorm
    wq: eqx.nn.Linear
    wk: eqx.nn.Linear
    wv: eqx.nn.Linear
    wo: eqx.nn.Linear
    w1: eqx.nn.Linear
    w2: eqx.nn.Linear
    w3: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    heads: tuple[int, int] = eqx.field(static=True)

    def __init__(self, arch, s, key):
        h, keys = arch.embed_dim, iter(jax.random.split(key, 7))

        def linear(inputs, outputs):
            return eqx.nn.Linear(inputs, outputs, use_bias=False, key=next(keys))

        self.attention_norm, self.ffn_norm = (
            eqx.nn.RMSNorm(h, eps=arch.norm_eps, use_bias=False) for _ in "12"
        )
        self.wq = linear(h, s.num_heads * s.qk_dim)
        self.wk, self.wv = linear(h, s.num_kv_heads * s.qk_dim), linear(h, s.num_kv_heads * s.v_dim)
        self.wo = linear(s.num_heads * s.v_dim, h)
        self.w1, self.w3 = linear(h, s.mlp_dim), linear(h, s.mlp_dim)
        self.w2 = linear(s.mlp_dim, h)
        self.dropout = eqx.nn.Dropout(0.0)
        self.heads = s.num_heads, s.num_kv_heads

    def __call__(self, x):
        y = jax.vmap(self.attention_norm)(x)
        q, k, v = (jax.vmap(w)(y) for w in (self.wq, self.wk, self.wv))
        q = q.reshape(1, len(x), self.heads[0], -1)
        k, v = (z.reshape(1, len(x), self.heads[1], -1) for z in (k, v))
        x = x + jax.vmap(self.wo)(attend(q, k, v).reshape(len(x), -1))
        y = jax.vmap(self.ffn_norm)(x)
        hidden = jax.nn.silu(jax.vmap(self.w1)(y)) * jax.vmap(self.w3)(y)
        return x + self.dropout(jax.vmap(self.w2)(hidden), inference=True)


class EqxLlama(eqx.Module):
    tok_embeddings: eqx.nn.Embedding
    layers: list[EqxBlock]
    norm: eqx.nn.RMSNorm
    output: eqx.nn.Linear

    def __init__(self, arch, key):
        h = arch.embed_dim
        self.tok_embeddings = eqx.nn.Embedding(arch.vocab_size, h, key=key)
        self.layers = [EqxBlock(arch, shape, key) for shape in arch.layers]
        self.norm = eqx.nn.RMSNorm(h, eps=arch.norm_eps, use_bias=False)
        self.output = eqx.nn.Linear(h, arch.vocab_size, use_bias=False, key=key)

    def __call__(self, tokens):
        x = jax.vmap(self.tok_embeddings)(tokens)
        for layer in self.layers:
            x = layer(x)
        return jax.vmap(self.output)(jax.vmap(self.norm)(x))


def eqx_init(arch):
    return eqx.filter(EqxLlama(arch, KEY), eqx.is_inexact_array)


def eqx_apply(arch, params, tokens):
    arrays, other = eqx.partition(EqxLlama(arch, KEY), eqx.is_inexact_array)
    # The containers of grown parameters may still know the old sizes.
    params = jax.tree.unflatten(jax.tree.structure(arrays), jax.tree.leaves(params))
    return jax.vmap(eqx.combine(params, other))(tokens)


_LLAMA = SIZES | dict(num_heads=6, num_kv_heads=2, qk_dim=4, v_dim=3, norm_eps=1e-3)

MODELS = {
    "Linen Llama": Model(
        Architecture.llama(**_LLAMA, position="none"),
        lambda arch: LinenLlama(arch).init(KEY, TOKENS),
        lambda arch, tree, tokens: LinenLlama(arch).apply(tree, tokens),
        None,
    ),
    "NNX GPT": Model(
        Architecture.gpt2(**SIZES, qk_dim=3, tied_embeddings=False), nnx_init, nnx_apply, None
    ),
    "Equinox Llama": Model(
        Architecture.llama(**_LLAMA, position="none"), eqx_init, eqx_apply, None
    ),
}
