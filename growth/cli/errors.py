"""How a command fails: one clear line, and exit code 2 for what the user can mend."""

import contextlib
import signal
import sys
from collections.abc import Iterator

from growth.errors import InputError
from growth.training.run.stopping import STOPPED, DivergedError, StoppedError


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Prints an error of the input and exits with 2; exits with 3 where training diverged.

    A run that was asked to stop, has saved, and is not finished exits with 4; one that was
    interrupted a second time, so that it did not save once more, exits with 130. Errors of the
    input are `InputError`s, or `OSError`s that name a file. Anything else is a defect, and keeps
    its traceback.
    """
    try:
        yield
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except DivergedError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(3)
    except StoppedError as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(STOPPED)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is being saved is saved
        print("interrupted: what was saved stays, and the same command goes on", file=sys.stderr)
        sys.exit(130)
