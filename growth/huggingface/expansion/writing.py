"""Does what is planned: grows tensors on a few threads, from mapped files to files.

What is in memory at once is bounded by what the largest tensor takes. Every tensor is checked
before it is written: each entry is finite, and what its account says.
"""

import collections
import concurrent.futures
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path

import numpy as np

from growth.expansion.array_checks import check_array
from growth.huggingface.checkpoint_files import write_checkpoint
from growth.huggingface.expansion.planning import CheckpointExpansion

# Bytes of the tensors that are done, bytes of all, and the tensor that was done last.
Progress = Callable[[int, int, str], None]

_THREADS = min(4, os.cpu_count() or 1)


def no_progress(done: int, total: int, name: str) -> None:
    """The `Progress` that tells nobody."""


def write_grown(
    expansion: CheckpointExpansion, directory: Path, *, progress: Progress = no_progress
) -> None:
    """Writes `config.json` and all tensors of the larger model to a directory that is there.

    Raises:
      ArrayCheckError: a tensor of the source, or what it would become, is not finite; or a tensor
        is not what growth makes.
    """
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
            ahead.append((name, needed, pool.submit(_grown, expansion, name)))
            taken += needed
        while ahead:
            first, _, array = ahead.popleft()
            yield first, array.result()
    finally:
        for _, _, array in ahead:
            array.cancel()


def _grown(expansion: CheckpointExpansion, name: str) -> np.ndarray:
    """A tensor of the result, checked."""
    with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is refused
        array = expansion.grow(name)
    old = expansion.source.read(expansion.source_name(name))
    check_array(expansion.targets[name], old, array, expansion.plan)
    return array


def estimated_seconds(expansion: CheckpointExpansion) -> float:
    """How long the tensors take to grow, by growing some of them for half a second.

    A disk that is slower than that takes longer.
    """
    began, grown = time.perf_counter(), 0
    names = sorted(expansion.targets, key=lambda name: -expansion.specs[name].bytes)
    for name in names[len(names) // 8 :]:  # the largest few are not like the others
        _grown(expansion, name)
        grown += expansion.specs[name].bytes
        if time.perf_counter() - began > 0.5:
            break
    return expansion.bytes * (time.perf_counter() - began) / grown / _THREADS


def _memory(expansion: CheckpointExpansion, name: str) -> int:
    """Bytes that it takes to make a tensor: the old one, which is mapped, and the new."""
    return expansion.source.spec(expansion.source_name(name)).bytes + expansion.specs[name].bytes
