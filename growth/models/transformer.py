"""The reference model of text: a Linen transformer that covers every field of `Architecture`."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from growth.models.body import Model, split
from growth.models.parts import linear, named


class Transformer(Model):
    """Tokens to logits; attributes as for `Model`."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits [batch, length, vocab] of the next token, from int tokens [batch, length]."""
        arch = self.architecture
        embed = nn.Embed(
            arch.vocab_size,
            arch.embed_dim,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            embedding_init=named(nn.linear.default_embed_init, "vocab", "embed"),
            name="embed",
        )
        table = embed.embedding.astype(self.dtype or embed.embedding.dtype)
        if self.stream_sharding is not None:
            # From a table that is split along `embed` each device would be given the whole stream.
            rows = PartitionSpec(PartitionSpec.UNCONSTRAINED, None)
            table = split(table, NamedSharding(self.stream_sharding.mesh, rows))
        x = jnp.take(table, tokens, axis=0)
        if arch.scaled_embedding:
            x *= arch.embed_dim**0.5
        x = self.body(x)
        if arch.tied_embeddings:
            logits = embed.attend(x)
        else:
            types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
            axes = ("embed", "vocab")
            logits = linear(arch.vocab_size, axes, bias=False, name="unembed", **types)(x)
        cap = arch.logit_softcap
        return logits if cap is None else cap * jnp.tanh(logits / cap)
