"""Softmax attention and rotary positions, as functions of arrays: nothing here has parameters."""

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Float, Float64

from growth.types import Array


def attend(
    query: Float[Array, "batch length heads qk"],
    key: Float[Array, "batch length kv_heads qk"],
    value: Float[Array, "batch length kv_heads v"],
    *,
    causal: bool,
    scale: float | None = None,
    softcap: float | None = None,
    window: int | None = None,
    slopes: Float64[np.ndarray, "heads"] | None = None,
) -> Float[jax.Array, "batch length heads v"]:
    """Softmax attention.

    Args:
      query: [batch, length, heads, qk]; head e reads key/value head ⌊e / (heads / kv_heads)⌋.
      key: [batch, length, kv_heads, qk].
      value: [batch, length, kv_heads, v].
      causal: whether a position sees only itself and the positions before it.
      scale: what products of queries and keys are multiplied by; None means qk^(-1/2).
      softcap: c, where the scores x become c·tanh(x/c).
      window: a position sees itself and the window − 1 positions before it (and after it).
      slopes: [heads]; scores fall by the slope for each position of distance (ALiBi).

    Returns:
      [batch, length, heads, v].
    """
    scale = key.shape[-1] ** -0.5 if scale is None else scale
    # dot_product_attention is for low precision, in which it computes its gradients too. It wants
    # values as wide as keys: padding the narrower is slower than einsum. In float32 it takes 1.1 to
    # 1.7 x the time of what follows (on a CPU, forward and backward), since its arrays have one
    # axis more. In float64 its softmax would still be in float32.
    plain = softcap is None and window is None and slopes is None
    if plain and key.shape[-1] == value.shape[-1] and query.dtype.itemsize == 2:
        return jax.nn.dot_product_attention(query, key, value, scale=scale, is_causal=causal)
    length, groups = key.shape[1:3]
    per_group = query.shape[2] // groups
    folded = rearrange(query, "b l (g r) k -> b (l r) g k", g=groups)
    wide = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bqgk,bmgk->bgqm", folded, key, preferred_element_type=wide) * scale
    if softcap is not None:
        scores = softcap * jnp.tanh(scores / softcap)
    before = jnp.arange(length * per_group)[:, None] // per_group - jnp.arange(length)
    if slopes is not None:
        steep = rearrange(jnp.asarray(slopes, wide), "(g r) -> g r", g=groups)
        scores -= jnp.tile(steep, length)[:, :, None] * jnp.abs(before)
    if causal or window is not None:
        seen = before >= 0 if causal else True
        if window is not None:
            seen &= jnp.abs(before) < window
        scores = jnp.where(seen, scores, jnp.finfo(wide).min)
    # The softmax is divided by its sum after the product, where there is less to divide.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    mixed = jnp.einsum("bgqm,bmgv->bqgv", weights, value.astype(wide))
    mixed /= jnp.einsum("bgqm->bqg", weights)[..., None]
    return rearrange(mixed, "b (l r) g v -> b l (g r) v", l=length).astype(query.dtype)


def rotate(
    x: Float[Array, "batch length heads qk"],
    frequencies: Float64[np.ndarray, "half_width"],
    *,
    interleaved: bool = False,
) -> Float[jax.Array, "batch length heads qk"]:
    """Rotary positions: turns columns i and i + width/2 together, by position · frequency i.

    Args:
      x: [batch, length, heads, qk], queries or keys at positions 0, 1, ...
      frequencies: [width/2], float64; the first `width` columns are turned, the rest are not. They
        are rounded here, once, so that the old ones among the frequencies of a grown head are the
        old ones to the last bit.
      interleaved: whether columns 2i and 2i + 1 are turned together instead.
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    angles = jnp.arange(x.shape[1], dtype=dtype)[:, None] * jnp.asarray(frequencies, dtype)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    half = len(frequencies)
    if interleaved:
        pairs, rest = jnp.split(x.astype(dtype), [2 * half], axis=-1)
        first, second = pairs[..., ::2], pairs[..., 1::2]
    else:
        first, second, rest = jnp.split(x.astype(dtype), [half, 2 * half], axis=-1)
    turned = [first * cos - second * sin, second * cos + first * sin]
    if interleaved:
        turned = [rearrange(jnp.stack(turned, -1), "... half pair -> ... (half pair)")]
    return jnp.concatenate([*turned, rest], axis=-1).astype(x.dtype)
