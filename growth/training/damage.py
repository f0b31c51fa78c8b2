"""What tells that a file was damaged from a machine that cannot read it now."""

import errno
import hashlib
import json
import os
from collections.abc import Mapping
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
