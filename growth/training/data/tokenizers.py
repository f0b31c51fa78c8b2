"""Text to tokens and back: bytes, or the tokenizer that a tokenizer.json describes."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np

from growth.training.data.config import DataError

# What tokenizers call the token that ends a document.
_END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")


class Tokenizer(Protocol):
    """Text to tokens and back."""

    @property
    def vocab_size(self) -> int:
        """The number of tokens; every token is smaller."""

    @property
    def end_of_document(self) -> int | None:
        """The token that stands after every document; None if there is none."""

    def encode(self, text: str) -> np.ndarray:
        """The tokens of `text`: [num_tokens], of the smallest unsigned type that holds them."""

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of `tokens`."""


class ByteTokenizer:
    """A token is a byte of UTF-8. Documents end with a zero byte, which no text file holds."""

    vocab_size = 256
    end_of_document = 0

    def encode(self, text: str) -> np.ndarray:
        """The bytes of `text`: uint8 [num_bytes]."""
        return np.frombuffer(text.encode("utf-8", errors="replace"), np.uint8)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of `tokens`, with U+FFFD in place of what is not UTF-8."""
        return bytes(int(token) for token in tokens).decode("utf-8", errors="replace")


class HuggingFaceTokenizer:
    """The tokenizer that a tokenizer.json describes. Text gets no special tokens around it.

    Args:
      path: the tokenizer.json; `~` means the home folder.

    Raises:
      DataError: the `tokenizers` package is not installed, or the file is missing or unreadable.
    """

    def __init__(self, path: str | os.PathLike):
        try:
            import tokenizers
        except ImportError as error:
            raise DataError(
                f"tokenizer is {str(path)!r}, and reading it needs the tokenizers package: "
                "pip install 'flax-growth[huggingface]'"
            ) from error
        file = Path(path).expanduser()
        if not file.is_file():
            raise DataError(f"tokenizer is {str(path)!r}, but there is no such file")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the package raises nothing narrower
            raise DataError(
                f"tokenizer is {str(path)!r}, which is not a Hugging Face tokenizer.json: {error}"
            ) from error
        # A file may carry the limits of the model it was made for; a corpus has none.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        vocabulary = self._tokenizer.get_vocab()
        self.vocab_size = max(vocabulary.values()) + 1
        self.end_of_document = next(
            (vocabulary[token] for token in _END_TOKENS if token in vocabulary), None
        )

    def encode(self, text: str) -> np.ndarray:
        """The tokens of `text`: [num_tokens], of the smallest unsigned type that holds them."""
        tokens = self._tokenizer.encode(text, add_special_tokens=False).ids
        return np.asarray(tokens, token_dtype(self))

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of `tokens`, special tokens included."""
        return self._tokenizer.decode([int(t) for t in tokens], skip_special_tokens=False)


def load_tokenizer(path: str = "") -> Tokenizer:
    """The tokenizer of a tokenizer.json, or bytes if `path` is "".

    Raises:
      DataError: the file is missing or unreadable, or the `tokenizers` package is not installed.
    """
    return HuggingFaceTokenizer(path) if path else ByteTokenizer()


def token_dtype(tokenizer: Tokenizer) -> np.dtype:
    """The smallest unsigned type that holds every token."""
    return np.min_scalar_type(tokenizer.vocab_size - 1)
