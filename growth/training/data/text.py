"""Text to sequences: files, tokens, a train and a validation side.

A corpus is one long array of tokens per side. A sequence is a window of `length` + 1 tokens, so
that its first `length` are the inputs and its last `length` the targets. The default corpus, the
Python standard library as bytes, is on every machine, so that a run needs nothing but this package.
"""

import dataclasses
import glob
import hashlib
import itertools
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from growth.training.data.batches import Batch
from growth.training.data.config import DataConfig, DataError
from growth.training.data.tokenizers import Tokenizer, load_tokenizer, token_dtype

# What is not source text that somebody wrote for all machines: other people's packages, tests,
# generated tables, and the settings this Python was built with.
_SKIPPED_DIRECTORIES = {
    *("site-packages", "dist-packages", "__pycache__"),
    *("test", "tests", "idle_test"),
    *("encodings", "pydoc_data"),
}
_BUILD_SETTINGS = ("_sysconfigdata", "config-")


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Text as tokens, in two sides.

    Attributes:
      train: [num_tokens], uint8, uint16 or uint32: the smallest that holds the vocabulary.
      validation: the same, of files that `train` has nothing of.
      tokenizer: what made the tokens.
      num_files: how many files were read.
      num_binary_files: how many files were left out because they are not text.
    """

    train: np.ndarray
    validation: np.ndarray
    tokenizer: Tokenizer
    num_files: int
    num_binary_files: int


def load_corpus(config: DataConfig, length: int) -> Corpus:
    """Reads, tokenizes and splits the files of `config`.

    A file is on one side or the other by a hash of its path below the glob's fixed part, so that it
    is on the same side on every machine, and stays there when other files come and go. Where all
    files would be on one side, the one nearest to the other side changes over. A single file is cut
    in two, and its tail is the validation side.

    A file that holds a zero byte is not text, and is left out. In every other file, bytes that are
    not UTF-8 become U+FFFD: one wrong byte is no reason to lose a file.

    Args:
      config: what to read.
      length: the sequence length in tokens; either side must hold one sequence of it.

    Raises:
      DataError: no file matches or none is text, a file or the tokenizer cannot be read, or a side
        is shorter than one sequence.
    """
    tokenizer = load_tokenizer(config.tokenizer)
    root, paths = _find_files(config.files)
    documents: dict[str, np.ndarray] = {}
    for path in paths:
        try:
            content = (root / path).read_bytes()
        except OSError as error:
            raise DataError(f"files is {config.files!r}, but {root / path}: {error}") from error
        if b"\0" not in content:
            documents[path] = tokenizer.encode(content.decode("utf-8", errors="replace"))
    if not documents:
        raise DataError(
            f"files is {config.files!r}, but all {len(paths)} files that it matches are binary; "
            "they must be text"
        )

    if len(documents) == 1:
        tokens = _join(documents.values(), tokenizer)
        cut = len(tokens) - round(len(tokens) * config.validation_fraction)
        train, validation = tokens[:cut], tokens[cut:]
    else:
        held_out = _held_out(list(documents), config.validation_fraction)
        train = _join((documents[p] for p in documents if p not in held_out), tokenizer)
        validation = _join((documents[p] for p in documents if p in held_out), tokenizer)
    for side, tokens in (("training", train), ("validation", validation)):
        _check_length(tokens, length, side)
    return Corpus(train, validation, tokenizer, len(documents), len(paths) - len(documents))


def _find_files(pattern: str) -> tuple[Path, list[str]]:
    """The folder that a glob starts from, and the files below it in an order all machines share."""
    if not pattern:
        root = Path(sysconfig.get_path("stdlib"))
        found = [path.relative_to(root) for path in root.rglob("*.py")]
        found = [path for path in found if not any(map(_is_skipped, path.parts))]
    else:
        parts = Path(pattern).expanduser().parts
        fixed = itertools.takewhile(lambda part: not set(part) & set("*?["), parts[:-1])
        root = Path(*fixed)
        rest = str(Path(*parts[len(root.parts) :]))
        found = [Path(path) for path in glob.glob(rest, root_dir=root, recursive=True)]
    paths = sorted({path.as_posix() for path in found if (root / path).is_file()})
    if not paths:
        raise DataError(
            f"files is {pattern!r}, which matches no file below {root}; it must be a glob of text "
            "files, such as '~/text/**/*.txt'"
        )
    return root, paths


def _is_skipped(part: str) -> bool:
    return part in _SKIPPED_DIRECTORIES or part.startswith(_BUILD_SETTINGS)


def _held_out(paths: Sequence[str], fraction: float) -> set[str]:
    """The files of the validation side: neither none nor all of two or more."""
    place = {
        path: int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") / 2**64
        for path in paths
    }
    ranked = sorted(paths, key=place.__getitem__)
    count = sum(place[path] < fraction for path in paths)
    return set(ranked[: min(max(count, 1), len(paths) - 1)])


def _join(documents: Iterable[np.ndarray], tokenizer: Tokenizer) -> np.ndarray:
    token = tokenizer.end_of_document
    end = np.asarray([] if token is None else [token], token_dtype(tokenizer))
    return np.concatenate([part for document in documents for part in (document, end)])


def _check_length(tokens: np.ndarray, length: int, side: str) -> None:
    if len(tokens) < length + 1:
        raise DataError(
            f"the {side} side has {len(tokens)} tokens, but one sequence of length {length} needs "
            f"{length + 1}: give more text, a shorter length, or another validation_fraction"
        )


class Windows:
    """The sequences of a corpus's side: they start every `length` tokens.

    Args:
      tokens: [num_tokens]; at least `length` + 1.
      length: sequence length in tokens.
    """

    def __init__(self, tokens: np.ndarray, length: int) -> None:
        view = np.lib.stride_tricks.sliding_window_view(tokens, length + 1)
        self._windows = view[::length]  # without a copy; neighbours share a token

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> Batch:
        """One sequence: inputs int32 [length] and targets int32 [length]."""
        window = self._windows[index].astype(np.int32)
        return Batch(window[:-1], window[1:])
