"""Grows the tensors of a checkpoint, on a few threads, from files to files.

What is in memory at once is bounded by what the largest tensor takes.
"""

import concurrent.futures
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from growth.huggingface import tensors
from growth.huggingface.checkpoint import INDEX, SINGLE
from growth.huggingface.expansion import Expansion
from growth.huggingface.tensors import Spec

# Bytes of the tensors that are done, bytes of all, and the tensor that was done last.
Progress = Callable[[int, int, str], None]

_THREADS = min(4, os.cpu_count() or 1)


def silent(done: int, total: int, name: str) -> None:
    """Tells nobody."""


def write(expansion: Expansion, directory: Path, progress: Progress = silent) -> None:
    """Writes `config.json` and all tensors of a larger model to a directory that is there."""
    tensors.write_json(directory / "config.json", expansion.config)
    source = expansion.source
    files = {
        file: {source.stored(name): spec for name, spec in held.items()}
        for file, held in expansion.files.items()
    }
    if len(files) > 1:
        tensors.write_json(directory / INDEX, tensors.index(files))
    limit = max(_memory(expansion, name) for name in expansion.targets)
    budget, done = _Budget(limit), _Done(expansion.bytes, progress)
    for file, held in expansion.files.items():
        with tensors.Writer(directory / file, files[file]) as writer:

            def grow(name: str, writer: tensors.Writer = writer) -> None:
                with budget.spent(_memory(expansion, name)):
                    writer.write(source.stored(name), expansion.grow(name))
                done.add(expansion.specs[name].bytes, name)

            _for_each(grow, list(held))


def write_source(expansion: Expansion, directory: Path) -> None:
    """Writes the smaller model, in the dtype of the larger one's first tensor."""
    source = expansion.source
    tensors.write_json(directory / "config.json", source.config)
    kind = next(iter(expansion.specs.values())).dtype
    specs = {source.stored(name): Spec(source.spec(name).shape, kind) for name in source.parameters}
    with tensors.Writer(directory / SINGLE, specs) as writer:
        for name in source.parameters:
            writer.write(source.stored(name), source.read(name).astype(tensors.DTYPES[kind]))


def estimated_seconds(expansion: Expansion) -> float:
    """How long the tensors take to grow, by growing some of them for half a second.

    A disk that is slower than that takes longer.
    """
    began, grown = time.perf_counter(), 0
    names = sorted(expansion.targets, key=lambda name: -expansion.specs[name].bytes)
    for name in names[len(names) // 8 :]:  # the largest few are not like the others
        expansion.grow(name)
        grown += expansion.specs[name].bytes
        if time.perf_counter() - began > 0.5:
            break
    return expansion.bytes * (time.perf_counter() - began) / grown / _THREADS


def _for_each(function: Callable[[str], None], names: list[str]) -> None:
    """Calls a function for each name on a few threads; stops at the first error."""
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
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
