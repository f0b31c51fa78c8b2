# %% [markdown]
# # Linen, with layers in one `nn.scan`
#
# Layers that `nn.scan` runs have one array for all of them, with an axis of layers before the
# others. A blueprint calls that axis `layers`, and growth adds layers along it.

# %%
import functools
import inspect
import textwrap

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import growth


# %%
class Layer(nn.Module):
    arch: growth.Architecture

    @nn.compact
    def __call__(self, x, mask):
        a = self.arch
        norm = functools.partial(nn.LayerNorm, epsilon=a.norm_eps)
        y = norm(name="before_attention")(x)
        width = a.num_heads * a.qk_dim
        x += nn.MultiHeadAttention(a.num_heads, qkv_features=width, name="attention")(y, mask=mask)
        y = nn.Dense(a.mlp_dim, name="up")(norm(name="before_mlp")(x))
        return x + nn.Dense(a.embed_dim, name="down")(nn.gelu(y)), None


class Decoder(nn.Module):
    arch: growth.Architecture

    @nn.compact
    def __call__(self, tokens):
        a = self.arch
        x = nn.Embed(a.vocab_size, a.embed_dim, name="embed")(tokens)
        x += nn.Embed(a.max_length, a.embed_dim, name="position")(jnp.arange(tokens.shape[1]))
        layers = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=a.num_layers,
        )
        x, _ = layers(a, name="layers")(x, nn.make_causal_mask(tokens))
        x = nn.LayerNorm(epsilon=a.norm_eps, name="last_norm")(x)
        return nn.Dense(a.vocab_size, name="head")(x)


# %% [markdown]
# ## The blueprint
#
# It holds for `params` as `init` gives them, with the collection `params` around them or without.

# %%
blueprint = growth.Blueprint(
    [
        ("embed/embedding", "embedding", "vocab embed"),
        ("position/embedding", "position", "length embed"),
        ("layers/before_{part}/scale", "norm_gain", "layers embed"),
        ("layers/before_{part}/bias", "norm_bias", "layers embed"),
        ("layers/attention/query/kernel", "query", "layers embed kv_heads qk"),
        ("layers/attention/query/bias", "query", "layers kv_heads qk"),
        ("layers/attention/key/kernel", "key", "layers embed kv_heads qk"),
        ("layers/attention/key/bias", "key", "layers kv_heads qk"),
        ("layers/attention/value/kernel", "value", "layers embed kv_heads v"),
        ("layers/attention/value/bias", "value", "layers kv_heads v"),
        ("layers/attention/out/kernel", "attention_out", "layers kv_heads v embed"),
        ("layers/attention/out/bias", "attention_out", "layers embed"),
        ("layers/up/kernel", "mlp_in", "layers embed mlp"),
        ("layers/up/bias", "mlp_in", "layers mlp"),
        ("layers/down/kernel", "mlp_out", "layers mlp embed"),
        ("layers/down/bias", "mlp_out", "layers embed"),
        ("last_norm/scale", "norm_gain", "embed"),
        ("last_norm/bias", "norm_bias", "embed"),
        ("head/kernel", "unembed", "embed vocab"),
        ("head/bias", "unembed", "vocab"),
    ]
)

small = growth.Architecture(
    vocab_size=128,
    max_length=16,
    embed_dim=16,
    num_layers=2,
    num_heads=2,
    mlp_dim=32,
    norm="layernorm",
    position="learned",
    activation="gelu",
    gated_mlp=False,
    use_bias=True,
)

# %% [markdown]
# ## The loop
#
# The architecture is a static argument of the step, so the larger model is compiled when it comes.

# %%
text = np.frombuffer(inspect.getsource(textwrap).encode(), np.uint8) % 128
tx = optax.adamw(3e-3)


def batch(seed, size=8):
    starts = np.random.default_rng(seed).integers(0, len(text) - small.max_length, size)
    return jnp.asarray(text[starts[:, None] + np.arange(small.max_length)], jnp.int32)


@functools.partial(jax.jit, static_argnames="arch")
def loss_of(params, arch, tokens):
    logits = Decoder(arch).apply(params, tokens)[:, :-1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


@functools.partial(jax.jit, static_argnames="arch")
def train_step(params, opt_state, arch, tokens):
    gradient = jax.grad(loss_of)(params, arch, tokens)
    updates, opt_state = tx.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def initial(arch, seed):
    return jax.jit(Decoder(arch).init)(jax.random.key(seed), batch(0))


params = initial(small, seed=0)
opt_state = tx.init(params)
for step in range(40):
    params, opt_state = train_step(params, opt_state, small, batch(step))

# %% [markdown]
# ## The growth step

# %%
plan = growth.grow_to(
    embed_dim=24, num_layers=3, num_heads=3, qk_dim=12, v_dim=12, mlp_dim=48
)(small)  # fmt: skip
grown = growth.expand(params, plan, blueprint=blueprint, fresh=initial(plan.target, seed=1))
opt_state = growth.expand_optimizer_state(
    opt_state, plan, tx=tx, params=params, grown=grown, blueprint=blueprint
)
before = float(loss_of(params, small, batch(1_000)))
after = float(loss_of(grown, plan.target, batch(1_000)))
print(plan)
print(f"loss {before:.6f} → {after:.6f}, Adam's count {opt_state[0].count}")

# %% [markdown]
# ## On with the larger model

# %%
for step in range(40, 80):
    grown, opt_state = train_step(grown, opt_state, plan.target, batch(step))
trained = float(loss_of(grown, plan.target, batch(1_000)))
print(f"loss {trained:.3f} after 40 more steps")
