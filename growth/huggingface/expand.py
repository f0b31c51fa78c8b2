"""`expand_checkpoint`: a Hugging Face checkpoint to a larger one that computes the same function.

Tensor by tensor, from mapped files to files, so that the largest tensor bounds the memory. What is
written appears under its name when all of it is there.
"""

import concurrent.futures
import contextlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from growth.errors import InputError
from growth.huggingface import card, tensors, verification
from growth.huggingface.expansion import Expansion, plan_expansion
from growth.huggingface.staging import staged
from growth.huggingface.verification import Verification

# Bytes of the tensors that are done, bytes of all, and the tensor that was done last.
Progress = Callable[[int, int, str], None]


def expand_checkpoint(
    source: str | os.PathLike,
    output: str | os.PathLike,
    *,
    verify: bool | None = None,
    progress: Progress | None = None,
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
    progress: Progress | None = None,
) -> Verification | None:
    """Does what was planned; see `expand_checkpoint`."""
    output, source = Path(output).absolute(), expansion.source
    if output.resolve().is_relative_to(source.directory.resolve()):
        raise InputError(f"output {output} lies in the source, which is left as it is")
    why_not = verification.obstacle(expansion)
    if verify and why_not:
        raise InputError(f"verify is True, but {why_not}")
    carried = source.carried
    num_bytes = expansion.bytes + sum(path.stat().st_size for path in carried)
    with staged(output, num_bytes) as directory:
        for path in carried:
            shutil.copy2(path, directory / path.name)
        _write_json(directory / "config.json", expansion.config)
        _write_tensors(expansion, directory, progress or (lambda *_: None))
        verified = None
        if verify or (verify is None and not why_not):
            verified = verification.verify(expansion, directory)
            verified.require()
        card.write(expansion, verified, directory)
    return verified


def _write_tensors(expansion: Expansion, directory: Path, progress: Progress) -> None:
    source = expansion.source
    files = {
        file: {source.stored(name): spec for name, spec in held.items()}
        for file, held in expansion.files.items()
    }
    if len(files) > 1:
        _write_json(directory / "model.safetensors.index.json", tensors.index(files))
    limit = max(_memory(expansion, name) for name in expansion.targets)
    budget, done = _Budget(limit), _Done(expansion.bytes, progress)
    for file, held in expansion.files.items():
        with tensors.Writer(directory / file, files[file]) as writer:

            def write(name: str, writer: tensors.Writer = writer) -> None:
                with budget.spent(_memory(expansion, name)):
                    writer.write(source.stored(name), expansion.grow(name))
                done.add(expansion.specs[name].bytes, name)

            _for_each(write, list(held))


def _for_each(function: Callable[[str], None], names: list[str]) -> None:
    """Calls a function for each name on a few threads; stops at the first error."""
    with concurrent.futures.ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        calls = [pool.submit(function, name) for name in names]
        try:
            for call in concurrent.futures.as_completed(calls):
                call.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _memory(expansion: Expansion, name: str) -> int:
    """Bytes that it takes to make a tensor: the old one, mapped and as an array, and the new."""
    old = expansion.source.spec(expansion.source_name(name))
    return 2 * old.bytes + expansion.specs[name].bytes


class _Budget:
    """Lets threads go on while what they use together is within a limit."""

    def __init__(self, limit: int):
        self._left, self._changed = limit, threading.Condition()

    @contextlib.contextmanager
    def spent(self, amount: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: amount <= self._left)
            self._left -= amount
        try:
            yield
        finally:
            with self._changed:
                self._left += amount
                self._changed.notify_all()


class _Done:
    """Counts bytes for the progress, one thread at a time."""

    def __init__(self, total: int, progress: Progress):
        self._done, self._total, self._progress = 0, total, progress
        self._lock = threading.Lock()

    def add(self, amount: int, name: str) -> None:
        with self._lock:
            self._done += amount
            self._progress(self._done, self._total, name)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
