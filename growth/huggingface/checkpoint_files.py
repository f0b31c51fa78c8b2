"""The files of a checkpoint: `config.json`, one file of tensors, or several and their index."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from growth.errors import InputError
from growth.huggingface.tensor_files import (
    CheckpointFileError,
    StoredTensor,
    TensorFileWriter,
    TensorSpec,
    stored_tensors,
)

CONFIG = "config.json"
# Where tensors are: in the first, or in files that the second names.
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

# The tensors of each file by name.
Shards = Mapping[str, Mapping[str, TensorSpec]]


def read_json(directory: Path, name: str) -> dict[str, Any]:
    """What one of the JSON files of a checkpoint says.

    Raises:
      InputError: there is no such file.
      CheckpointFileError: it is no JSON object.
    """
    path = directory / name
    if not path.is_file():
        raise InputError(f"{directory} is no checkpoint: it has no {name}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointFileError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointFileError(f"{path} is not a JSON object")
    return content


def locate_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Where each tensor of a checkpoint is; reads the headers of its files.

    Raises:
      CheckpointFileError: a file is missing or truncated, or the index is wrong.
    """
    if (directory / INDEX).is_file():
        return _locate_by_index(directory)
    path = directory / SINGLE
    if not path.is_file():
        others = [p.name for p in directory.glob("*.bin")]
        hint = f"; {others[0]} must be converted to safetensors first" if others else ""
        raise CheckpointFileError(f"{directory} has neither {SINGLE} nor {INDEX}{hint}")
    return stored_tensors(path)


def _locate_by_index(directory: Path) -> dict[str, StoredTensor]:
    weight_map = read_json(directory, INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointFileError(f"{directory / INDEX} has no weight_map")
    paths = {name: directory / file for name, file in weight_map.items()}
    for path in dict.fromkeys(paths.values()):
        if not path.is_file():
            raise CheckpointFileError(f"{INDEX} names {path.name}, but {path} is not there")
    held = {path: stored_tensors(path) for path in dict.fromkeys(paths.values())}
    for name, path in paths.items():
        if name not in held[path]:
            raise CheckpointFileError(f"{INDEX} says that {path.name} has {name}, but it has not")
    return {name: held[path][name] for name, path in paths.items()}


def shard(specs: Mapping[str, TensorSpec], max_bytes: int) -> dict[str, dict[str, TensorSpec]]:
    """Splits tensors into files of at most so many bytes, one tensor at least in each.

    Returns:
      The tensors of each file, by its name: `model.safetensors`, or `model-00001-of-00003...`.
    """
    files: list[dict[str, TensorSpec]] = [{}]
    filled = 0
    for name, spec in specs.items():
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


def index_of(shards: Shards) -> dict[str, Any]:
    """What `model.safetensors.index.json` says of several files."""
    specs = [spec for held in shards.values() for spec in held.values()]
    return {
        "metadata": {
            "total_parameters": sum(spec.size for spec in specs),
            "total_size": sum(spec.bytes for spec in specs),
        },
        "weight_map": {name: file for file, held in shards.items() for name in sorted(held)},
    }


def write_checkpoint(
    directory: Path,
    config: Mapping[str, Any],
    shards: Shards,
    arrays_of: Callable[[Sequence[str]], Iterable[np.ndarray]],
) -> None:
    """Writes `config.json`, all tensors, and the index where they are in several files.

    Args:
      directory: where; it is there.
      config: what `config.json` says.
      shards: the tensors of each file.
      arrays_of: gives the tensors of some names, in that order.
    """
    _write_json(directory / CONFIG, config)
    if len(shards) > 1:
        _write_json(directory / INDEX, index_of(shards))
    for file, held in shards.items():
        with TensorFileWriter(directory / file, held) as writer:
            for array in arrays_of(writer.names):
                writer.write(array)


def parse_bytes(size: int | str) -> int:
    """A number of bytes, also where it is written as "5GB" or "500MB".

    Raises:
      InputError: it is neither.
    """
    units = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
    match = re.fullmatch(r"(\d+)\s*([KMG]?B?)", str(size).strip().upper())
    if not match or match[2] not in units or not int(match[1]):
        raise InputError(f"max_shard_size is {size!r}, but it must be bytes, or like 500MB or 5GB")
    return int(match[1]) * units[match[2]]


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
