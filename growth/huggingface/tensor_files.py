"""Safetensors files, one tensor at a time: the format as the safetensors library reads it.

The library writes a file from tensors that are all in memory. Here a file is written tensor by
tensor, since what each is is known beforehand.
"""

import dataclasses
import json
import math
import mmap
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import ml_dtypes
import numpy as np

from growth.errors import InputError

# The dtypes that can be grown, by their names in a file.
DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}

# Entries that are looked at at once.
_PART = 1 << 20


class CheckpointFileError(InputError):
    """A file of a checkpoint is broken; the message names it."""


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """What a tensor is, without its numbers.

    Attributes:
      shape: its shape.
      dtype: its dtype's name in a file, a key of `DTYPES` where it can be grown.
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
class StoredTensor:
    """A tensor in a file.

    Attributes:
      path: the file.
      offset: bytes of the file before it.
      spec: what it is.
    """

    path: Path
    offset: int
    spec: TensorSpec

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


def hold_the_same(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors have the same shape and the same numbers; NaN is no number.

    They are read in parts, so that little memory is taken.
    """
    if one.spec.shape != other.spec.shape:
        return False
    first, second = one.read().reshape(-1), other.read().reshape(-1)
    for start in range(0, one.spec.size, _PART):
        part = slice(start, start + _PART)
        if not np.array_equal(first[part].astype(np.float64), second[part].astype(np.float64)):
            return False
    return True


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name; reads its header only.

    Raises:
      CheckpointFileError: the file is no safetensors file, or it is truncated.
      InputError: the safetensors library is not installed.
      OSError: the file cannot be opened.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise InputError(
            "safetensors files are read by the library safetensors, which is not installed: "
            "pip install 'flax-growth[huggingface]'"
        ) from error
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
        name: StoredTensor(
            path,
            8 + length + entry["data_offsets"][0],
            TensorSpec(tuple(entry["shape"]), entry["dtype"]),
        )
        for name, entry in header.items()
    }


class TensorFileWriter:
    """A safetensors file that is written tensor by tensor, in the order of `names`.

    Args:
      path: the file.
      specs: all tensors that it will hold, by name.
    """

    def __init__(self, path: Path, specs: Mapping[str, TensorSpec]):
        # Wide dtypes first, so that every tensor is aligned.
        self.names = sorted(specs, key=lambda name: -DTYPES[specs[name].dtype].itemsize)
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name in self.names:
            spec = specs[name]
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


def dtype_code(dtype: str) -> str:
    """The name in a file of a dtype, such as "float32".

    Raises:
      InputError: it is none that can be grown.
    """
    codes = {known.name: code for code, known in DTYPES.items()}
    if dtype not in codes:
        raise InputError(f"dtype is {dtype!r}, but it must be one of {', '.join(codes)}")
    return codes[dtype]
