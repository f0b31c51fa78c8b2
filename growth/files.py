"""Files and directories that appear under their names when they are whole, and not before.

What is being written stands in a staging directory beside its place: one that was made for it, by
a process that fails where anything has that name, and that carries a mark. Nothing else is ever
removed here, and no symbolic link is followed: a file or a directory that somebody else made stays
as it is, whatever its name.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from growth.errors import InputError

_PREFIX = ".growth-"
_NAME = re.compile(re.escape(_PREFIX) + "[0-9a-f]{32}")

# What a staging directory holds: the mark, which says whose it is, and what is being written.
_MARK = "mark"
_CONTENT = "content"


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file, whole or not at all; makes the directory that it is in.

    A file that has this name is replaced.

    Raises:
      InputError: what has this name is no file, or a symbolic link.
    """
    if os.path.lexists(path) and (path.is_symlink() or not path.is_file()):
        raise InputError(f"{path} is to be written, but what is there is not a plain file")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _staging(path) as partial:
        with partial.open("xb") as file:
            file.write(content if isinstance(content, bytes) else content.encode())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)


@contextlib.contextmanager
def atomic_directory(output: Path, num_bytes: int) -> Iterator[Path]:
    """A directory to write to, which becomes `output` if the block is left without an error.

    An error removes it; what a killed process left is removed by the next one that writes beside
    it. All that `output` then holds is on the disk.

    Args:
      output: the directory that appears, within one that is there.
      num_bytes: how much will be written.

    Raises:
      InputError: `output` exists, another process is writing it, or the disk is full.
    """
    if os.path.lexists(output):
        raise InputError(f"output {output} exists already: give another one, or remove it")
    try:
        with _staging(output, alone=True) as directory:
            require_space(output, num_bytes)
            directory.mkdir()
            yield directory
            _sync(directory)
            if os.path.lexists(output):
                raise InputError(f"output {output} exists by now: another process made it")
            directory.rename(output)
            _sync(output.parent)
    except OSError as error:
        if is_full(error):
            raise full_disk(output, num_bytes) from error
        raise


def remove(directory: Path) -> None:
    """Removes a directory that the caller knows to be its own, at once: no half of it is left.

    A symbolic link is not followed, and not removed.
    """
    if not directory.is_symlink():
        with _staging(directory) as doomed:
            directory.rename(doomed)


def set_aside(path: Path, why: str) -> Path:
    """Gives what has a name another one that is free, such as `380.damaged`.

    Returns:
      Its path from then on.
    """
    return path.rename(_free_name(path, why))


def copy_aside(path: Path, why: str) -> Path:
    """Copies a file to a name that is free, such as `metrics.jsonl.damaged`.

    Returns:
      The path of the copy.
    """
    with path.open("rb") as file, _free_name(path, why).open("xb") as copy:
        shutil.copyfileobj(file, copy)
    return Path(copy.name)


def require_space(output: Path, num_bytes: int) -> None:
    """Refuses to begin what does not fit.

    Args:
      output: what will be written.
      num_bytes: how much that is.

    Raises:
      InputError: less is free on its disk; the message says how much.
    """
    if shutil.disk_usage(_existing(output)).free < num_bytes:
        raise full_disk(output, num_bytes)


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk is full or a quota used up, in Python's words or C++'s."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(os.strerror(number) in str(error) for number in (errno.ENOSPC, errno.EDQUOT))


def full_disk(output: Path, num_bytes: int) -> InputError:
    """The error of a disk on which `num_bytes` were to be written."""
    free = shutil.disk_usage(_existing(output)).free
    return InputError(
        f"the disk of {output} is full: {format_bytes(num_bytes)} are needed, and "
        f"{format_bytes(free)} are free"
    )


def format_bytes(number: float) -> str:
    """`number` of bytes to about three digits: 812 B, 4.21 kB, 5.2 MB, 2.48 GB."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= unit:
            return f"{number / unit:.3g} {name}"
    return f"{number:.0f} B"


@contextlib.contextmanager
def _staging(path: Path, *, alone: bool = False) -> Iterator[Path]:
    """Where something may be written or moved to, on the disk of `path`; removed in the end.

    Args:
      path: what it is for.
      alone: whether another process that writes `path` is an error.
    """
    for directory, target in _abandoned_or_live(path.parent):
        if target is None:
            shutil.rmtree(directory, ignore_errors=True)
        elif alone and target == path.name:
            raise InputError(f"another process is writing to {path}")
    directory, mark = _make_staging(path)
    try:
        yield directory / _CONTENT
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        mark.close()


def _make_staging(path: Path) -> tuple[Path, TextIO]:
    """A new staging directory and its mark, which is locked for as long as it is open."""
    while True:
        directory = path.with_name(_PREFIX + secrets.token_hex(16))
        directory.mkdir()  # fails where anything, be it a link, has this name
        try:
            mark = (directory / _MARK).open("x", encoding="utf-8")
        except FileNotFoundError:
            continue  # another process took it for an abandoned one before it had a mark
        mark.write(f"{directory.name}\n{path.name}")
        mark.flush()
        fcntl.flock(mark, fcntl.LOCK_EX)
        if (directory / _MARK).exists():
            return directory, mark
        mark.close()  # and here, before the mark was locked


def _abandoned_or_live(parent: Path) -> Iterator[tuple[Path, str | None]]:
    """Every staging directory in `parent`; what it is for, or None if its process is gone.

    It is one if it has such a name, is no symbolic link, and holds a mark that says this name.
    """
    for entry in list(os.scandir(parent)):
        if not _NAME.fullmatch(entry.name) or not entry.is_dir(follow_symlinks=False):
            continue
        directory = Path(entry.path)
        try:
            with open(directory / _MARK, "r+", opener=_open_no_link, encoding="utf-8") as mark:
                name, _, target = mark.read().partition("\n")
                if name != entry.name:
                    continue
                try:
                    fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    yield directory, target
                else:
                    yield directory, None  # removed by the caller while it is locked
        except FileNotFoundError:
            with contextlib.suppress(OSError):
                directory.rmdir()  # it was killed before it had a mark; only if it holds nothing
        except OSError:
            continue  # of another user, or a mark that is no file


def _free_name(path: Path, why: str) -> Path:
    """A name beside a path that nothing has, not even a link to nothing."""
    names = (f"{path.name}.{why}{number}" for number in ("", *(f".{n}" for n in range(2, 10**6))))
    return next(p for p in map(path.with_name, names) if not os.path.lexists(p))


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW)


def _existing(path: Path) -> Path:
    """The nearest directory above a path, or the path itself, that is there."""
    return next(p for p in (path, *path.absolute().parents) if p.exists())


def _sync(directory: Path) -> None:
    number = os.open(directory, os.O_RDONLY)
    os.fsync(number)
    os.close(number)
