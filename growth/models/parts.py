"""What layers are made of: norms and linear maps whose parameters carry the names of their axes."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.nn.initializers import Initializer
from jax.typing import DTypeLike
from jaxtyping import Float

from growth.architecture import Architecture


def with_axis_names(init: Initializer, *axes: str) -> Callable[..., Any]:
    """An initializer whose parameter carries the names of its axes."""
    return nn.with_logical_partitioning(init, axes)


class Norm(nn.Module):
    """RMSNorm or LayerNorm over the last axes of its input.

    Attributes:
      architecture: says which, its epsilon, and whether there are gains and biases.
      dtype, param_dtype: as for `Transformer`.
      axes: the names of the axes that are normed together.
    """

    architecture: Architecture
    dtype: DTypeLike | None
    param_dtype: DTypeLike
    axes: tuple[str, ...] = ("embed",)

    @nn.compact
    def __call__(self, x: Float[jax.Array, "*shape"]) -> Float[jax.Array, "*shape"]:
        """An array of the shape of `x`, [..., *sizes of `axes`]; computed in float32 at least."""
        arch, over = self.architecture, tuple(range(-len(self.axes), 0))
        shape = x.shape[-len(self.axes) :]
        y = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if arch.norm == "layernorm":
            y -= y.mean(over, keepdims=True)
        # E[x²] − E[x]² would cancel: this is slower by nothing that can be measured, and exact.
        mean_square = jnp.square(y).mean(over, keepdims=True)
        by = jax.lax.rsqrt(mean_square + arch.norm_eps)
        dtype = x.dtype
        if arch.norm_gain:
            init = nn.initializers.zeros if arch.unit_offset else nn.initializers.ones
            gain = self.param("scale", with_axis_names(init, *self.axes), shape, self.param_dtype)
            by *= gain.astype(y.dtype) + arch.unit_offset
            dtype = jnp.promote_types(dtype, gain.dtype)
        y *= by
        if arch.has_bias("norm"):
            init = with_axis_names(nn.initializers.zeros, *self.axes)
            y += self.param("bias", init, shape, self.param_dtype).astype(y.dtype)
        return y.astype(self.dtype or dtype)


def linear(
    features: int | tuple[int, ...],
    axes: tuple[str, ...],
    bias: bool,
    *,
    dtype: DTypeLike | None,
    param_dtype: DTypeLike,
    name: str,
    inputs: int = 1,
    shrink: int = 1,
) -> nn.DenseGeneral:
    """A linear map over the last `inputs` axes, with LeCun's initialization, variance / `shrink`.

    Writers to the residual stream are shrunk by their number, so that its variance at
    initialization does not depend on depth.

    Args:
      features: the size of what it gives: of one axis, or of several.
      axes: the names of the axes of its kernel, inputs first.
      bias: whether it has one.
      dtype, param_dtype: as for `Transformer`.
      name: of the module.
      inputs: how many of the last axes it reads.
      shrink: what the variance is divided by.
    """
    init = nn.initializers.variance_scaling(1 / shrink, "fan_in", "normal")
    return nn.DenseGeneral(
        features,
        axis=tuple(range(-inputs, 0)),
        use_bias=bias,
        dtype=dtype,
        param_dtype=param_dtype,
        kernel_init=with_axis_names(init, *axes),
        bias_init=with_axis_names(nn.initializers.zeros, *axes[inputs:]),
        name=name,
    )
