"""One layer of the reference model: where attention, MLP and norms stand around the stream."""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax

from growth.architecture import Architecture, LayerShape
from growth.models.attention import Attention
from growth.models.parts import Norm, linear

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "gelu": nn.gelu,
    "gelu_exact": functools.partial(nn.gelu, approximate=False),
    "silu": nn.silu,
}


class Layer(nn.Module):
    """Attention and MLP, each added to the stream.

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
        arch = self.architecture
        config = (arch, self.shape, self.dtype, self.param_dtype)
        norm = functools.partial(Norm, arch, self.dtype, self.param_dtype)
        attention, mlp = Attention(*config, name="attention"), MLP(*config, name="mlp")
        if arch.parallel == "none":
            for branch, name in ((attention, "attention"), (mlp, "mlp")):
                x = self._add(branch, name, norm, x)
            return x, None
        seen = norm(name="attention_norm")(x)
        also_seen = seen if arch.parallel == "shared_norm" else norm(name="mlp_norm")(x)
        return x + attention(seen) + mlp(also_seen), None

    def _add(self, branch: Any, name: str, norm: Any, x: jax.Array) -> jax.Array:
        placement = self.architecture.norm_placement
        y = norm(name=f"{name}_norm")(x) if placement in ("pre", "sandwich") else x
        y = branch(y)
        if placement in ("closing", "sandwich"):
            y = norm(name=f"{name}_closing_norm")(y)
        return norm(name=f"{name}_norm")(x + y) if placement == "post" else x + y


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
