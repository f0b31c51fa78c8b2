# %% [markdown]
# # Equinox, with a loop of optax
#
# An Equinox module is a pytree of arrays and of what is none: functions, rates, sizes. Its arrays
# are the parameters; `eqx.partition` takes them apart and leaves None where the rest is.

# %%
import inspect
import textwrap

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import growth


# %%
class Layer(eqx.Module):
    before_attention: eqx.nn.RMSNorm
    attention: eqx.nn.MultiheadAttention
    before_mlp: eqx.nn.RMSNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    dropout: eqx.nn.Dropout

    def __init__(self, arch, shape, key):
        h, (of_attention, of_up, of_down) = arch.embed_dim, jax.random.split(key, 3)
        self.before_attention = eqx.nn.RMSNorm(h, eps=arch.norm_eps, use_bias=False)
        self.attention = eqx.nn.MultiheadAttention(
            shape.num_heads, h, qk_size=shape.qk_dim, vo_size=shape.v_dim, key=of_attention
        )
        self.before_mlp = eqx.nn.RMSNorm(h, eps=arch.norm_eps, use_bias=False)
        self.up = eqx.nn.Linear(h, shape.mlp_dim, use_bias=False, key=of_up)
        self.down = eqx.nn.Linear(shape.mlp_dim, h, use_bias=False, key=of_down)
        self.dropout = eqx.nn.Dropout(0.0)

    def __call__(self, x):
        y = jax.vmap(self.before_attention)(x)
        mask = jnp.tril(jnp.ones((len(x), len(x)), bool))
        x = x + self.attention(y, y, y, mask=mask)
        hidden = jax.nn.gelu(jax.vmap(self.up)(jax.vmap(self.before_mlp)(x)))
        return x + jax.vmap(self.down)(self.dropout(hidden, inference=True))


class Decoder(eqx.Module):
    embed: eqx.nn.Embedding
    position: jax.Array
    layers: list[Layer]
    last_norm: eqx.nn.RMSNorm
    head: eqx.nn.Linear

    def __init__(self, arch, key):
        h, (first, *of_layers, last) = arch.embed_dim, jax.random.split(key, arch.num_layers + 2)
        self.embed = eqx.nn.Embedding(arch.vocab_size, h, key=first)
        self.position = 0.1 * jax.random.normal(first, (arch.max_length, h))
        self.layers = [Layer(arch, *both) for both in zip(arch.layers, of_layers, strict=True)]
        self.last_norm = eqx.nn.RMSNorm(h, eps=arch.norm_eps, use_bias=False)
        self.head = eqx.nn.Linear(h, arch.vocab_size, use_bias=False, key=last)

    def __call__(self, tokens):
        x = jax.vmap(self.embed)(tokens) + self.position[: len(tokens)]
        for layer in self.layers:
            x = layer(x)
        return jax.vmap(self.head)(jax.vmap(self.last_norm)(x))


# %% [markdown]
# ## The blueprint
#
# Kernels of Equinox map the last axis to the first, and heads are factors of one dimension.

# %%
blueprint = growth.Blueprint(
    [
        ("embed/weight", "embedding", "vocab embed"),
        ("position", "position", "length embed"),
        ("layers/{layers}/before_{part}/weight", "norm_gain", "embed"),
        ("layers/{layers}/attention/query_proj/weight", "query", "(kv_heads qk) embed"),
        ("layers/{layers}/attention/key_proj/weight", "key", "(kv_heads qk) embed"),
        ("layers/{layers}/attention/value_proj/weight", "value", "(kv_heads v) embed"),
        ("layers/{layers}/attention/output_proj/weight", "attention_out", "embed (kv_heads v)"),
        ("layers/{layers}/up/weight", "mlp_in", "mlp embed"),
        ("layers/{layers}/down/weight", "mlp_out", "embed mlp"),
        ("last_norm/weight", "norm_gain", "embed"),
        ("head/weight", "unembed", "vocab embed"),
    ]
)

small = growth.Architecture(
    vocab_size=128,
    max_length=16,
    embed_dim=16,
    num_layers=1,
    num_heads=2,
    mlp_dim=32,
    position="learned",
    activation="gelu",
    gated_mlp=False,
)

# %% [markdown]
# ## The loop
#
# `static` is the rest of a module, and differs between the small and the large one: it has sizes.

# %%
text = np.frombuffer(inspect.getsource(textwrap).encode(), np.uint8) % 128
tx = optax.adamw(3e-3)


def batch(seed, size=8):
    starts = np.random.default_rng(seed).integers(0, len(text) - small.max_length, size)
    return jnp.asarray(text[starts[:, None] + np.arange(small.max_length)], jnp.int32)


@eqx.filter_jit
def loss_of(params, static, tokens):
    logits = jax.vmap(eqx.combine(params, static))(tokens)[:, :-1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


@eqx.filter_jit
def train_step(params, opt_state, static, tokens):
    gradient = eqx.filter_grad(loss_of)(params, static, tokens)
    updates, opt_state = tx.update(gradient, opt_state, params)
    return eqx.apply_updates(params, updates), opt_state


def parts(arch, seed):
    return eqx.partition(Decoder(arch, jax.random.key(seed)), eqx.is_inexact_array)


params, static = parts(small, seed=0)
opt_state = tx.init(params)
for step in range(40):
    params, opt_state = train_step(params, opt_state, static, batch(step))

# %% [markdown]
# ## The growth step
#
# The result has the containers of `fresh`, and so the sizes of the larger module.

# %%
plan = growth.grow_to(
    embed_dim=24, num_layers=2, num_heads=3, qk_dim=12, v_dim=12, mlp_dim=48
)(small)  # fmt: skip
fresh, larger_static = parts(plan.target, seed=1)
grown = growth.expand(params, plan, blueprint=blueprint, fresh=fresh)
opt_state = growth.expand_optimizer_state(
    opt_state, plan, tx=tx, params=params, grown=grown, blueprint=blueprint
)
before = float(loss_of(params, static, batch(1_000)))
after = float(loss_of(grown, larger_static, batch(1_000)))
print(plan)
print(f"loss {before:.6f} → {after:.6f}, Adam's count {opt_state[0].count}")

# %% [markdown]
# ## On with the larger model

# %%
for step in range(40, 80):
    grown, opt_state = train_step(grown, opt_state, larger_static, batch(step))
trained = float(loss_of(grown, larger_static, batch(1_000)))
print(f"loss {trained:.3f} after 40 more steps")
