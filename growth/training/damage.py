"""What tells that a file was damaged from a machine that cannot read it now."""

import contextlib
import dataclasses
import errno
import gc
import hashlib
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

# Errors of reading that say nothing of what is on the disk, as Python numbers them and as others
# name them.
_NUMBERS = {errno.EACCES, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE}
_WORDS = ("RESOURCE_EXHAUSTED", "PERMISSION_DENIED", "UNAVAILABLE", *map(os.strerror, _NUMBERS))


def digest_of_json(value: Mapping[str, Any]) -> str:
    """A digest of what JSON can hold, the same before it is written and after it is read."""
    text = json.dumps(json.loads(json.dumps(value)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def is_of_the_machine(error: BaseException) -> bool:
    """Whether an error of reading may be gone the next time: no memory, no permission."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) in _NUMBERS:
        return True
    return any(word in str(error) for word in _WORDS)


@contextlib.contextmanager
def quiet_tasks() -> Iterator[None]:
    """Keeps tasks that fail together from being reported each: one error is enough.

    Orbax reads all arrays at once, raises the first error, and leaves the others to asyncio, which
    logs a page for each when its task is freed, and warns of those that have not begun. Those that
    are under way are freed, or find its loop closed, at any time later.
    """
    logger = logging.getLogger("asyncio")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    if not isinstance(sys.unraisablehook, _WithoutAbandonedReads):
        sys.unraisablehook = _WithoutAbandonedReads(sys.unraisablehook)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            try:
                yield
            finally:
                gc.collect()
    finally:
        logger.setLevel(level)


@dataclasses.dataclass(frozen=True)
class _WithoutAbandonedReads:
    """What Python does with an error that nobody can catch, but for those of abandoned reads."""

    before: Callable[[Any], Any]

    def __call__(self, unraisable: Any) -> None:
        files = (frame.filename for frame in traceback.extract_tb(unraisable.exc_traceback))
        of_orbax = any("orbax" in Path(file).parts for file in files)
        if not of_orbax and str(unraisable.exc_value) != "Event loop is closed":
            self.before(unraisable)
