"""Files and directories that appear under their names when they are whole, and not before."""

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from growth.errors import InputError


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all; makes the directory that it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


@contextlib.contextmanager
def atomic_directory(output: Path, num_bytes: int) -> Iterator[Path]:
    """A directory to write to, which becomes `output` if the block is left without an error.

    It stands beside `output` as `NAME.partial`. An error removes it; what a killed process left is
    removed by the next one. All that `output` then holds is on the disk.

    Args:
      output: the directory that appears, within one that is there.
      num_bytes: how much will be written.

    Raises:
      InputError: `output` exists, another process is writing it, or the disk is full.
    """
    if output.exists():
        raise InputError(f"output {output} exists already: give another one, or remove it")
    partial = output.with_name(output.name + ".partial")
    partial.mkdir(exist_ok=True)
    with _lock(partial) as lock:
        try:
            for old in partial.iterdir():
                if old != lock:
                    shutil.rmtree(old) if old.is_dir() else old.unlink()
            free = shutil.disk_usage(partial).free
            if free < num_bytes:
                raise _full(output, num_bytes, free)
            yield partial
            lock.unlink()
            _sync(partial)
            if output.exists():
                raise InputError(f"output {output} exists by now: another process made it")
            partial.rename(output)
            _sync(output.parent)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _full(output, num_bytes, shutil.disk_usage(output.parent).free) from error
            raise


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[Path]:
    path = directory / ".lock"
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"another process is writing to {directory}") from error
        yield path


def _sync(directory: Path) -> None:
    number = os.open(directory, os.O_RDONLY)
    os.fsync(number)
    os.close(number)


def _full(output: Path, num_bytes: int, free: int) -> InputError:
    return InputError(
        f"the disk of {output} is full: {num_bytes / 1e6:,.1f} MB are needed, and "
        f"{free / 1e6:,.1f} MB are free"
    )
