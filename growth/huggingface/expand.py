"""`expand_checkpoint`: a Hugging Face checkpoint to a larger one that computes the same function.

Tensor by tensor, from mapped files to files, so that the largest tensor bounds the memory. What is
written appears under its name when all of it is there.
"""

import os
import shutil
from pathlib import Path
from typing import Any

from growth.errors import InputError
from growth.files import atomic_directory
from growth.huggingface import card, verification, writing
from growth.huggingface.expansion import Expansion, plan_expansion
from growth.huggingface.verification import Verification
from growth.huggingface.writing import Progress


def expand_checkpoint(
    source: str | os.PathLike,
    output: str | os.PathLike,
    *,
    verify: bool | None = None,
    progress: Progress = writing.no_progress,
    **options: Any,
) -> Verification | None:
    """Writes a larger checkpoint that computes the same function.

    Args:
      source: the directory of a Hugging Face checkpoint: `config.json` and safetensors.
      output: the directory to write, which must not exist. It appears when it is whole.
      verify: whether transformers loads both and compares what they say; None: where torch and
        transformers can be imported and memory suffices.
      progress: is told of each tensor that is written.
      **options: the sizes to reach and more; see `plan_expansion`.

    Returns:
      What was verified; None if nothing was.

    Raises:
      InputError: see `plan_expansion`. Or `output` exists, or its disk is full; or `verify` is
        True and cannot be done.
      VerificationError: the larger model does not say the same; nothing is left of it.
    """
    return run(plan_expansion(source, **options), output, verify=verify, progress=progress)


def run(
    expansion: Expansion,
    output: str | os.PathLike,
    *,
    verify: bool | None = None,
    progress: Progress = writing.no_progress,
) -> Verification | None:
    """Does what was planned; see `expand_checkpoint`."""
    output, source = Path(output).absolute(), expansion.source
    if output.resolve().is_relative_to(source.directory.resolve()):
        raise InputError(f"output {output} lies in the source, which is left as it is")
    output.parent.mkdir(parents=True, exist_ok=True)
    why_not = verification.why_unverifiable(expansion, output.parent)
    if verify and why_not:
        raise InputError(f"verify is True, but {why_not}")
    carried = source.carried
    num_bytes = expansion.bytes + sum(path.stat().st_size for path in carried)
    with atomic_directory(output, num_bytes) as directory:
        for path in carried:
            shutil.copy2(path, directory / path.name)
        writing.write(expansion, directory, progress)
        verified = None
        if verify or (verify is None and not why_not):
            verified = verification.verify(expansion, directory)
            verified.require()
        card.write(expansion, verified, directory)
    return verified
