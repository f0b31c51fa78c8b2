"""Text is continued as the model's logits say, whatever the length of prompt and continuation."""

import numpy as np
import pytest

from growth.architecture import Architecture
from growth.errors import InputError
from growth.models import Transformer
from growth.training.generation import generate
from tests.helpers import networks

ARCHITECTURE = Architecture.llama(
    vocab_size=26, max_length=6, embed_dim=8, num_layers=1, num_heads=2, mlp_dim=16
)
MODEL = Transformer(ARCHITECTURE)
PARAMETERS = networks.random_parameters(ARCHITECTURE, dtype=np.float32)


class Letters:
    """A token is a small letter; other characters are dropped."""

    vocab_size = 26
    end_of_document = None

    def encode(self, text):
        return np.array([ord(c) - ord("a") for c in text if c.islower()], np.uint8)

    def decode(self, tokens):
        return "".join(chr(ord("a") + token) for token in tokens)


def continued(prompt, num_tokens=1, **options):
    return generate(MODEL, PARAMETERS, Letters(), prompt, num_tokens=num_tokens, **options)


def scores(text):
    """The logits of the letter after a text, of which the model sees its last letters."""
    tokens = Letters().encode(text)[-ARCHITECTURE.max_length :]
    return networks.logits(ARCHITECTURE, PARAMETERS, tokens[None].astype(np.int32))[0, -1]


@pytest.mark.parametrize("prompt", ["a", "abcde", "abcdef", "the quick brown fox"])
def test_the_likeliest_letters_follow(prompt):
    """Also where prompt and continuation outgrow what the model sees."""
    text = prompt
    for _ in range(9):
        text += Letters().decode([int(np.argmax(scores(text)))])
    assert continued(prompt, 9, temperature=0) == text.removeprefix(prompt)
    assert continued(prompt, 9, temperature=0, seed=1) == text.removeprefix(prompt)
    assert continued(prompt, 9, top_k=1) == text.removeprefix(prompt)


def test_draws_are_among_the_likeliest_and_as_likely_as_the_model_says():
    seeds = range(400)
    logits = scores("abc")
    likeliest = np.argsort(logits)[-3:]
    drawn = [continued("abc", top_k=3, temperature=2.0, seed=seed) for seed in seeds]
    shares = np.array([drawn.count(Letters().decode([token])) for token in likeliest]) / len(seeds)
    assert shares.sum() == 1
    weights = np.exp(logits[likeliest] / 2.0)
    np.testing.assert_allclose(shares, weights / weights.sum(), atol=0.1)


def test_the_seed_decides():
    one, again, other = (continued("abc", 9, seed=seed) for seed in (0, 0, 1))
    assert one == again != other
    assert len(one) == 9


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ("", {}, "prompt is '', .* at least one token"),
        ("123", {}, "prompt is '123', .* at least one token"),
        ("a", dict(num_tokens=0), "num_tokens is 0, .* at least 1"),
        ("a", dict(temperature=-0.1), r"temperature is -0\.1, .* at least 0"),
        ("a", dict(top_k=0), "top_k is 0, .* 1 to 26"),
        ("a", dict(top_k=27), "top_k is 27, .* 1 to 26"),
    ],
)
def test_arguments_out_of_range_are_named(prompt, options, message):
    with pytest.raises(InputError, match=message):
        continued(prompt, **options)
