"""The MLP of a layer: hidden units, which a gate may multiply."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.typing import DTypeLike
from jaxtyping import Float

from growth.architecture import Architecture, LayerShape
from growth.models.parts import linear

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "gelu": nn.gelu,
    "gelu_exact": functools.partial(nn.gelu, approximate=False),
    "silu": nn.silu,
}


class MLP(nn.Module):
    """The MLP, gated or not; attributes as for `growth.models.layer.Layer`."""

    architecture: Architecture
    shape: LayerShape
    dtype: DTypeLike | None
    param_dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "batch length embed"]
    ) -> Float[jax.Array, "batch length embed"]:
        """From what is read of the residual stream to what is added: [batch, length, embed]."""
        arch = self.architecture
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        activation = _ACTIVATIONS[arch.activation]
        wide = functools.partial(
            linear, self.shape.mlp_dim, ("embed", "mlp"), arch.has_bias("mlp_in"), **types
        )
        hidden = wide(name="up")(x)
        if arch.gated_mlp:
            hidden *= activation(wide(name="gate")(x))
        else:
            hidden = activation(hidden)
        return linear(
            arch.embed_dim,
            ("mlp", "embed"),
            arch.has_bias("mlp_out"),
            shrink=2 * arch.num_layers,
            name="down",
            **types,
        )(hidden)
