"""Where data comes from, as data."""

import dataclasses

from growth.errors import InputError
from growth.training.fields import Between, Index, Text, check_fields


class DataError(InputError):
    """The data cannot be used as asked; the message says what was given and what is needed."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where text or images come from.

    Attributes:
      files: a glob of text files; `**` means any number of folders and `~` the home folder. ""
        means the source files of the Python standard library, without tests and generated tables.
      tokenizer: path of a Hugging Face tokenizer.json; "" means that a token is a byte.
      images: for an architecture that has patches: "digits", scikit-learn's, or the path of an .npz
        file with `images` and `labels`.
      max_shift: training images are shifted at random, by up to so many pixels each way.
      validation_fraction: the share of the files (of the tokens, where there is a single file), or
        of the images, that is kept for validation; between 0 and 1.

    Raises:
      DataError: a field is out of range; the message names it.

    Examples:
      >>> from growth.training import DataConfig
      >>> DataConfig(files="~/texts/**/*.txt").validation_fraction
      0.05

    References:
      The documentation of `glob` for patterns, and that of tokenizers for tokenizer.json.
    """

    files: Text = ""
    tokenizer: Text = ""
    images: Text = ""
    max_shift: Index = 0
    validation_fraction: Between = 0.05

    def __post_init__(self) -> None:
        check_fields(self, DataError)
