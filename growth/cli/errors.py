"""How a command fails: one clear line and exit code 2 for what the user can mend."""

import contextlib
import sys
from collections.abc import Iterator

from absl import app, flags

from growth.errors import InputError
from growth.training.config import ConfigError
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


def parse_flags(argv: list[str]) -> list[str]:
    """Parses the flags of a command, for `app.run`; gives the arguments that are left.

    A field that a config does not have, and what a config file itself refuses, is an error of one
    line, like all others.
    """
    with reported():
        try:
            return flags.FLAGS(argv)
        except flags.Error as error:
            own = _first_cause(error)
            if own is not None:
                raise own from None
            app.usage(shorthelp=True, detailed_error=error, exitcode=1)
            raise
        except AttributeError as error:
            # That is how a locked config refuses a name: the cause is its argument.
            cause = error.args[0] if error.args else None
            if not isinstance(cause, KeyError):
                raise
            what = ". ".join(str(cause.args[0]).splitlines())
            raise ConfigError(f"unknown field of the config: {what}") from error


def _first_cause(error: BaseException) -> InputError | None:
    """The error of a config file itself, which what reads the file raises anew in its own words."""
    found, cause = None, error.__cause__ or error.__context__
    while cause is not None:
        found = cause if isinstance(cause, InputError) else found
        cause = cause.__cause__ or cause.__context__
    return found
