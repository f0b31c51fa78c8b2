"""A layer of the reference model: how its branches read and write the residual stream."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
from jax.typing import DTypeLike
from jaxtyping import Float

from growth.architecture import Architecture, LayerShape
from growth.models.attention import Attention
from growth.models.mlp import MLP
from growth.models.parts import Norm, with_axis_names


class Layer(nn.Module):
    """Attention and MLP, each added to the residual stream.

    Attributes:
      architecture: the model that the layer belongs to.
      shape: the layer's own sizes.
      dtype, param_dtype: as for `Transformer`.
    """

    architecture: Architecture
    shape: LayerShape
    dtype: DTypeLike | None
    param_dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "batch length embed"], _: None
    ) -> tuple[Float[jax.Array, "batch length embed"], None]:
        """The residual stream [batch, length, embed] after this layer, from that before it.

        What `nn.scan` passes and takes besides is None.
        """
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
        attended = self._gained(attention(seen), "attention")
        return x + attended + self._gained(mlp(also_seen), "mlp"), None

    def _add(
        self,
        branch: Attention | MLP,
        name: str,
        norm: Callable[..., Norm],
        x: Float[jax.Array, "batch length embed"],
    ) -> Float[jax.Array, "batch length embed"]:
        placement = self.architecture.norm_placement
        y = norm(name=f"{name}_norm")(x) if placement in ("pre", "sandwich") else x
        y = self._gained(branch(y), name)
        if placement in ("closing", "sandwich"):
            y = norm(name=f"{name}_closing_norm")(y)
        return norm(name=f"{name}_norm")(x + y) if placement == "post" else x + y

    def _gained(
        self, y: Float[jax.Array, "batch length embed"], name: str
    ) -> Float[jax.Array, "batch length embed"]:
        """What a branch gives, multiplied by its gain, where there is one."""
        if not self.architecture.branch_gain:
            return y
        init = with_axis_names(nn.initializers.ones, "embed")
        gain = self.param(f"{name}_gain", init, y.shape[-1:], self.param_dtype)
        return y * gain.astype(y.dtype)
