"""The reference model: a Linen transformer that covers every field of `Architecture`.

Neighbouring layers of equal shape are one scanned module, so compile time does not grow with depth.
Every parameter carries the names of its axes, the same that `growth` uses, which is what its
blueprint is derived from and what shards it over a mesh.
"""

import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from growth import trees
from growth.architecture import Architecture
from growth.blueprint import Blueprint
from growth.models.layer import Layer
from growth.models.parts import Norm, linear, named
from growth.positions import sinusoids


class Transformer(nn.Module):
    """Tokens to logits.

    Attributes:
      architecture: what the model is.
      dtype: dtype of the computation; None means that of the parameters.
      param_dtype: dtype of the parameters.
      remat: whether the backward pass computes all of each layer anew, to save memory. If not, the
        products with weights are kept, and only what lies between them is computed anew.
      stream_sharding: how the residual stream [batch, length, embed] is split over a mesh, where it
        is; None leaves that to the compiler.
    """

    architecture: Architecture
    dtype: Any = None
    param_dtype: Any = jnp.float32
    remat: bool = False
    stream_sharding: NamedSharding | None = None

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits [batch, length, vocab] of the next token, from int tokens [batch, length]."""
        arch = self.architecture
        length = tokens.shape[-1]
        if length > arch.max_length:
            raise ValueError(f"tokens are {length} long, but max_length is {arch.max_length}")
        embed = nn.Embed(
            arch.vocab_size,
            arch.embed_dim,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            embedding_init=named(nn.linear.default_embed_init, "vocab", "embed"),
            name="embed",
        )
        table = embed.embedding.astype(self.dtype or embed.embedding.dtype)
        if self.stream_sharding is not None:
            # From a table that is split along `embed` each device would be given the whole stream.
            rows = PartitionSpec(PartitionSpec.UNCONSTRAINED, None)
            table = _split(table, NamedSharding(self.stream_sharding.mesh, rows))
        x = jnp.take(table, tokens, axis=0)
        if arch.scaled_embedding:
            x *= arch.embed_dim**0.5
        norm = functools.partial(Norm, arch, self.dtype, self.param_dtype)
        if arch.embed_norm:
            x = norm(name="embed_norm")(x)
        if arch.position == "learned":
            init = named(nn.linear.default_embed_init, "length", "embed")
            size = (arch.max_length, arch.embed_dim)
            position = self.param("position", init, size, self.param_dtype)
            x += position[:length].astype(x.dtype)
        elif arch.position == "sinusoidal":
            x += sinusoids(length, arch.embed_dim).astype(x.dtype)
        x = _split(x, self.stream_sharding)
        # Attention scores and activation functions are cheaper to compute twice than to store and
        # load: on a CPU, keeping them is 1.3 x slower and takes 2 to 3 x the memory.
        kept = None if self.remat else jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        layer = nn.remat(Layer, prevent_cse=False, policy=kept)
        for first, number in arch.runs:
            run = nn.scan(
                layer,
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True},
                length=number,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            shape = arch.layers[first]
            x, _ = run(arch, shape, self.dtype, self.param_dtype, name=f"layers_{first}")(x, None)
            x = _split(x, self.stream_sharding)
        if arch.final_norm:
            x = norm(name="final_norm")(x)
        if arch.tied_embeddings:
            logits = embed.attend(x)
        else:
            types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
            axes = ("embed", "vocab")
            logits = linear(arch.vocab_size, axes, bias=False, name="unembed", **types)(x)
        cap = arch.logit_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)


def _split(x: jax.Array, sharding: jax.sharding.Sharding | None) -> jax.Array:
    return x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)


def apply(architecture: Architecture, params: Any, tokens: jax.Array) -> jax.Array:
    """Logits [batch, length, vocab] of int tokens [batch, length], in the parameters' dtype."""
    return logits(Transformer(architecture), params, tokens)


def stream(architecture: Architecture, params: Any, tokens: jax.Array) -> list[jax.Array]:
    """The residual stream [batch, length, embed] after each layer."""
    _, seen = Transformer(architecture).apply(
        {"params": params},
        tokens,
        capture_intermediates=lambda module, _: isinstance(module, Layer),
        mutable=["intermediates"],
    )
    runs = [seen["intermediates"][f"layers_{first}"] for first, _ in architecture.runs]
    return [layer for run in runs for layer in run["__call__"][0][0]]


def logits(model: Transformer, params: Any, tokens: jax.Array) -> jax.Array:
    """Logits [batch, length, vocab] of int tokens [batch, length]; `params` as plain dicts."""
    result = model.apply({"params": params}, tokens)
    assert isinstance(result, jax.Array)
    return result


def initial_parameters(architecture: Architecture, key: jax.Array, **options: Any) -> Any:
    """Freshly initialized parameters, as plain nested dicts of arrays.

    Args:
      architecture: what the model is.
      key: a PRNG key.
      **options: `dtype`, `param_dtype` and `remat` of `Transformer`.
    """
    return nn.unbox(_boxed(architecture, key, **options))


@functools.cache
def logical_axes(architecture: Architecture) -> Any:
    """The names of the axes of every parameter: a tree of `PartitionSpec`s."""
    return nn.get_partition_spec(jax.eval_shape(lambda: _boxed(architecture, jax.random.key(0))))


@functools.cache
def blueprint(architecture: Architecture) -> Blueprint:
    """The blueprint of the reference model.

    Axes are the names that the parameters carry. It depends on which parameters there are, and not
    on their sizes, so it fits an architecture and all that it can grow to.
    """
    rules = {}
    for leaf in trees.leaves(logical_axes(architecture)):
        path = re.sub(r"^layers_\d+", "layers_{layers}", leaf.path)
        rules[path] = (path, _role(path), " ".join(leaf.value))
    return Blueprint(tuple(rules.values()))


def _role(path: str) -> str:
    *_, module, parameter = ("", *path.split("/"))
    if module in ("query_norm", "key_norm"):
        return "qk_norm"
    if module.endswith("norm"):
        kind = "closing" if module.endswith("closing_norm") else "norm"
        if (module, parameter) == ("final_norm", "scale"):
            kind = "final"
        return f"{kind}_{'gain' if parameter == 'scale' else 'bias'}"
    return {
        "embed": "embedding",
        "": "position",
        "out": "attention_out",
        "up": "mlp_in",
        "gate": "mlp_in",
        "down": "mlp_out",
    }.get(module, module)


def _boxed(architecture: Architecture, key: jax.Array, **options: Any) -> Any:
    tokens = jnp.zeros((1, 1), jnp.int32)
    return Transformer(architecture, **options).init(key, tokens)["params"]
