"""The reference model of images: a vision transformer (Dosovitskiy et al., arXiv 2010.11929)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Float

from growth.models.body import Model
from growth.models.parts import linear, with_axis_names
from growth.types import Images


class VisionTransformer(Model):
    """Images to logits; attributes as for `Model`. The architecture has `patches`.

    Examples:
      >>> import growth, jax
      >>> from growth import models
      >>> patches = growth.architecture.Patches(height=8, width=8, channels=1, size=4)
      >>> small = growth.Architecture.vit(
      ...     patches, vocab_size=10, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> params = models.initial_parameters(small, jax.random.key(0))
      >>> images = jax.numpy.zeros((3, 8, 8, 1))
      >>> models.VisionTransformer(small).apply({"params": params}, images).shape
      (3, 10)

    References:
      Dosovitskiy et al., arXiv 2010.11929, section 3.1.
    """

    @nn.compact
    def __call__(self, images: Images) -> Float[jax.Array, "batch {self.architecture.vocab_size}"]:
        """Logits [batch, classes] from images [batch, height, width, channels]."""
        arch = self.architecture
        patches = arch.patches
        if patches is None or images.shape[1:] != patches.shape:
            raise ValueError(f"images have shape {images.shape[1:]}, but patches are {patches}")
        types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        cut = rearrange(
            images, "b (h p) (w q) c -> b (h w) (p q c)", p=patches.size, q=patches.size
        )
        x = linear(arch.embed_dim, ("patch", "embed"), bias=True, name="patch_embed", **types)(cut)
        init = with_axis_names(nn.initializers.zeros, "embed")
        token = self.param("class_token", init, (arch.embed_dim,), self.param_dtype)
        first = jnp.broadcast_to(token.astype(x.dtype), (len(x), 1, arch.embed_dim))
        x = self.body(jnp.concatenate([first, x], axis=1))
        axes = ("embed", "vocab")
        return linear(arch.vocab_size, axes, bias=True, name="head", **types)(x[:, 0])
