"""The error of optimizer states."""

from growth.errors import InputError


class OptimizerStateError(InputError):
    """An optimizer state cannot be grown; the message names its type or the leaf."""
