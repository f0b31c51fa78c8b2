"""How a command fails: one clear line, and exit code 2 for what the user can mend."""

import contextlib
import sys
from collections.abc import Iterator

from growth.errors import InputError
from growth.training.run.stopping import DivergedError


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Prints an error of the input and exits with 2; exits with 3 where training diverged.

    Errors of the input are `InputError`s, or `OSError`s that name a file. Anything else is a
    defect, and keeps its traceback.
    """
    try:
        yield
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except DivergedError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(3)
