# %% [markdown]
# # NNX, with `nnx.Optimizer`
#
# An `nnx.State` of parameters grows into an `nnx.State`, and the state of an `nnx.Optimizer` into
# one whose leaves are variables as before. A module keeps the sizes that it was made with, so the
# larger one is made anew and takes the parameters.

# %%
import functools
import inspect
import textwrap

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import growth


# %%
class Layer(nnx.Module):
    def __init__(self, arch, shape, rngs):
        h, heads = arch.embed_dim, shape.num_heads
        linear = functools.partial(nnx.LinearGeneral, use_bias=False, rngs=rngs)
        self.query = linear(h, (heads, shape.qk_dim))
        self.key = linear(h, (heads, shape.qk_dim))
        self.value = linear(h, (heads, shape.v_dim))
        self.out = linear((heads, shape.v_dim), h, axis=(-2, -1))
        self.up, self.down = linear(h, shape.mlp_dim), linear(shape.mlp_dim, h)
        norm = functools.partial(nnx.RMSNorm, epsilon=arch.norm_eps, rngs=rngs)
        self.before_attention, self.before_mlp = norm(h), norm(h)

    def __call__(self, x):
        y = self.before_attention(x)
        mask = jnp.tril(jnp.ones((x.shape[1],) * 2, bool))
        x = x + self.out(
            nnx.dot_product_attention(self.query(y), self.key(y), self.value(y), mask=mask)
        )
        return x + self.down(nnx.gelu(self.up(self.before_mlp(x))))


class Decoder(nnx.Module):
    def __init__(self, arch, rngs):
        self.embed = nnx.Embed(arch.vocab_size, arch.embed_dim, rngs=rngs)
        self.position = nnx.Embed(arch.max_length, arch.embed_dim, rngs=rngs)
        self.layers = nnx.List([Layer(arch, shape, rngs) for shape in arch.layers])
        self.last_norm = nnx.RMSNorm(arch.embed_dim, epsilon=arch.norm_eps, rngs=rngs)
        self.head = nnx.Linear(arch.embed_dim, arch.vocab_size, use_bias=False, rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens) + self.position(jnp.arange(tokens.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.last_norm(x))


# %% [markdown]
# ## The blueprint

# %%
blueprint = growth.Blueprint(
    [
        ("embed/embedding", "embedding", "vocab embed"),
        ("position/embedding", "position", "length embed"),
        ("layers/{layers}/before_{part}/scale", "norm_gain", "embed"),
        ("layers/{layers}/query/kernel", "query", "embed kv_heads qk"),
        ("layers/{layers}/key/kernel", "key", "embed kv_heads qk"),
        ("layers/{layers}/value/kernel", "value", "embed kv_heads v"),
        ("layers/{layers}/out/kernel", "attention_out", "kv_heads v embed"),
        ("layers/{layers}/up/kernel", "mlp_in", "embed mlp"),
        ("layers/{layers}/down/kernel", "mlp_out", "mlp embed"),
        ("last_norm/scale", "norm_gain", "embed"),
        ("head/kernel", "unembed", "embed vocab"),
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

# %%
text = np.frombuffer(inspect.getsource(textwrap).encode(), np.uint8) % 128
tx = optax.adamw(3e-3)


def batch(seed, size=8):
    starts = np.random.default_rng(seed).integers(0, len(text) - small.max_length, size)
    return jnp.asarray(text[starts[:, None] + np.arange(small.max_length)], jnp.int32)


@nnx.jit
def loss_of(model, tokens):
    logits = model(tokens)[:, :-1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


@nnx.jit
def train_step(model, optimizer, tokens):
    optimizer.update(model, nnx.grad(loss_of)(model, tokens))


model = Decoder(small, nnx.Rngs(0))
optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
for step in range(40):
    train_step(model, optimizer, batch(step))

# %% [markdown]
# ## The growth step
#
# The larger optimizer is made as the first was, and takes what has grown.

# %%
plan = growth.grow_to(
    embed_dim=24, num_layers=2, num_heads=3, qk_dim=12, v_dim=12, mlp_dim=48
)(small)  # fmt: skip
larger = Decoder(plan.target, nnx.Rngs(1))
params = nnx.state(model, nnx.Param)
grown = growth.expand(params, plan, blueprint=blueprint, fresh=nnx.state(larger, nnx.Param))
opt_state = growth.expand_optimizer_state(
    optimizer.opt_state, plan, tx=tx, params=params, grown=grown, blueprint=blueprint
)

before = float(loss_of(model, batch(1_000)))
nnx.update(larger, grown)
larger_optimizer = nnx.Optimizer(larger, tx, wrt=nnx.Param)
larger_optimizer.opt_state = nnx.data(opt_state)
larger_optimizer.step[...] = optimizer.step[...]
after = float(loss_of(larger, batch(1_000)))
print(plan)
print(f"loss {before:.6f} → {after:.6f}, Adam's count {opt_state[0].count[...]}")

# %% [markdown]
# ## On with the larger model

# %%
for step in range(40, 80):
    train_step(larger, larger_optimizer, batch(step))
trained = float(loss_of(larger, batch(1_000)))
print(f"loss {trained:.3f} after 40 more steps")
