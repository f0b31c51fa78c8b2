"""The reference model of text: a Linen transformer that covers every field of `Architecture`."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Float

from growth.models.body import Model, constrain_sharding
from growth.models.parts import linear, with_axis_names
from growth.types import Tokens


class Transformer(Model):
    """Tokens to logits; attributes as for `Model`.

    Examples:
      >>> import growth, jax
      >>> from growth import models
      >>> small = growth.Architecture.llama(
      ...     vocab_size=11, max_length=8, embed_dim=8, num_layers=2, num_heads=2, mlp_dim=16
      ... )
      >>> params = models.initial_parameters(small, jax.random.key(0))
      >>> models.Transformer(small).apply({"params": params}, jax.numpy.zeros((1, 8), int)).shape
      (1, 8, 11)

    References:
      Gesmundo and Maile, *Composable Function-preserving Expansions for Transformer
      Architectures*, arXiv 2308.06103, section 2.
      Vaswani et al., arXiv 1706.03762, section 3.
    """

    @nn.compact
    def __call__(
        self, tokens: Tokens
    ) -> Float[jax.Array, "batch length {self.architecture.vocab_size}"]:
        """Logits [batch, length, vocab] of the next token, from int tokens [batch, length]."""
        arch = self.architecture
        embed = nn.Embed(
            arch.vocab_size,
            arch.embed_dim,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            embedding_init=with_axis_names(nn.linear.default_embed_init, "vocab", "embed"),
            name="embed",
        )
        table = embed.embedding.astype(self.dtype or embed.embedding.dtype)
        if self.stream_sharding is not None:
            # From a table that is split along `embed` each device would be given the whole stream.
            rows = PartitionSpec(PartitionSpec.UNCONSTRAINED, None)
            table = constrain_sharding(table, NamedSharding(self.stream_sharding.mesh, rows))
        x = jnp.take(table, tokens, axis=0)
        if arch.scaled_embedding:
            x *= arch.embed_dim**0.5
        x = self.body(x)
        if arch.tied_embeddings:
            logits = embed.attend(x)
        else:
            types: dict[str, Any] = dict(dtype=self.dtype, param_dtype=self.param_dtype)
            axes = ("embed", "vocab")
            logits = linear(arch.vocab_size, axes, bias=False, name="unembed", **types)(x)
        if arch.scaled_logits:
            logits /= arch.embed_dim**0.5
        cap = arch.logit_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)
