"""Safetensors files, one tensor at a time: the format as the safetensors library reads it.

The library writes a file from tensors that are all in memory. Here a file is written tensor by
tensor, since what each is is known beforehand.
"""

import dataclasses
import json
import math
import mmap
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from growth.errors import InputError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

# The dtypes that can be grown, by their names in a file.
DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}


class CheckpointFileError(InputError):
    """A file of a checkpoint is broken; the message names it."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """What a tensor is, without its numbers.

    Attributes:
      shape: its shape.
      dtype: its dtype's name in a file.
    """

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of all entries; raises `KeyError` for a dtype that cannot be grown."""
        return self.size * DTYPES[self.dtype].itemsize


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
      path: the file.
      offset: bytes of the file before it.
      spec: what it is.
    """

    path: Path
    offset: int
    spec: Spec

    def read(self) -> np.ndarray:
        """The tensor, mapped for as long as the array is there.

        Pages of a file that was read would else count as memory used.
        """
        dtype, size = DTYPES[self.spec.dtype], self.spec.size
        if not size:
            return np.empty(self.spec.shape, dtype)
        before = self.offset % mmap.ALLOCATIONGRANULARITY
        with self.path.open("rb") as file:
            pages = mmap.mmap(
                file.fileno(),
                before + self.spec.bytes,
                access=mmap.ACCESS_READ,
                offset=self.offset - before,
            )
        return np.frombuffer(pages, dtype, size, before).reshape(self.spec.shape)


def stored(path: Path) -> dict[str, Stored]:
    """The tensors of a file by name; reads its header only.

    Raises:
      CheckpointFileError: the file is no safetensors file, or it is truncated.
      OSError: it cannot be opened.
    """
    try:
        with safe_open(path, "np"):
            pass  # the library checks everything that can be wrong with a file
    except SafetensorError as error:
        raise CheckpointFileError(
            f"{path} is not a whole safetensors file: {error}; download it again"
        ) from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: Stored(
            path, 8 + length + held["data_offsets"][0], Spec(tuple(held["shape"]), held["dtype"])
        )
        for name, held in header.items()
    }


class Writer:
    """A safetensors file that is written tensor by tensor, in the order of `names`.

    Args:
      path: the file.
      tensors: all that it will hold, by name.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Spec]):
        # Wide dtypes first, so that every tensor is aligned.
        self.names = sorted(tensors, key=lambda name: -DTYPES[tensors[name].dtype].itemsize)
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in self.names:
            spec = tensors[name]
            start, end = end, end + spec.bytes
            header[name] = dict(dtype=spec.dtype, shape=spec.shape, data_offsets=(start, end))
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._file = path.open("wb")
        self._file.write(len(text).to_bytes(8, "little") + text)

    def write(self, array: np.ndarray) -> None:
        """Writes the next tensor."""
        self._file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)

    def close(self) -> None:
        """Returns when the file is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def shards(tensors: Mapping[str, Spec], max_bytes: int) -> dict[str, dict[str, Spec]]:
    """Splits tensors into files of at most so many bytes, one tensor at least in each.

    Returns:
      The tensors of each file, by its name: `model.safetensors`, or `model-00001-of-00003...`.
    """
    files: list[dict[str, Spec]] = [{}]
    filled = 0
    for name, spec in tensors.items():
        if files[-1] and filled + spec.bytes > max_bytes:
            files.append({})
            filled = 0
        files[-1][name] = spec
        filled += spec.bytes
    if len(files) == 1:
        return {SINGLE: files[0]}
    return {
        f"model-{number:05}-of-{len(files):05}.safetensors": held
        for number, held in enumerate(files, start=1)
    }


def index(files: Mapping[str, Mapping[str, Spec]]) -> dict[str, Any]:
    """What `model.safetensors.index.json` says of several files."""
    every: Sequence[Spec] = [spec for held in files.values() for spec in held.values()]
    return {
        "metadata": {
            "total_parameters": sum(spec.size for spec in every),
            "total_size": sum(spec.bytes for spec in every),
        },
        "weight_map": {name: file for file, held in files.items() for name in sorted(held)},
    }


def write_files(
    directory: Path,
    config: Mapping[str, Any],
    files: Mapping[str, Mapping[str, Spec]],
    arrays: Callable[[Sequence[str]], Iterable[np.ndarray]],
) -> None:
    """Writes `config.json`, all tensors, and the index where they are in several files.

    Args:
      directory: where; it is there.
      config: what `config.json` says.
      files: the tensors of each file.
      arrays: gives the tensors of some names, in that order.
    """
    write_json(directory / "config.json", config)
    if len(files) > 1:
        write_json(directory / INDEX, index(files))
    for file, held in files.items():
        with Writer(directory / file, held) as writer:
            for array in arrays(writer.names):
                writer.write(array)


def code(dtype: str) -> str:
    """The name in a file of a dtype, such as "float32".

    Raises:
      InputError: it is none that can be grown.
    """
    names = {kind.name: code for code, kind in DTYPES.items()}
    if dtype not in names:
        raise InputError(f"dtype is {dtype!r}, but it must be one of {', '.join(names)}")
    return names[dtype]


def number_of_bytes(size: int | str) -> int:
    """A number of bytes, also where it is written as "5GB" or "500MB"."""
    units = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
    match = re.fullmatch(r"(\d+)\s*([KMG]?B?)", str(size).strip().upper())
    if not match or match[2] not in units or not int(match[1]):
        raise InputError(f"max_shard_size is {size!r}, but it must be bytes, or like 500MB or 5GB")
    return int(match[1]) * units[match[2]]


def write_json(path: Path, content: Any) -> None:
    """Writes one of the files beside the tensors."""
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
