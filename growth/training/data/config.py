"""Where data comes from, as data."""

import dataclasses

from growth.errors import InputError


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

    files: str = ""
    tokenizer: str = ""
    images: str = ""
    max_shift: int = 0
    validation_fraction: float = 0.05

    def __post_init__(self) -> None:
        for name in ("files", "tokenizer", "images"):
            if not isinstance(getattr(self, name), str):
                raise DataError(f"{name} is {getattr(self, name)!r}, but it must be a string")
        shift = self.max_shift
        if isinstance(shift, bool) or not isinstance(shift, int) or shift < 0:
            raise DataError(f"max_shift is {shift!r}, but it must be a whole number from 0")
        fraction = self.validation_fraction
        if not isinstance(fraction, float) or not 0 < fraction < 1:
            raise DataError(
                f"validation_fraction is {fraction!r}, but it must be a number between 0 and 1"
            )
