"""How a command fails: one clear line and exit code 2 for what the user can mend."""

import contextlib
import sys
from collections.abc import Iterator

from growth.training.run import DivergedError


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Prints an error of the input and exits with 2; exits with 3 where training diverged.

    All errors that the input can cause are `ValueError`s that say what was given and what is
    accepted. Anything else is a defect, and keeps its traceback.
    """
    try:
        yield
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except DivergedError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(3)
