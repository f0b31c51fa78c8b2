"""Text from a trained model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from growth.errors import InputError
from growth.models import Model, logits
from growth.training.data.tokenizers import Tokenizer
from growth.types import Params


def generate(
    model: Model,
    params: Params,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    num_tokens: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> str:
    """Continues a prompt.

    The model sees the last `max_length` tokens. There is no cache of keys and values: every token
    costs a forward pass over that window, which is fine for looking at a model.

    Args:
      model: the model.
      params: its parameters.
      tokenizer: what its tokens mean.
      prompt: the text to continue; at least one token.
      num_tokens: how many tokens to add.
      temperature: divides the logits; 0 takes the likeliest token.
      top_k: draws among this many likeliest tokens; None among all.
      seed: decides what is drawn.

    Returns:
      The continuation, without the prompt.

    Raises:
      InputError: an argument is out of range; the message names it. Or the model sees images.

    Examples:
      >>> from growth import training
      >>> from growth.training.data.tokenizers import ByteTokenizer
      >>> model, params, _ = training.load_model("runs/small")
      >>> text = training.generate(
      ...     model, params, ByteTokenizer(), "Die", num_tokens=4, temperature=0
      ... )
      >>> len(text) <= 4
      True

    References:
      Drawing among the likeliest: Fan, Lewis and Dauphin, arXiv 1805.04833, section 5.
    """
    if model.architecture.patches is not None:
        raise InputError(f"prompt is {prompt!r}, but the model sees images, and continues no text")
    tokens = np.asarray(tokenizer.encode(prompt), np.int32)
    if not len(tokens):
        raise InputError(f"prompt is {prompt!r}, but it must have at least one token to continue")
    if num_tokens < 1:
        raise InputError(f"num_tokens is {num_tokens}, but it must be at least 1")
    if temperature < 0:
        raise InputError(f"temperature is {temperature}, but it must be at least 0")
    vocab_size = model.architecture.vocab_size
    if top_k is not None and not 1 <= top_k <= vocab_size:
        raise InputError(f"top_k is {top_k}, but it must be 1 to {vocab_size}, the vocabulary")

    window = model.architecture.max_length
    tokens = tokens[-window:]
    buffer = np.zeros(window, np.int32)
    buffer[: len(tokens)] = tokens
    drawn = _continue(
        model,
        params,
        jnp.asarray(buffer),
        jnp.asarray(len(tokens)),
        jax.random.key(seed),
        jnp.asarray(temperature, jnp.float32),
        num_tokens,
        top_k or vocab_size,
    )
    return tokenizer.decode(np.asarray(drawn).tolist())


@functools.partial(jax.jit, static_argnames=("model", "num_tokens", "top_k"))
def _continue(
    model: Model,
    params: Params,
    buffer: jax.Array,
    length: jax.Array,
    key: jax.Array,
    temperature: jax.Array,
    num_tokens: int,
    top_k: int,
) -> jax.Array:
    """Draws tokens [num_tokens] that follow the first `length` tokens of a buffer [window]."""
    window = buffer.shape[0]

    def draw(
        carry: tuple[jax.Array, jax.Array], key: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        buffer, length = carry
        scores = logits(model, params, buffer[None])[0, length - 1].astype(jnp.float32)
        least = jax.lax.top_k(scores, top_k)[0][-1]
        scores = jnp.where(scores >= least, scores, -jnp.inf)
        sampled = jax.random.categorical(key, scores / jnp.maximum(temperature, 1e-6))
        token = jnp.where(temperature > 0, sampled, jnp.argmax(scores)).astype(jnp.int32)
        full = length == window
        buffer = jnp.where(full, jnp.roll(buffer, -1), buffer)
        place = jnp.where(full, window - 1, length)
        return (buffer.at[place].set(token), place + 1), token

    _, drawn = jax.lax.scan(draw, (buffer, length), jax.random.split(key, num_tokens))
    return drawn
