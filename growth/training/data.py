"""Text to batches: files, tokens, a train and a validation side, and shuffled sequences.

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

import grain
import numpy as np

from growth.training.tokenizers import DataError, Tokenizer, load_tokenizer, token_dtype

# What is not source text that somebody wrote for all machines: other people's packages, tests,
# generated tables, and the settings this Python was built with.
_SKIPPED_DIRECTORIES = {
    *("site-packages", "dist-packages", "__pycache__"),
    *("test", "tests", "idle_test"),
    *("encodings", "pydoc_data"),
}
_BUILD_SETTINGS = ("_sysconfigdata", "config-")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where text comes from.

    Attributes:
      files: a glob of text files; `**` means any number of folders and `~` the home folder. ""
        means the source files of the Python standard library, without tests and generated tables.
      tokenizer: path of a Hugging Face tokenizer.json; "" means that a token is a byte.
      validation_fraction: the share of the files (of the tokens, where there is a single file) that
        is kept for validation; between 0 and 1.

    Raises:
      DataError: a field is out of range; the message names it.
    """

    files: str = ""
    tokenizer: str = ""
    validation_fraction: float = 0.05

    def __post_init__(self) -> None:
        for name in ("files", "tokenizer"):
            if not isinstance(getattr(self, name), str):
                raise DataError(f"{name} is {getattr(self, name)!r}, but it must be a string")
        fraction = self.validation_fraction
        if not isinstance(fraction, float) or not 0 < fraction < 1:
            raise DataError(
                f"validation_fraction is {fraction!r}, but it must be a number between 0 and 1"
            )


# Corpora.


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


# Batches.


def train_iterator(
    tokens: np.ndarray,
    *,
    batch_size: int,
    length: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator[np.ndarray]:
    """Batches without end, in an order that depends on nothing but the seed.

    The sequences start every `length` tokens, and every epoch has an order of its own. The state of
    the iterator counts sequences over all processes: it is the same in every process, and may be
    set with another batch size or another number of processes, which then go on with the very next
    sequence. The work is a copy from memory, so there are no threads and no worker processes.

    Args:
      tokens: [num_tokens].
      batch_size: sequences in a batch of this process.
      length: sequence length in tokens.
      seed: decides the order; 0 ≤ seed < 2³².
      process_index: which process this is.
      process_count: how many processes share the sequences.

    Returns:
      An iterator over int32 [batch_size, length + 1]: inputs are [:, :-1], targets are [:, 1:].

    Raises:
      DataError: there are fewer than length + 1 tokens.
    """
    _check_length(tokens, length, "training")
    sequences = (
        grain.MapDataset.source(_windows(tokens, length))
        .seed(seed)
        .shuffle()
        .repeat()
        .map(lambda window: window.astype(np.int32))
    )
    return iter(
        grain.experimental.ElasticIterator(
            sequences,
            batch_size * process_count,
            grain.sharding.ShardOptions(process_index, process_count),
            read_options=grain.ReadOptions(num_threads=0, prefetch_buffer_size=0),
        )
    )


def eval_batches(
    tokens: np.ndarray, *, batch_size: int, length: int, num_batches: int
) -> np.ndarray:
    """A fixed selection of sequences, spread evenly over `tokens`.

    It depends on nothing but the tokens and the sizes. Where there are fewer sequences than asked
    for, they repeat, each as often as any other give or take one: the shape is always the one that
    was asked for, and nothing needs to be compiled twice.

    Args:
      tokens: [num_tokens].
      batch_size: sequences in a batch.
      length: sequence length in tokens.
      num_batches: number of batches.

    Returns:
      int32 [num_batches, batch_size, length + 1]: inputs are [..., :-1], targets are [..., 1:].

    Raises:
      DataError: there are fewer than length + 1 tokens.
    """
    _check_length(tokens, length, "validation")
    windows = _windows(tokens, length)
    count = num_batches * batch_size
    chosen = windows[np.arange(count) * len(windows) // count]
    return chosen.astype(np.int32).reshape(num_batches, batch_size, length + 1)


def _windows(tokens: np.ndarray, length: int) -> np.ndarray:
    """[num_windows, length + 1], without a copy; neighbours share a token."""
    return np.lib.stride_tricks.sliding_window_view(tokens, length + 1)[::length]
