# %% [markdown]
# # Grow your own model in its own loop
#
# A small language model of NNX trains on the source of a file of the standard library, grows along
# all six dimensions in the middle, and goes on: with the loss it had, and with the moments that its
# optimizer had. `growth` knows nothing of the model but a blueprint of eleven lines.

# %%
import argparse
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import growth

# %% [markdown]
# ## The model
#
# It takes all its sizes, and the epsilon of its norms, from an `Architecture`. That is what growth
# asks of a model.


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
        query, key, value = self.query(y), self.key(y), self.value(y)
        scores = jnp.einsum("blhk,bmhk->bhlm", query, key) / query.shape[-1] ** 0.5
        seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        weights = nnx.softmax(jnp.where(seen, scores, -jnp.inf))
        x = x + self.out(jnp.einsum("bhlm,bmhv->blhv", weights, value))
        return x + self.down(nnx.gelu(self.up(self.before_mlp(x))))


class Decoder(nnx.Module):
    def __init__(self, arch, rngs):
        h, normal = arch.embed_dim, nnx.initializers.normal(0.02)
        self.table = nnx.Param(normal(rngs.params(), (arch.vocab_size, h)))
        self.position = nnx.Param(normal(rngs.params(), (arch.max_length, h)))
        self.layers = nnx.List([Layer(arch, shape, rngs) for shape in arch.layers])
        self.last_norm = nnx.RMSNorm(h, epsilon=arch.norm_eps, rngs=rngs)
        self.head = nnx.Linear(h, arch.vocab_size, use_bias=False, rngs=rngs)

    def __call__(self, tokens):
        x = self.table[...][tokens] + self.position[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.head(self.last_norm(x))


# %% [markdown]
# ## Its blueprint
#
# One line for each kind of parameter: its path, its role, its axes.

# %%
blueprint = growth.Blueprint(
    [
        ("table", "embedding", "vocab embed"),
        ("position", "position", "length embed"),
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
    max_length=32,
    embed_dim=32,
    num_layers=2,
    num_heads=2,
    qk_dim=8,
    v_dim=8,
    mlp_dim=64,
    position="learned",
    activation="gelu",
    gated_mlp=False,
)


def parameters(arch, seed):
    return nnx.state(Decoder(arch, nnx.Rngs(seed)), nnx.Param)


params = parameters(small, seed=0)
blueprint.check(params, small)
print(small)

# %% [markdown]
# ## The loop
#
# A plain one: `apply` puts parameters into the model of an architecture, a step takes the gradient.
# The learning rate is a function of the optimizer's count, which growth keeps. It rises anew after
# growth, over thirty steps; without that the loss would have a spike there.

# %%
GROWTH_AT, RISE, STEPS = 150, 30, 300


def learning_rate(count):
    since = jnp.where(count < GROWTH_AT, count, count - GROWTH_AT)
    return 3e-3 * jnp.minimum(1.0, since / RISE)


tx = optax.adamw(learning_rate)


def apply(arch, params, tokens):
    graph = nnx.graphdef(nnx.eval_shape(lambda: Decoder(arch, nnx.Rngs(0))))
    return nnx.merge(graph, params)(tokens)


def loss_of(params, arch, tokens):
    logits = apply(arch, params, tokens)[:, :-1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


@functools.partial(jax.jit, static_argnames="arch")
def train_step(params, opt_state, arch, tokens):
    loss, gradient = jax.value_and_grad(loss_of)(params, arch, tokens)
    updates, opt_state = tx.update(gradient, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


text = np.frombuffer(Path(argparse.__file__).read_bytes(), np.uint8) % 128


def batch(seed, size=16):
    starts = np.random.default_rng(seed).integers(0, len(text) - small.max_length, size)
    return jnp.asarray(text[starts[:, None] + np.arange(small.max_length)], jnp.int32)


def train(params, opt_state, arch, steps):
    for step in steps:
        params, opt_state, loss = train_step(params, opt_state, arch, batch(step))
        if step % 50 == 49:
            print(f"step {step + 1}  loss {loss:.3f}")
    return params, opt_state


opt_state = tx.init(params)
params, opt_state = train(params, opt_state, small, range(GROWTH_AT))

# %% [markdown]
# ## The growth step
#
# A transformation, called on the architecture, gives a plan. `expand` carries the parameters along
# it; `fresh` is what the model's own initializer makes at the larger size, from which new entries
# come where any value keeps the function. `expand_optimizer_state` carries Adam's moments.

# %%
plan = growth.compose(
    growth.hidden_dimension_expansion(48),
    growth.head_addition(3),
    growth.attention_expansion(12),
    growth.heads_expansion(12),
    growth.mlp_expansion(128),
    growth.layer_addition(1, position=1),
)(small)
print(plan)

grown = growth.expand(params, plan, blueprint=blueprint, fresh=parameters(plan.target, seed=1))
grown_state = growth.expand_optimizer_state(
    opt_state, plan, tx=tx, params=params, grown=grown, blueprint=blueprint
)

tokens = batch(seed=10_000)
print(f"parameters  {small.num_parameters:,} to {plan.target.num_parameters:,}")
print(f"loss before {loss_of(params, small, tokens):.6f}")
print(f"loss after  {loss_of(grown, plan.target, tokens):.6f}")

# %% [markdown]
# ## The certificate
#
# It runs both networks in three precisions, and looks at the gradients of every new entry over two
# steps. `require` raises where a promise is broken.

# %%
certificate = growth.certify(
    params, plan, grown=grown, apply=apply, batch=tokens, blueprint=blueprint
)
certificate.require()
print(certificate)

# %% [markdown]
# ## On with the larger model

# %%
params, opt_state = train(grown, grown_state, plan.target, range(GROWTH_AT, STEPS))

# %% [markdown]
# To get a module again, make one at the larger architecture and give it the parameters.

# %%
model = Decoder(plan.target, nnx.Rngs(0))
nnx.update(model, params)
print(model(tokens).shape)
