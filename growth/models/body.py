"""What all reference models share: the residual stream from embedded inputs to the output layer.

Neighbouring layers of equal shape are one scanned module, so compile time does not grow with depth.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.typing import DTypeLike
from jaxtyping import Float, Shaped

from growth.architecture import Architecture
from growth.architecture.positions import sinusoids
from growth.models.layer import Layer
from growth.models.parts import Norm, with_axis_names


class Model(nn.Module):
    """A model with layers over a residual stream; see `Transformer` and `VisionTransformer`.

    Attributes:
      architecture: what the model is.
      dtype: dtype of the computation; None means that of the parameters.
      param_dtype: dtype of the parameters.
      remat: whether the backward pass computes all of each layer anew, to save memory. If not, the
        products with weights are kept, and only what lies between them is computed anew.
      stream_sharding: how the residual stream [batch, length, embed] is split over a mesh, where it
        is; None leaves that to the compiler.

    Examples:
      >>> import growth, jax
      >>> from growth import models
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> model = models.make_model(small, param_dtype=jax.numpy.bfloat16)
      >>> isinstance(model, models.Model), model.architecture.num_layers
      (True, 2)

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, section 2.
      Scanned layers: the documentation of flax.linen.scan.
    """

    architecture: Architecture
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    remat: bool = False
    stream_sharding: NamedSharding | None = None

    def body(
        self, x: Float[jax.Array, "batch length {self.architecture.embed_dim}"]
    ) -> Float[jax.Array, "batch length {self.architecture.embed_dim}"]:
        """Positions, layers and final norm; to be called in a compact method.

        Args:
          x: embedded inputs [batch, length, embed].

        Returns:
          What the output layer reads, [batch, length, embed].

        Raises:
          ValueError: the inputs are longer than `max_length`.
        """
        arch, length = self.architecture, x.shape[1]
        if length > arch.max_length:
            raise ValueError(f"inputs are {length} long, but max_length is {arch.max_length}")
        types = (self.dtype, self.param_dtype)
        if arch.embed_norm:
            x = Norm(arch, *types, name="embed_norm")(x)
        if arch.position == "learned":
            init = with_axis_names(nn.linear.default_embed_init, "length", "embed")
            size = (arch.max_length, arch.embed_dim)
            position = self.param("position", init, size, self.param_dtype)
            x += position[:length].astype(x.dtype)
        elif arch.position == "sinusoidal":
            x += sinusoids(length, arch.embed_dim).astype(x.dtype)
        x = constrain_sharding(x, self.stream_sharding)
        # Attention scores and activation functions are cheaper to compute twice than to store and
        # load: on a CPU, keeping them is 1.3 x slower and takes 2 to 3 x the memory.
        kept = None if self.remat else jax.checkpoint_policies.dots_with_no_batch_dims_saveable
        layer = nn.remat(Layer, prevent_cse=False, policy=kept)
        for first, number in arch.layer_runs:
            run = nn.scan(
                layer,
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True},
                length=number,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            x, _ = run(arch, arch.layers[first], *types, name=f"layers_{first}")(x, None)
            x = constrain_sharding(x, self.stream_sharding)
        return Norm(arch, *types, name="final_norm")(x) if arch.final_norm else x


def constrain_sharding(
    x: Shaped[jax.Array, "*shape"], sharding: jax.sharding.Sharding | None
) -> Shaped[jax.Array, "*shape"]:
    """The same array [...], split over a mesh where a sharding is given."""
    return x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)
