"""The data of a run: text or images, as its architecture asks for."""

import dataclasses

from growth.architecture import Architecture
from growth.training.array_digests import host_digest
from growth.training.data.batches import Augment, Examples
from growth.training.data.config import DataConfig, DataError
from growth.training.data.images import Images, load_images, shifts
from growth.training.data.text import Windows, load_corpus
from growth.training.data.tokenizers import Tokenizer
from growth.training.formatting import format_count


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Examples in two sides, which share nothing.

    Attributes:
      train, validation: the sides.
      tokenizer: what tokens mean; None for images.
      about: what the training side is, in words.
      digest: a digest of the training side, which tells it from any other.
      augment: draws variations of training examples; None where there are none.
    """

    train: Examples
    validation: Examples
    tokenizer: Tokenizer | None
    about: str
    digest: str
    augment: Augment | None = None


def load_dataset(config: DataConfig, architecture: Architecture) -> Dataset:
    """Reads the data that an architecture is trained on.

    Raises:
      DataError: the data cannot be read, or does not fit the architecture.
    """
    if architecture.patches is None:
        return _text(config, architecture)
    if not config.images:
        raise DataError("images is '', but the architecture has patches: name a set of images")
    train, validation = load_images(config)
    _check_images(train, validation, architecture)
    if config.max_shift >= min(train.images.shape[1:3]):
        raise DataError(
            f"data.max_shift is {config.max_shift}, but images are {train.images.shape[1:3]}: it "
            f"must be less, or nothing of them is left"
        )
    shape = " × ".join(map(str, train.images.shape[1:3]))
    about = f"{len(train):,} training images of {shape}"
    augment = shifts(config.max_shift) if config.max_shift else None
    return Dataset(train, validation, None, about, train.digest, augment)


def require_batch(data: Dataset, batch_size: int) -> None:
    """Refuses a batch that would hold examples twice.

    Raises:
      DataError: the training side has fewer examples.
    """
    if batch_size > len(data.train):
        raise DataError(
            f"batch_size is {batch_size}, but the training side has {len(data.train)} examples "
            f"({data.about}): it must be at most as many"
        )


def _text(config: DataConfig, architecture: Architecture) -> Dataset:
    if config.images:
        raise DataError(
            f"images is {config.images!r}, but the architecture has no patches: it sees tokens"
        )
    length = architecture.max_length
    corpus = load_corpus(config, length)
    if corpus.tokenizer.vocab_size > architecture.vocab_size:
        raise DataError(
            f"architecture.vocab_size is {architecture.vocab_size}, but the tokenizer has "
            f"{corpus.tokenizer.vocab_size} tokens"
        )
    sides = Windows(corpus.train, length), Windows(corpus.validation, length)
    about = f"{format_count(len(corpus.train))} training tokens of {corpus.num_files} files"
    return Dataset(*sides, corpus.tokenizer, about, host_digest(corpus.train))


def _check_images(train: Images, validation: Images, architecture: Architecture) -> None:
    patches = architecture.patches
    assert patches is not None
    if train.images.shape[1:] != patches.shape:
        raise DataError(
            f"images are {train.images.shape[1:]}, but architecture.patches is for {patches.shape}"
        )
    labels = [side.labels for side in (train, validation)]
    least, most = min(map(min, labels)), max(map(max, labels))
    if least < 0 or most >= architecture.vocab_size:
        raise DataError(
            f"labels are {least} to {most}, but architecture.vocab_size is "
            f"{architecture.vocab_size}: classes count from 0"
        )
