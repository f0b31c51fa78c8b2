"""Does what is planned: grows tensors on a few threads, from mapped files to files.

What is in memory at once is bounded by what the largest tensor takes.
"""

import collections
import concurrent.futures
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path

import numpy as np

from growth.huggingface.checkpoint_files import SINGLE, write_checkpoint
from growth.huggingface.expansion.planning import CheckpointExpansion
from growth.huggingface.tensor_files import DTYPES, TensorSpec

# Bytes of the tensors that are done, bytes of all, and the tensor that was done last.
Progress = Callable[[int, int, str], None]

_THREADS = min(4, os.cpu_count() or 1)


def no_progress(done: int, total: int, name: str) -> None:
    """The `Progress` that tells nobody."""


def write_grown(
    expansion: CheckpointExpansion, directory: Path, *, progress: Progress = no_progress
) -> None:
    """Writes `config.json` and all tensors of the larger model to a directory that is there."""
    source = expansion.source
    shards = {
        file: {source.name_in_files(name): spec for name, spec in held.items()}
        for file, held in expansion.shards.items()
    }
    limit = max(_memory(expansion, name) for name in expansion.targets)
    names = {source.name_in_files(name): name for name in expansion.targets}
    done = 0
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:

        def arrays_of(names_in_files: Sequence[str]) -> Iterator[np.ndarray]:
            nonlocal done
            wanted = [names[name] for name in names_in_files]
            for name, array in _grown_ahead(expansion, wanted, pool, limit):
                yield array
                done += expansion.specs[name].bytes
                progress(done, expansion.bytes, name)

        write_checkpoint(directory, expansion.config, shards, arrays_of)


def _grown_ahead(
    expansion: CheckpointExpansion, names: Sequence[str], pool: Executor, limit: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Tensors of the result in order, while the threads of a pool grow the next ones.

    What they take together stays within a limit, in bytes.
    """
    ahead: collections.deque[tuple[str, int, Future[np.ndarray]]] = collections.deque()
    taken = 0
    try:
        for name in names:
            needed = _memory(expansion, name)
            while ahead and (taken + needed > limit or len(ahead) > 2 * _THREADS):
                first, freed, array = ahead.popleft()
                yield first, array.result()
                taken -= freed
            ahead.append((name, needed, pool.submit(expansion.grow, name)))
            taken += needed
        while ahead:
            first, _, array = ahead.popleft()
            yield first, array.result()
    finally:
        for _, _, array in ahead:
            array.cancel()


def write_source(expansion: CheckpointExpansion, directory: Path) -> None:
    """Writes the smaller model, in the dtype of the larger one's first tensor."""
    source = expansion.source
    code = next(iter(expansion.specs.values())).dtype
    names = {source.name_in_files(name): name for name in source.parameters}
    specs = {stored: TensorSpec(source.spec(name).shape, code) for stored, name in names.items()}

    def arrays_of(names_in_files: Sequence[str]) -> Iterator[np.ndarray]:
        return (source.read(names[name]).astype(DTYPES[code]) for name in names_in_files)

    write_checkpoint(directory, source.config, {SINGLE: specs}, arrays_of)


def estimated_seconds(expansion: CheckpointExpansion) -> float:
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


def _memory(expansion: CheckpointExpansion, name: str) -> int:
    """Bytes that it takes to make a tensor: the old one, which is mapped, and the new."""
    return expansion.source.spec(expansion.source_name(name)).bytes + expansion.specs[name].bytes
