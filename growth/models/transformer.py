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
import numpy as np
from einops import rearrange
from jax.sharding import NamedSharding, PartitionSpec

from growth import trees
from growth.architecture import Architecture, LayerShape
from growth.blueprint import Blueprint

_ACTIVATIONS = {"relu": nn.relu, "gelu": nn.gelu, "silu": nn.silu}


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
            embedding_init=_named(nn.linear.default_embed_init, "vocab", "embed"),
            name="embed",
        )
        table = embed.embedding.astype(self.dtype or embed.embedding.dtype)
        if self.stream_sharding is not None:
            # From a table that is split along `embed` each device would be given the whole stream.
            rows = PartitionSpec(PartitionSpec.UNCONSTRAINED, None)
            table = _split(table, NamedSharding(self.stream_sharding.mesh, rows))
        x = jnp.take(table, tokens, axis=0)
        if arch.position == "learned":
            init = _named(nn.linear.default_embed_init, "length", "embed")
            size = (arch.max_length, arch.embed_dim)
            position = self.param("position", init, size, self.param_dtype)
            x += position[:length].astype(x.dtype)
        x = _split(x, self.stream_sharding)
        # Attention scores and activation functions are cheaper to compute twice than to store and
        # load: on a CPU, keeping them is 1.3 x slower and takes 2 to 3 x the memory.
        kept = None if self.remat else jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        layer = nn.remat(Layer, prevent_cse=False, policy=kept)
        for first, number in arch.runs:
            run = nn.scan(
                layer,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=number,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            shape = arch.layers[first]
            x, _ = run(arch, shape, self.dtype, self.param_dtype, name=f"layers_{first}")(x, None)
            x = _split(x, self.stream_sharding)
        if arch.final_norm:
            x = _norm(arch, self.dtype, self.param_dtype, "final_norm")(x)
        if arch.tied_embeddings:
            return embed.attend(x)
        return _linear(
            arch.vocab_size,
            ("embed", "vocab"),
            bias=False,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            name="unembed",
        )(x)


class Layer(nn.Module):
    """One layer: attention and MLP, each behind a norm and added to the stream.

    Attributes:
      architecture: the model that the layer belongs to.
      shape: the layer's own sizes.
      dtype, param_dtype: as for `Transformer`.
    """

    architecture: Architecture
    shape: LayerShape
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        """The stream [batch, length, embed] after this layer; the second value is for `nn.scan`."""
        config = (self.architecture, self.shape, self.dtype, self.param_dtype)
        norm = functools.partial(_norm, self.architecture, self.dtype, self.param_dtype)
        x += Attention(*config, name="attention")(norm("attention_norm")(x))
        x += MLP(*config, name="mlp")(norm("mlp_norm")(x))
        return x, None


class Attention(nn.Module):
    """Grouped multi-head attention; attributes as for `Layer`."""

    architecture: Architecture
    shape: LayerShape
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, length, embed] to [batch, length, embed]."""
        arch, shape = self.architecture, self.shape
        groups, per_group = shape.num_kv_heads, shape.queries_per_group

        def linear(part: str, features: Any, axes: tuple[str, ...], **options: Any) -> Any:
            role = {"out": "attention_out"}.get(part, part)
            types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
            return _linear(features, axes, arch.has_bias(role), name=part, **types, **options)

        query_axes = ("embed", "kv_heads", "group", "qk")
        query = linear("query", (groups, per_group, shape.qk_dim), query_axes)(x)
        key = linear("key", (groups, shape.qk_dim), ("embed", "kv_heads", "qk"))(x)
        value = linear("value", (groups, shape.v_dim), ("embed", "kv_heads", "v"))(x)
        query = query.reshape(*query.shape[:2], shape.num_heads, shape.qk_dim)
        if arch.position == "rope":
            query, key = rotate(query, shape.rope_theta), rotate(key, shape.rope_theta)
        mixed = attend(query, key, value, causal=arch.causal)
        mixed = mixed.reshape(*mixed.shape[:2], groups, per_group, shape.v_dim)
        out_axes = ("kv_heads", "group", "v", "embed")
        out = linear("out", arch.embed_dim, out_axes, inputs=3, shrink=2 * arch.num_layers)
        return out(mixed)


class MLP(nn.Module):
    """The MLP, gated or not; attributes as for `Layer`."""

    architecture: Architecture
    shape: LayerShape
    dtype: Any
    param_dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[batch, length, embed] to [batch, length, embed]."""
        arch = self.architecture
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        activation = _ACTIVATIONS[arch.activation]
        wide = functools.partial(
            _linear, self.shape.mlp_dim, ("embed", "mlp"), arch.has_bias("mlp_in"), **types
        )
        hidden = wide(name="up")(x)
        if arch.gated_mlp:
            hidden *= activation(wide(name="gate")(x))
        else:
            hidden = activation(hidden)
        return _linear(
            arch.embed_dim,
            ("mlp", "embed"),
            arch.has_bias("mlp_out"),
            shrink=2 * arch.num_layers,
            name="down",
            **types,
        )(hidden)


def attend(query: jax.Array, key: jax.Array, value: jax.Array, *, causal: bool) -> jax.Array:
    """Softmax attention.

    Args:
      query: [batch, length, heads, qk]; head e reads key/value head ⌊e / (heads / kv_heads)⌋.
      key: [batch, length, kv_heads, qk].
      value: [batch, length, kv_heads, v].
      causal: whether a position sees only itself and the positions before it.

    Returns:
      [batch, length, heads, v].
    """
    scale = key.shape[-1] ** -0.5
    # dot_product_attention is for low precision, in which it computes its gradients too. It wants
    # values as wide as keys: padding the narrower is slower than einsum. In float32 it takes 1.1 to
    # 1.7 x the time of what follows (on a CPU, forward and backward), since its arrays have one
    # axis more. In float64 its softmax would still be in float32.
    if key.shape[-1] == value.shape[-1] and query.dtype.itemsize == 2:
        return jax.nn.dot_product_attention(query, key, value, scale=scale, is_causal=causal)
    length, groups = key.shape[1:3]
    per_group = query.shape[2] // groups
    folded = rearrange(query, "b l (g r) k -> b (l r) g k", g=groups)
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bqgk,bmgk->bgqm", folded, key, preferred_element_type=wide) * scale
    if causal:
        position = jnp.arange(length * per_group) // per_group
        seen = jnp.arange(length) <= position[:, None]
        scores = jnp.where(seen, scores, jnp.finfo(wide).min)
    # The softmax is divided by its sum after the product, where there is less to divide.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    mixed = jnp.einsum("bgqm,bmgv->bqgv", weights, value.astype(wide))
    mixed /= jnp.einsum("bgqm->bqg", weights)[..., None]
    return rearrange(mixed, "b (l r) g v -> b l (g r) v", l=length).astype(query.dtype)


def rotate(x: jax.Array, theta: float) -> jax.Array:
    """Rotary positions: turns columns i and i + qk/2 together, by position · θ^(-2i/qk).

    Args:
      x: [batch, length, heads, qk], queries or keys at positions 0, 1, ...
      theta: the base θ.
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    # The frequencies are rounded once from float64, so that the old ones among the frequencies of
    # a grown head are the old ones to the last bit.
    frequencies = theta ** (-np.arange(0, x.shape[-1], 2, dtype=np.float64) / x.shape[-1])
    angles = jnp.arange(x.shape[1], dtype=dtype)[:, None] * jnp.asarray(frequencies, dtype)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    first, second = jnp.split(x.astype(dtype), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def _norm(arch: Architecture, dtype: Any, param_dtype: Any, name: str) -> nn.Module:
    options: dict[str, Any] = dict(
        epsilon=arch.norm_eps,
        dtype=dtype,
        param_dtype=param_dtype,
        scale_init=_named(nn.initializers.ones, "embed"),
        name=name,
        # E[x²] − E[x]² cancels: slower by nothing that can be measured, and exact under growth.
        use_fast_variance=False,
    )
    if arch.norm == "rmsnorm":
        return nn.RMSNorm(**options)
    bias = _named(nn.initializers.zeros, "embed")
    return nn.LayerNorm(use_bias=arch.has_bias("norm"), bias_init=bias, **options)


def _linear(
    features: Any,
    axes: tuple[str, ...],
    bias: bool,
    *,
    dtype: Any,
    param_dtype: Any,
    name: str,
    inputs: int = 1,
    shrink: int = 1,
) -> nn.DenseGeneral:
    """A linear map over the last `inputs` axes, with LeCun's initialization, variance / `shrink`.

    Writers to the stream are shrunk by their number, so that the stream's variance at
    initialization does not depend on depth.
    """
    init = nn.initializers.variance_scaling(1 / shrink, "fan_in", "normal")
    return nn.DenseGeneral(
        features,
        axis=tuple(range(-inputs, 0)),
        use_bias=bias,
        dtype=dtype,
        param_dtype=param_dtype,
        kernel_init=_named(init, *axes),
        bias_init=_named(nn.initializers.zeros, *axes[inputs:]),
        name=name,
    )


def _named(init: Any, *axes: str) -> Any:
    return nn.with_logical_partitioning(init, axes)


def _split(x: jax.Array, sharding: jax.sharding.Sharding | None) -> jax.Array:
    return x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)


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
    if module.endswith("norm"):
        return {"scale": "norm_gain", "bias": "norm_bias"}[parameter]
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
