"""Attention with its parameters: queries, keys, values, what norms and turns them, the output."""

import functools
from typing import Any

import flax.linen as nn
import jax
from jax.typing import DTypeLike
from jaxtyping import Float

from growth.architecture import Architecture, LayerShape
from growth.architecture.positions import alibi_slopes, rotary_frequencies
from growth.models.dot_product_attention import attend, rotate
from growth.models.parts import Norm, linear


class Attention(nn.Module):
    """Grouped multi-head attention; attributes as for `growth.models.layer.Layer`."""

    architecture: Architecture
    shape: LayerShape
    dtype: DTypeLike | None
    param_dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "batch length embed"]
    ) -> Float[jax.Array, "batch length embed"]:
        """From what is read of the residual stream to what is added: [batch, length, embed]."""
        arch, shape = self.architecture, self.shape
        groups, per_group = shape.num_kv_heads, shape.queries_per_group

        def part(
            name: str, features: int | tuple[int, ...], axes: tuple[str, ...], **options: Any
        ) -> nn.DenseGeneral:
            role = {"out": "attention_out"}.get(name, name)
            options |= dict(dtype=self.dtype, param_dtype=self.param_dtype)
            return linear(features, axes, arch.has_bias(role), name=name, **options)

        query_axes = ("embed", "kv_heads", "group", "qk")
        query = part("query", (groups, per_group, shape.qk_dim), query_axes)(x)
        key = part("key", (groups, shape.qk_dim), ("embed", "kv_heads", "qk"))(x)
        value = part("value", (groups, shape.v_dim), ("embed", "kv_heads", "v"))(x)
        if arch.qk_norm != "none":
            first = 3 if arch.qk_norm == "head" else 1  # of the axes that are normed together
            types = (arch, self.dtype, self.param_dtype)
            query = Norm(*types, query_axes[first:], name="query_norm")(query)
            key_axes = ("kv_heads", "qk")[first // 3 :]
            key = Norm(*types, key_axes, name="key_norm")(key)
        query = query.reshape(*query.shape[:2], shape.num_heads, shape.qk_dim)
        if arch.position == "rope":
            width = arch.rotary_dim or shape.qk_dim
            frequencies = rotary_frequencies(width, shape.rope_theta, arch.rope_scaling)
            turned = functools.partial(
                rotate, frequencies=frequencies, interleaved=arch.rotary_interleaved
            )
            query, key = turned(query), turned(key)
        mixed = attend(
            query,
            key,
            value,
            causal=arch.causal,
            scale=arch.query_scale,
            softcap=arch.attention_softcap,
            window=shape.window,
            slopes=alibi_slopes(shape.num_heads) if arch.position == "alibi" else None,
        )
        mixed = mixed.reshape(*mixed.shape[:2], groups, per_group, shape.v_dim)
        out_axes = ("kv_heads", "group", "v", "embed")
        out = part("out", arch.embed_dim, out_axes, inputs=3, shrink=2 * arch.num_layers)
        return out(mixed)
